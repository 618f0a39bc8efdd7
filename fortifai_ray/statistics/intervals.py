"""Confidence intervals: of the summaries that claims speak of, and of many samples at once for the result tables.

Each function names its method; where a choice is open, the wider interval wins.

==================  ================================================================================================
mean                Student's t. Where the sample is too skewed for it (Cochran's rule, n < 25 g₁²: Cochran 1977,
                    Sampling Techniques, eq. 2.15), the hull of that and the BCa bootstrap's: neither alone is then
                    reliable, and a claim is decided only where both agree
geometric mean      the same, of the logarithms
ratio of means      Fieller's (1954), of pairs; where the linearised values are as skewed as above, the hull of that
                    and the paired BCa bootstrap's. No interval where the denominators' mean may be 0
variance            the hull of the χ² interval (right for a normal sample) and the mean's, of squared deviations
quantile, median    between order statistics (David and Nagaraja 2003, section 7.1): no assumption on the law.
                    An end is infinite where the sample is too small for one
share               Clopper and Pearson (1934): never covers less than its level. Chains whose answer is open count
                    against the share at its lower end and for it at its upper end
==================  ================================================================================================

SciPy's special functions take 0.7 s to import: each function imports those that it calls.
"""

import math
from dataclasses import dataclass

import numpy as np

from fortifai_ray.seeds import generator
from fortifai_ray.statistics.crossing import Floats, Integers

MIN_FOR_VARIANCE = 10  # chains; with fewer, squared deviations from their own mean underestimate their own spread
_CHUNK = 4_000_000  # resampled means held at once: 32 MB
_SEED = 0  # of the claims' bootstrap: checking a claim twice gives the same verdict
_RESAMPLES = 9_999
_DRAWS = 10_000_000
_DRAWS_AT_ONCE = 500_000  # a few megabytes, which stay in the processor's cache


@dataclass(frozen=True)
class Interval:
    """A measured number and its confidence interval; an end may be infinite (a bound). ``method`` names it."""

    measured: float
    low: float
    high: float
    method: str
    note: str = ""


class NoInterval(Exception):
    """There is no interval for this sample; the message says why."""


def mean(values: Floats, level: float) -> Interval:
    """Of the mean of (n,) independent values.

    Raises:
        NoInterval: fewer than two values, or one that is not finite.
    """
    _finite(values, "mean")
    measured = float(values.mean())
    if np.ptp(values) == 0:
        return _same(float(values[0]))
    half = student(level, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    low, high = measured - half, measured + half
    if not is_skewed(values):
        return Interval(measured, low, high, "Student t")
    lows, highs = bca(values[None, :], _resampled_means(values[None, :]), level)
    low, high = min(low, float(lows[0])), max(high, float(highs[0]))
    return Interval(measured, low, high, "Student t and BCa bootstrap, the wider", "the values are skewed")


def geometric_mean(values: Floats, level: float) -> Interval:
    """Of the geometric mean of (n,) independent positive values.

    Raises:
        NoInterval: fewer than two values, or one that is not finite and positive.
    """
    _finite(values, "geometric mean")
    if not (values > 0).all():
        raise NoInterval(f"{_count(values <= 0)} are not above 0: there is no geometric mean")
    if np.ptp(values) == 0:
        return _same(float(values[0]))
    logs = mean(np.log(values), level)
    with np.errstate(over="ignore"):
        measured, low, high = np.exp([logs.measured, logs.low, logs.high]).tolist()
    return Interval(measured, low, high, f"{logs.method}, of logarithms", logs.note)


def ratio_of_means(numerators: Floats, denominators: Floats, level: float) -> Interval:
    """Of the mean of (n,) numerators over the mean of (n,) denominators, paired.

    Raises:
        NoInterval: fewer than two pairs, one that is not finite, or denominators whose mean may be 0.
    """
    _finite(numerators, "ratio of means")
    _finite(denominators, "ratio of means")
    top, bottom, n = float(numerators.mean()), float(denominators.mean()), len(numerators)
    if np.ptp(numerators) == 0 and np.ptp(denominators) == 0 and bottom != 0:
        return _same(top / bottom)
    t2 = student(level, n - 1) ** 2 / n
    (var_top, cov), (_, var_bottom) = np.cov(numerators, denominators)
    a, b, c = bottom**2 - t2 * var_bottom, top * bottom - t2 * cov, top**2 - t2 * var_top
    if a <= 0:
        raise NoInterval("the mean of the denominators may be 0: the ratio could be anything")
    root = math.sqrt(max(b**2 - a * c, 0.0))
    ratio, low, high = top / bottom, (b - root) / a, (b + root) / a
    linear = ratio + (numerators - ratio * denominators) / bottom  # mean: the ratio itself
    if np.ptp(linear) == 0 or not is_skewed(linear):
        return Interval(ratio, low, high, "Fieller")
    tops, bottoms = _resampled_means(np.stack([numerators, denominators]))
    lows, highs = bca(linear[None, :], (tops / bottoms)[None, :], level)
    low, high = min(low, float(lows[0])), max(high, float(highs[0]))
    return Interval(ratio, low, high, "Fieller and paired BCa bootstrap, the wider", "the values are skewed")


def variance(values: Floats, level: float) -> Interval:
    """Of the variance of (n,) independent values, unbiased.

    Raises:
        NoInterval: fewer than 10 values, or one that is not finite.
    """
    from scipy.special import gammaincinv

    _finite(values, "variance")
    n = len(values)
    if n < MIN_FOR_VARIANCE:
        raise NoInterval(f"an interval of a variance needs {MIN_FOR_VARIANCE} chains (there are {n})")
    if np.ptp(values) == 0:
        return _same(0.0)
    squares = mean((values - values.mean()) ** 2 * n / (n - 1), level)
    spread = (n - 1) * squares.measured / 2  # a χ² quantile of n − 1 degrees is twice a gamma quantile of (n − 1)/2
    tails = gammaincinv((n - 1) / 2, [(1 + level) / 2, (1 - level) / 2])
    low, high = min(squares.low, spread / float(tails[0])), max(squares.high, spread / float(tails[1]))
    return Interval(squares.measured, max(low, 0.0), high, "χ² and that of squared deviations, the wider")


def quantile(values: Floats, q: float, level: float) -> Interval:
    """Of the q-quantile of (n,) independent values, which may be infinite.

    Raises:
        NoInterval: fewer than two values, or one that is NaN.
    """
    from scipy.special import bdtr

    _enough(len(values))
    if np.isnan(values).any():
        raise NoInterval(f"{_count(np.isnan(values))} are not a number")
    ordered, n = np.sort(values), len(values)
    below = bdtr(np.arange(n), n, q)  # P(at most k values lie below the quantile), k = 0 … n − 1
    tail = (1 - level) / 2
    k_low = int(np.searchsorted(below, tail, side="right"))  # how many k have P(B <= k) <= tail
    k_high = int(np.searchsorted(below, 1 - tail, side="left"))  # the first with P(B > k) <= tail
    low = float(ordered[k_low - 1]) if k_low > 0 else -math.inf
    high = float(ordered[k_high]) if k_high < n else math.inf
    with np.errstate(invalid="ignore"):
        measured = float(np.quantile(ordered, q))
    if math.isnan(measured):  # between two infinite values there is nothing to interpolate
        measured = float(np.quantile(ordered, q, method="inverted_cdf"))
    note = f"{n} chains are too few for both ends" if math.inf in (-low, high) and np.isfinite(ordered).all() else ""
    return Interval(measured, low, high, "order statistics", note)


def share(yes: int, no: int, unknown: int, level: float) -> Interval:
    """Of the share of ``yes``; ``measured`` counts the chains whose answer is unknown as no.

    Raises:
        NoInterval: fewer than two chains.
    """
    n = yes + no + unknown
    _enough(n)
    lows, highs = clopper_pearson(np.array([yes, yes + unknown]), np.array([n, n]), level)
    note = f"open in {unknown} of {n} chains" if unknown else ""
    return Interval(yes / n, float(lows[0]), float(highs[1]), "Clopper–Pearson", note)


def clopper_pearson(successes: Integers, trials: Integers, level: float) -> tuple[Floats, Floats]:
    """(n,) two-sided intervals of binomial shares (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    tail, k, n = (1 - level) / 2, successes.astype(np.float64), trials.astype(np.float64)
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), n - np.maximum(k, 1) + 1, tail), 0.0)
    high = np.where(k < n, betaincinv(np.minimum(k, n - 1) + 1, n - np.minimum(k, n - 1), 1 - tail), 1.0)
    return low, high


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
    from scipy.special import ndtr, ndtri

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


def student(level: float, degrees: int) -> float:
    """Student's two-sided t quantile."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))


def is_skewed(values: Floats) -> bool:
    """Whether a sample that is not constant is too skewed for Student's t by Cochran's rule, n < 25 g₁²."""
    deviations = values - values.mean()
    with np.errstate(all="ignore"):  # squares of the smallest numbers vanish: the sample is then as good as constant
        skewness = (deviations**3).mean() / (deviations**2).mean() ** 1.5
    return bool(len(values) < 25 * skewness**2)


def _resampled_means(samples: Floats) -> Floats:
    """(rows, resamples) Means of resamples of (rows, n) samples, the same draws in every row.

    Fewer resamples of large samples, so that a claim on thousands of chains costs a fraction of a second.
    """
    n = samples.shape[1]
    resamples, rng = int(np.clip(_DRAWS // n, 1_999, _RESAMPLES)), generator(_SEED, "claims", n)
    step = max(1, _DRAWS_AT_ONCE // n)
    parts = []
    for start in range(0, resamples, step):
        draws = rng.integers(0, n, size=(min(step, resamples - start), n), dtype=np.int32)
        parts.append(np.take(samples, draws, axis=1).mean(axis=2))
    return np.concatenate(parts, axis=1)


def _same(value: float) -> Interval:
    return Interval(value, value, value, "the same in all chains")


def _enough(n: int) -> None:
    if n < 2:
        raise NoInterval("one chain has no interval: at least two seeds are needed" if n == 1 else "no chain matches")


def _finite(values: Floats, what: str) -> None:
    _enough(len(values))
    if not np.isfinite(values).all():
        raise NoInterval(f"{_count(~np.isfinite(values))} are not finite: there is no {what}")


def _count(bad: np.ndarray) -> str:
    return f"{int(bad.sum())} of {len(bad)} chains' values"
