"""BCa intervals: SciPy's to rounding on the same resamples, and their coverage where theory knows it."""

import numpy as np
import pytest
from scipy import stats

from fortifai_ray.statistics.intervals import bca, mean_intervals

KNOWN = np.array([8, 20, -3, 28, 17, 12, 58, 1]) / 64  # their means are exact in binary: ties are ties for SciPy too


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_on_scipys_resamples_the_interval_is_scipys(level: float) -> None:
    theirs = stats.bootstrap(
        (KNOWN,), np.mean, method="BCa", confidence_level=level, n_resamples=2_000, rng=np.random.default_rng(3)
    )
    low, high = bca(KNOWN[None, :], theirs.bootstrap_distribution[None, :], level)
    np.testing.assert_allclose([low[0], high[0]], list(theirs.confidence_interval), rtol=1e-12)


def test_its_own_resamples_give_scipys_interval_within_their_noise() -> None:
    theirs = stats.bootstrap((KNOWN,), np.mean, method="BCa", confidence_level=0.9, rng=np.random.default_rng(4))
    low, high = mean_intervals(KNOWN[None, :], 0.9, 9_999, seed=0)
    # an end is a 5 % quantile: its standard error is sqrt(0.05 · 0.95 / 9,999) / density, the density at a normal's 5 %
    # point is 0.103 / σ of the mean; two independent ends, four standard errors, and half as much again for skewness
    noise = 6 * np.sqrt(2 * 0.05 * 0.95 / 9_999) / 0.103 * KNOWN.std() / np.sqrt(KNOWN.size)
    np.testing.assert_allclose([low[0], high[0]], list(theirs.confidence_interval), atol=noise)


def test_rows_are_independent_of_each_other_and_the_seed_decides() -> None:
    samples = np.stack([KNOWN, KNOWN[::-1] * 3, np.full(KNOWN.size, 0.5)])
    low, high = mean_intervals(samples, 0.9, 999, seed=1)
    alone = mean_intervals(samples[1:2], 0.9, 999, seed=1)
    np.testing.assert_allclose([low[1], high[1]], [alone[0][0], alone[1][0]], rtol=1e-12)
    assert (low[2], high[2]) == (0.5, 0.5)
    assert mean_intervals(samples, 0.9, 999, seed=2)[0][0] != low[0]


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    samples = np.random.default_rng(5).normal(size=(2_000, 20))
    low, high = mean_intervals(samples, 0.9, 1_999, seed=0)
    covered = np.mean((low <= 0) & (high >= 0))
    # a bootstrap's interval is too narrow by sqrt((n - 1) / n), and by the normal's quantile instead of Student's:
    # P(|t_19| < 1.645 · sqrt(19 / 20)) = 0.874; four binomial standard errors around it
    expected = 2 * stats.t.cdf(1.645 * np.sqrt(19 / 20), 19) - 1
    assert abs(covered - expected) < 4 * np.sqrt(expected * (1 - expected) / 2_000) + 0.005
