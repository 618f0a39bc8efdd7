"""Steps that look for synthetic text: by the mark that it was written with, or by a classifier."""

from dataclasses import replace
from typing import ClassVar, Literal, Protocol, cast

import numpy as np
from pydantic import Field

from fortifai_ray.recipe.curation.base import (
    AUROC,
    DETECTED,
    FOUND,
    FOUND_RIGHT,
    REALLY,
    Content,
    Items,
    Kept,
    Step,
    Truth,
    ratio,
)
from fortifai_ray.recipe.pools import Draw, TrainingSet

_ROUNDING = 1e-9  # of sums of shares that make a whole


class MarkedTexts(Items, Protocol):
    """Texts that may have been written under a watermark."""

    def z_scores(self, repeats: bool) -> np.ndarray:
        """(B, n) How many green tokens each text has, in standard deviations above chance; ``repeats``: a phrase that
        a text repeats counts each time."""

    def marked(self) -> np.ndarray:
        """(B, n) Whether each text was written under the watermark."""


class Watermark(Step):
    """What bears the watermark is removed (Kirchenbauer et al. 2023, equation 3); nothing is written in its place."""

    takes: ClassVar[tuple[Content, ...]] = ("texts",)
    truth_is: ClassVar[Truth | None] = "unmarked"
    measures: ClassVar[tuple[str, ...]] = (REALLY, DETECTED)

    kind: Literal["watermark"] = "watermark"
    z: float = Field(
        4.0, description="removed above this z-score; of text without the mark, 3 in 100,000 rows at the paper's 4"
    )
    repeats: bool = Field(
        False,
        description="a phrase that a row repeats counts each time, as in the paper and transformers; a text that "
        "collapses repeats itself, and is then found marked or not by a few pairs of tokens",
    )

    def let_pass(self, items: Items, count: int, block: int) -> Kept:
        return [np.flatnonzero(own <= self.z) for own in cast(MarkedTexts, items).z_scores(self.repeats)]

    def truth(self, items: Items) -> np.ndarray:
        return ~cast(MarkedTexts, items).marked()

    def measure(self, items: Items, passed: Kept, true: np.ndarray | None) -> dict[str, np.ndarray]:
        assert true is not None, "a watermark's truth is known"
        stopped = np.ones_like(true)
        for own, kept in zip(stopped, passed, strict=True):
            own[kept] = False
        right = (stopped & ~true).sum(1)
        return {REALLY: ratio(right, stopped.sum(1)), DETECTED: ratio(right, (~true).sum(1))}


class Detector(Step):
    """A classifier judges a pool of unlabelled data, and what it takes for human is drawn more often.

    This is the importance resampling of Drayson et al. 2025. The pool is the regime's training set. The classifier was
    trained on generation 0's human data against what generation 0 wrote.
    """

    takes: ClassVar[tuple[Content, ...]] = ("samples", "texts")
    of_pool: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = (FOUND_RIGHT, FOUND, AUROC)
    version: ClassVar[int] = 2  # tokens of arrays are hashed as those of texts

    kind: Literal["detector"] = "detector"
    bias: float = Field(
        1.0,
        ge=0.0,
        le=100.0,
        description="an item is drawn in proportion to its probability of being human, to this power (the authors' "
        "bias factor); 0 draws blindly",
    )
    escape: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="share of the synthetic items that were rewritten to escape: the classifier judges each as if it "
        "were some human item of generation 0",
    )

    def let_pass(self, items: Items, count: int, block: int) -> Kept:
        raise AssertionError("a detector judges the next generation's pool, never written items alone")


def resampled(data: TrainingSet, weights: np.ndarray, random: np.random.Generator) -> TrainingSet:
    """As many units as a training set has, within two items, drawn from its items in proportion to their weights.

    Systematic resampling (Kitagawa 1996): an item that is due c times is drawn ⌊c⌋ or ⌈c⌉ times, c on average. So equal
    weights give the set itself, where independent draws would lose more than a third of its different items.

    Args:
        data: one chain's.
        weights: of its items, in the order of its draws.
    """
    sizes = np.concatenate([np.zeros(0, np.int64), *(draw.pool.sizes[draw.items] for draw in data.draws)])
    weights = np.where(sizes > 0, weights, 0.0)  # a row without tokens is nothing to draw
    shuffled = random.permutation(len(sizes))
    order = shuffled[np.argsort(sizes[shuffled], kind="stable")]  # by size: rounding then costs two items at most
    due, start = weights * (sizes.sum() / max((weights * sizes).sum(), np.finfo(float).tiny)), random.random()
    copies = np.zeros(len(sizes), np.int64)
    copies[order] = np.diff(np.floor(np.cumsum(due[order]) + start + _ROUNDING), prepend=0)
    ends = np.cumsum([len(draw.items) for draw in data.draws])[:-1]
    parts = [
        Draw(draw.pool, np.repeat(draw.items, times))
        for draw, times in zip(data.draws, np.split(copies, ends), strict=True)
    ]
    return replace(data, draws=tuple(part for part in parts if len(part.items)))
