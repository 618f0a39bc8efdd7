"""Held-out perplexity of a causal LM."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fortifai_ray.engines.adapters import load_causal_lm

VERSION = 1  # bump when the same model and text give other scores


@dataclass(frozen=True)
class PerplexityReport:
    perplexity: float
    targets: int
    evaluate_seconds: float


def perplexity(model: Path, blocks: np.ndarray, *, batch_size: int, threads: int = 1) -> PerplexityReport:
    """exp of the mean negative log-likelihood per token, over ``blocks`` (int32 of shape (blocks, block_size)).

    Each block is scored on its own; its first token is context only. The sum is taken in float64; a mean that no
    float can exponentiate gives infinity.
    """
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_causal_lm(model, torch.float32).to(device)
    started, total = time.perf_counter(), 0.0
    with torch.inference_mode():
        for start in range(0, len(blocks), batch_size):
            tokens = torch.from_numpy(np.array(blocks[start : start + batch_size])).long().to(device)
            logits = network(input_ids=tokens, use_cache=False).logits[:, :-1].float()
            losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
            total += losses.double().sum().item()
    targets = blocks.shape[0] * (blocks.shape[1] - 1)
    mean = total / targets
    value = math.exp(mean) if mean < 700 else math.inf if not math.isnan(mean) else math.nan
    return PerplexityReport(value, targets, time.perf_counter() - started)
