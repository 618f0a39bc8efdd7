"""Discrete distributions on K outcomes, fitted by their frequencies (Seddik et al. 2024: one context's next token).

Their p⁽ᵐ⁾ is generation m − 1 here, their p⁽¹⁾ generation 0, their N and n the human and synthetic samples of regime
``fixed_human`` with as many human samples in generation 0. H = 1 − Σp² is the true distribution's heterozygosity,
1 − S₀ in their notation. Since E p̂_g = p, the heterozygosity that is lost is the squared error:
E ‖p̂_g − p‖² = H − E H_g, and likewise E ‖p̂_g − p̂_0‖² = E H_0 − E H_g under ``fixed_human``.
"""

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from fortifai_ray.theory.gaussian import (
    gaussian_accumulate_mean_variance,
    gaussian_fixed_human_mean_variance,
    gaussian_replace_mean_variance,
)
from fortifai_ray.theory.registry import Recipe, check_arguments, closed_form

Probabilities = Literal["uniform", "zipf"] | list[float]


def true_probabilities(probabilities: Probabilities, outcomes: int, exponent: float = 1.0) -> npt.NDArray[np.float64]:
    """(outcomes,) The truth's probabilities, as a study file describes them."""
    if isinstance(probabilities, str):
        weights = np.arange(1.0, outcomes + 1) ** (-exponent if probabilities == "zipf" else 0.0)
    else:
        weights = np.asarray(probabilities, dtype=np.float64)
    return weights / weights.sum()


def _true_heterozygosity(probabilities: Probabilities, outcomes: int, exponent: float) -> float:
    return 1 - float((true_probabilities(probabilities, outcomes, exponent) ** 2).sum())


def _times_the_true_one(ratio: float, recipe: Recipe, generation: int) -> float:
    shape, exponent = recipe.get("family.probabilities", "uniform"), recipe.get("family.exponent") or 1.0
    return _true_heterozygosity(shape, recipe["family.outcomes"], exponent) * ratio


@closed_form("heterozygosity", family="discrete", regime="replace", to_metric=_times_the_true_one)
def discrete_replace_heterozygosity(n: int, generation: int) -> float:
    """E H_g/H = (1 − 1/n)^(g+1), with H = 1 − Σp² and the true H: genetic drift (Wright 1931).

    Seddik et al. 2024's theorem 1, equation 6: nothing but synthetic data ends in a Dirac mass (total collapse).
    """
    return gaussian_replace_mean_variance(n, generation)


@closed_form("heterozygosity", family="discrete", regime="accumulate", to_metric=_times_the_true_one)
def discrete_accumulate_heterozygosity(n: int, generation: int) -> float:
    """E H_g/H = ∏_{t=1}^{g+1} (1 − 1/(n t²)). Derived: see :mod:`fortifai_ray.theory.gaussian`."""
    return gaussian_accumulate_mean_variance(n, generation)


@closed_form("heterozygosity", family="discrete", regime="fixed_human", to_metric=_times_the_true_one)
def discrete_fixed_human_heterozygosity(n: int, generation: int, human: int, synthetic: int) -> float:
    """E H_g/H where each training set has the same ``human`` samples and ``synthetic`` ones of the last generation.

    Generation 0 is fitted to n human samples, the first of the same. With n = ``human`` it is Seddik et al. 2024's
    theorem 2, whose last term is read as +αβᵐ/N: the line before it in their proof gives this sign, and S₁ needs it.
    For other n derived (:mod:`fortifai_ray.theory.moments`).
    """
    return gaussian_fixed_human_mean_variance(n, generation, human, synthetic)


@closed_form()
def discrete_fixed_human_heterozygosity_change(
    generation: int,
    human: int,
    synthetic: int,
    outcomes: int,
    probabilities: Probabilities = "uniform",
    exponent: float = 1.0,
) -> float:
    """E H_g − E H_0 under ``fixed_human`` with n = ``human``: minus the squared distance E ‖p̂_g − p̂_0‖².

    It is −(1 − 1/h)·H·s(1 − β^g)/(h² + (2h + 1)s), with β = (1 − 1/s)·s²/(h + s)². Derived, and equal to what Seddik et
    al. 2024's theorem 2 says of H_g: with D_g = p̂_g − p̂_0 and α = s/(h + s), D_{g+1} = α(D_g + ε) where ε, the error
    of s draws from p̂_g, has mean 0 and E ‖ε‖² = E H_g/s. And E H_g = E H_0 − E ‖D_g‖², as D_g has mean 0 given p̂_0.
    So E ‖D_{g+1}‖² = α²[(1 − 1/s)·E ‖D_g‖² + E H_0/s], with E H_0 = (1 − 1/h)·H.
    """
    heterozygosity = _true_heterozygosity(probabilities, outcomes, exponent)
    return -(1 - 1 / human) * heterozygosity * _deviation(generation, human, synthetic)


@closed_form()
def discrete_fixed_human_error(generation: int, human: int, synthetic: int) -> float:
    """E ‖p̂_g − p‖² over generation 0's under ``fixed_human``: 1 + (h − 1)·s(1 − β^g)/(h² + (2h + 1)s).

    Derived (:func:`discrete_fixed_human_heterozygosity_change`): generation 0's is H/h, and D_g adds to it without
    correlation. Over the generations it rises to less than 1 + (h − 1)/(2h + 1), whatever the amount of synthetic data:
    human data that is kept holds the squared error below one and a half times that of a single fit.
    """
    return 1 + (human - 1) * _deviation(generation, human, synthetic)


@closed_form()
def discrete_fixed_human_distance_bound(
    generation: int,
    human: int,
    synthetic: int,
    outcomes: int,
    probabilities: Probabilities = "uniform",
    exponent: float = 1.0,
) -> float:
    """At least E ½‖p̂_g − p‖₁, the ``total_variation``: ½ Σ √(p(1 − p)·R_g/h), R_g of ``discrete_fixed_human_error``.

    Derived: the recursion of the squared error holds for each outcome by itself, with p(1 − p) in place of H, and
    E |x| ≤ √(E x²). Near normal errors reach √(2/π) = 0.80 of it.
    """
    true = true_probabilities(probabilities, outcomes, exponent)
    error = discrete_fixed_human_error(generation, human, synthetic)
    return float(np.sqrt(true * (1 - true) * error / human).sum() / 2)


@closed_form()
def discrete_largest_synthetic(human: int, multiple: float) -> float:
    """The largest amount s of synthetic data a generation beside h kept human samples that avoids collapse for ever.

    Collapse here means a squared error above ``multiple`` times generation 0's. From the limit of
    :func:`discrete_fixed_human_error`, s = (m − 1)h²/((h − 1) − (m − 1)(2h + 1)); ∞ from m = 1 + (h − 1)/(2h + 1) on,
    just under 1.5: then no amount is too much. Derived. Seddik et al. 2024 ask for a set distance from generation
    0's fit instead: :func:`discrete_published_largest_synthetic`.
    """
    if human < 2 or not multiple >= 1:
        raise ValueError(f"human must be 2 or more and multiple 1 or more (human {human}, multiple {multiple})")
    room = (human - 1) - (multiple - 1) * (2 * human + 1)
    return (multiple - 1) * human**2 / room if room > 0 else math.inf


@closed_form()
def discrete_published_deviation_bound(human: int, synthetic: int, outcomes: int) -> float:
    """Seddik et al. 2024's theorem 3: E ‖p̂_g − p̂_0‖₁ < (1/N)·√(πn/2)·G_n(K) in any generation under ``fixed_human``.

    With C₀ = e³/2π and C₁ = 6e/π^(3/2), G_n(K) is C₁·K·e^(C₀n/2e) for K ≥ C₀n/e + 2, C₁·K·(C₀n/K)^(K/2) from
    C₀n/4 + 2 up to there, and 2^K − 2 below (concentration of frequencies, Mardia et al. 2020). An upper bound, far
    above the distance itself: the exact second moment gives √(K·s/(h² + (2h + 1)s)) or less.
    """
    if human < 1 or synthetic < 1 or outcomes < 2:
        raise ValueError(
            f"human and synthetic must be 1 or more and outcomes 2 or more ({human}, {synthetic}, {outcomes})"
        )
    c0, c1 = math.exp(3) / (2 * math.pi), 6 * math.e / math.pi**1.5
    if outcomes >= c0 * synthetic / math.e + 2:
        log_factor = math.log(c1 * outcomes) + c0 * synthetic / (2 * math.e)
    elif outcomes >= c0 * synthetic / 4 + 2:
        log_factor = math.log(c1 * outcomes) + outcomes / 2 * math.log(c0 * synthetic / outcomes)
    else:
        log_factor = outcomes * math.log(2) + math.log1p(-(2.0 ** (1 - outcomes)))
    logarithm = log_factor + math.log(math.pi * synthetic / 2) / 2 - math.log(human)
    return math.exp(logarithm) if logarithm < 700 else math.inf


@closed_form()
def discrete_published_largest_synthetic(human: int, outcomes: int, deviation: float) -> float:
    """Seddik et al. 2024's equation 11: n ≤ 2πe⁻²·min(K − 2, ln(√2·π·N·ε/(6eK))) keeps E ‖p̂_g − p̂_0‖₁ below ε.

    Their estimate of the largest amount of synthetic data beside N human samples, from theorem 3; below 1 where the
    bound grants none. Sufficient, and far from necessary: it grows as ln N, whereas by the exact second moment E
    ‖p̂_g − p̂_0‖₁ is below √(K/(2N + 1)) for every n, so that from 2N + 1 = K/ε² on any amount will do (derived).
    """
    if human < 1 or outcomes < 2 or not deviation > 0:
        raise ValueError(
            f"human must be 1 or more, outcomes 2 or more, deviation above 0 ({human}, {outcomes}, {deviation})"
        )
    room = math.log(math.sqrt(2) * math.pi * human * deviation / (6 * math.e * outcomes))
    return max(0.0, 2 * math.pi * math.exp(-2) * min(outcomes - 2, room))


@closed_form("support", family="discrete", regime="replace")
def discrete_replace_support(
    n: int,
    generation: int,
    outcomes: int,
    probabilities: Probabilities = "uniform",
    exponent: float = 1.0,
) -> float:
    """Expected number of surviving outcomes under replace: exact, by the Wright–Fisher chain of each outcome's count.

    An outcome drawn k times of n has a Binomial(n, k/n) count in the next generation, and 0 absorbs (Ewens 2004,
    section 1.4). Costs (n + 1)² numbers.
    """
    from scipy.stats import binom

    check_arguments(n, generation)
    true = true_probabilities(probabilities, outcomes, exponent)
    counts = np.arange(n + 1)
    return float((1 - binom.pmf(counts[None], n, true[:, None]) @ lost_by_count(n, generation)).sum())


def lost_by_count(n: int, generations: int) -> npt.NDArray[np.float64]:
    """(n + 1,) For each count of an outcome among n samples, the probability that it is lost so many generations later:
    the Wright–Fisher chain, in which a count k becomes Binomial(n, k/n), and 0 absorbs."""
    from scipy.stats import binom

    counts = np.arange(n + 1)
    lost = np.zeros(n + 1)
    lost[0] = 1.0
    transition = binom.pmf(counts[None], n, counts[:, None] / n)
    for _ in range(generations):
        lost = transition @ lost
    return lost


def _deviation(generation: int, human: int, synthetic: int) -> float:
    """E ‖p̂_g − p̂_0‖² over E H_0: s(1 − β^g)/(h² + (2h + 1)s)."""
    if human < 2 or synthetic < 0 or generation < 0:
        raise ValueError(
            "human must be 2 or more, synthetic and generation 0 or more "
            f"(human {human}, synthetic {synthetic}, generation {generation})"
        )
    kept = synthetic * (synthetic - 1) / (human + synthetic) ** 2
    return synthetic * (1 - kept**generation) / (human**2 + (2 * human + 1) * synthetic)
