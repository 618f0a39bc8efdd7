"""Ratios of critical values: MOVER's interval, its coverage, and what bounds make of it."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from fortifai_ray.statistics.critical import critical_ratios

VARIED = ["loss.kind", "loss.gamma", "seed"]
CROSS_ENTROPY = {"loss.kind": "cross_entropy"}
CRITERION = {"metric": "perplexity", "threshold": 2.0, "relative_to": "own_generation_0", "direction": "above"}
RATIO = "regime.synthetic_ratio"


def point(
    loss: str, critical: float | None, low: float | None, high: float | None, bound: str = "exact", over: str = RATIO
) -> dict[str, Any]:
    gamma = {"tce": 0.3, "tce9": 0.9}.get(loss)
    cell = {"loss.kind": "tce" if gamma else "cross_entropy", "loss.gamma": gamma}
    searched = {"critical": critical, "low": low, "high": high, "level": 0.9, "bound": bound}
    return {**cell, **CRITERION, "confirm": 1, "chance": None, "over": over, **searched}


def ratios(*points: dict[str, Any]) -> list[dict[str, Any]]:
    floats = dict.fromkeys(("loss.gamma", "critical", "low", "high", "chance"), pl.Float64)
    table = pl.DataFrame(points, schema_overrides=floats, infer_schema_length=None)
    return critical_ratios(table, [*VARIED, RATIO], CROSS_ENTROPY).to_dicts()


def test_the_interval_by_hand() -> None:
    ce, tce = ratios(point("ce", 0.4, 0.38, 0.43), point("tce", 0.92, 0.9, 0.93))
    assert (ce["is_baseline"], ce["ratio"], ce["ratio_low"], ce["ratio_high"]) == (True, 1.0, 1.0, 1.0)
    assert (tce["ratio"], tce["ratio_bound"], tce["level"]) == (pytest.approx(2.3), "exact", 0.9)
    below = math.hypot(math.log(0.92 / 0.9), math.log(0.43 / 0.4))
    above = math.hypot(math.log(0.93 / 0.92), math.log(0.4 / 0.38))
    assert tce["ratio_low"] == pytest.approx(2.3 * math.exp(-below))
    assert tce["ratio_high"] == pytest.approx(2.3 * math.exp(above))
    assert (tce["human"], tce["human_low"], tce["human_high"]) == pytest.approx((0.08, 0.07, 0.1))
    assert tce["human_ratio"] == pytest.approx(0.08 / 0.6)
    least = math.hypot(math.log(0.08 / 0.07), math.log(0.62 / 0.6))
    assert tce["human_ratio_low"] == pytest.approx(0.08 / 0.6 * math.exp(-least))
    assert (ce["human_ratio"], ce["human_ratio_bound"]) == (1.0, "exact")


def test_the_interval_covers_the_true_ratio_as_often_as_the_searches_cover_theirs() -> None:
    truth, spread, z, n = (0.4, 0.9), (0.02, 0.03), 1.6448536, 4_000
    drawn = [np.random.default_rng(3 + i).normal(t, s, n) for i, (t, s) in enumerate(zip(truth, spread, strict=True))]
    points = [
        {**point(loss, x, x - z * s, x + z * s), "threshold": 2.0 + index}
        for loss, values, s in zip(("ce", "tce"), drawn, spread, strict=True)
        for index, x in enumerate(values.tolist())
    ]
    result = [row for row in ratios(*points) if not row["is_baseline"]]
    covered = np.mean([row["ratio_low"] <= 0.9 / 0.4 <= row["ratio_high"] for row in result])
    # four binomial standard errors, and 1 % for the logarithm of a normal estimate of 5 % spread
    assert abs(covered - 0.9) < 4 * math.sqrt(0.09 / n) + 0.01


@pytest.mark.parametrize(
    ("ce", "tce", "bound", "human"),
    [
        ("exact", "lower", "lower", "upper"),
        ("exact", "upper", "upper", "lower"),
        ("lower", "exact", "upper", "lower"),
        ("upper", "exact", "lower", "upper"),
        ("upper", "lower", "lower", "upper"),
        ("lower", "lower", "undetermined", "undetermined"),
        ("exact", "undetermined", "undetermined", "undetermined"),
        ("undetermined", "exact", "undetermined", "undetermined"),
    ],
)
def test_what_a_search_that_ended_at_an_edge_says(ce: str, tce: str, bound: str, human: str) -> None:
    base, row = ratios(point("ce", 0.4, 0.38, 0.42, ce), point("tce", 0.8, 0.78, 0.82, tce))
    assert (row["ratio_bound"], row["human_ratio_bound"]) == (bound, human)
    assert (row["ratio"] is None) == (bound == "undetermined")
    assert (row["ratio_low"] is None) == (bound in ("upper", "undetermined"))
    assert (row["ratio_high"] is None) == (bound in ("lower", "undetermined"))
    assert (base["ratio"], base["ratio_bound"]) == (1.0, "exact")


def test_a_bound_without_a_point_stands_where_its_known_end_is() -> None:
    _, row = ratios(point("ce", 0.4, 0.38, 0.42), point("tce", None, 1.0, None, "lower"))
    assert (row["ratio"], row["ratio_bound"]) == (pytest.approx(2.5), "lower")
    assert (row["human"], row["human_ratio"], row["human_ratio_bound"]) == (0.0, 0.0, "upper")


def test_an_end_at_zero_leaves_the_ratio_without_that_end() -> None:
    _, row = ratios(point("ce", 0.1, 0.0, 0.2), point("tce", 0.8, 0.7, 0.9))
    assert (row["ratio"], row["ratio_high"]) == (pytest.approx(8), None)
    assert row["ratio_low"] == pytest.approx(8 * math.exp(-math.hypot(math.log(8 / 7), math.log(2))))


def test_without_a_baseline_or_with_two_there_is_no_ratio() -> None:
    for others in ([], [point("ce", 0.4, 0.3, 0.5), point("ce", 0.5, 0.4, 0.6)]):
        row = ratios(*others, point("tce", 0.8, 0.7, 0.9))[-1]
        assert (row["ratio"], row["ratio_low"], row["ratio_bound"]) == (None, None, "undetermined")
        assert row["human"] == pytest.approx(0.2)


def test_another_key_has_no_human_share_and_criteria_do_not_mix() -> None:
    other = {**point("ce", 0.5, 0.4, 0.6), "threshold": 4.0}
    rows = ratios(
        point("ce", 1.2, 1.1, 1.3, over="decoding.temperature"),
        other,
        point("tce", 0.9, 0.8, 1.0, over="decoding.temperature"),
    )
    assert [row["human_ratio"] for row in rows] == [None, 1.0, None]
    assert (rows[2]["ratio"], rows[2]["human"], rows[2]["human_bound"]) == (pytest.approx(0.75), None, None)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match="high"):
        critical_ratios(pl.DataFrame([point("ce", 0.5, 0.4, 0.6)]).drop("high"), VARIED, CROSS_ENTROPY)
