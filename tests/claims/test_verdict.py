"""Verdicts come from the whole interval: each side of each boundary, and what must hold whatever the numbers are."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai_ray.claims.result import Region, Verdict
from fortifai_ray.study.claims import Claim

RELATIONS: list[tuple[str, Any, Any]] = [
    ("equals", 2.0, {"absolute": 0.5}),
    ("equals", -2.0, {"relative": 0.25}),
    ("at_most", 2.0, None),
    ("at_least", 2.0, None),
    ("less", 2.0, None),
    ("greater", 2.0, None),
    ("between", [1.5, 2.5], None),
]


def _claim(relation: str, value: Any, tolerance: Any) -> Claim:
    return Claim.model_validate(
        {
            "id": "c",
            "source": "Doe 2024",
            "kind": "theory",
            "statistic": {"kind": "metric", "metric": "perplexity"},
            "relation": relation,
            "value": value,
            "tolerance": tolerance,
        }
    )


def _region(relation: str, value: Any, tolerance: Any = None) -> Region:
    claim = _claim(relation, value, tolerance)
    return Region.of(claim, claim.numbers())


def _agrees(relation: str, value: Any, tolerance: Any, x: float) -> bool:
    """Whether one number agrees with a claim, written as the words say it."""
    if relation == "between":
        return value[0] <= x <= value[1]
    if relation == "equals":
        return abs(x - value) <= (tolerance.get("absolute") or tolerance.get("relative", 0) * abs(value))
    return {"at_most": x <= value, "at_least": x >= value, "less": x < value, "greater": x > value}[relation]


@pytest.mark.parametrize(
    ("relation", "value", "tolerance", "interval", "verdict"),
    [
        ("equals", 2.0, {"absolute": 0.5}, (1.5, 2.5), "holds"),
        ("equals", 2.0, {"absolute": 0.5}, (1.49, 2.5), "undecided"),
        ("equals", 2.0, {"absolute": 0.5}, (1.0, 3.0), "undecided"),
        ("equals", 2.0, {"absolute": 0.5}, (2.51, 3.0), "does not hold"),
        ("equals", -2.0, {"relative": 0.25}, (-2.5, -1.5), "holds"),
        ("equals", -2.0, {"relative": 0.25}, (-3.0, -2.51), "does not hold"),
        ("at_most", 2.0, None, (1.0, 2.0), "holds"),
        ("at_most", 2.0, None, (2.0, 2.1), "undecided"),
        ("at_most", 2.0, None, (2.01, 3.0), "does not hold"),
        ("less", 2.0, None, (1.0, 2.0), "undecided"),
        ("less", 2.0, None, (2.0, 2.0), "does not hold"),
        ("less", 2.0, None, (-math.inf, 1.99), "holds"),
        ("at_least", 2.0, None, (2.0, math.inf), "holds"),
        ("at_least", 2.0, None, (1.0, math.inf), "undecided"),
        ("greater", 2.0, None, (2.0, 3.0), "undecided"),
        ("greater", 2.0, None, (1.0, 2.0), "does not hold"),
        ("between", [1.5, 2.5], None, (1.5, 2.5), "holds"),
        ("between", [1.5, 2.5], None, (0.0, 1.5), "undecided"),
        ("between", [1.5, 2.5], None, (0.0, 1.4), "does not hold"),
        ("between", [1.5, 2.5], None, (-math.inf, math.inf), "undecided"),
        ("at_most", 2.0, None, (math.nan, 1.0), "undecided"),
    ],
)
def test_each_side_of_the_boundary(
    relation: str, value: Any, tolerance: Any, interval: tuple[float, float], verdict: Verdict
) -> None:
    assert _region(relation, value, tolerance).verdict(*interval) == verdict


# Halves, so that neither the ends nor the points between them are lost to rounding.
halves = st.integers(-12, 12).map(lambda n: n / 4)


@given(st.sampled_from(RELATIONS), halves, halves, halves)
def test_no_verdict_is_given_against_a_number_inside_the_interval(
    relation: tuple[str, Any, Any], a: float, b: float, inside: float
) -> None:
    """Never "holds" with a violating number inside, never "does not hold" with an agreeing one."""
    low, high = min(a, b), max(a, b)
    inside = min(max(inside, low), high)
    verdict = _region(*relation).verdict(low, high)
    if verdict == "holds":
        assert _agrees(*relation, inside)
    if verdict == "does not hold":
        assert not _agrees(*relation, inside)


@given(st.sampled_from(RELATIONS), halves)
def test_an_interval_of_one_number_is_always_decided(relation: tuple[str, Any, Any], x: float) -> None:
    assert _region(*relation).verdict(x, x) == ("holds" if _agrees(*relation, x) else "does not hold")


@given(st.sampled_from(RELATIONS), halves, halves, st.integers(0, 8), st.integers(0, 8))
def test_a_wider_interval_never_decides_otherwise(
    relation: tuple[str, Any, Any], a: float, b: float, left: int, right: int
) -> None:
    low, high = min(a, b), max(a, b)
    wider = _region(*relation).verdict(low - left / 4, high + right / 4)
    assert wider in ("undecided", _region(*relation).verdict(low, high))
