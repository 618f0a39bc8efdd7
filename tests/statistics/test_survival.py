"""Kaplan–Meier: against a hand computation and against SciPy."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fortifai_ray.statistics.survival import kaplan_meier, known_until, median, restricted_mean

observations = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=12)


def summary(times: list[float], censored: list[bool], horizon: float) -> dict[str, float | None]:
    table = pl.DataFrame({"cell": 0, "fi": times, "censored": censored, "horizon": horizon}, strict=False)
    curve = kaplan_meier(table.with_columns(pl.col("fi", "horizon").cast(pl.Float64)), ["cell"])
    return (
        curve.group_by("cell")
        .agg(median=median(), end=known_until(), mean=restricted_mean("horizon"))
        .row(0, named=True)
    )


def test_by_hand() -> None:
    # at risk 5: S(1) = 4/5; one censored at 2; at risk 3: S(3) = 8/15; at risk 2: S(4) = 4/15; last censored at 6
    result = summary([4, 1, 6, 3, 2], [False, False, True, False, True], horizon=6)
    assert result["median"] == 4
    assert result["end"] == 6
    assert result["mean"] == pytest.approx(1 + 2 * 4 / 5 + 1 * 8 / 15 + 2 * 4 / 15)


def test_the_median_is_null_where_the_curve_never_reaches_one_half() -> None:
    assert summary([1, 5, 5], [False, True, True], horizon=5)["median"] is None
    assert summary([1, 2, 5, 5], [False, False, True, True], horizon=5)["median"] == 2  # exactly one half


def test_with_nothing_censored_the_mean_is_the_mean_and_unrestricted() -> None:
    result = summary([1, 2, 6], [False] * 3, horizon=np.inf)
    assert (result["mean"], result["end"]) == (pytest.approx(3), np.inf)
    assert summary([1, 2, 6], [False] * 3, horizon=4)["mean"] == pytest.approx((1 + 2 + 4) / 3)


@given(observations)
def test_the_curve_is_scipys(rows: list[tuple[int, bool]]) -> None:
    times, censored = [float(time) for time, _ in rows], [flag for _, flag in rows]
    theirs = stats.ecdf(stats.CensoredData.right_censored(times, np.array(censored))).sf
    table = pl.DataFrame({"cell": 0, "fi": times, "censored": censored})
    ours = kaplan_meier(table, ["cell"]).group_by("fi").agg(pl.col("_survival").last()).sort("fi")
    np.testing.assert_allclose(ours["_survival"], theirs.evaluate(ours["fi"].to_numpy()), atol=1e-12)


@given(observations, st.integers(1, 8))
def test_the_restricted_mean_is_the_area_under_scipys_curve(rows: list[tuple[int, bool]], horizon: int) -> None:
    times, censored = [float(time) for time, _ in rows], [flag for _, flag in rows]
    theirs = stats.ecdf(stats.CensoredData.right_censored(times, np.array(censored))).sf
    area = sum(float(theirs.evaluate(start)) for start in range(horizon))  # steps at whole times only
    assert summary(times, censored, horizon)["mean"] == pytest.approx(area, abs=1e-9)


@given(observations)
def test_a_censored_chain_is_never_averaged_as_collapsed(rows: list[tuple[int, bool]]) -> None:
    times, censored = [float(time) for time, _ in rows], [flag for _, flag in rows]
    as_collapsed = summary(times, [False] * len(rows), horizon=8)["mean"]
    kept = summary(times, censored, horizon=8)["mean"]
    assert kept >= as_collapsed - 1e-9
    lasting = any(flag and time < 8 for time, flag in rows)
    assert (kept > as_collapsed + 1e-9) == lasting


def test_groups_do_not_mix() -> None:
    table = pl.DataFrame({"cell": [0, 1, 0, 1, None], "fi": [1.0, 5.0, 3.0, 7.0, 9.0], "censored": [False] * 5})
    curve = kaplan_meier(table, ["cell"])
    assert curve.group_by("cell").agg(median()).sort("cell")["fi"].to_list() == [9.0, 2.0, 6.0]


@pytest.mark.parametrize(
    ("times", "censored", "expected"),
    [
        ([1.99, 2.09], [False, False], 2.04),
        ([1, 2, 3, 4], [False] * 4, 2.5),
        ([3, 3, 5, 5], [False] * 4, 4),
        ([1, 3, 3, 3], [False] * 4, 3),
        ([1, 2, 3], [False] * 3, 2),
        ([1, 2, 3, 9], [False, False, True, False], 5.5),  # half is faithful from 2 to 9: nothing ends at 3
        ([3, 9], [False, True], 3),  # at least 3: the curve never falls further
        ([3, 9, 9], [False, True, True], None),
    ],
)
def test_the_median_is_the_middle_of_the_times_at_which_half_is_faithful(
    times: list[float], censored: list[bool], expected: float | None
) -> None:
    """As NumPy's median of an even number of values, and as R's survfit has it."""
    table = pl.DataFrame({"cell": 0, "fi": times, "censored": censored}, schema_overrides={"fi": pl.Float64})
    assert kaplan_meier(table, ["cell"]).select(median()).item() == (
        None if expected is None else pytest.approx(expected)
    )
