"""Intervals of a mean: Student's t where nothing is skewed, and what they cover where much is."""

import math

import numpy as np
import pytest
from scipy import stats

from fortifai_ray.statistics.intervals import mean, mean_intervals, ratio_intervals, ratio_of_means, variance

SAMPLES = 4_000
ERROR = 3 * math.sqrt(0.9 * 0.1 / SAMPLES)  # three binomial standard errors: 1.4 %
# A law's sampler, its mean, and the least coverage in % at 6, 10 and 20 values (python -m benchmarks.coverage)
LAWS = {
    "normal": (lambda rng, size: rng.normal(size=size), 0.0, (92, 91.5, 91.5)),
    "log of gammas": (lambda rng, size: np.log(rng.gamma(4, size=size) / rng.gamma(4, size=size)), 0.0, (90.5,) * 3),
    "exponential": (lambda rng, size: rng.exponential(size=size), 1.0, (89, 90.5, 92)),
    "mirrored gamma": (lambda rng, size: -rng.gamma(1.5, size=size), -1.5, (90, 91, 92)),
    "log-normal, 0.75": (lambda rng, size: rng.lognormal(0, 0.75, size), math.exp(0.75**2 / 2), (87.5, 89, 90.5)),
}  # fmt: skip


@pytest.mark.parametrize("law", LAWS)
def test_what_it_covers_at_nominal_90_percent(law: str) -> None:
    sampler, truth, expected = LAWS[law]
    rng = np.random.default_rng(11)
    for n, percent in zip((6, 10, 20), expected, strict=True):
        low, high = mean_intervals(sampler(rng, (SAMPLES, n)), 0.9)
        covered = float(np.mean((low <= truth) & (truth <= high)))
        assert covered > percent / 100 - ERROR
        assert covered < 0.93


@pytest.mark.parametrize("n", [3, 4, 5])
def test_few_values_of_a_normal_law_are_covered_88_to_93_times_in_100(n: int) -> None:
    low, high = mean_intervals(np.random.default_rng(18).normal(size=(40_000, n)), 0.9)
    covered = float(np.mean((low <= 0) & (high >= 0)))
    assert 0.88 < covered < 0.93 + 3 * math.sqrt(0.93 * 0.07 / 40_000)


def test_three_values_of_an_exponential_law_are_covered_better_than_by_student() -> None:
    samples = np.random.default_rng(12).exponential(size=(SAMPLES, 3))
    low, high = mean_intervals(samples, 0.9)
    assert np.mean((low <= 1) & (high >= 1)) > 0.878 - ERROR  # Student: 82 %


@pytest.mark.parametrize("n", [2, 3, 6, 20])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.999])
def test_it_is_students_or_wider_on_the_side_of_the_longer_tail_alone(n: int, level: float) -> None:
    samples = np.random.default_rng(13).exponential(size=(200, n))
    low, high = mean_intervals(samples, level)
    student = stats.ttest_1samp(samples, 0, axis=1).confidence_interval(level)
    half = (student.high - student.low) / 2
    skewness = stats.skew(samples, axis=1)
    slack = 1e-9 * half
    assert (low <= student.low + slack).all()
    assert (high >= student.high - slack).all()
    assert (high <= student.high + half + slack).all()  # by the half-width at most
    np.testing.assert_allclose(low[skewness > 0], student.low[skewness > 0], atol=1e-12)
    np.testing.assert_allclose(high[skewness < 0], student.high[skewness < 0], atol=1e-12)


def test_a_symmetric_sample_has_students_interval() -> None:
    values = np.array([-3.0, -1.0, -0.5, 0.5, 1.0, 3.0]) + 7
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    interval = mean(values, 0.9)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert interval.method == "Student t"


def test_it_follows_shifts_scales_and_reflections_and_each_row_stands_alone() -> None:
    rng = np.random.default_rng(14)
    samples = rng.exponential(size=(50, 7))
    low, high = mean_intervals(samples, 0.9)
    for scale in (1e-100, 1.0, 1e100):
        scaled = mean_intervals(3 * scale + scale * samples, 0.9)
        np.testing.assert_allclose(scaled, scale * np.array([3 + low, 3 + high]), rtol=1e-9)
    np.testing.assert_allclose(mean_intervals(-samples, 0.9), [-high, -low], rtol=1e-12)
    np.testing.assert_allclose(mean_intervals(samples[3:4], 0.9), [[low[3]], [high[3]]], rtol=1e-12)


def test_equal_values_are_their_own_interval() -> None:
    low, high = mean_intervals(np.array([[0.1] * 6, [1, 2, 3, 4, 5, 6]]), 0.9)
    assert (low[0], high[0]) == (0.1, 0.1)
    assert low[1] < 3.5 < high[1]


def test_many_ratios_of_means_at_once_are_those_of_single_samples() -> None:
    rng = np.random.default_rng(15)
    tops, bottoms = rng.exponential(size=(40, 8)), rng.normal(2, 0.8, size=(40, 8))
    low, high = ratio_intervals(tops, bottoms, 0.9)
    for row in np.flatnonzero(~np.isnan(low)):
        one = ratio_of_means(tops[row], bottoms[row], 0.9)
        assert (one.low, one.high) == pytest.approx((low[row], high[row]), rel=1e-12)
    assert np.isnan(ratio_intervals(tops[:1], bottoms[:1] - bottoms[:1].mean(), 0.9)[0])[0]


def test_a_variance_of_ten_skewed_values_is_covered_better_and_says_that_it_is_approximate() -> None:
    """Log-normal, σ = 0.5: the χ² interval covers 73 %, this one 87."""
    samples, truth = np.random.default_rng(16).lognormal(0, 0.5, (600, 10)), (math.exp(0.25) - 1) * math.exp(0.25)
    intervals = [variance(sample, 0.9) for sample in samples]
    covered = np.mean([one.low <= truth <= one.high for one in intervals])
    assert covered > 0.87 - 3 * math.sqrt(0.87 * 0.13 / 600)
    assert all(one.approximate and "approximate" in one.note for one in intervals)
    normal = variance(np.random.default_rng(17).normal(size=400), 0.9)
    assert not normal.approximate
