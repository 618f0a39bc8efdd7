"""Regimes: how a generation's training set is made from human and synthetic data. One module for every family.

A regime is a pure function of pools of items and their sizes. It never sees a token or a point: it decides which items
of which pool are drawn, and the family fetches them. A pool is identified by the hash of its content, so that the hash
of the draws is that of the training set, and two chains that draw the same items share everything computed from them.
Counts are exact to the nearest item; random draws are a function of the recipe's seed and the generation.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from fortifai_ray.seeds import generator
from fortifai_ray.validation import Section


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
class Human:
    """A chain's human data in the order of use: ``budget`` units for generation 0, the rest for later ones."""

    pool: Pool
    order: np.ndarray
    budget: float

    @cached_property
    def first(self) -> Draw:
        """Generation 0's training data."""
        return self.between(0.0, self.budget)

    def between(self, start: float, stop: float) -> Draw:
        """The items from ``start`` to ``stop`` units of the order; consecutive spans share no item."""
        low, high = np.searchsorted(self._middles, [start, stop], side="left")
        return Draw(self.pool, self.order[low:high])

    @cached_property
    def _middles(self) -> np.ndarray:
        return _middles(self.pool.sizes[self.order])


@dataclass(frozen=True)
class TrainingSet:
    """What one generation is trained on. Sizes are in the pools' unit (tokens or samples).

    ``by_seed`` replaces ``draws`` where the chains of a cohort draw at random: one set per chain.
    """

    draws: tuple[Draw, ...]
    by_seed: tuple["TrainingSet", ...] = ()

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

    def describe(self) -> list[dict[str, Any]]:
        """The draws as JSON for a stage's key: the hash of each pool and of the items drawn from it, in order."""
        return [
            {"pool": draw.pool.stage, "items": hashlib.sha256(draw.items.astype("<i8").tobytes()).hexdigest()[:32]}
            for draw in self.draws
        ]


_HALF = 1e-6  # decides between an item and none where exactly half of one is to be taken


def take(pool: Pool, size: float) -> Draw:
    """The first items of ``pool`` whose sizes sum to ``size``, to the nearest item; all items of a smaller pool."""
    return Draw(pool, np.arange(int(np.searchsorted(_middles(pool.sizes), size, side="left"))))


def _middles(sizes: np.ndarray) -> np.ndarray:
    """The middle of each item: an item belongs to a span if more than half of it fits."""
    return np.cumsum(sizes) - sizes / 2


class _Regime(Section):
    memory: ClassVar[Literal["last", "all"]] = "last"  # which synthetic corpora a training set may draw from
    random: ClassVar[bool] = False  # whether items are drawn at random, so that each seed draws others

    @property
    def grows(self) -> bool:
        """Whether training sets hold more synthetic data from generation to generation."""
        return self.memory == "all"

    def human_needed(self, budget: float, generations: int) -> float:
        """Units of human data that a chain uses in ``generations`` generations; ``budget`` is generation 0's."""
        return budget

    def first_share(self, generations: int) -> float:
        """Share of the human data that generation 0 takes where the recipe gives no budget."""
        return 1.0

    def synthetic_size(self, budget: float, generation: int) -> float:
        """Units to generate after ``generation``, for the next one's training set."""
        return float(budget)

    def fresh(self, human: Human, generation: int) -> Draw:
        """The human items that no generation before ``generation`` has seen, and this one does: its *fraction*.

        All of it for generation 0; nothing later, where a regime gives human data once.
        """
        first = human.first.size
        start, stop = (0.0, first) if generation == 0 else self._fresh(first, generation)
        return human.between(start, stop)

    def _fresh(self, first: float, generation: int) -> tuple[float, float]:
        """Where the fraction of a later generation begins and ends; ``first`` is generation 0's size."""
        return (first, first)

    def kept(self, budget: float) -> float:
        """Units of generation 0's human data that later generations may be trained on again, always the first ones; for
        the others, synthetic data alone stand from generation 1 on."""
        return budget

    def training_set(
        self, human: Human, synthetic: Sequence[Pool], generation: int, seeds: Sequence[int] = (0,)
    ) -> TrainingSet:
        """The training set of ``generation`` from the human data and every synthetic corpus so far.

        ``seeds`` are those of the chains trained together: one, or those of a cohort.
        """
        if generation == 0:
            return TrainingSet((human.first,))
        if self.random and len(seeds) > 1:
            return TrainingSet((), tuple(self.training_set(human, synthetic, generation, [seed]) for seed in seeds))
        draws = self._mix(human, synthetic, generation, seeds[0])
        return TrainingSet(tuple(draw for draw in draws if len(draw.items)))

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int, seed: int) -> tuple[Draw, ...]:
        raise NotImplementedError


class Replace(_Regime):
    """Each generation is trained only on the output of the last one (Shumailov et al. 2024, no original data kept)."""

    kind: Literal["replace"] = "replace"

    def kept(self, budget: float) -> float:
        return 0.0

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int, seed: int) -> tuple[Draw, ...]:
        return (take(synthetic[-1], human.first.size),)


class Accumulate(_Regime):
    """All data so far: the human set and every synthetic corpus, so the set grows (Gerstgrasser et al. 2024)."""

    kind: Literal["accumulate"] = "accumulate"
    memory = "all"

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int, seed: int) -> tuple[Draw, ...]:
        return (human.first, *(take(pool, human.first.size) for pool in synthetic))


class AccumulateSubsample(_Regime):
    """A fixed budget drawn at random, without replacement, from all data so far (Kazdan et al. 2025)."""

    kind: Literal["accumulate_subsample"] = "accumulate_subsample"
    memory = "all"
    random = True

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int, seed: int) -> tuple[Draw, ...]:
        parts = [human.first, *(take(pool, human.first.size) for pool in synthetic)]
        sizes = np.concatenate([part.pool.sizes[part.items] for part in parts])
        order = generator(seed, "subsample", generation).permutation(len(sizes))
        drawn = order[: int(np.searchsorted(_middles(sizes[order]), human.first.size, side="left"))]
        ends = np.cumsum([len(part.items) for part in parts])
        owner = np.searchsorted(ends, drawn, side="right")
        starts = ends - [len(part.items) for part in parts]
        return tuple(Draw(part.pool, part.items[drawn[owner == i] - starts[i]]) for i, part in enumerate(parts))


def _is_a_share(ratio: float) -> float:
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"a share of the training data lies in [0, 1]: {ratio} does not")
    return ratio


_Share = Annotated[float, AfterValidator(_is_a_share)]


class Mixed(_Regime):
    """A fixed budget, a share ``synthetic_ratio`` of it from the last generation, the rest human.

    The budget is generation 0's training set.
    """

    kind: Literal["mixed"] = "mixed"
    synthetic_ratio: _Share = Field(description="the share, in [0, 1]; 1 is `replace`")
    human: Literal["kept", "fresh"] = Field(
        "kept",
        description="kept: the first items of generation 0's set, each time; fresh: data that no generation has used "
        "(Bertrand et al. 2023; the fresh-data loop of Alemohammad et al. 2023)",
    )

    def human_needed(self, budget: float, generations: int) -> float:
        fresh = 0.0 if self.human == "kept" else (1.0 - self.synthetic_ratio) * budget
        return budget + (generations - 1) * fresh

    def first_share(self, generations: int) -> float:
        return 1.0 / self.human_needed(1.0, generations)

    def synthetic_size(self, budget: float, generation: int) -> float:
        return self.synthetic_ratio * budget

    def kept(self, budget: float) -> float:
        return (1.0 - self.synthetic_ratio) * budget if self.human == "kept" else 0.0

    def _fresh(self, first: float, generation: int) -> tuple[float, float]:
        share = (1.0 - self.synthetic_ratio) * first * (self.human == "fresh")
        return first + (generation - 1) * share, first + generation * share

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int, seed: int) -> tuple[Draw, ...]:
        kept = human.between(0.0, self.kept(human.first.size))
        own = kept if self.human == "kept" else self.fresh(human, generation)
        # Where each part is due half an item, one of them gets it: the total stays the budget.
        due, budget = self.synthetic_ratio * human.first.size, human.first.size
        either = [take(synthetic[-1], due + half) for half in (-_HALF, _HALF)]
        return (own, min(either, key=lambda drawn: abs(own.size + drawn.size - budget)))


class Incremental(_Regime):
    """ForTIFAI's regime: the last generation rewrites the whole training set, and a fresh human fraction is added.

    Generation g is trained on g fractions of synthetic data and the next unused fraction of human data, so that the
    synthetic ratio grows as g/(g+1) (Shabgahi et al. 2025); a fraction is generation 0's training set. The two short
    forms keep the ratio: in sets of one fraction (``synthetic_ratio``), or of several whole ones (``fractions``).
    """

    kind: Literal["incremental"] = "incremental"
    synthetic_ratio: _Share | None = Field(
        None, description="short form: the set stays one fraction, this share of it synthetic; null: the set grows"
    )
    fractions: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda value: value is None,  # some recipes are older than the key
        description="short form of the authors' scripts (their `scale`): each set from generation 1 on is so many "
        "fractions, one synthetic and the others human ones that no generation has seen; null: the set grows",
    )

    @model_validator(mode="after")
    def _one_short_form(self) -> Self:
        if self.synthetic_ratio is not None and self.fractions is not None:
            raise ValueError(
                "give synthetic_ratio (sets of one fraction) or fractions (sets of so many), not both; "
                f"fractions: {self.fractions} has the ratio 1/{self.fractions}"
            )
        return self

    @property
    def grows(self) -> bool:
        return self.synthetic_ratio is None and self.fractions is None

    def _short(self) -> Mixed | None:
        return None if self.synthetic_ratio is None else Mixed(synthetic_ratio=self.synthetic_ratio, human="fresh")

    @property
    def _human_fractions(self) -> int:
        """Fresh human fractions of each generation from 1 on, in the forms of whole fractions."""
        return 1 if self.fractions is None else self.fractions - 1

    def _synthetic_fractions(self, generation: int) -> int:
        return generation if self.fractions is None else 1

    def human_needed(self, budget: float, generations: int) -> float:
        if (short := self._short()) is not None:
            return short.human_needed(budget, generations)
        return (1 + (generations - 1) * self._human_fractions) * budget

    def first_share(self, generations: int) -> float:
        return 1.0 / self.human_needed(1.0, generations)

    def synthetic_size(self, budget: float, generation: int) -> float:
        short = self._short()
        whole = self._synthetic_fractions(generation + 1) * budget
        return whole if short is None else short.synthetic_size(budget, generation)

    def kept(self, budget: float) -> float:
        return 0.0

    def _fresh(self, first: float, generation: int) -> tuple[float, float]:
        if (short := self._short()) is not None:
            return short._fresh(first, generation)
        each = self._human_fractions
        return (1 + (generation - 1) * each) * first, (1 + generation * each) * first

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int, seed: int) -> tuple[Draw, ...]:
        if (short := self._short()) is not None:
            return short._mix(human, synthetic, generation, seed)
        written = take(synthetic[-1], self._synthetic_fractions(generation) * human.first.size)
        return (self.fresh(human, generation), written)


class FixedHuman(_Regime):
    """A fixed number of human units and a fixed number of synthetic ones: cardinality against proportion.

    They make up the training set from generation 1 on (Kazdan et al. 2025, Seddik et al. 2024).
    """

    kind: Literal["fixed_human"] = "fixed_human"
    human: int = Field(ge=0, description="tokens or samples of human data, always the first ones")
    synthetic: int = Field(ge=0, description="tokens or samples of the last generation's output")

    def human_needed(self, budget: float, generations: int) -> float:
        return max(budget, float(self.human)) if generations > 1 else budget

    def synthetic_size(self, budget: float, generation: int) -> float:
        return float(self.synthetic)

    def kept(self, budget: float) -> float:
        return min(budget, float(self.human))

    def _fresh(self, first: float, generation: int) -> tuple[float, float]:
        return first, max(first, float(self.human)) if generation == 1 else first

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int, seed: int) -> tuple[Draw, ...]:
        return (human.between(0.0, self.human), take(synthetic[-1], self.synthetic))


Regime = Annotated[
    Replace | Accumulate | AccumulateSubsample | Mixed | Incremental | FixedHuman, Field(discriminator="kind")
]
