"""The integrated squared error of Gaussian kernel density estimates on mixed data, in Fourier space (Fu et al. 2024).

The truth is the one of family ``kde`` whose density is known, ``shape: blobs``: an even mixture of five Gaussians. With
K(ω) = e^(−b²ω²/2) for a kernel of bandwidth b, an estimate of N samples x has φ̂(ω) = K·Σ e^(iωx)/N. The mean of φ̂_g and
that of |φ̂_g|² obey linear recursions at each ω by itself, whose coefficients are powers of K and |φ|²; by Parseval the
integrals over ω are those of Gaussians, so nothing is approximated. Derived.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fortifai_ray.theory.arguments import Human, check_arguments, check_choice
from fortifai_ray.theory.moments import mixed_sizes

_PLANE = 2
# shape_points' blobs before they are scaled; the tests hold these to its points.
_MODES, _RADIUS, _SPREAD = 5, 4.0, 0.6

Series = npt.NDArray[np.float64]
"""Coefficients of the powers of K, from the zeroth up."""


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


def kde_mixed_squared_bias(n: int, generation: int, synthetic_ratio: float, bandwidth: float) -> float:
    """∫(E p̂_g − p)² in the same setting: the part of the error that no number of chains averages out.

    It is the same with kept and fresh human data. ``n`` only says what the share is rounded to.
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
    """(count,) ∫ K(ω)^j dω/(2π)² for j = 0 …, or of K^j·|φ|². Without the truth j = 0 stands for 0: it never enters."""
    added = np.arange(count) * bandwidth**2
    if not with_truth:
        return np.concatenate([[0.0], (2 * np.pi * added[1:]) ** (-_PLANE / 2)])
    scale = _RADIUS**2 / _PLANE + _SPREAD**2
    angles = 2 * np.pi * np.arange(_MODES) / _MODES
    squared = _RADIUS**2 * ((1 - np.cos(angles)) ** 2 + np.sin(angles) ** 2) / scale  # from one mode to each
    variance = (2 * _SPREAD**2 / scale + added)[:, None]
    return (np.exp(-squared / (2 * variance)) / (2 * np.pi * variance) ** (_PLANE / 2)).mean(1)
