"""Regimes: exact counts, nothing drawn twice, the same draw for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fortifai_ray.regimes import Accumulate, Draw, Mixed, Pool, Replace, take


def human(blocks: int, size: int = 128) -> Draw:
    pool = Pool("human", np.full(blocks, size), synthetic=False)
    return Draw(pool, np.random.default_rng(0).permutation(blocks))


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
    rows = int(np.ceil(regime.synthetic_size(draw.size) / 112))
    data = regime.training_set(draw, [corpus("old", 999), corpus("last", rows)], 2)
    assert abs(data.synthetic_size - ratio * draw.size) <= 112 / 2
    assert abs(data.human_size - (1 - ratio) * draw.size) <= 128 / 2
    assert all(part.pool.stage != "old" for part in data.draws)
    for part in data.draws:
        assert len(np.unique(part.items)) == len(part.items)


def test_generation_0_is_human_whatever_the_regime() -> None:
    """Every regime shares generation 0: its training set has the same description, hence the same hash."""
    regimes = [Replace(), Accumulate(), Mixed(synthetic_ratio=0.3), Mixed(synthetic_ratio=1.0)]
    described = [regime.training_set(human(20), [], 0).describe() for regime in regimes]
    assert all(entry == described[0] for entry in described)
    assert regimes[0].training_set(human(20), [], 0).synthetic_ratio == 0


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
    assert parts[0].items.tolist() == parts[1].items.tolist() == draw.items[:10].tolist()


@pytest.mark.parametrize("ratio", [-0.1, 1.0001, float("nan")])
def test_a_ratio_is_a_share(ratio: float) -> None:
    """A ratio outside [0, 1] is refused with what would be right."""
    with pytest.raises(ValidationError, match=r"lies in \[0, 1\]"):
        Mixed(synthetic_ratio=ratio)
