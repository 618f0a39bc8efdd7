"""Regimes: how a generation's training set is made from human and synthetic data.

A regime is a pure function of pools of items and their sizes. It never sees a token or a point: it says which items of
which pool are drawn, and the family fetches them. A pool is known by the hash of its content, so the draw's own hash
is the hash of the training set, and two chains that draw the same items share everything computed from them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator


@dataclass(frozen=True)
class Pool:
    """A data set to draw from: its content's hash, and the size of each item (tokens of a row; 1 for a sample)."""

    stage: str
    sizes: np.ndarray
    synthetic: bool

    @cached_property
    def size(self) -> int:
        return int(self.sizes.sum())


@dataclass(frozen=True)
class Draw:
    """Items of one pool, in the order in which they were drawn."""

    pool: Pool
    items: np.ndarray

    @cached_property
    def size(self) -> int:
        return int(self.pool.sizes[self.items].sum())


@dataclass(frozen=True)
class TrainingSet:
    """What one generation is trained on. Sizes are in the pools' unit (tokens or samples)."""

    draws: tuple[Draw, ...]

    def _size(self, synthetic: bool) -> int:
        return sum(draw.size for draw in self.draws if draw.pool.synthetic == synthetic)

    @property
    def human_size(self) -> int:
        return self._size(synthetic=False)

    @property
    def synthetic_size(self) -> int:
        return self._size(synthetic=True)

    @property
    def synthetic_ratio(self) -> float:
        """Realised synthetic ratio: the share of the training units that is synthetic; NaN for an empty set."""
        total = self.human_size + self.synthetic_size
        return self.synthetic_size / total if total else float("nan")

    def describe(self) -> list[dict[str, Any]]:
        """The draws as JSON for a stage key: each pool's hash and a hash of the drawn items, in order."""
        return [
            {"pool": draw.pool.stage, "items": hashlib.sha256(draw.items.astype("<i8").tobytes()).hexdigest()[:32]}
            for draw in self.draws
        ]


def take(pool: Pool, size: float, order: np.ndarray | None = None) -> Draw:
    """The first items of ``pool`` (in ``order``, or as they lie) whose sizes sum to ``size``, to the nearest item.

    All of the pool where it is smaller than ``size``.
    """
    items = np.arange(len(pool.sizes)) if order is None else order
    ends = np.cumsum(pool.sizes[items])
    middles = ends - pool.sizes[items] / 2  # an item is in when more than half of it fits
    return Draw(pool, items[: int(np.searchsorted(middles, size, side="left"))])


class _Regime(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def asked_ratio(self) -> float | None:
        """The synthetic ratio that the recipe asks for, where it asks for one."""
        return None

    def synthetic_size(self, budget: int) -> float:
        """Units to generate after each generation, for a budget (generation 0's human training set) in units."""
        return float(budget)

    def training_set(self, human: Draw, synthetic: Sequence[Pool], generation: int) -> TrainingSet:
        """The training set of ``generation``, given generation 0's human draw and every synthetic corpus so far."""
        if generation == 0:
            return TrainingSet((human,))
        return TrainingSet(self._mix(human, synthetic))

    def _mix(self, human: Draw, synthetic: Sequence[Pool]) -> tuple[Draw, ...]:
        raise NotImplementedError


class Replace(_Regime):
    """Each generation is trained on the last one's output alone (Shumailov et al. 2024, no original data kept)."""

    kind: Literal["replace"] = "replace"

    @property
    def asked_ratio(self) -> float:
        return 1.0

    def _mix(self, human: Draw, synthetic: Sequence[Pool]) -> tuple[Draw, ...]:
        return (take(synthetic[-1], human.size),)


class Accumulate(_Regime):
    """All data so far: the human set and every synthetic corpus, so the set grows (Gerstgrasser et al. 2024)."""

    kind: Literal["accumulate"] = "accumulate"

    def _mix(self, human: Draw, synthetic: Sequence[Pool]) -> tuple[Draw, ...]:
        return (human, *(take(pool, human.size) for pool in synthetic))


class Mixed(_Regime):
    """A fixed budget, a share ``synthetic_ratio`` of it from the last generation, the rest kept human data.

    The budget is generation 0's human training set; the human share is its first items, the same in each generation.
    ``synthetic_ratio: 1`` is ``replace``.
    """

    kind: Literal["mixed"] = "mixed"
    synthetic_ratio: float

    @field_validator("synthetic_ratio")
    @classmethod
    def _is_a_share(cls, ratio: float) -> float:
        if not 0.0 <= ratio <= 1.0:
            raise ValueError(f"a share of the training tokens lies in [0, 1]: {ratio} does not")
        return ratio

    @property
    def asked_ratio(self) -> float:
        return self.synthetic_ratio

    def synthetic_size(self, budget: int) -> float:
        return self.synthetic_ratio * budget

    def _mix(self, human: Draw, synthetic: Sequence[Pool]) -> tuple[Draw, ...]:
        kept = take(human.pool, (1.0 - self.synthetic_ratio) * human.size, order=human.items)
        drawn = take(synthetic[-1], self.synthetic_ratio * human.size)
        return tuple(draw for draw in (kept, drawn) if len(draw.items))


Regime = Annotated[Replace | Accumulate | Mixed, Field(discriminator="kind")]
