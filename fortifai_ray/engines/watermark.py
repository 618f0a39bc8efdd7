"""The green-list watermark of Kirchenbauer et al. 2023 (Algorithm 2): its keys, its lists, and its detection.

Before each token, the tokens before it seed a draw of the vocabulary's *green* part, whose logits are raised. Who
knows the key counts green tokens. Lists are drawn on the CPU, whatever computes the logits, so that all engines have
the same: with ``context: 1`` those of transformers' ``WatermarkLogitsProcessor`` (``lefthash``), whose
``WatermarkDetector`` finds what is written here.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import AfterValidator, Field

from fortifai_ray.seeds import derive_seed
from fortifai_ray.validation import Section

if TYPE_CHECKING:
    import torch

KEY = 15485863  # transformers' own hashing key, the millionth prime
_CACHE = 1 << 26  # bytes of lists that are kept, a byte a token of the vocabulary
_LARGEST = 2**64 - 1  # seeds are taken modulo this, as in transformers


def _is_a_part(value: float) -> float:
    if not 0.0 < value < 1.0:
        raise ValueError(f"the green share of the vocabulary lies in (0, 1), both ends excluded: {value:g} does not")
    return value


class WatermarkConfig(Section):
    """How text is marked as it is written."""

    green: Annotated[float, AfterValidator(_is_a_part)] = Field(
        0.25, description="share of the vocabulary that is green at each token, in (0, 1); the paper's γ"
    )
    strength: float = Field(
        2.0, ge=0.0, le=100.0, description="added to the logits of green tokens, before the temperature; the paper's δ"
    )
    key: int = Field(
        0,
        ge=0,
        lt=2**32,
        description=f"secret of the lists, added to transformers' hashing key {KEY}: 0 is its default",
    )
    context: int = Field(
        1, ge=1, le=16, description="tokens before a token whose sum seeds its list; 1 as in the paper and transformers"
    )
    share: float = Field(1.0, ge=0.0, le=1.0, description="share of the rows that is marked, drawn row by row")

    def marks(self, seed: int) -> bool:
        """Whether the row with this sampling seed is marked: a function of the seed alone, so that it is known."""
        return derive_seed(seed, "watermark") < self.share * 2.0**63


class GreenLists:
    """The green lists of a watermark over a vocabulary, kept on a device as they are drawn.

    Raises:
        ValueError: the green part of so small a vocabulary is empty.
    """

    def __init__(self, config: WatermarkConfig, vocabulary: int, device: "torch.device | str" = "cpu") -> None:
        self.config, self.vocabulary, self.device = config, vocabulary, device
        self.size = int(vocabulary * config.green)
        if not self.size:
            raise ValueError(f"watermark.green: {config.green:g} of {vocabulary} tokens is less than one")
        self._after = lru_cache(maxsize=max(64, _CACHE // vocabulary))(self._draw)

    def _draw(self, context: int) -> "torch.Tensor":
        import torch

        source = torch.Generator().manual_seed((KEY + self.config.key) * context % _LARGEST)
        green = torch.zeros(self.vocabulary, dtype=torch.bool)
        green[torch.randperm(self.vocabulary, generator=source)[: self.size]] = True
        return green.to(self.device)

    def after(self, contexts: Sequence[int]) -> "torch.Tensor":
        """The lists after contexts, each given as the sum of its tokens: bool, ``[contexts, vocabulary]``."""
        import torch

        return torch.stack([self._after(context) for context in contexts])

    def raised(self, logits: "torch.Tensor", rows: list[int], contexts: Sequence[int]) -> "torch.Tensor":
        """``logits`` (``[rows, vocabulary]``), in place, with the green ones of ``rows`` raised; ``contexts`` as in
        :meth:`after`, one for each of them."""
        if rows:
            logits[rows] += self.config.strength * self.after(contexts)
        return logits

    def z_scores(
        self, prompts: Sequence[Sequence[int]], generated: Sequence[Sequence[int]], *, repeats: bool = False
    ) -> np.ndarray:
        """How far each row's green tokens are above their expected number, in standard deviations (equation 3).

        z = (G − γT) / √(Tγ(1 − γ)) for G green ones of T tokens. The bound that it gives for text without the mark
        holds where tokens follow different contexts: a phrase that text repeats is counted once, but with ``repeats``
        (transformers' ``ignore_repeated_ngrams=False``).

        Args:
            prompts: the tokens that each row begins with; its last ones seed the first lists.
            generated: the tokens that are tested.

        Returns:
            ``[rows]``, float64; 0 for a row without tokens.
        """
        pairs, owners = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.int64)]
        for row, (prompt, tokens) in enumerate(zip(prompts, generated, strict=True)):
            found = _after_contexts(prompt, tokens, self.config.context)
            found = found if repeats else np.unique(found, axis=0)
            pairs.append(found)
            owners.append(np.full(len(found), row))
        green = self._are_green(np.concatenate(pairs))
        owner, rows = np.concatenate(owners), len(generated)
        total = np.bincount(owner, minlength=rows)
        hits, share = np.bincount(owner, weights=green, minlength=rows), self.config.green
        return (hits - share * total) / np.sqrt(np.maximum(total, 1) * share * (1 - share))

    def _are_green(self, pairs: np.ndarray) -> np.ndarray:
        """Whether each token (second column) is green after its context (first column)."""
        order = np.argsort(pairs[:, 0], kind="stable")
        contexts, counts = np.unique(pairs[:, 0], return_counts=True)
        green = np.zeros(len(pairs), dtype=bool)
        for context, stop, count in zip(contexts.tolist(), np.cumsum(counts), counts, strict=True):
            places = order[stop - count : stop]
            green[places] = self._after(context).cpu().numpy()[pairs[places, 1]]
        return green


def _after_contexts(prompt: Sequence[int], tokens: Sequence[int], context: int) -> np.ndarray:
    """(sum of the ``context`` tokens before it, token) of each of ``tokens``: int64 of shape (tokens, 2)."""
    before = list(prompt)[-context:]
    whole = np.array([*[0] * (context - len(before)), *before, *tokens], dtype=np.int64)
    if not len(tokens):
        return np.zeros((0, 2), np.int64)
    sums = np.lib.stride_tricks.sliding_window_view(whole[:-1], context).sum(axis=1)
    return np.stack([sums, np.asarray(tokens, np.int64)], axis=1)
