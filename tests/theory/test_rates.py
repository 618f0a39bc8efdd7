"""How fast symbols are forgotten: the exact shares against simulated counts, their limits, and arguments refused."""

import math

import numpy as np
import pytest

from fortifai_ray import theory
from fortifai_ray.theory.discrete import lost_by_count

CHAINS = 20_000


@pytest.mark.parametrize("member", ["poisson", "bernoulli"])
@pytest.mark.parametrize("count", [1.0, 4.0])
def test_the_share_that_has_forgotten(member: str, count: float) -> None:
    """A total of 50 samples, drawn again and again from its own mean: within four standard errors at any generation."""
    draw, n = np.random.default_rng(0), 50
    form = theory.poisson_forgotten if member == "poisson" else theory.bernoulli_forgotten
    totals = np.full(CHAINS, count)
    for generation in range(12):
        totals = draw.poisson(totals) if member == "poisson" else draw.binomial(n, totals / n)
        expected = form(n, generation, count / n)
        error = math.sqrt(expected * (1 - expected) / CHAINS)
        assert abs((totals == 0).mean() - expected) <= 4 * error, generation


def test_time_is_linear_in_the_count() -> None:
    """The share tends to e^(−2c/g) for large counts and generations, so that twice of both changes nothing."""
    for count in (20, 40):
        share = theory.poisson_forgotten(1_000, 20 * count, count / 1_000)
        assert share == pytest.approx(math.exp(-2 / 20), rel=0.01)
    few, many = (theory.poisson_forgotten(100, g, c / 100) for g, c in ((39, 4), (79, 8)))
    assert few == pytest.approx(many, abs=0.02)
    assert theory.poisson_forgotten(100, 0, 0.04) == pytest.approx(math.exp(-4))


def test_the_moments_of_a_count() -> None:
    """E N = c and Var N = c(g + 1) of Poisson's total; E m(1 − m) falls by 1 − 1/n of Bernoulli's: by their chains' own
    matrices."""
    from scipy.stats import binom, poisson

    n, count, most = 30, 3, 400
    totals = np.arange(most + 1)
    law = poisson.pmf(totals, count)
    for generation in range(4):
        assert law @ totals == pytest.approx(count, rel=1e-6)
        assert law @ (totals - count) ** 2 == pytest.approx(count * (generation + 1), rel=1e-4)
        assert law[0] == pytest.approx(theory.poisson_forgotten(n, generation, count / n), rel=1e-9)
        law = law @ poisson.pmf(totals[None], totals[:, None])
    counts = np.arange(n + 1)
    law = binom.pmf(counts, n, count / n)
    for generation in range(12):
        left = count / n * (1 - count / n) * (1 - 1 / n) ** (generation + 1)
        assert law @ (counts / n * (1 - counts / n)) == pytest.approx(left, rel=1e-9)
        law = law @ binom.pmf(counts[None], n, counts[:, None] / n)


def test_a_gaussians_standard_deviation_falls_by_a_half_logarithm_in_n_generations() -> None:
    for n in (10, 100, 1_000):
        fall = theory.gaussian_replace_mean_log_variance(n, n - 1, "unbiased") / 2
        assert fall == pytest.approx(-0.5, abs=1 / n)


def test_many_samples_make_one_law_of_both() -> None:
    """Binomial(n, c/n) tends to Poisson(c)."""
    assert theory.bernoulli_forgotten(800, 10, 4 / 800) == pytest.approx(
        theory.poisson_forgotten(800, 10, 4 / 800), abs=2e-3
    )


def test_an_outcome_that_is_lost_or_alone_stays_so() -> None:
    lost = lost_by_count(20, 30)
    assert (lost[0], lost[20]) == (1.0, 0.0)
    assert (np.diff(lost) < 0).all()


@pytest.mark.parametrize("mean", [0.0, -1.0, 1.0])
def test_a_mean_outside_its_range_is_refused(mean: float) -> None:
    with pytest.raises(ValueError, match="mean"):
        theory.bernoulli_forgotten(10, 2, mean)
    if mean <= 0:
        with pytest.raises(ValueError, match="mean"):
            theory.poisson_forgotten(10, 2, mean)
