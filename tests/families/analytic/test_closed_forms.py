"""Chains meet their closed forms: each mean within four standard errors, which are at most a fifth of the effect.

The regimes are the real ones. Seeds are fixed; whoever changes a stream draws anew, and a right chain then fails a
comparison at four standard errors once in 16,000.
"""

import numpy as np
import pytest

from fortifai_ray import theory
from fortifai_ray.families.analytic import (
    Discrete,
    ExponentialFamily,
    Gaussian,
    Kde,
    LinearRegression,
    LogisticRegression,
)
from fortifai_ray.losses import TruncatedCrossEntropy
from fortifai_ray.recipe.regimes import Accumulate, AccumulateSubsample, FixedHuman, Incremental, Mixed, Replace

from .loops import assert_mean, run

CHAINS = range(2_000)


def test_gaussian_replace_variance() -> None:
    """(1 − 1/n)^(g+1) while g + 1 ≤ n/2, and the mean wanders by what the variance loses."""
    n = 20
    scores = run(Gaussian(), n, CHAINS, n // 2, Replace())
    for g in range(n // 2):
        expected = theory.gaussian_replace_mean_variance(n, g)
        assert_mean(scores["trace_ratio"][g], expected, 1 - expected)
        assert_mean(scores["mean_error"][g], theory.gaussian_replace_mean_error(n, g), 1 - expected)


def test_gaussian_replace_log_variance() -> None:
    """Far beyond n/2 generations: mean and variance of the logarithm, for both estimators."""
    n, generations = 12, 40
    for estimator in ("maximum_likelihood", "unbiased"):
        family = Gaussian(covariance_estimator=estimator)
        scores = run(family, n, CHAINS, generations, Replace())["log_variance_ratio"]
        for g in (0, 5, 39):
            expected = theory.gaussian_replace_mean_log_variance(n, g, estimator)
            assert_mean(scores[g], expected, expected)
            variance = theory.gaussian_replace_variance_log_variance(n, g)
            assert_mean((scores[g] - expected) ** 2, variance, variance)


def test_gaussian_unbiased_keeps_its_variance_in_the_mean() -> None:
    """E σ̂² = σ² under replace, though nearly every chain shrinks; under accumulate it does fall a little."""
    n, family = 20, Gaussian(covariance_estimator="unbiased")
    replaced = run(family, n, CHAINS, 8, Replace())
    shrunk = theory.gaussian_replace_mean_variance(n, 7)
    assert_mean(replaced["trace_ratio"][7], 1.0, 1 - shrunk)
    assert_mean(replaced["mean_error"][7], theory.gaussian_replace_mean_error(n, 7, "unbiased"), 8 / n)
    expected = theory.gaussian_accumulate_mean_variance(4, 7, "unbiased")
    accumulated = run(family, 4, CHAINS, 8, Accumulate())
    assert_mean(accumulated["trace_ratio"][7], expected, 1 - expected)


@pytest.mark.parametrize("dim", [1, 3])
def test_gaussian_accumulate(dim: int) -> None:
    """∏ (1 − 1/(nt²)) in any dimension, and the mean's error is the rest."""
    n = 8
    scores = run(Gaussian(dim=dim, mean=3.0, std=0.5), n, CHAINS, 12, Accumulate())
    for g in (0, 1, 4, 11):
        expected = theory.gaussian_accumulate_mean_variance(n, g)
        assert_mean(scores["trace_ratio"][g], expected, 1 - expected)
        assert_mean(scores["mean_error"][g], theory.gaussian_accumulate_mean_error(n, g), 1 - expected)


def test_gaussian_accumulate_subsample() -> None:
    """Below accumulate by more than the error, above replace, and on its own closed form."""
    n = 6
    scores = run(Gaussian(), n, range(3_000), 8, AccumulateSubsample())["trace_ratio"]
    for g in (1, 3, 7):
        expected = theory.gaussian_accumulate_subsample_mean_variance(n, g)
        assert theory.gaussian_replace_mean_variance(n, g) <= expected
        assert_mean(scores[g], expected, theory.gaussian_accumulate_mean_variance(n, g) - expected)


@pytest.mark.parametrize(
    ("regime", "form"),
    [
        (
            Mixed(synthetic_ratio=0.7, human="kept"),
            lambda n, g: theory.gaussian_mixed_mean_variance(n, g, 0.7, "kept"),
        ),
        (
            Mixed(synthetic_ratio=0.7, human="fresh"),
            lambda n, g: theory.gaussian_mixed_mean_variance(n, g, 0.7, "fresh"),
        ),
        (FixedHuman(human=4, synthetic=12), lambda n, g: theory.gaussian_fixed_human_mean_variance(n, g, 4, 12)),
        (FixedHuman(human=15, synthetic=5), lambda n, g: theory.gaussian_fixed_human_mean_variance(n, g, 15, 5)),
        (Incremental(), theory.gaussian_incremental_mean_variance),
    ],
    ids=["mixed, kept", "mixed, fresh", "fixed human", "more human than at first", "incremental"],
)
def test_gaussian_with_human_data(regime: object, form: object) -> None:
    """The linear recursion of covariances, regime by regime."""
    n, chains = 10, range(6_000)
    scores = run(Gaussian(), n, chains, 7, regime)["trace_ratio"]
    for g in (0, 1, 2, 6):
        expected = form(n, g)
        assert_mean(scores[g], expected, 1 - expected)


def test_discrete_heterozygosity_and_support() -> None:
    """Genetic drift: diversity falls by 1 − 1/n a generation, and outcomes die out as the Wright–Fisher chain says."""
    n = 20
    family = Discrete(outcomes=8, probabilities="zipf")
    true = 1 - float((family.truth()["probabilities"] ** 2).sum())
    replaced, accumulated = (run(family, n, CHAINS, 10, regime) for regime in (Replace(), Accumulate()))
    for g in (0, 4, 9):
        expected = true * theory.discrete_replace_heterozygosity(n, g)
        assert_mean(replaced["heterozygosity"][g], expected, true - expected)
        kept = true * theory.discrete_accumulate_heterozygosity(n, g)
        assert_mean(accumulated["heterozygosity"][g], kept, true - kept)
        left = theory.discrete_replace_support(n, g, 8, "zipf")
        assert_mean(replaced["support"][g], left, 8 - left)


@pytest.mark.parametrize("member", ["exponential", "poisson", "bernoulli"])
def test_exponential_family_errors(member: str) -> None:
    """The exact error of the mean under both regimes, small n."""
    n, family = 8, ExponentialFamily(member=member, mean=0.6)
    replaced, accumulated = (
        run(family, n, CHAINS, 6, regime)["parameter_error"] for regime in (Replace(), Accumulate())
    )
    for g in (0, 2, 5):
        expected = theory.exponential_family_replace_error(n, g, member, 0.6)
        assert_mean(replaced[g], expected, expected)
        expected = theory.exponential_family_accumulate_error(n, g, member, 0.6)
        assert_mean(accumulated[g], expected, expected)


@pytest.mark.parametrize("design", ["fixed", "fresh"])
def test_regression_replace(design: str) -> None:
    """(g+1)·σ²d/(n − d − 1): equality, for both designs and inputs that are not isotropic."""
    family = LinearRegression(dim=4, noise_std=0.5, design=design, spectrum_exponent=1.0)
    scores = run(family, 20, CHAINS, 6, Replace())["excess_risk"]
    for g in range(6):
        expected = theory.regression_excess(20, g, 4, 0.5)
        assert expected == pytest.approx(theory.regression_replace_excess(g) * 0.25 * 4 / 15)
        assert_mean(scores[g], expected, expected)


def test_regression_accumulate() -> None:
    """Σ 1/j² times generation 0's with a fixed design, distinguished from the bound π²/6 at the first generations."""
    scores = run(LinearRegression(dim=4), 20, range(6_000), 6, Accumulate())["excess_risk"]
    first = theory.regression_excess(20, 0, 4, 1.0)
    for g in range(6):
        expected = first * theory.regression_accumulate_excess(g)
        assert_mean(scores[g], expected, expected)
        # Paired with generation 0 the ratio itself is tested, against what replace would give.
        gap = scores[g] - theory.regression_accumulate_excess(g) * scores[0]
        if g:
            assert_mean(gap, 0.0, first * (g + 1 - theory.regression_accumulate_excess(g)))


def test_logistic_regression_tends_to_the_same_sums() -> None:
    """Dey and Donoho's universality: the parameter's error over generation 0's is Σ 1/j² as n grows, and g+1."""
    n, g = 500, 3
    family = LogisticRegression(dim=2)
    for regime, sums in ((Accumulate(), theory.regression_accumulate_excess(g)), (Replace(), g + 1.0)):
        error = run(family, n, range(300), g + 1, regime)["parameter_error"]
        assert_mean(error[g] - sums * error[0], 0.0, sums * error[0].mean())


def test_kde_replace_trace() -> None:
    """A kernel adds variance in each generation, until sampling loses as much: both kernels, up and down."""
    for kernel, bandwidth, variance in (("gaussian", 0.5, 1.0), ("tophat", 0.2, 0.25)):
        scores = run(Kde(shape="circles", kernel=kernel, bandwidth=bandwidth), 20, range(400), 8, Replace())
        for g in (0, 7):
            expected = theory.kde_replace_mean_trace_ratio(20, g, bandwidth, variance)
            assert_mean(scores["trace_ratio"][g], expected, 1 - expected)


def test_ridge_after_least_squares_generations() -> None:
    """Dohmatob et al.'s setting against the deterministic equivalents, whose relative error is of order 1/d."""
    settings = {"dim": 60, "noise_std": 0.7, "ridge": 0.2, "spectrum_exponent": 0.5}
    family = LinearRegression(**settings, design="fresh", written_by="least_squares")
    scores = run(family, 150, range(150), 4, Replace())["excess_risk"]
    for g in (0, 3):
        expected = theory.ridge_excess(150, g, **settings)
        error = scores[g].std(ddof=1) / np.sqrt(150)
        assert error < expected / 20
        assert abs(scores[g].mean() - expected) < 4 * error + expected / 60


def test_tce_inflates_a_gaussian() -> None:
    """1.11 times the variance a generation at γ = 0.9: the central tenth is left out, and nothing but it."""
    family, n = Gaussian(), 4_000
    scores = run(family, n, range(60), 3, Replace(), TruncatedCrossEntropy(gamma=0.9))
    factor = theory.gaussian_tce_variance_factor(0.9)
    for g in range(3):
        # Losing 1/n a generation is far below the error; effect: what plain likelihood would give.
        assert_mean(scores["trace_ratio"][g], factor ** (g + 1), factor ** (g + 1) - 1)
        assert (scores["kept_fraction"][g] == 0.9).all()
