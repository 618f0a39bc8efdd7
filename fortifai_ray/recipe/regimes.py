"""Regimes: how a generation's training set is made from human and synthetic data. One module for every family.

A regime is a pure function of pools of items and their sizes. It never sees a token or a point: it decides which items
of which pool are drawn, and the family fetches them. Counts are exact to the nearest item; random draws are a function
of the recipe's seed and the generation.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from fortifai_ray.recipe.pools import HALF, Draw, Human, Pool, TrainingSet, middles, take
from fortifai_ray.seeds import generator
from fortifai_ray.validation import Section


def _is_a_share(ratio: float) -> float:
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"a share of the training data lies in [0, 1]: {ratio} does not")
    return ratio


_Share = Annotated[float, AfterValidator(_is_a_share)]


class Weights(Section):
    """The share of the loss that the human part of a training set has, whatever its size (He, Xu and Cheng 2025)."""

    human: float = Field(
        ge=0.0,
        le=1.0,
        description="w: the loss is w times the mean over the human part plus 1 − w times that over the synthetic "
        "part; with as much fresh human data as synthetic, 0.618 is best (the golden ratio's reciprocal)",
    )


class _Regime(Section):
    weights: Weights | None = Field(
        None,
        exclude_if=lambda value: value is None,  # most recipes are older than the key
        description="of human and synthetic data in the loss; null: every token or sample counts alike",
    )

    follows: ClassVar[bool] = True  # whether the size of its training sets is the budget of their generation
    memory: ClassVar[Literal["last", "all"]] = "last"  # which synthetic corpora a training set may draw from
    random: ClassVar[bool] = False  # whether items are drawn at random, so that each seed draws others

    @property
    def grows(self) -> bool:
        """Whether training sets hold more synthetic data from generation to generation."""
        return self.memory == "all"

    @model_validator(mode="after")
    def _weighs_two_kinds(self) -> Self:
        if self.weights is not None and not self.two_kinds:
            raise ValueError(
                "weights: they share the loss between human and synthetic data, and every training set of this regime "
                "has one of them alone; leave weights out, or take regime.kind: mixed"
            )
        return self

    @property
    def two_kinds(self) -> bool:
        """Whether training sets from generation 1 on hold human and synthetic data; where a ratio says how much of
        each, also at 0 and 1, which end many a grid."""
        if getattr(self, "synthetic_ratio", None) is not None:
            return True
        human = self.kept(1e9) > 0 or self.human_needed(1e9, 2) > 1e9
        return human and self.synthetic_size(1e9, 0) > 0

    @property
    def always_the_same(self) -> bool:
        """Whether every generation is trained on generation 0's data: no synthetic, and no other human ones."""
        return self.synthetic_size(1.0, 0) == 0 and self.human_needed(1.0, 3) == self.kept(1.0) == 1.0

    def human_needed(self, budget: float, generations: int, budgets: Sequence[float] = ()) -> float:
        """Units of human data that a chain uses in ``generations`` generations; ``budget`` is generation 0's.

        ``budgets`` are those of all generations, where they are not alike.
        """
        return budget

    def first_share(self, generations: int) -> float:
        """Share of the human data that generation 0 takes where the recipe gives no budget."""
        return 1.0

    def synthetic_size(self, budget: float, generation: int) -> float:
        """Units to generate after ``generation``, for the training set of the next one, whose budget this is."""
        return float(budget)

    def fresh(self, human: Human, generation: int) -> Draw:
        """The human items that no generation before ``generation`` has seen, and this one does: its *fraction*.

        All of it for generation 0; nothing later, where a regime gives human data once.
        """
        first = human.first.size
        start, stop = (0.0, first) if generation == 0 else self._fresh(human, generation)
        return human.between(start, stop)

    def _fresh(self, human: Human, generation: int) -> tuple[float, float]:
        """Where the fraction of a later generation begins and ends."""
        return (human.first.size, human.first.size)

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
        weight = None if self.weights is None else self.weights.human
        mixes = self._mixes(human, synthetic, generation, seeds if self.random else seeds[:1])
        drawn = ([part for draw in mix for part in draw.pool.drawn(draw.items)] for mix in mixes)
        sets = [TrainingSet(tuple(d for d in draws if len(d.items)), human_weight=weight) for draws in drawn]
        return sets[0] if len(sets) == 1 else TrainingSet((), tuple(sets))

    def _mixes(
        self, human: Human, synthetic: Sequence[Pool], generation: int, seeds: Sequence[int]
    ) -> list[tuple[Draw, ...]]:
        """What each of these chains is trained on."""
        return [self._mix(human, synthetic, generation)] * len(seeds)

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int) -> tuple[Draw, ...]:
        raise NotImplementedError


class Replace(_Regime):
    """Each generation is trained only on the output of the last one (Shumailov et al. 2024, no original data kept)."""

    kind: Literal["replace"] = "replace"

    def kept(self, budget: float) -> float:
        return 0.0

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int) -> tuple[Draw, ...]:
        return (take(synthetic[-1], human.at(generation)),)


class Accumulate(_Regime):
    """All data so far: the human set and every synthetic corpus, so the set grows (Gerstgrasser et al. 2024)."""

    kind: Literal["accumulate"] = "accumulate"
    memory = "all"

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int) -> tuple[Draw, ...]:
        return _all_so_far(human, synthetic)


def _all_so_far(human: Human, synthetic: Sequence[Pool]) -> tuple[Draw, ...]:
    return (human.first, *(take(pool, human.at(generation)) for generation, pool in enumerate(synthetic, 1)))


class AccumulateSubsample(_Regime):
    """A fixed budget drawn at random, without replacement, from all data so far (Kazdan et al. 2025)."""

    kind: Literal["accumulate_subsample"] = "accumulate_subsample"
    memory = "all"
    random = True

    def _mixes(
        self, human: Human, synthetic: Sequence[Pool], generation: int, seeds: Sequence[int]
    ) -> list[tuple[Draw, ...]]:
        parts = _all_so_far(human, synthetic)
        sizes = np.concatenate([part.pool.sizes[part.items] for part in parts])
        ends = np.cumsum([len(part.items) for part in parts])

        def drawn(seed: int) -> tuple[Draw, ...]:
            order = generator(seed, "subsample", generation).permutation(len(sizes))
            rows = order[: int(np.searchsorted(middles(sizes[order]), human.at(generation), side="left"))]
            owner = np.searchsorted(ends, rows, side="right")
            of_part = ((parts[i], rows[owner == i] - (ends[i] - len(parts[i].items))) for i in np.unique(owner))
            return tuple(Draw(part.pool, part.items[found]) for part, found in of_part)

        return [drawn(seed) for seed in seeds]


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

    def human_needed(self, budget: float, generations: int, budgets: Sequence[float] = ()) -> float:
        share = 1.0 - self.synthetic_ratio
        if self.human == "kept":
            return max(budget, share * max(budgets, default=0.0))
        return budget + share * sum(budgets[1:]) if budgets else budget + (generations - 1) * (share * budget)

    def first_share(self, generations: int) -> float:
        return 1.0 / self.human_needed(1.0, generations)

    def synthetic_size(self, budget: float, generation: int) -> float:
        return self.synthetic_ratio * budget

    def kept(self, budget: float) -> float:
        return (1.0 - self.synthetic_ratio) * budget if self.human == "kept" else 0.0

    def _fresh(self, human: Human, generation: int) -> tuple[float, float]:
        first, share = human.first.size, (1.0 - self.synthetic_ratio) * (self.human == "fresh")
        if human.budgets:
            used, used_then = (sum(human.budgets[1:until]) for until in (generation, generation + 1))
            return first + share * used, first + share * used_then
        return first + (generation - 1) * (share * first), first + generation * (share * first)

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int) -> tuple[Draw, ...]:
        budget = human.at(generation)
        own = human.between(0.0, self.kept(budget)) if self.human == "kept" else self.fresh(human, generation)
        # Where each part is due half an item, one of them gets it: the total stays the budget.
        due = self.synthetic_ratio * budget
        either = [take(synthetic[-1], due + half) for half in (-HALF, HALF)]
        return (own, min(either, key=lambda drawn: abs(own.size + drawn.size - budget)))


class Incremental(_Regime):
    """ForTIFAI's regime: the last generation rewrites the whole training set, and a fresh human fraction is added.

    Generation g is trained on g fractions of synthetic data and the next unused fraction of human data, so that the
    synthetic ratio grows as g/(g+1) (Shabgahi et al. 2025); a fraction is generation 0's training set. The two short
    forms keep the ratio: in sets of one fraction (``synthetic_ratio``), or of several whole ones (``fractions``).
    """

    follows = False
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

    def human_needed(self, budget: float, generations: int, budgets: Sequence[float] = ()) -> float:
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

    def _fresh(self, human: Human, generation: int) -> tuple[float, float]:
        if (short := self._short()) is not None:
            return short._fresh(human, generation)
        first, each = human.first.size, self._human_fractions
        return (1 + (generation - 1) * each) * first, (1 + generation * each) * first

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int) -> tuple[Draw, ...]:
        if (short := self._short()) is not None:
            return short._mix(human, synthetic, generation)
        written = take(synthetic[-1], self._synthetic_fractions(generation) * human.first.size)
        return (self.fresh(human, generation), written)


class FixedHuman(_Regime):
    """A fixed number of human units and a fixed number of synthetic ones: cardinality against proportion.

    They make up the training set from generation 1 on (Kazdan et al. 2025, Seddik et al. 2024).
    """

    follows = False
    kind: Literal["fixed_human"] = "fixed_human"
    human: int = Field(ge=0, description="tokens or samples of human data, always the first ones")
    synthetic: int = Field(ge=0, description="tokens or samples of the last generation's output")

    def human_needed(self, budget: float, generations: int, budgets: Sequence[float] = ()) -> float:
        return max(budget, float(self.human)) if generations > 1 else budget

    def synthetic_size(self, budget: float, generation: int) -> float:
        return float(self.synthetic)

    def kept(self, budget: float) -> float:
        return min(budget, float(self.human))

    def _fresh(self, human: Human, generation: int) -> tuple[float, float]:
        first = human.first.size
        return first, max(first, float(self.human)) if generation == 1 else first

    def _mix(self, human: Human, synthetic: Sequence[Pool], generation: int) -> tuple[Draw, ...]:
        return (human.between(0.0, self.human), take(synthetic[-1], self.synthetic))


Regime = Annotated[
    Replace | Accumulate | AccumulateSubsample | Mixed | Incremental | FixedHuman, Field(discriminator="kind")
]
