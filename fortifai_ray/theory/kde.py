"""Kernel density estimates in the plane, under replace and with human data beside (Kazdan et al. 2025; Fu et al. 2024).

The truth's variance along an axis is 1, as in family ``kde``. A draw from an estimate is one of its samples plus noise
of the kernel, so its variance is the training set's plus the kernel's: bandwidth² times ``kernel_variance``, 1 for a
Gaussian and ¼ for a top-hat kernel in the plane. Scott's and Silverman's bandwidths are n^(−1/6)·s in the plane, so
their kernels add n^(−1/3) times the samples' unbiased variance, which leaves every recursion linear.
"""

from typing import Literal

import numpy as np

from fortifai_ray.theory.arguments import Human, check_arguments, check_choice
from fortifai_ray.theory.moments import Added, mixed_sizes, partly_human_variance

Rule = Literal["scott", "silverman"]
_PLANE = 2


def kde_replace_mean_trace_ratio(n: int, generation: int, bandwidth: float, kernel_variance: float = 1.0) -> float:
    """E trace_ratio of a kernel density estimate under replace: a^(g+1) + (1 − a^(g+1))·n·h²κ, with a = 1 − 1/n.

    Each estimate adds h²κ to its samples' variance, and sampling loses a share 1/n of it; κ is ``kernel_variance``.
    Derived. With Scott's or Silverman's rule see :func:`kde_mixed_mean_trace_ratio` at ``synthetic_ratio`` 1.
    """
    check_arguments(n, generation)
    left = (1 - 1 / n) ** (generation + 1)
    return left + (1 - left) * n * bandwidth**2 * kernel_variance


def kde_mixed_mean_trace_ratio(
    n: int,
    generation: int,
    synthetic_ratio: float,
    bandwidth: float | Rule,
    human: Human = "kept",
    kernel_variance: float = 1.0,
) -> float:
    """E trace_ratio of an estimate of n samples, a share of them the last generation's, the rest human, kept or fresh.

    Exact for a fixed bandwidth and for both rules, any kernel and any truth. Derived (module docstring and
    :mod:`fortifai_ray.theory.moments`). Under a rule and replace the variance grows by 1 + κn^(−1/3) − 1/n a
    generation, without end; where human data keep it bounded says :func:`kde_critical_synthetic_ratio`.
    """
    check_arguments(n, generation)
    check_choice("human", human, Human)
    added = _kernel(bandwidth, kernel_variance)
    variance = partly_human_variance(mixed_sizes(n, generation, synthetic_ratio), n, human == "kept", added)
    return (1 - 1 / n) * variance + added(variance, n)


def kde_critical_synthetic_ratio(n: int, kernel_variance: float = 1.0) -> float:
    """The synthetic ratio above which the expected variance grows without end, under Scott's or Silverman's rule.

    Below it the variance converges, with human data kept or fresh: what is known of a human sample enters the recursion
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
    """What a kernel adds to its samples' variance along an axis."""
    if isinstance(bandwidth, str):
        check_choice("bandwidth", bandwidth, Rule)
        return lambda variance, total: kernel_variance * total ** (-2 / (_PLANE + 4)) * variance
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be above 0, scott or silverman: {bandwidth} is not")
    return lambda variance, total: kernel_variance * bandwidth**2
