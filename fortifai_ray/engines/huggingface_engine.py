"""The engine for machines without vLLM and models that it does not serve: transformers, with the same interface."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fortifai_ray.engines.causal_cache import CachedModel, row_limit
from fortifai_ray.engines.checkpoints import architecture, is_adapter, merge_adapter, whole_model
from fortifai_ray.engines.engine import NO_DRAW, DecodingConfig, EngineConfig, check_lengths
from fortifai_ray.engines.pretrained import causal_config, end_of_text_ids, load_network
from fortifai_ray.engines.watermark import GreenLists

if TYPE_CHECKING:
    import torch

_LONGEST = 2048  # of models that take rows of any length
PAD = 0  # what follows the end of a beam


class HuggingFaceEngine:
    """An ``Engine`` that holds one transformers model of any architecture.

    Rows with prompts of one length are decoded together, ``max_num_seqs`` at a time, and never padded: what a padded
    row's attention, positions or state would be differs by architecture (a state-space model has no mask), and a corpus
    has prompts of one length anyway.

    Args:
        config: its sizes.
        gpu: whether it runs on a GPU.
    """

    def __init__(self, config: EngineConfig, gpu: bool = False) -> None:
        self.config = config
        self.device = "cuda" if gpu else "cpu"
        self._model: Any = None
        self._lists: GreenLists | None = None  # of the watermark in use
        self.architecture = ""
        self._longest = 0
        self._end_ids: list[int] = []

    def start(self, config_folder: Path) -> None:
        self.stop()
        limit = row_limit(causal_config(config_folder))
        wanted = self.config.max_model_len or limit or _LONGEST
        self._longest = min(wanted, limit or wanted)
        self.architecture = architecture(config_folder)

    def stop(self) -> None:
        self._model = self._lists = None
        self.architecture = ""

    def load(self, checkpoint: Path) -> None:
        import torch
        from transformers import GenerationConfig

        base = whole_model(checkpoint)
        auto = "bfloat16" if self.device == "cuda" else "float32"
        dtype = getattr(torch, auto if self.config.dtype == "auto" else self.config.dtype)
        read_as = torch.float32 if is_adapter(checkpoint) else dtype  # merge first, then round once
        model = load_network(base, read_as)
        if is_adapter(checkpoint):
            model = merge_adapter(model, checkpoint).to(dtype)
        model.generation_config = GenerationConfig()  # where a recipe says that a text goes on, it ends nowhere
        self._model = CachedModel(model.to(self.device).eval())
        self._end_ids = end_of_text_ids(base)

    def generate(self, prompts: list[list[int]], seeds: list[int], decoding: DecodingConfig) -> list[list[int]]:
        check_lengths(prompts, decoding, self._longest)
        size = max(1, self.config.max_num_seqs // decoding.num_beams)
        of_length: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            of_length.setdefault(len(prompt), []).append(row)
        generated: list[list[int]] = [[]] * len(prompts)
        for rows in (some[at : at + size] for some in of_length.values() for at in range(0, len(some), size)):
            batch, noise = [prompts[row] for row in rows], [seeds[row] for row in rows]
            if decoding.num_beams > 1:
                written = self._search_beams(batch, decoding)
            else:
                written = self._generate_batch(batch, noise, decoding)
            for row, text in zip(rows, written, strict=True):
                generated[row] = text
        return generated

    def _search_beams(self, prompts: list[list[int]], decoding: DecodingConfig) -> list[list[int]]:
        """transformers' own beam search (as in Shumailov et al. 2024 and ForTIFAI): each likeliest beam."""
        import torch

        ids = torch.tensor(prompts, device=self.device)
        ends = None if decoding.ignore_eos else self._end_ids
        with torch.inference_mode():
            output = self._model.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                use_cache=self._model.cached,
                num_beams=decoding.num_beams,
                repetition_penalty=decoding.repetition_penalty,
                max_new_tokens=decoding.max_new_tokens,
                eos_token_id=ends,
                logits_processor=self._forbidding_ends(ids.shape[1], decoding),
                pad_token_id=PAD,
            )
        rows = output[:, ids.shape[1] :].tolist()
        return rows if ends is None else [_until_end(row, ends) for row in rows]

    def _forbidding_ends(self, width: int, decoding: DecodingConfig) -> Any:
        """transformers' LogitsProcessorList, which forbids the end-of-text tokens among the first ``min_new_tokens`` of
        rows after prompts of ``width``."""
        from transformers import LogitsProcessorList, MinNewTokensLengthLogitsProcessor

        if not (decoding.min_new_tokens and self._end_ids):
            return LogitsProcessorList()
        return LogitsProcessorList(
            [MinNewTokensLengthLogitsProcessor(width, decoding.min_new_tokens, self._end_ids, device=self.device)]
        )

    def _generate_batch(self, prompts: list[list[int]], seeds: list[int], decoding: DecodingConfig) -> list[list[int]]:
        import torch

        ids = torch.tensor(prompts, device=self.device)
        rows, width = ids.shape
        noise = uniform_noise(seeds, decoding.max_new_tokens).to(self.device)
        ends = torch.tensor([] if decoding.ignore_eos else self._end_ids, dtype=torch.long, device=self.device)
        ended = torch.zeros(rows, dtype=torch.bool, device=self.device)
        lengths = torch.full((rows,), decoding.max_new_tokens, device=self.device)
        forbid = self._forbidding_ends(width, decoding)
        mark = self._marking(seeds, decoding)
        cache: dict[str, Any] = {}
        with torch.inference_mode():
            for step in range(decoding.max_new_tokens):
                logits, cache = self._model.read(ids, cache, new=1 if step else width, keep=1)
                chosen = choose(mark(ids, forbid(ids, logits[:, 0].float())), ids, noise[:, step], decoding)
                ids = torch.cat([ids, chosen[:, None]], 1)
                ending = torch.isin(chosen, ends) & ~ended
                lengths[ending] = step + 1
                ended |= ending
                if ended.all():
                    break
        return [ids[row, width : width + int(lengths[row])].tolist() for row in range(rows)]

    def _marking(
        self, seeds: list[int], decoding: DecodingConfig
    ) -> "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]":
        """What raises the green logits, ``[rows, vocabulary]``, of the marked rows, given the ids so far."""
        watermark = decoding.watermark
        rows = [] if watermark is None else [row for row, seed in enumerate(seeds) if watermark.marks(seed)]
        if watermark is None or not rows:
            return lambda ids, logits: logits
        if self._lists is None or self._lists.config != watermark:
            self._lists = GreenLists(watermark, self._model.model.config.get_text_config().vocab_size, self.device)
        lists = self._lists

        def mark(ids: "torch.Tensor", logits: "torch.Tensor") -> "torch.Tensor":
            return lists.raised(logits, rows, ids[rows, -watermark.context :].sum(-1).tolist())

        return mark


def _until_end(row: list[int], ends: list[int]) -> list[int]:
    """A row up to and including its first end-of-text token."""
    return row[: next((place + 1 for place, token in enumerate(row) if token in ends), len(row))]


def uniform_noise(seeds: list[int], steps: int) -> "torch.Tensor":
    """Uniform numbers in [0, 1), ``[rows, steps]``, float64: row *i* is a function of ``seeds[i]`` alone."""
    import torch

    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(steps) for seed in seeds]))


def choose(
    logits: "torch.Tensor",
    ids: "torch.Tensor",
    noise: "torch.Tensor",
    decoding: DecodingConfig,
) -> "torch.Tensor":
    """The next token of each row, in vLLM's order: repetition penalty, temperature, top-k, top-p, draw.

    Args:
        logits: ``[rows, vocabulary]``, float32.
        ids: ``[rows, length]``, the row so far.
        noise: ``[rows]``, uniform in [0, 1): the point at which the cumulative distribution is cut.
        decoding: how tokens are drawn.

    Returns:
        ``[rows]`` token ids.
    """
    import torch

    if decoding.repetition_penalty != 1.0:
        seen = torch.zeros_like(logits).scatter_(1, ids, 1.0) > 0
        penalised = torch.where(logits > 0, logits / decoding.repetition_penalty, logits * decoding.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if decoding.temperature < NO_DRAW:
        return logits.argmax(-1)
    probabilities = keep_likeliest((logits / decoding.temperature).softmax(-1), decoding.top_k, decoding.top_p)
    cumulative = probabilities.double().cumsum(-1)
    drawn = torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    return drawn.clamp(max=logits.shape[-1] - 1)


def keep_likeliest(probabilities: "torch.Tensor", top_k: int, top_p: float) -> "torch.Tensor":
    """Zero all but the ``top_k`` likeliest tokens (0: all), then all but the smallest set of mass ``top_p``.

    Args:
        probabilities: ``[rows, vocabulary]``, each row summing to 1.
        top_k: candidates kept, 0 for all.
        top_p: mass kept, of the candidates that ``top_k`` left.

    Returns:
        The kept probabilities, not renormalised.
    """
    import torch

    if 0 < top_k < probabilities.shape[-1]:
        smallest = probabilities.topk(top_k, -1).values[:, -1:]
        probabilities = probabilities * (probabilities >= smallest)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    if top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        needed = ordered.cumsum(-1) - ordered < top_p  # the mass before a token has not reached top_p
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered * needed)
    return probabilities
