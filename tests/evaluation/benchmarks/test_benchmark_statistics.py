"""Intervals and the paired test against SciPy and by hand."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from fortifai_ray.evaluation.benchmarks.report import Measure, accuracy, credits, mcnemar, mean_accuracy


def share(correct: int, scored: int) -> Measure:
    return accuracy("share", [1.0] * correct + [0.0] * (scored - correct))


@pytest.mark.parametrize(("correct", "scored"), [(0, 7), (3, 7), (7, 7), (511, 1000)])
def test_the_interval_is_wilsons(correct: int, scored: int) -> None:
    """SciPy's own for whole counts."""
    expected = binomtest(correct, scored).proportion_ci(0.95, "wilson")
    measure = share(correct, scored)
    assert (measure.value, measure.scored) == (correct / scored, scored)
    assert (measure.low, measure.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_scored_has_no_value() -> None:
    """And no interval, and divides by nothing."""
    assert share(0, 0).value is None
    assert mean_accuracy("mean", [share(1, 2), share(0, 0)]).value is None
    assert mean_accuracy("mean", []).value is None


def test_a_mean_of_equal_parts_is_the_pooled_share() -> None:
    """Equally many items in each: nothing is gained or lost by the split."""
    mean, pooled = mean_accuracy("mean", [share(8, 20), share(14, 20)]), share(22, 40)
    assert mean.scored == pooled.scored
    assert (mean.value, mean.low, mean.high) == pytest.approx((pooled.value, pooled.low, pooled.high))


def test_a_mean_of_unequal_parts_weighs_them_alike() -> None:
    """A paradigm counts as one, however many pairs it has; the smallest sets the width."""
    mean = mean_accuracy("mean", [share(1, 2), share(1000, 1000)])
    assert mean.value == 0.75
    alone = share(6, 8)  # 2² / (1/2 + 1/1000) ≈ 8 answers
    assert mean.low is not None
    assert mean.low == pytest.approx(alone.low, abs=0.01)


def test_mcnemar_looks_at_what_differs() -> None:
    """Eight against one of twelve common items: 2 · P(X ≤ 1 | 9, ½)."""
    first = dict.fromkeys(range(8), True) | {8: False, 9: True, 10: False, 11: True, 12: True}
    second = dict.fromkeys(range(8), False) | {8: True, 9: True, 10: False, 11: True, 99: True}
    test = mcnemar(first, second)
    assert (test.items, test.only_first, test.only_second) == (12, 8, 1)
    assert test.p_value == pytest.approx(2 * sum(math.comb(9, k) for k in (0, 1)) / 2**9)


def test_mcnemar_of_a_model_with_itself() -> None:
    """Nothing differs: no evidence."""
    answers = {0: True, 1: False}
    assert mcnemar(answers, answers).p_value == 1.0


@pytest.mark.parametrize(
    ("scores", "right", "credit"),
    [
        ([-1.0, -2.0], 0, 1.0),
        ([-2.0, -1.0], 0, 0.0),
        ([-1.0, -1.0], 0, 0.5),
        ([-1.0, -1.0], 1, 0.5),
        ([-30.0, -30.0 - 1e-6], 1, 0.5),  # apart by the rounding of a float32 sum
        ([-30.0, -30.001], 0, 1.0),
        ([-1.0, -1.0, -2.0, -3.0], 0, 0.5),
        ([-1.0, -1.0, -1.0, -3.0], 2, 1 / 3),
        ([-1.0, -1.0, -1.0, -3.0], 3, 0.0),
        ([0.0, 0.0, 0.0, 0.0], 3, 0.25),
        ([math.nan, -1.0], 0, 0.0),
        ([-math.inf, -math.inf], 0, 0.0),
        ([-1.0, -math.inf], 0, 0.0),
    ],
)
def test_a_tie_earns_what_a_guess_would(scores: list[float], right: int, credit: float) -> None:
    """1/k among k that share the best score; nothing where a score is no finite number."""
    assert credits(np.array([scores]), right).tolist() == [pytest.approx(credit)]


def test_credits_of_ties_have_their_own_error() -> None:
    """Ties all through: no spread, and an interval around one half."""
    measure = accuracy("share", [0.5] * 40)
    assert (measure.value, measure.stderr) == (0.5, 0.0)
    assert measure.low is not None
    assert measure.low < 0.5
    assert accuracy("share", [0.0, 1.0]).stderr == pytest.approx(0.5)


def test_mcnemar_counts_a_tie_between_right_and_wrong() -> None:
    """One model's tie is better than the other's wrong answer and worse than its right one."""
    test = mcnemar({0: 0.5, 1: 0.5, 2: 0.5}, {0: 0.0, 1: 1.0, 2: 0.5})
    assert (test.only_first, test.only_second) == (1, 1)
