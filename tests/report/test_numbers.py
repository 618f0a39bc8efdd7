"""Numbers in the tables: readable, and never without the mark that says they are only a bound."""

import pytest

from fortifai_ray.results.words import count, duration, number, ratio


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (2.571, "2.57"),
        (349.2, "349"),
        (81374.0, "81,374"),
        (1.0e9, "1.00e+09"),
        (1.3e-4, "1.30e-04"),
        (float("inf"), "∞"),
        (float("-inf"), "−∞"),
        (float("nan"), "NaN"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (309_700, "310k"), (999_700, "1M"), (1_254_000, "1.25M"), (3e9, "3B"), (None, "–")],
)
def test_count(value: float | None, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.21, "8.2 s"), (312.4, "5 min 12 s"), (7500, "2 h 05 min"), (None, "–")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def row(**changes: object) -> dict[str, object]:
    """A row of the fidelity table: two uncensored pairs."""
    plain = {"fi_ratio": 1.35, "fi_ratio_low": None, "fi_ratio_high": None, "bound": "exact"}
    return plain | {"seed_ratios": [1.29, 1.41], "seed_bounds": ["exact", "exact"]} | changes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "1.35 (per seed 1.29, 1.41)"),
        ({"fi_ratio_low": 1.1, "fi_ratio_high": 1.6}, "1.35 [1.1, 1.6]"),
        ({"bound": "lower", "seed_bounds": ["exact", "lower"]}, "≥1.35 (per seed 1.29, ≥1.41)"),
        ({"bound": "upper", "seed_bounds": ["upper", "upper"]}, "≤1.35 (per seed ≤1.29, ≤1.41)"),
        ({"bound": "lower", "fi_ratio_low": 1.1}, "≥1.35 [1.1, ∞)"),
        ({"bound": "upper", "fi_ratio_high": 1.6}, "≤1.35 (0, 1.6]"),
        ({"seed_ratios": [1.35], "seed_bounds": ["exact"]}, "1.35 (one seed)"),
        ({"seed_ratios": [], "seed_bounds": [], "fi_ratio": None, "bound": "undetermined"}, "undetermined"),
        (
            {
                "fi_ratio": None,
                "bound": "undetermined",
                "seed_ratios": [1.2, None],
                "seed_bounds": ["exact", "undetermined"],
            },
            "undetermined (per seed 1.2; 1 undetermined)",
        ),
    ],
)
def test_ratio_says_what_it_is_worth(changes: dict[str, object], text: str) -> None:
    """An undetermined ratio is no number, a bound carries its mark, and few seeds are listed singly."""
    assert ratio(row(**changes), is_baseline=False) == text


def test_a_ratio_without_bounds_per_seed_takes_the_cells() -> None:
    """The contract's columns alone are enough."""
    assert ratio({key: value for key, value in row(bound="lower").items() if key != "seed_bounds"}, False) == (
        "≥1.35 (per seed ≥1.29, ≥1.41)"
    )


def test_the_baseline_is_named_instead_of_measured_against_itself() -> None:
    assert ratio(row(fi_ratio=1.0), is_baseline=True) == "baseline"
