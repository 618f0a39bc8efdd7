"""Bootstrap intervals for means, for many samples of one size at once."""

import numpy as np

from fortifai_ray.fidelity.crossing import Floats
from fortifai_ray.seeds import generator

_CHUNK = 4_000_000  # resampled means held at once: 32 MB


def mean_intervals(samples: Floats, level: float, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """BCa intervals of the mean of each row.

    Every row is resampled with the same draws, so that rows whose columns are the same seeds stay comparable.

    Args:
        samples: (rows, n), finite.
        level: two-sided confidence level in (0, 1).

    Returns:
        low and high, (rows,) each. A row of equal values gives that value twice.
    """
    rows, n = samples.shape
    draws = generator(seed, "bootstrap", n).integers(0, n, size=(resamples, n))
    weights = np.zeros((resamples, n))
    np.add.at(weights, (np.arange(resamples)[:, None], draws), 1 / n)
    low, high = np.empty(rows), np.empty(rows)
    step = max(1, _CHUNK // resamples)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        low[part], high[part] = bca(samples[part], samples[part] @ weights.T, level)
    constant = np.ptp(samples, axis=1) == 0
    return np.where(constant, samples[:, 0], low), np.where(constant, samples[:, 0], high)


def bca(samples: Floats, resampled: Floats, level: float) -> tuple[Floats, Floats]:
    """Bias-corrected and accelerated intervals of the mean (Efron 1987; Efron and Tibshirani 1993, eq. 14.9–14.15).

    Args:
        samples: (rows, n).
        resampled: (rows, resamples), means of resamples of each row.
    """
    from scipy.special import ndtr, ndtri  # 0.7 s to import: only where an interval is asked for

    mean = samples.mean(axis=1, keepdims=True)
    tie = 1e-12 * np.abs(samples).max(axis=1, keepdims=True)  # a reshuffled sample has the mean, but for rounding
    below = (resampled < mean - tie).mean(axis=1) / 2 + (resampled <= mean + tie).mean(axis=1) / 2
    bias = ndtri(below)
    deviation = samples - mean  # for a mean, the jackknife's influence values up to a factor that cancels
    ordered = np.sort(resampled, axis=1)
    with np.errstate(all="ignore"):  # equal values: 0/0, replaced by the caller
        acceleration = (deviation**3).sum(axis=1) / (6 * (deviation**2).sum(axis=1) ** 1.5)
        ends = []
        for z in (ndtri((1 - level) / 2), ndtri((1 + level) / 2)):
            share = ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
            ends.append(_quantiles(ordered, np.nan_to_num(share, nan=0.5)))
    return ends[0], ends[1]


def _quantiles(ordered: Floats, share: Floats) -> Floats:
    """The ``share``-quantile of each sorted row, linear between order statistics (NumPy's default)."""
    position = share * (ordered.shape[1] - 1)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, ordered.shape[1] - 1)
    rows = np.arange(ordered.shape[0])
    return ordered[rows, low] + (position - low) * (ordered[rows, high] - ordered[rows, low])
