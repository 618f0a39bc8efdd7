"""The engine for machines without vLLM: transformers, batched, with the same interface."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fortifai_ray.engines.checkpoints import architecture, is_adapter, merge_adapter, whole_model
from fortifai_ray.engines.engine import DecodingConfig, EngineConfig, check_lengths
from fortifai_ray.engines.pretrained import causal_config, end_of_text_ids, load_network

if TYPE_CHECKING:
    import torch

PAD = 0  # always masked out


class HuggingFaceEngine:
    """An ``Engine`` that holds one transformers model. Rows are decoded ``max_num_seqs`` at a time, left-padded.

    Args:
        config: its sizes.
        gpu: whether it runs on a GPU.
    """

    def __init__(self, config: EngineConfig, gpu: bool = False) -> None:
        self.config = config
        self.device = "cuda" if gpu else "cpu"
        self._model: Any = None
        self.architecture = ""
        self._longest = 0
        self._end_ids: list[int] = []

    def start(self, config_folder: Path) -> None:
        self.stop()
        allowed = causal_config(config_folder).get_text_config().max_position_embeddings
        self._longest = min(allowed, self.config.max_model_len or allowed)
        self.architecture = architecture(config_folder)

    def stop(self) -> None:
        self._model = None
        self.architecture = ""

    def load(self, checkpoint: Path) -> None:
        import torch

        base = whole_model(checkpoint)
        auto = "bfloat16" if self.device == "cuda" else "float32"
        dtype = getattr(torch, auto if self.config.dtype == "auto" else self.config.dtype)
        read_as = torch.float32 if is_adapter(checkpoint) else dtype  # merge first, then round once
        model = load_network(base, read_as)
        if is_adapter(checkpoint):
            model = merge_adapter(model, checkpoint).to(dtype)
        self._model = model.to(self.device).eval()
        self._end_ids = end_of_text_ids(base)

    def generate(self, prompts: list[list[int]], seeds: list[int], decoding: DecodingConfig) -> list[list[int]]:
        check_lengths(prompts, decoding, self._longest)
        size = max(1, self.config.max_num_seqs // decoding.num_beams)
        generated: list[list[int]] = []
        for first in range(0, len(prompts), size):
            some = prompts[first : first + size]
            if decoding.num_beams > 1:
                generated += self._search_beams(some, decoding)
            else:
                generated += self._generate_batch(some, seeds[first : first + size], decoding)
        return generated

    def _search_beams(self, prompts: list[list[int]], decoding: DecodingConfig) -> list[list[int]]:
        """transformers' own beam search (as in Shumailov et al. 2024 and ForTIFAI): each likeliest beam."""
        import torch

        ids, attended = self._left_padded(prompts)
        ends = None if decoding.ignore_eos else self._end_ids
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=ids,
                attention_mask=attended,
                do_sample=False,
                num_beams=decoding.num_beams,
                repetition_penalty=decoding.repetition_penalty,
                max_new_tokens=decoding.max_new_tokens,
                eos_token_id=ends,
                pad_token_id=PAD,
            )
        rows = output[:, ids.shape[1] :].tolist()
        return rows if ends is None else [_until_end(row, ends) for row in rows]

    def _left_padded(self, prompts: list[list[int]]) -> "tuple[torch.Tensor, torch.Tensor]":
        """Prompts as ids and attention mask, ``[rows, longest]``."""
        import torch

        rows, width = len(prompts), max(map(len, prompts))
        ids = torch.full((rows, width), PAD)
        attended = torch.zeros(rows, width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            attended[row, width - len(prompt) :] = 1
        return ids.to(self.device), attended.to(self.device)

    def _generate_batch(self, prompts: list[list[int]], seeds: list[int], decoding: DecodingConfig) -> list[list[int]]:
        import torch

        ids, attended = self._left_padded(prompts)
        rows, width = ids.shape
        noise = uniform_noise(seeds, decoding.max_new_tokens).to(self.device)
        ends = torch.tensor([] if decoding.ignore_eos else self._end_ids, dtype=torch.long, device=self.device)
        ended = torch.zeros(rows, dtype=torch.bool, device=self.device)
        lengths = torch.full((rows,), decoding.max_new_tokens, device=self.device)
        inputs, cache = ids, None
        with torch.inference_mode():
            for step in range(decoding.max_new_tokens):
                positions = (attended.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
                output = self._model(
                    input_ids=inputs,
                    attention_mask=attended,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                cache = output.past_key_values
                chosen = choose(output.logits[:, -1].float(), ids, attended, noise[:, step], decoding)
                inputs = chosen[:, None]
                ids = torch.cat([ids, inputs], 1)
                attended = torch.cat([attended, torch.ones_like(inputs)], 1)
                ending = torch.isin(chosen, ends) & ~ended
                lengths[ending] = step + 1
                ended |= ending
                if ended.all():
                    break
        return [ids[row, width : width + int(lengths[row])].tolist() for row in range(rows)]


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
    attended: "torch.Tensor",
    noise: "torch.Tensor",
    decoding: DecodingConfig,
) -> "torch.Tensor":
    """The next token of each row, in vLLM's order: repetition penalty, temperature, top-k, top-p, draw.

    Args:
        logits: ``[rows, vocabulary]``, float32.
        ids: ``[rows, length]``, the row so far, left-padded.
        attended: ``[rows, length]``, 0 where ``ids`` is padding.
        noise: ``[rows]``, uniform in [0, 1): the point at which the cumulative distribution is cut.
        decoding: how tokens are drawn.

    Returns:
        ``[rows]`` token ids.
    """
    import torch

    if decoding.repetition_penalty != 1.0:
        seen = torch.zeros_like(logits).scatter_add_(1, ids, attended.to(logits.dtype)) > 0
        penalised = torch.where(logits > 0, logits / decoding.repetition_penalty, logits * decoding.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if decoding.temperature == 0:
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
