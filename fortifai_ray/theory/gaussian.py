"""Gaussians under every regime.

One argument gives the second moments under the replace, accumulate and mixed regimes. Let v_g be the expected
maximum-likelihood variance of generation g over the true one's. Each sample of any generation has total variance 1
about the true mean, since a fitted Gaussian has the mean and the variance of its training set: the training set's
spread within and about the truth add up to 1. So v_g = (1 − 1/N)(1 − c), with N its size and c the mean covariance
between two different samples of it, and c obeys a linear recursion (:mod:`fortifai_ray.theory.moments`). The mean's
expected squared error is 1 − v_g. The same holds for any family with the mean and variance of its training set, such as
a discrete distribution's indicators.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fortifai_ray.theory.moments import mixed_sizes, partly_human_variance
from fortifai_ray.theory.registry import Human, Recipe, check_arguments, check_choice, closed_form

Estimator = Literal["maximum_likelihood", "unbiased"]


def _maximum_likelihood(recipe: Recipe) -> bool:
    return recipe.get("family.covariance_estimator", "maximum_likelihood") == "maximum_likelihood"


def _one_dimension(recipe: Recipe) -> bool:
    return recipe.get("family.dim", 1) == 1


@closed_form("trace_ratio", family="gaussian", regime="replace")
def gaussian_replace_mean_variance(n: int, generation: int, estimator: Estimator = "maximum_likelihood") -> float:
    """E σ̂²_g/σ² = (1 − 1/n)^(g+1) by maximum likelihood, 1 by the unbiased estimator; E trace_ratio in any dimension.

    σ̂²_g/σ̂²_{g−1} is χ²_{n−1}/n, independent of what came before (Shumailov et al. 2024's one-dimensional Gaussian;
    Kazdan et al. 2025). A mean over chains shows it up to about g + 1 = n/2.
    """
    check_arguments(n, generation)
    check_choice("estimator", estimator, Estimator)
    return (1 - 1 / n) ** (generation + 1) if estimator == "maximum_likelihood" else 1.0


@closed_form("log_variance_ratio", family="gaussian", regime="replace")
def gaussian_replace_mean_log_variance(n: int, generation: int, estimator: Estimator = "maximum_likelihood") -> float:
    """E ln(σ̂²_g/σ²) = (g+1)(ψ((n−1)/2) + ln(2/n)) in one dimension; ln(2/(n−1)) for the unbiased estimator.

    The mean of ln χ²_k is ψ(k/2) + ln 2. Derived. It holds for ``log_variance_ratio`` in any dimension, as each axis
    obeys it.
    """
    from scipy.special import digamma

    check_arguments(n, generation)
    check_choice("estimator", estimator, Estimator)
    divisor = n if estimator == "maximum_likelihood" else n - 1
    return float((generation + 1) * (digamma((n - 1) / 2) + math.log(2 / divisor)))


@closed_form("log_variance_ratio", summary="variance", family="gaussian", regime="replace", when=_one_dimension)
def gaussian_replace_variance_log_variance(n: int, generation: int) -> float:
    """Var ln(σ̂²_g/σ²) = (g+1)·ψ′((n−1)/2) in one dimension, for both estimators. Derived like its mean."""
    from scipy.special import polygamma

    check_arguments(n, generation)
    return float((generation + 1) * polygamma(1, (n - 1) / 2))


@closed_form("mean_error", family="gaussian", regime="replace")
def gaussian_replace_mean_error(n: int, generation: int, estimator: Estimator = "maximum_likelihood") -> float:
    """E (μ̂_g − μ)²/σ² = Σ_{j≤g} E σ̂²_{j−1}/(nσ²): 1 − (1 − 1/n)^(g+1), and (g+1)/n for the unbiased estimator.

    Shumailov et al. 2024's wandering mean; E mean_error in any dimension.
    """
    check_arguments(n, generation)
    check_choice("estimator", estimator, Estimator)
    if estimator == "unbiased":
        return (generation + 1) / n
    return 1 - gaussian_replace_mean_variance(n, generation)


@closed_form("trace_ratio", family="gaussian", regime="accumulate")
def gaussian_accumulate_mean_variance(n: int, generation: int, estimator: Estimator = "maximum_likelihood") -> float:
    """E σ̂²_g/σ² = ∏_{t=1}^{g+1} (1 − 1/(n t²)) by maximum likelihood, which tends to sin(π/√n)/(π/√n).

    With v_t the variance of t batches, the next batch has mean m_t and variance v_t, and moves the pooled mean by a
    variance of v_t/(n(t+1)²): v_{t+1} = v_t(1 − 1/(n(t+1)²)) (Kazdan et al. 2025 have the limit).
    The unbiased estimator gives ∏_{t=2}^{g+1} (1 − 1/(t(nt − 1))) in the same way (derived).
    """
    check_arguments(n, generation)
    check_choice("estimator", estimator, Estimator)
    t = np.arange(1.0, generation + 2)
    if estimator == "unbiased":
        return float(np.prod(1 - 1 / (t[1:] * (n * t[1:] - 1))))
    return float(np.prod(1 - 1 / (n * t**2)))


@closed_form("mean_error", family="gaussian", regime="accumulate", when=_maximum_likelihood)
def gaussian_accumulate_mean_error(n: int, generation: int) -> float:
    """E (μ̂_g − μ)²/σ² by maximum likelihood: 1 − ∏_{t=1}^{g+1} (1 − 1/(n t²)). Derived: see the module docstring."""
    return 1 - gaussian_accumulate_mean_variance(n, generation)


@closed_form("trace_ratio", family="gaussian", regime="accumulate_subsample", when=_maximum_likelihood)
def gaussian_accumulate_subsample_mean_variance(n: int, generation: int) -> float:
    """E σ̂²_g/σ² where n samples are drawn from all data so far: (1 − 1/n) ∏_{t=2}^{g+1} (1 − (3n − 1)/(nt(nt − 1))).

    Derived (module docstring): with N = nt samples in the pool and q = 1 − (mean covariance of two of them), a sample
    of the next batch has covariance (1 + (N−1)(1−q))/N with an old one and 1/n + (1 − 1/n)(1 − q) with another of its
    own batch, and q_{t+1} = q_t (1 − (3n − 1)/(N′(N′ − 1))) with N′ = n(t+1). It lies between replace and accumulate
    and does not go to 0: Kazdan et al. 2025's plateau.
    """
    check_arguments(n, generation)
    pool = n * np.arange(2.0, generation + 2)
    return float((1 - 1 / n) * np.prod(1 - (3 * n - 1) / (pool * (pool - 1))))


@closed_form("mean_error", family="gaussian", regime="accumulate_subsample", when=_maximum_likelihood)
def gaussian_accumulate_subsample_mean_error(n: int, generation: int) -> float:
    """E (μ̂_g − μ)²/σ² in the same setting: 1 − E σ̂²_g/σ². Derived: see the module docstring."""
    return 1 - gaussian_accumulate_subsample_mean_variance(n, generation)


@closed_form("trace_ratio", family="gaussian", regime="mixed", when=_maximum_likelihood)
def gaussian_mixed_mean_variance(n: int, generation: int, synthetic_ratio: float, human: Human = "kept") -> float:
    """E σ̂²_g/σ² where a share of n samples is the last generation's and the rest human, always the same or fresh.

    Maximum likelihood. Derived (module docstring); the share is rounded to whole samples. See Bertrand et al. 2023.
    """
    check_arguments(n, generation)
    check_choice("human", human, Human)
    return _partly_human(mixed_sizes(n, generation, synthetic_ratio), first=n, kept=human == "kept")


@closed_form("mean_error", family="gaussian", regime="mixed", when=_maximum_likelihood)
def gaussian_mixed_mean_error(n: int, generation: int, synthetic_ratio: float, human: Human = "kept") -> float:
    """E (μ̂_g − μ)²/σ² in the same setting: 1 − E σ̂²_g/σ². Derived: see the module docstring.

    One chain's spreads by about √2 times its mean, a variance by √(2/n): it tells small losses apart with fewer chains.
    """
    return 1 - gaussian_mixed_mean_variance(n, generation, synthetic_ratio, human)


@closed_form("trace_ratio", family="gaussian", regime="fixed_human", when=_maximum_likelihood)
def gaussian_fixed_human_mean_variance(n: int, generation: int, human: int, synthetic: int) -> float:
    """E σ̂²_g/σ² where each training set has the same ``human`` samples and ``synthetic`` ones of the last generation.

    Generation 0 is fitted to n human samples, the first of the same. Maximum likelihood. Derived (module docstring).
    """
    check_arguments(min(n, human + synthetic), generation)
    return _partly_human([(n, 0)] + [(human, synthetic)] * generation, first=n, kept=True)


@closed_form("mean_error", family="gaussian", regime="fixed_human", when=_maximum_likelihood)
def gaussian_fixed_human_mean_error(n: int, generation: int, human: int, synthetic: int) -> float:
    """E (μ̂_g − μ)²/σ² in the same setting: 1 − E σ̂²_g/σ². Derived: see the module docstring."""
    return 1 - gaussian_fixed_human_mean_variance(n, generation, human, synthetic)


@closed_form("trace_ratio", family="gaussian", regime="incremental", when=_maximum_likelihood)
def gaussian_incremental_mean_variance(n: int, generation: int) -> float:
    """E σ̂²_g/σ² under ForTIFAI's regime: g·n samples of the last generation and n fresh human ones.

    Maximum likelihood. Derived (module docstring).
    """
    check_arguments(n, generation)
    return _partly_human([(n, n * g) for g in range(generation + 1)], first=n, kept=False)


def _partly_human(sizes: Sequence[tuple[int, int]], first: int, kept: bool) -> float:
    """v of the last of these generations, (human, synthetic) samples each."""
    return (1 - 1 / sum(sizes[-1])) * partly_human_variance(sizes, first, kept)


@closed_form(
    "trace_ratio",
    family="gaussian",
    regime="replace",
    loss="tce",
    to_metric=lambda factor, recipe, generation: factor ** (generation + 1),
    limit="in the limit of many samples",
)
def gaussian_tce_variance_factor(gamma: float) -> float:
    """The factor by which omitting the likeliest 1 − γ of a Gaussian's samples multiplies its variance, as n → ∞.

    With P(|z| < c) = 1 − γ: 1 + 2cφ(c)/γ, which is 1.111 at γ = 0.9. Derived: E[z²; |z| < c] = (1 − γ) − 2cφ(c).
    """
    from scipy.stats import norm

    if not 0 < gamma <= 1:
        raise ValueError(f"γ lies in (0, 1]: {gamma} does not")
    cut = norm.ppf(1 - gamma / 2)
    return float(1 + 2 * cut * norm.pdf(cut) / gamma)
