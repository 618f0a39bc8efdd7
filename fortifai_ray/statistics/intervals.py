"""Confidence intervals: of the summaries that claims speak of, and of many samples at once for the result tables.

Each function names its method; where a choice is open, the wider interval wins.

==================  ================================================================================================
mean                Student's t; where the sample is skewed, the hull of that and Johnson's modified t (1978, Journal of
                    the American Statistical Association 73, 536) with twice its correction for skewness:
                    :func:`mean_intervals`
geometric mean      the same, of the logarithms
ratio of means      Fieller's (1954), of pairs; where the linearised values are skewed, the hull of that and their
                    mean's. No interval where the denominators' mean may be 0
variance            the hull of the χ² interval (right for a normal sample), the mean's, of squared deviations, and
                    Bonett's (2006, Computational Statistics & Data Analysis 50, 775) with Student's quantile;
                    approximate unless the chains are many for the weight of the sample's tails
quantile, median    between order statistics (David and Nagaraja 2003, section 7.1): no assumption on the law.
                    An end is infinite where the sample is too small for one, or where too many of its values are
                    known only up to a bound: :func:`median_ends`
share               Clopper and Pearson (1934): never covers less than its level. Chains whose answer is open count
                    against the share at its lower end and for it at its upper end
==================  ================================================================================================

What they cover is measured: ``python -m benchmarks.coverage``, docs/statistics.md.

SciPy's special functions take 0.7 s to import: each function imports those that it calls.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from fortifai_ray.statistics.crossing import Floats, Integers

MIN_FOR_VARIANCE = 10  # chains; with fewer, squared deviations from their own mean underestimate their own spread
_FEW = 6  # values; fewer do not show whether their law is skewed, so that any skewness of theirs counts
_CHAINS_PER_KURTOSIS = 20  # a variance's interval is approximate for fewer chains: 60 of a normal law, 180 exponential


@dataclass(frozen=True)
class Interval:
    """A measured number and its confidence interval; an end may be infinite (a bound). ``method`` names it.

    ``approximate``: it is known to cover less than its level for laws that such a sample may come from.
    """

    measured: float
    low: float
    high: float
    method: str
    note: str = ""
    approximate: bool = False

    @property
    def doubled(self) -> "Interval":
        """Twice as far from the measured number: by factors, for a number above 0."""
        low, high = self.low**2 / self.measured, self.high**2 / self.measured
        return replace(self, low=low, high=high)


_STUDENT, _SKEWED = "Student t", "the values are skewed"


class NoInterval(Exception):
    """There is no interval for this sample; the message says why."""


def mean(values: Floats, level: float) -> Interval:
    """Of the mean of (n,) independent values.

    Raises:
        NoInterval: fewer than two values, or one that is not finite.
    """
    _finite(values, "mean")
    if np.ptp(values) == 0:
        return _same(float(values[0]))
    low, high = mean_intervals(values[None, :], level)
    method, note = ("Student t and Johnson t, the wider", _SKEWED) if _skewness(values[None, :])[0] else (_STUDENT, "")
    return Interval(float(values.mean()), float(low[0]), float(high[0]), method, note)


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
    top, bottom = float(numerators.mean()), float(denominators.mean())
    if np.ptp(numerators) == 0 and np.ptp(denominators) == 0 and bottom != 0:
        return _same(top / bottom)
    ends = ratio_intervals(numerators[None, :], denominators[None, :], level)
    low, high = float(ends[0][0]), float(ends[1][0])
    if math.isnan(low):
        raise NoInterval("the mean of the denominators may be 0: the ratio could be anything")
    if not _skewness(_linearised(numerators[None, :], denominators[None, :]))[0]:
        return Interval(top / bottom, low, high, "Fieller")
    return Interval(top / bottom, low, high, "Fieller and Johnson t, the wider", _SKEWED)


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
    kurtosis, factors = _bonett(values, level)
    low = min(squares.low, spread / float(tails[0]), squares.measured * factors[0])
    high = max(squares.high, spread / float(tails[1]), squares.measured * factors[1])
    approximate = n < _CHAINS_PER_KURTOSIS * kurtosis
    note = f"approximate: {n} chains are few for a variance of values with such tails" if approximate else ""
    return Interval(
        squares.measured, max(low, 0.0), high, "χ², squared deviations, Bonett, the widest", note, approximate
    )


def _bonett(values: Floats, level: float) -> tuple[float, tuple[float, float]]:
    """Bonett's kurtosis about a trimmed mean (3 for a normal law), and the ends of his interval over the variance."""
    n, z = len(values), _normal(level)
    trimmed = np.sort(values)[(cut := int(n / (2 * math.sqrt(n - 4)))) : n - cut].mean()
    deviations = values - values.mean()
    scale = np.abs(deviations).max()
    kurtosis = float(n * (((values - trimmed) / scale) ** 4).sum() / ((deviations / scale) ** 2).sum() ** 2)
    error = math.sqrt(max(kurtosis - (n - 3) / n, 0.0) / (n - 1))
    half, centre = student(level, n - 1) * error, n / (n - z)
    return kurtosis, (centre * math.exp(-half), centre * math.exp(half))


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


def median_ends(lows: Floats, highs: Floats, tail: float) -> tuple[Floats, Floats]:
    """Order statistics around the median of each row of values of which only bounds are known.

    They hold for any law and whatever hides the values: the k-th smallest value is at least the k-th smallest lower
    bound. k is the largest with P(B < k) at most ``tail``, B ~ Binomial(n, ½): 0 where n is too small for one.

    Args:
        lows, highs: (rows, n), at most and at least the value; −∞ and ∞ where nothing is known.
        tail: with what probability either end may miss.

    Returns:
        low and high, (rows,) each, infinite where the sample is too small or shows too little.
    """
    from scipy.special import bdtr

    n = lows.shape[1]
    k = int((bdtr(np.arange(n), n, 0.5) <= tail).sum())
    if k == 0:
        nothing = np.full(len(lows), np.inf)
        return -nothing, nothing
    return np.partition(lows, k - 1, axis=1)[:, k - 1], np.partition(highs, n - k, axis=1)[:, n - k]


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


def mean_intervals(samples: Floats, level: float) -> tuple[Floats, Floats]:
    """Intervals of the mean of each row of independent values.

    Student's t covers 84, 85 and 87 % at nominal 90 % for 6, 10 and 20 values of an exponential law. So the end on the
    side of the longer tail is moved outwards: by 2 to 2.5 times Johnson's correction (2.5 for six values, 2 from nine
    on), since so small a sample shows half of its law's skewness or less, and by no more than the half-width of
    Student's interval (0.7 of it for three values, lest it cover a normal law more than 93 times in 100). A skewness
    within half a standard error of a normal sample's counts as none, from 6 values on.

    Args:
        samples: (rows, n), finite, n at least 2.
        level: two-sided confidence level in (0, 1).

    Returns:
        low and high, (rows,) each. A row of equal values gives that value twice.
    """
    n = samples.shape[1]
    t, mean = student(level, n - 1), samples.mean(axis=1)
    error = samples.std(axis=1, ddof=1) / math.sqrt(n)
    johnson = _skewness(samples) * (1 + 2 * t**2) / (6 * math.sqrt(n))
    factor, most = max(2.0, 1 + 9 / n) if n >= _FEW else 2.0, 0.7 * t if n == 3 else t
    moved = np.clip(factor * johnson, -most, most)
    low, high = mean + error * (np.minimum(moved, 0) - t), mean + error * (np.maximum(moved, 0) + t)
    constant = np.ptp(samples, axis=1) == 0
    return np.where(constant, samples[:, 0], low), np.where(constant, samples[:, 0], high)


def ratio_intervals(numerators: Floats, denominators: Floats, level: float) -> tuple[Floats, Floats]:
    """Intervals of the ratio of the means of paired rows, as :func:`ratio_of_means` gives them.

    Args:
        numerators, denominators: (rows, n), finite, n at least 2.

    Returns:
        low and high, (rows,) each, NaN where the mean of the denominators may be 0.
    """
    n = numerators.shape[1]
    top, bottom = numerators.mean(axis=1), denominators.mean(axis=1)
    t2 = student(level, n - 1) ** 2 / n
    a, b, c = (
        one * other - t2 * ((x - one[:, None]) * (y - other[:, None])).sum(axis=1) / (n - 1)
        for one, other, x, y in (
            (bottom, bottom, denominators, denominators),
            (top, bottom, numerators, denominators),
            (top, top, numerators, numerators),
        )
    )
    with np.errstate(all="ignore"):
        root = np.sqrt(np.maximum(b**2 - a * c, 0.0))
        low, high = (b - root) / a, (b + root) / a
        linear = _linearised(numerators, denominators)
    corrected = _skewness(linear) != 0
    ends = mean_intervals(linear, level)
    low = np.where(corrected, np.minimum(low, ends[0]), low)
    high = np.where(corrected, np.maximum(high, ends[1]), high)
    return np.where(a > 0, low, np.nan), np.where(a > 0, high, np.nan)


def _linearised(numerators: Floats, denominators: Floats) -> Floats:
    """(rows, n) Each pair's part in the ratio of means, whose mean is that ratio."""
    top, bottom = numerators.mean(axis=1, keepdims=True), denominators.mean(axis=1, keepdims=True)
    ratio = top / bottom
    return ratio + (numerators - ratio * denominators) / bottom


def _skewness(samples: Floats) -> Floats:
    """(rows,) Fisher's unbiased G₁ of each row; 0 where it counts as none (:func:`mean_intervals`)."""
    n = samples.shape[1]
    if n < 3:
        return np.zeros(samples.shape[0])
    deviations = samples - samples.mean(axis=1, keepdims=True)
    with np.errstate(all="ignore"):  # equal values: 0/0
        deviations /= np.abs(deviations).max(axis=1, keepdims=True)  # neither the squares of small numbers vanish
        biased = (deviations**3).mean(axis=1) / (deviations**2).mean(axis=1) ** 1.5
    skewness = np.nan_to_num(biased) * math.sqrt(n * (n - 1)) / (n - 2)
    error = math.sqrt(6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3)))  # of a normal sample's
    return np.where((np.abs(skewness) > 0.5 * error) | (n < _FEW), skewness, 0.0)


def student(level: float, degrees: int) -> float:
    """Student's two-sided t quantile."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))


def _normal(level: float) -> float:
    """The normal law's two-sided quantile."""
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2))


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
