"""Pools of human and synthetic items, what is drawn from them, and the training set that the draws are.

A pool is identified by the hash of its content, so that the hash of the draws is that of the training set, and two
chains that draw the same items share everything computed from them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Pool:
    """A data set to draw from: its content's hash, and the size of each item (tokens of a row; 1 for a sample)."""

    stage: str
    sizes: np.ndarray
    synthetic: bool

    @cached_property
    def size(self) -> int:
        return int(self.sizes.sum())

    @cached_property
    def middles(self) -> np.ndarray:
        """The middle of each item, all laid end to end."""
        return middles(self.sizes)

    def drawn(self, items: np.ndarray) -> "tuple[Draw, ...]":
        """Some of its items as draws from the pools that hold them."""
        return (Draw(self, items),)


@dataclass(frozen=True)
class Draw:
    """Items of one pool, in the order in which they were drawn."""

    pool: Pool
    items: np.ndarray

    @cached_property
    def size(self) -> int:
        return int(self.pool.sizes[self.items].sum())


@dataclass(frozen=True)
class Mixture(Pool):
    """Items of several pools as those of one: item i is ``items[i]`` of ``pools[source[i]]``."""

    pools: tuple[Pool, ...]
    source: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, pools: Sequence[Pool], source: np.ndarray, items: np.ndarray) -> "Mixture":
        """The mixture of these pools; it has no stage of its own."""
        sizes = np.concatenate([np.zeros(0), *(pool.sizes for pool in pools)])
        starts = np.cumsum([0, *(len(pool.sizes) for pool in pools)])
        return cls("a mixture", sizes[starts[source] + items], True, tuple(pools), source, items)

    def drawn(self, chosen: np.ndarray) -> tuple[Draw, ...]:
        source, items = self.source[chosen], self.items[chosen]
        return tuple(Draw(pool, items[source == place]) for place, pool in enumerate(self.pools))


@dataclass(frozen=True)
class Human:
    """A chain's human data in the order of use: ``budget`` units for generation 0, the rest for later ones.

    ``budgets`` are those of all generations, where they are not alike.
    """

    pool: Pool
    order: np.ndarray
    budget: float
    budgets: tuple[float, ...] = ()

    @cached_property
    def first(self) -> Draw:
        """Generation 0's training data."""
        return self.between(0.0, self.budget)

    def at(self, generation: int) -> float:
        """The budget of a generation: what it is trained on, where a regime keeps the size of training sets."""
        return self.budgets[generation] if self.budgets else self.first.size

    def between(self, start: float, stop: float) -> Draw:
        """The items from ``start`` to ``stop`` units of the order; consecutive spans share no item."""
        low, high = np.searchsorted(self._middles, [start, stop], side="left")
        return Draw(self.pool, self.order[low:high])

    @cached_property
    def _middles(self) -> np.ndarray:
        return middles(self.pool.sizes[self.order])


@dataclass(frozen=True)
class TrainingSet:
    """What one generation is trained on. Sizes are in the pools' unit (tokens or samples).

    ``by_seed`` replaces ``draws`` where the chains of a cohort draw at random: one set per chain. ``human_weight`` is
    the human part's share of the loss, where the regime weighs the two parts.
    """

    draws: tuple[Draw, ...]
    by_seed: tuple["TrainingSet", ...] = ()
    human_weight: float | None = None

    def of_each(self, chains: int) -> Sequence["TrainingSet"]:
        """The training set of each chain of a cohort."""
        assert len(self.by_seed) in (0, chains)
        return self.by_seed or [self] * chains

    def _size(self, synthetic: bool) -> int:
        assert not self.by_seed, "chains with sets of their own have no common size"
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

    @property
    def weighed(self) -> bool:
        """Whether the parts' shares of the loss are set: there are two, and the regime weighs them."""
        return self.human_weight is not None and self.human_size > 0 and self.synthetic_size > 0

    def item_weights(self) -> np.ndarray | None:
        """(items,) The weight of each item's loss, 1 in the mean over units; None where all are alike."""
        if self.human_weight is None or not self.weighed:
            return None
        of_part = part_weights(self.human_weight, self.human_size, self.synthetic_size)
        return np.concatenate([np.full(len(draw.items), of_part[draw.pool.synthetic]) for draw in self.draws])

    def describe(self) -> list[dict[str, Any]]:
        """The draws as JSON for a stage's key: the hash of each pool and of the items drawn from it, in order; then the
        human part's share of the loss, where it is set."""
        draws: list[dict[str, Any]] = [
            {"pool": draw.pool.stage, "items": hashlib.sha256(draw.items.astype("<i8").tobytes()).hexdigest()[:32]}
            for draw in self.draws
        ]
        return [*draws, {"human_weight": self.human_weight}] if self.weighed else draws


def part_weights(human_weight: float, human: float, synthetic: float) -> tuple[float, float]:
    """The weight of each human and of each synthetic unit, 1 in the mean, where so many units of the first together
    have a share ``human_weight`` of the loss."""
    total = human + synthetic
    return human_weight * total / human, (1.0 - human_weight) * total / synthetic


HALF = 1e-6  # decides between an item and none where exactly half of one is to be taken


def take(pool: Pool, size: float) -> Draw:
    """The first items of ``pool`` whose sizes sum to ``size``, to the nearest item; all items of a smaller pool."""
    return Draw(pool, np.arange(int(np.searchsorted(pool.middles, size, side="left"))))


def span(pool: Pool, start: float, stop: float) -> np.ndarray:
    """The items of ``pool`` between ``start`` and ``stop`` units; consecutive spans share no item."""
    return np.arange(*np.searchsorted(pool.middles, [start, stop], side="left"))


def middles(sizes: np.ndarray) -> np.ndarray:
    """The middle of each item: an item belongs to a span if more than half of it fits."""
    return np.cumsum(sizes) - sizes / 2
