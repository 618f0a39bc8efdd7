"""Regimes: exact counts, nothing drawn twice, the same draw for the same seed."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fortifai_ray.recipe.regimes import (
    Accumulate,
    AccumulateSubsample,
    FixedHuman,
    Human,
    Incremental,
    Mixed,
    Pool,
    Regime,
    Replace,
    take,
)


def human(blocks: int, size: int = 128, budget: float | None = None) -> Human:
    pool = Pool("human", np.full(blocks, size), synthetic=False)
    order = np.random.default_rng(0).permutation(blocks)
    return Human(pool, order, blocks * size if budget is None else budget)


def corpus(stage: str, rows: int, size: int = 112) -> Pool:
    return Pool(stage, np.full(rows, size), synthetic=True)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.floats(0, 2000))
def test_a_take_comes_within_half_an_item_of_what_was_asked(sizes: list[int], size: float) -> None:
    """Rounding is to the nearest item: never more than half of one beside the budget, while the pool lasts."""
    pool = Pool("p", np.array(sizes), synthetic=True)
    draw = take(pool, size)
    assert len(set(draw.items.tolist())) == len(draw.items)
    assert abs(draw.size - min(size, pool.size)) <= max(sizes) / 2


@given(st.floats(0, 1), st.integers(4, 200))
def test_the_realised_ratio_is_the_ratio_asked_for(ratio: float, blocks: int) -> None:
    """Both sides are within half an item of their share of the budget, and no item is used twice."""
    draw = human(blocks)
    regime = Mixed(synthetic_ratio=ratio)
    rows = int(np.ceil(regime.synthetic_size(draw.budget, 1) / 112))
    data = regime.training_set(draw, [corpus("old", 999), corpus("last", rows)], 2)
    assert abs(data.synthetic_size - ratio * draw.budget) <= 112 / 2
    assert abs(data.human_size - (1 - ratio) * draw.budget) <= 128 / 2
    assert all(part.pool.stage != "old" for part in data.draws)
    for part in data.draws:
        assert len(np.unique(part.items)) == len(part.items)


def test_generation_0_is_human_whatever_the_regime() -> None:
    """Every regime shares generation 0: its training set has the same description, hence the same hash."""
    regimes = [Replace(), Accumulate(), Mixed(synthetic_ratio=0.3), Mixed(synthetic_ratio=1.0)]
    described = [regime.training_set(human(20), [], 0).describe() for regime in regimes]
    assert all(entry == described[0] for entry in described)
    assert regimes[0].training_set(human(20), [], 0).synthetic_ratio == 0


@pytest.mark.parametrize(
    "regime",
    [
        Replace(),
        Accumulate(),
        AccumulateSubsample(),
        Mixed(synthetic_ratio=0.5),
        Mixed(synthetic_ratio=0.5, human="fresh"),
        Incremental(),
        Incremental(synthetic_ratio=0.5),
        Incremental(fractions=3),
        FixedHuman(human=1280, synthetic=1120),
    ],
    ids=lambda regime: "-".join(map(str, regime.model_dump(exclude_none=True).values())),
)
def test_which_training_sets_grow(regime: Regime) -> None:
    """In synthetic data, from generation 1 on: what a size at the onset can be counted in."""
    given = human(200, budget=20 * 128)
    pools = [corpus(f"g{g}", math.ceil(regime.synthetic_size(given.budget, g) / 112)) for g in range(6)]
    sizes = [regime.training_set(given, pools[:g], g).synthetic_size for g in range(1, 7)]
    assert regime.grows == (max(sizes[1:]) > sizes[0])


def test_all_synthetic_is_replace() -> None:
    """A ratio of 1 is the replace regime, to the hash: such chains share their stages."""
    pools = [corpus("g0", 25), corpus("g1", 25)]
    mixed = Mixed(synthetic_ratio=1.0).training_set(human(20), pools, 2)
    assert mixed.describe() == Replace().training_set(human(20), pools, 2).describe()
    assert mixed.synthetic_ratio == 1


def test_no_synthetic_share_is_generation_0_again() -> None:
    """A ratio of 0 trains on the human set of generation 0 for ever, in the same order."""
    data = Mixed(synthetic_ratio=0.0).training_set(human(20), [corpus("g0", 4)], 1)
    assert data.describe() == Mixed(synthetic_ratio=0.0).training_set(human(20), [], 0).describe()


def test_accumulate_keeps_everything() -> None:
    """The set grows by one corpus a generation, and the human data stay (Gerstgrasser et al. 2024)."""
    pools = [corpus("g0", 10), corpus("g1", 10), corpus("g2", 10)]
    data = Accumulate().training_set(human(9), pools, 3)
    assert data.human_size == 9 * 128
    assert data.synthetic_size == 3 * 10 * 112


def test_kept_human_data_are_the_first_of_generation_0() -> None:
    """What is kept does not depend on the generation, and is a beginning of generation 0's draw."""
    draw = human(40)
    parts = [Mixed(synthetic_ratio=0.75).training_set(draw, [corpus("s", 40)] * g, g).draws[0] for g in (1, 5)]
    assert parts[0].items.tolist() == parts[1].items.tolist() == draw.order[:10].tolist()


@pytest.mark.parametrize("ratio", [-0.1, 1.0001, float("nan")])
def test_a_ratio_is_a_share(ratio: float) -> None:
    """A ratio outside [0, 1] is refused with what would be right."""
    with pytest.raises(ValidationError, match=r"lies in \[0, 1\]|finite number"):
        Mixed(synthetic_ratio=ratio)


ANY: TypeAdapter[Any] = TypeAdapter(Regime)
CONTENTS = [
    {"kind": "replace"},
    {"kind": "accumulate"},
    {"kind": "accumulate_subsample"},
    {"kind": "mixed", "synthetic_ratio": 0.3},
    {"kind": "mixed", "synthetic_ratio": 0.7, "human": "fresh"},
    {"kind": "incremental"},
    {"kind": "incremental", "synthetic_ratio": 0.5},
    {"kind": "incremental", "fractions": 1},
    {"kind": "incremental", "fractions": 3},
    {"kind": "fixed_human", "human": 30, "synthetic": 80},
]


def samples(regime: Any, budget: int, generations: int) -> tuple[Human, list[Pool]]:
    """A chain's supply of single samples, and every corpus that it would write."""
    count = int(np.ceil(regime.human_needed(budget, generations)))
    supply = Human(Pool("human", np.ones(count), synthetic=False), np.arange(count), budget)
    sizes = [round(regime.synthetic_size(budget, g)) for g in range(generations)]
    return supply, [Pool(f"s{g}", np.ones(size), synthetic=True) for g, size in enumerate(sizes)]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: "-".join(map(str, content.values())))
@given(budget=st.integers(40, 200), generation=st.integers(1, 7), seed=st.integers(0, 1000))
def test_no_sample_is_drawn_twice(content: dict[str, Any], budget: int, generation: int, seed: int) -> None:
    """Within a training set each pool's items are distinct, exist, and the same for the same seed."""
    regime = ANY.validate_python(content)
    supply, pools = samples(regime, budget, 8)
    data = regime.training_set(supply, pools[:generation], generation, [seed])
    for draw in data.draws:
        assert len(np.unique(draw.items)) == len(draw.items)
        assert draw.items.max() < len(draw.pool.sizes)
    assert data.describe() == regime.training_set(supply, pools[:generation], generation, [seed]).describe()


@given(budget=st.integers(10, 100), seed=st.integers(0, 10**6))
def test_a_subsample_is_one_budget_of_everything_so_far(budget: int, seed: int) -> None:
    """Its size is the budget exactly, whatever it is drawn from, and another seed draws another one."""
    regime = AccumulateSubsample()
    supply, pools = samples(regime, budget, 6)
    data = regime.training_set(supply, pools[:5], 5, [seed])
    assert data.human_size + data.synthetic_size == budget
    both = regime.training_set(supply, pools[:5], 5, [seed, seed + 1])
    assert both.by_seed[0].describe() == data.describe() != both.by_seed[1].describe()


def test_a_subsample_takes_each_corpus_by_its_share() -> None:
    """Over many seeds, each of five corpora of a size gives a fifth: within four standard errors of the mean."""
    supply, pools = samples(AccumulateSubsample(), 50, 5)
    sets = AccumulateSubsample().training_set(supply, pools[:4], 4, range(400)).by_seed
    human_shares = np.array([one.human_size / 50 for one in sets])
    assert abs(human_shares.mean() - 0.2) < 4 * human_shares.std() / np.sqrt(len(sets))


def test_fresh_human_data_are_never_used_again() -> None:
    """Each generation's human share is data that no earlier one saw; together they are what the regime asked for."""
    for regime in (
        Mixed(synthetic_ratio=0.75, human="fresh"),
        Incremental(),
        Incremental(synthetic_ratio=0.75),
        Incremental(fractions=3),
    ):
        supply, pools = samples(regime, 40, 6)
        used = [
            draw.items
            for g in range(6)
            for draw in regime.training_set(supply, pools[:g], g).draws
            if not draw.pool.synthetic
        ]
        together = np.concatenate(used)
        assert sorted(together.tolist()) == list(range(int(regime.human_needed(40, 6))))


def test_incremental_grows_as_fortifai_says() -> None:
    """g fractions written by the last generation and one fresh human fraction: r = g/(g+1) (Shabgahi et al. 2025)."""
    supply, pools = samples(Incremental(), 40, 6)
    for g in range(1, 6):
        data = Incremental().training_set(supply, pools[:g], g)
        assert (data.human_size, data.synthetic_size) == (40, 40 * g)
        assert data.synthetic_ratio == g / (g + 1)
        assert [draw.pool.stage for draw in data.draws if draw.pool.synthetic] == [f"s{g - 1}"]


def test_incremental_in_its_short_form_is_mixed_with_fresh_human_data() -> None:
    """At a fixed ratio the two are one regime, to the hash."""
    short, mixed = Incremental(synthetic_ratio=0.25), Mixed(synthetic_ratio=0.25, human="fresh")
    supply, pools = samples(mixed, 40, 6)
    for g in range(6):
        assert (
            short.training_set(supply, pools[:g], g).describe() == mixed.training_set(supply, pools[:g], g).describe()
        )


# By regime: the human samples of generations 0 to 3, as (first, one past the last), where generation 0 has four; their
# synthetic samples; and how many of the first four stay in use.
SEEN: list[tuple[dict[str, Any], list[tuple[int, int]], list[int], int]] = [
    ({"kind": "replace"}, [(0, 4), (0, 0), (0, 0), (0, 0)], [0, 4, 4, 4], 0),
    ({"kind": "accumulate"}, [(0, 4), (0, 4), (0, 4), (0, 4)], [0, 4, 8, 12], 4),
    ({"kind": "mixed", "synthetic_ratio": 0.5}, [(0, 4), (0, 2), (0, 2), (0, 2)], [0, 2, 2, 2], 2),
    ({"kind": "mixed", "synthetic_ratio": 0.5, "human": "fresh"}, [(0, 4), (4, 6), (6, 8), (8, 10)], [0, 2, 2, 2], 0),
    ({"kind": "incremental"}, [(0, 4), (4, 8), (8, 12), (12, 16)], [0, 4, 8, 12], 0),
    ({"kind": "incremental", "synthetic_ratio": 0.5}, [(0, 4), (4, 6), (6, 8), (8, 10)], [0, 2, 2, 2], 0),
    ({"kind": "incremental", "fractions": 1}, [(0, 4), (0, 0), (0, 0), (0, 0)], [0, 4, 4, 4], 0),
    ({"kind": "incremental", "fractions": 2}, [(0, 4), (4, 8), (8, 12), (12, 16)], [0, 4, 4, 4], 0),
    ({"kind": "incremental", "fractions": 4}, [(0, 4), (4, 16), (16, 28), (28, 40)], [0, 4, 4, 4], 0),
    ({"kind": "fixed_human", "human": 3, "synthetic": 5}, [(0, 4), (0, 3), (0, 3), (0, 3)], [0, 5, 5, 5], 3),
    ({"kind": "fixed_human", "human": 6, "synthetic": 5}, [(0, 4), (0, 6), (0, 6), (0, 6)], [0, 5, 5, 5], 4),
]


@pytest.mark.parametrize(("content", "spans", "written", "kept"), SEEN, ids=lambda value: str(value)[:60])
def test_which_fractions_a_generation_sees(
    content: dict[str, Any], spans: list[tuple[int, int]], written: list[int], kept: int
) -> None:
    """By table; and a generation's fraction is what of it no earlier one has seen, up to what the regime asks for."""
    regime = ANY.validate_python(content)
    supply, pools = samples(regime, 4, 4)
    seen: set[int] = set()
    for g, span in enumerate(spans):
        data = regime.training_set(supply, pools[:g], g)
        items = [item for draw in data.draws if not draw.pool.synthetic for item in draw.items.tolist()]
        assert (items, data.synthetic_size) == (list(range(*span)), written[g])
        assert regime.fresh(supply, g).items.tolist() == sorted(set(items) - seen)
        seen |= set(items)
    assert (regime.kept(4.0), max(seen) + 1) == (kept, regime.human_needed(4, 4))


def test_one_short_form_at_a_time() -> None:
    """Sets of one fraction and sets of several are two forms; what has neither keeps the identity it always had."""
    with pytest.raises(ValidationError, match="not both; fractions: 2 has the ratio 1/2"):
        Incremental(synthetic_ratio=0.5, fractions=2)
    assert "fractions" not in Incremental().model_dump()


def test_fixed_human_keeps_both_numbers() -> None:
    """As many human and as many synthetic units as asked for, in each generation after the first."""
    regime = FixedHuman(human=30, synthetic=80)
    supply, pools = samples(regime, 50, 4)
    for g in (1, 3):
        data = regime.training_set(supply, pools[:g], g)
        assert (data.human_size, data.synthetic_size) == (30, 80)
    assert regime.training_set(supply, [], 0).human_size == 50
    assert regime.human_needed(20, 4) == 30


def test_the_first_budget_leaves_enough_for_the_rest() -> None:
    """A corpus without a budget of its own is shared out so that a regime of fresh data lasts to its end."""
    for content in CONTENTS[:-1]:
        regime = ANY.validate_python(content)
        first = regime.first_share(8) * 8000
        assert regime.human_needed(first, 8) <= 8000 * (1 + 1e-9)


@pytest.mark.parametrize("content", [{"human": -1, "synthetic": 5}, {"human": 5}, {"human": 5.5, "synthetic": 5}])
def test_fixed_numbers_are_counts(content: dict[str, Any]) -> None:
    """A negative, missing or broken count is refused."""
    with pytest.raises(ValidationError):
        FixedHuman.model_validate(content)


@pytest.mark.parametrize("kind", ["kept", "fresh"])
@pytest.mark.parametrize(("budget", "ratio"), [(50, 0.95), (10, 0.25), (100, 0.125), (7, 0.5), (50, 0.5), (20, 0.3)])
def test_a_mixed_set_has_exactly_its_budget(budget: int, ratio: float, kind: str) -> None:
    """Where the shares come out at half a sample: none is lost, none is used twice."""
    regime = Mixed(synthetic_ratio=ratio, human=kind)  # type: ignore[arg-type]
    count = math.ceil(regime.human_needed(budget, 6))
    human = Human(Pool("human", np.ones(count), synthetic=False), np.arange(count), budget)
    used: list[int] = []
    for generation in range(1, 6):
        pool = Pool(f"s{generation}", np.ones(math.ceil(regime.synthetic_size(budget, generation))), synthetic=True)
        data = regime.training_set(human, [pool], generation)
        assert data.human_size + data.synthetic_size == budget
        used += data.draws[0].items.tolist() if kind == "fresh" else []
    assert len(used) == len(set(used))
