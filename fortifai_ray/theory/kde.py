"""Kernel density estimates in the plane, under replace and with human data beside (Kazdan et al. 2025; Fu et al. 2024).

The truth's variance along an axis is 1, as in family ``kde``. A draw from an estimate is one of its samples plus noise
of the kernel, so its variance is the training set's plus the kernel's: bandwidth² times ``kernel_variance``, 1 for a
Gaussian and ¼ for a top-hat kernel in the plane. Scott's and Silverman's bandwidths are n^(−1/6)·s in the plane, so
their kernels add n^(−1/3) times the samples' unbiased variance, which leaves every recursion linear.

The integrated squared errors are for the one truth whose density is known, ``shape: blobs``: an even mixture of five
Gaussians. In Fourier space, with K(ω) = e^(−b²ω²/2) for a Gaussian kernel of bandwidth b, an estimate of N samples x
has φ̂(ω) = K·Σ e^(iωx)/N. The means of φ̂_g and of |φ̂_g|² obey linear recursions at each ω by itself, whose
coefficients are powers of K and |φ|²; by Parseval the integrals over ω are those of Gaussians, so nothing is
approximated. Derived.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fortifai_ray.theory.moments import Added, mixed_sizes, partly_human_variance
from fortifai_ray.theory.registry import Human, Recipe, check_arguments, check_choice, closed_form, regime_of

Rule = Literal["scott", "silverman"]
Series = npt.NDArray[np.float64]
"""Coefficients of the powers of K, from the zeroth up."""

_PLANE = 2
# shape_points' blobs before they are scaled; the tests compare these with its points.
_MODES, _RADIUS, _SPREAD = 5, 4.0, 0.6


def _fixed_bandwidth(recipe: Recipe) -> bool:
    return not isinstance(recipe.get("family.bandwidth", "scott"), str)


def _human_data_or_a_rule(recipe: Recipe) -> bool:
    return regime_of(recipe) == "mixed" or not _fixed_bandwidth(recipe)


def _kernel_variance(recipe: Recipe) -> float:
    return 0.25 if recipe.get("family.kernel") == "tophat" else 1.0


@closed_form("trace_ratio", family="kde", regime="replace", when=_fixed_bandwidth, kernel_variance=_kernel_variance)
def kde_replace_mean_trace_ratio(n: int, generation: int, bandwidth: float, kernel_variance: float = 1.0) -> float:
    """E trace_ratio of a kernel density estimate under replace: a^(g+1) + (1 − a^(g+1))·n·h²κ, with a = 1 − 1/n.

    Each estimate adds h²κ to its samples' variance, and sampling loses a share 1/n of it; κ is ``kernel_variance``.
    Derived. With Scott's or Silverman's rule see :func:`kde_mixed_mean_trace_ratio` at ``synthetic_ratio`` 1.
    """
    check_arguments(n, generation)
    left = (1 - 1 / n) ** (generation + 1)
    return left + (1 - left) * n * bandwidth**2 * kernel_variance


@closed_form(
    "trace_ratio",
    family="kde",
    regime=("replace", "mixed"),
    when=_human_data_or_a_rule,
    kernel_variance=_kernel_variance,
)
def kde_mixed_mean_trace_ratio(
    n: int,
    generation: int,
    synthetic_ratio: float,
    bandwidth: float | Rule = "scott",
    human: Human = "kept",
    kernel_variance: float = 1.0,
) -> float:
    """E trace_ratio of an estimate of n samples, a share of them the last generation's, the rest human, kept or fresh.

    Exact for a fixed bandwidth and for both rules, any kernel and any truth. Derived (module docstring and
    :mod:`fortifai_ray.theory.moments`). Under a rule and replace the variance grows by 1 + κn^(−1/3) − 1/n a
    generation, without end; :func:`kde_critical_synthetic_ratio` says where human data keep it bounded.
    """
    check_arguments(n, generation)
    check_choice("human", human, Human)
    added = _kernel(bandwidth, kernel_variance)
    variance = partly_human_variance(mixed_sizes(n, generation, synthetic_ratio), n, human == "kept", added)
    return (1 - 1 / n) * variance + added(variance, n)


@closed_form(kernel_variance=_kernel_variance)
def kde_critical_synthetic_ratio(n: int, kernel_variance: float = 1.0) -> float:
    """The synthetic ratio above which the expected variance grows without end, under Scott's or Silverman's rule.

    Below it the variance converges, with human data kept or fresh: the terms of human samples enter the recursion
    of t and c (:mod:`fortifai_ray.theory.moments`) from outside, so its matrix [[r(1 + C), −rC], [q/n, q(1 − 1/n)]],
    with C = κn^(−1/3) and q = r(rn − 1)/(n − 1), decides alone. The ratio is where the larger of its eigenvalues is 1;
    it tends to 1/(1 + C), and to 1 as n grows. With a fixed bandwidth every ratio below 1 converges. Derived: an exact
    case of Fu et al. 2024's condition that the human share be large enough.
    """
    from scipy.optimize import brentq

    if n < 2 or kernel_variance <= 0:
        raise ValueError(f"n must be 2 or more and kernel_variance above 0 (n {n}, kernel_variance {kernel_variance})")
    gain = kernel_variance * n ** (-1 / 3)
    if gain <= 1 / n:
        return 1.0  # sampling loses more than the kernel adds

    def excess(ratio: float) -> float:
        pairs = ratio * max(ratio * n - 1, 0.0) / (n - 1)
        matrix = [[ratio * (1 + gain), -ratio * gain], [pairs / n, pairs * (1 - 1 / n)]]
        return float(np.abs(np.linalg.eigvals(matrix)).max()) - 1

    return float(brentq(excess, 0.0, 1.0, xtol=1e-13))


@closed_form()
def kde_mixed_bias_bound(generation: int, synthetic_ratio: float) -> float:
    """How many times generation 0's the distance of the *mean* density E p̂_g from the truth is at most: Σ_{j≤g} r^j.

    It is (1 − r^(g+1))/(1 − r), so at most 1/(1 − r), one over the human share, for ever; and g + 1 without human data.
    In total variation and in any L^p norm, for any kernel of fixed bandwidth and any truth. Derived, in the form of Fu
    et al. 2024's propagation of errors: with human share 1 − r, E p̂_g = K∗((1 − r)p + r·E p̂_{g−1}), so E p̂_g − p is
    (K∗p − p) + r·K∗(E p̂_{g−1} − p), and convolution with a density makes no norm larger. The variance that kernels
    add attains it in the limit of many samples (:func:`kde_mixed_mean_trace_ratio`).
    """
    if generation < 0 or not 0 <= synthetic_ratio <= 1:
        raise ValueError(
            "generation must be 0 or more and synthetic_ratio in [0, 1] "
            f"(generation {generation}, synthetic_ratio {synthetic_ratio})"
        )
    return float(sum(synthetic_ratio**j for j in range(generation + 1)))


def _kernel(bandwidth: float | Rule, kernel_variance: float) -> Added:
    """The variance that a kernel adds to its samples' along an axis."""
    if isinstance(bandwidth, str):
        check_choice("bandwidth", bandwidth, Rule)
        return lambda variance, total: kernel_variance * total ** (-2 / (_PLANE + 4)) * variance
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be above 0, scott or silverman: {bandwidth} is not")
    return lambda variance, total: kernel_variance * bandwidth**2


@closed_form()
def kde_mixed_integrated_squared_error(
    n: int, generation: int, synthetic_ratio: float, bandwidth: float, human: Human = "kept"
) -> float:
    """E ∫(p̂_g − p)² for ``shape: blobs``, a Gaussian kernel and a fixed bandwidth, where a share of n is synthetic.

    In 1 over the area's unit, an axis's true variance being 1. Exact, and derived (module docstring). At generation 0
    it is the mean integrated squared error of Silverman 1986, section 3.3.
    """
    moments = _moments(n, generation, synthetic_ratio, bandwidth, human)
    shared = moments.shared - 2 * moments.mean
    shared[0] += 1
    alone = _integrals(len(shared), bandwidth, with_truth=False)
    return float(moments.own @ alone + shared @ _integrals(len(shared), bandwidth, with_truth=True))


@closed_form()
def kde_mixed_squared_bias(n: int, generation: int, synthetic_ratio: float, bandwidth: float) -> float:
    """∫(E p̂_g − p)² in the same setting: the part of the error that no number of chains averages out.

    It is the same with kept and fresh human data. ``n`` only determines the rounding of the share.
    """
    mean = _moments(n, generation, synthetic_ratio, bandwidth, "fresh").mean.copy()
    mean[0] -= 1
    squared = np.convolve(mean, mean)
    return float(squared @ _integrals(len(squared), bandwidth, with_truth=True))


@dataclass(frozen=True)
class _Moments:
    """Of φ̂_g: E φ̂_g = φ·``mean``(K), and E |φ̂_g|² = ``own``(K) + |φ|²·``shared``(K)."""

    mean: Series
    own: Series
    shared: Series


def _moments(n: int, generation: int, synthetic_ratio: float, bandwidth: float, human: Human) -> _Moments:
    """Generation by generation.

    For different samples x, x′ of a training set, E e^(iω(x − x′)) is |φ|² where both are human, E |φ̂_{g−1}|² where
    both are synthetic, and |φ|²·mean_{g−1} where one is human and fresh. Where it is kept, it is ``kept_own`` +
    |φ|²·``kept_shared``, as the human sample meets itself in what the last generation saw.
    """
    check_arguments(n, generation)
    check_choice("human", human, Human)
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be above 0: {bandwidth} is not")
    zero = np.zeros(2 * (generation + 1) + 1)
    one = zero.copy()
    one[0] = 1.0
    mean, own, shared, kept_own, kept_shared = zero, zero, zero, zero, zero
    for people, written in mixed_sizes(n, generation, synthetic_ratio):
        pairs = n * (n - 1)
        meeting_own, meeting_shared = (kept_own, kept_shared) if human == "kept" else (zero, mean)
        across, within, among = 2 * people * written / pairs, written * (written - 1) / pairs, people * (people - 1)
        own_pairs = across * meeting_own + within * own
        shared_pairs = among / pairs * one + across * meeting_shared + within * shared
        own = _times_kernel(one / n + (1 - 1 / n) * own_pairs, 2)
        shared = _times_kernel((1 - 1 / n) * shared_pairs, 2)
        kept_own = _times_kernel((one + written * kept_own) / n)
        kept_shared = _times_kernel(((people - 1) * one + written * kept_shared) / n)
        mean = _times_kernel((people * one + written * mean) / n)
    return _Moments(mean, own, shared)


def _times_kernel(series: Series, power: int = 1) -> Series:
    """The series times K^``power``; its highest coefficients are 0."""
    return np.concatenate([np.zeros(power), series[:-power]])


def _integrals(count: int, bandwidth: float, with_truth: bool) -> Series:
    """(count,) ∫ K(ω)^j dω/(2π)² for j = 0 …, or of K^j·|φ|². Without the truth the entry for j = 0 is 0 (unused)."""
    added = np.arange(count) * bandwidth**2
    if not with_truth:
        return np.concatenate([[0.0], (2 * np.pi * added[1:]) ** (-_PLANE / 2)])
    scale = _RADIUS**2 / _PLANE + _SPREAD**2
    angles = 2 * np.pi * np.arange(_MODES) / _MODES
    squared = _RADIUS**2 * ((1 - np.cos(angles)) ** 2 + np.sin(angles) ** 2) / scale  # from one mode to each
    variance = (2 * _SPREAD**2 / scale + added)[:, None]
    return (np.exp(-squared / (2 * variance)) / (2 * np.pi * variance) ** (_PLANE / 2)).mean(1)
