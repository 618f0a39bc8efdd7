"""The likelihood of texts under a causal LM: held-out perplexity, and the scores that curation ranks by."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fortifai_ray.engines.checkpoints import load_for_scoring
from fortifai_ray.evaluation.signs.scoring import exp

if TYPE_CHECKING:  # perplexity is measured without Arrow
    import pyarrow as pa

PERPLEXITY_VERSION = 1  # bump when the same model and text give other scores
CURATION_VERSION = 1  # likewise, for curation


@dataclass(frozen=True)
class PerplexityReport:
    perplexity: float
    targets: int
    evaluate_seconds: float


def perplexity(model: Path, blocks: np.ndarray, *, batch_size: int, threads: int = 1) -> PerplexityReport:
    """exp of the mean negative log-likelihood per token, over ``blocks`` (int32 of shape (blocks, block_size)).

    Each block is scored on its own; its first token is context only. The sum is in float64; a mean too large to
    exponentiate gives infinity.
    """
    import torch
    import torch.nn.functional as F

    network = load_for_scoring(model, torch.float32, threads)
    started, total = time.perf_counter(), 0.0
    with torch.inference_mode():
        for start in range(0, len(blocks), batch_size):
            tokens = torch.from_numpy(np.array(blocks[start : start + batch_size])).long().to(network.device)
            logits = network(input_ids=tokens, use_cache=False).logits[:, :-1].float()
            losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
            total += losses.double().sum().item()
    targets = blocks.shape[0] * (blocks.shape[1] - 1)
    return PerplexityReport(exp(total / targets), targets, time.perf_counter() - started)


def perplexity_value(model: Path, blocks: np.ndarray, *, batch_size: int, threads: int = 1) -> float:
    """The value of :func:`perplexity` alone."""
    return perplexity(model, blocks, batch_size=batch_size, threads=threads).perplexity


def row_scores(model: Path, rows: "pa.Table", *, batch_size: int, threads: int = 1) -> np.ndarray:
    """(rows,) The mean log-likelihood (nats) of each row's generated tokens, given its prompt and those before.

    A row without generated tokens scores −inf.
    """
    prompts, generated = rows["prompt_ids"].to_pylist(), rows["generated_ids"].to_pylist()
    texts = [prompt + text for prompt, text in zip(prompts, generated, strict=True)]
    order = np.argsort([len(text) for text in texts], kind="stable")  # similar lengths in a batch: little padding
    network, scores = _Scorer(model, threads), np.empty(len(texts))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        scores[batch] = network.score([texts[i] for i in batch], [len(prompts[i]) for i in batch])
    return scores


def block_scores(model: Path, blocks: np.ndarray, batch_size: int, threads: int = 1) -> np.ndarray:
    """(blocks,) The mean log-likelihood (nats) per token of blocks of text (int32 of shape (blocks, block_size))."""
    network = _Scorer(model, threads)
    scores = [
        network.score(blocks[start : start + batch_size].tolist(), [1] * len(blocks[start : start + batch_size]))
        for start in range(0, len(blocks), batch_size)
    ]
    return np.concatenate(scores)


class _Scorer:
    """A causal LM, loaded once."""

    def __init__(self, model: Path, threads: int) -> None:
        import torch

        self._network = load_for_scoring(model, torch.float32, threads)

    def score(self, texts: list[list[int]], given: list[int]) -> np.ndarray:
        """(texts,) Mean log-likelihood of each text's tokens after its first ``given``. Padding is on the right."""
        import torch
        import torch.nn.functional as F

        longest = max(map(len, texts))
        tokens = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=self._network.device)
        lengths, starts = torch.tensor([len(text) for text in texts]), torch.tensor(given).clamp(min=1)
        place = torch.arange(1, longest)
        counted = ((place >= starts[:, None]) & (place < lengths[:, None])).to(self._network.device)
        with torch.inference_mode():
            logits = self._network(input_ids=tokens, use_cache=False).logits[:, :-1].float()
            losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        total = (losses.view(len(texts), -1).double() * counted).sum(dim=1)
        count = counted.sum(dim=1)
        return torch.where(count > 0, -total / count, -torch.inf).cpu().numpy()
