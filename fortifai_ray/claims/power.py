"""How many chains a claim needs to tell its value from the nearest wrong theory's.

An equality holds where the whole interval lies within the tolerance of the value. Where the claim is right, the centre
misses the value by at most z_p·s/√n with probability p on either side, and the interval reaches z_c·s/√n further: so it
holds with that probability once (z_p + z_c)·s/√n is at most the tolerance. Where a wrong theory is right, the tolerance
being at most half of the distance to it, the same number of chains puts the interval beyond the tolerance with at least
the same probability. (s: the spread of one chain's number; c: the interval's level, two-sided; normal quantiles.)
"""

import math

from fortifai_ray.statistics.intervals import Interval

POWER = 0.95


def chains_needed(spread: float, tolerance: float, level: float, power: float = POWER) -> float:
    """The number of chains with which an equality claim is decided with probability ``power``.

    Args:
        spread: standard deviation of one chain's number, say of a pilot's.
        tolerance: in the number's units; infinitely many chains decide an equality without one.
        level: of the interval.
    """
    if spread == 0:
        return 0.0
    return ((_quantile(level) + _quantile(power)) * spread / tolerance) ** 2 if tolerance > 0 else math.inf


def needed_after(interval: Interval, n_chains: int, tolerance: float, level: float) -> float:
    """The same from an interval at ``level`` of ``n_chains``: its width falling with the root of their number."""
    half = (interval.high - interval.low) / 2
    if not math.isfinite(half):
        return math.inf
    return chains_needed(half * math.sqrt(n_chains) / _quantile(level), tolerance, level)


def _quantile(level: float) -> float:
    """z with P(|Z| < z) = ``level``."""
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2))
