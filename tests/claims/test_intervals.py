"""Intervals: known values, coverage by simulation, and samples that allow none."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from fortifai_ray.statistics import intervals
from fortifai_ray.statistics.intervals import Interval, NoInterval

VALUES = np.array([3.1, 2.4, 4.4, 3.9, 2.8, 3.3, 3.0, 4.1, 3.6, 2.2, 3.5, 3.4])
Sampler = Callable[[np.random.Generator], Interval]


def _covers(sampler: Sampler, truth: float, repeats: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    made = [sampler(rng) for _ in range(repeats)]
    return float(np.mean([interval.low <= truth <= interval.high for interval in made]))


def _error(level: float, repeats: int) -> float:
    """Four binomial standard errors."""
    return 4 * math.sqrt(level * (1 - level) / repeats)


def test_a_means_interval_is_students() -> None:
    expected = stats.ttest_1samp(VALUES, 0).confidence_interval(0.99)
    interval = intervals.mean(VALUES, 0.99)
    np.testing.assert_allclose([interval.low, interval.high], [expected.low, expected.high], rtol=1e-12)
    assert interval.method == "Student t"


def test_a_geometric_mean_is_the_means_of_the_logarithms() -> None:
    logs, interval = intervals.mean(np.log(VALUES), 0.9), intervals.geometric_mean(VALUES, 0.9)
    np.testing.assert_allclose([interval.measured, interval.low], [stats.gmean(VALUES), math.exp(logs.low)], rtol=1e-12)


@pytest.mark.parametrize(("yes", "n"), [(0, 10), (3, 10), (10, 10), (250, 1000)])
def test_a_shares_interval_is_scipys_exact_one(yes: int, n: int) -> None:
    expected = stats.binomtest(yes, n).proportion_ci(0.99, "exact")
    interval = intervals.share(yes, n - yes, 0, 0.99)
    np.testing.assert_allclose([interval.low, interval.high], [expected.low, expected.high], atol=1e-12)


def test_open_answers_widen_a_share_on_both_sides() -> None:
    interval = intervals.share(4, 3, 3, 0.9)
    assert interval.low == intervals.share(4, 6, 0, 0.9).low
    assert interval.high == intervals.share(7, 3, 0, 0.9).high


@pytest.mark.parametrize(("q", "n"), [(0.5, 8), (0.5, 30), (0.9, 200), (0.1, 100)])
def test_a_quantiles_interval_is_scipys(q: float, n: int) -> None:
    values = np.random.default_rng(1).normal(size=n)
    expected = stats.quantile_test(values, p=q).confidence_interval(0.95)
    interval = intervals.quantile(values, q, 0.95)
    assert (interval.low, interval.high) == (expected.low, expected.high)


def test_a_quantile_of_few_chains_is_open_on_the_side_where_it_must_be() -> None:
    interval = intervals.quantile(VALUES[:5], 0.5, 0.99)  # P(all five above the median) = 1/32 > 0.5 %
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert interval.measured == np.median(VALUES[:5])


def test_fieller_solves_its_equation() -> None:
    """At each end of the interval the t test of numerator − end · denominator stands exactly at its quantile."""
    bottoms = VALUES[::-1] + 5
    interval = intervals.ratio_of_means(VALUES, bottoms, 0.95)
    assert interval.method == "Fieller"
    assert interval.measured == VALUES.mean() / bottoms.mean()
    for end in (interval.low, interval.high):
        np.testing.assert_allclose(stats.ttest_1samp(VALUES - end * bottoms, 0).pvalue, 0.05, rtol=1e-9)


SAMPLERS: dict[str, tuple[Sampler, float]] = {
    "mean": (lambda rng: intervals.mean(rng.normal(1, 2, 12), 0.9), 1.0),
    "ratio_of_means": (lambda rng: _normal_ratio(rng), 0.5),
    "geometric_mean": (lambda rng: intervals.geometric_mean(rng.lognormal(0.3, 1.0, 15), 0.9), math.exp(0.3)),
    "variance": (lambda rng: intervals.variance(rng.normal(0, 2, 40), 0.9), 4.0),
    "median": (lambda rng: intervals.quantile(rng.exponential(1, 21), 0.5, 0.9), math.log(2)),
    "share": (lambda rng: _binomial_share(rng), 0.3),
}


def _normal_ratio(rng: np.random.Generator) -> Interval:
    bottoms = rng.normal(10, 2, 12)
    return intervals.ratio_of_means(0.5 * bottoms + rng.normal(0, 1, 12), bottoms, 0.9)


def _binomial_share(rng: np.random.Generator) -> Interval:
    yes = int(rng.binomial(40, 0.3))
    return intervals.share(yes, 40 - yes, 0, 0.9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_coverage_is_at_least_the_level(name: str) -> None:
    """Where theory gives exact coverage or more, so does simulation: at least the level, less four standard errors."""
    sampler, truth = SAMPLERS[name]
    assert _covers(sampler, truth, 300, seed=2) >= 0.9 - _error(0.9, 300)


def test_on_skewed_samples_the_hull_covers_better_than_student_alone() -> None:
    """Lognormal, g₁ = 6.2: Student's t misses on the side of the long tail; the wider of the two misses less."""
    rng = np.random.default_rng(3)
    samples, truth = rng.lognormal(0, 1, (100, 60)), math.exp(0.5)
    hulls = [intervals.mean(sample, 0.9) for sample in samples]
    skewed = [hull.method != "Student t" for hull in hulls]
    assert np.mean(skewed) > 0.5
    plain = stats.ttest_1samp(samples, 0, axis=1).confidence_interval(0.9)
    covered_plain = np.mean((plain.low <= truth) & (truth <= plain.high))
    covered = np.mean([hull.low <= truth <= hull.high for hull in hulls])
    assert covered > covered_plain
    for hull, low, high in zip(hulls, plain.low, plain.high, strict=True):
        assert hull.low <= low + 1e-12
        assert hull.high >= high - 1e-12


def test_equal_values_have_a_point_for_an_interval() -> None:
    same = np.full(5, 0.3)
    for interval in (intervals.mean(same, 0.99), intervals.geometric_mean(same, 0.99)):
        assert (interval.low, interval.measured, interval.high) == (0.3, 0.3, 0.3)
    halves = intervals.ratio_of_means(same, 2 * same, 0.99)
    assert (halves.low, halves.high) == (0.5, 0.5)
    assert intervals.variance(np.full(12, 0.3), 0.99).high == 0.0


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: intervals.mean(VALUES[:1], 0.9), "at least two seeds"),
        (lambda: intervals.mean(np.array([1.0, np.nan, 2.0]), 0.9), "1 of 3 chains' values are not finite"),
        (lambda: intervals.geometric_mean(np.array([1.0, 0.0]), 0.9), "not above 0"),
        (lambda: intervals.ratio_of_means(VALUES, VALUES - VALUES.mean(), 0.9), "denominators may be 0"),
        (lambda: intervals.variance(VALUES[:9], 0.9), "needs 10 chains"),
        (lambda: intervals.quantile(np.array([1.0, np.nan]), 0.5, 0.9), "not a number"),
        (lambda: intervals.share(1, 0, 0, 0.9), "at least two seeds"),
    ],
)
def test_a_sample_that_allows_no_interval_says_why(call: Callable[[], Interval], why: str) -> None:
    with pytest.raises(NoInterval, match=why):
        call()


def test_infinite_values_have_a_median() -> None:
    values = np.concatenate([np.full(10, 1.0), np.full(11, np.inf)])
    assert intervals.quantile(values, 0.5, 0.9).measured == math.inf
