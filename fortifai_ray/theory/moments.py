"""Second moments of training sets that mix human samples with what the last generation wrote.

Let each human sample have mean μ and variance 1, and let a generation's estimate have the mean of its training set and
that set's variance plus what its kernel adds (nothing, for a fitted Gaussian or a discrete distribution). Then the
means over chains of two numbers determine the variance: t, a training sample's second moment about μ, and c, the
covariance of two different ones. Both obey a linear recursion, and the set's unbiased variance is t − c in the mean.
Derived.
"""

from collections.abc import Callable, Sequence

Added = Callable[[float, int], float]
"""The variance that an estimate adds to its samples', from their unbiased variance and their number."""


def adds_nothing(variance: float, total: int) -> float:
    """For a fitted Gaussian or a discrete distribution: the estimate has the variance of its samples."""
    return 0.0


def partly_human_variance(
    sizes: Sequence[tuple[int, int]], first: int, kept: bool, added: Added = adds_nothing
) -> float:
    """E of the unbiased variance of the last of these training sets, over the truth's; (human, synthetic) samples each.

    With a the covariance of a human and a synthetic sample and b that of two synthetic ones, the mean covariance of two
    different ones of N = h + s is c = (2hs·a + s(s−1)·b)/(N(N−1)). The next b is the fitted mean's variance,
    t/N + (1 − 1/N)c. The next a is its covariance with a human sample that is kept, (1 + s·a)/N, and 0 for a fresh one.

    Args:
        first: the size of generation 0's training set, all human.
        kept: whether the human samples are always the same, generation 0's first.
    """
    a = b = c = 0.0
    second = written = 1.0
    for generation, (human, synthetic) in enumerate(sizes):
        total = human + synthetic
        second = (human + synthetic * written) / total
        pairs = 2 * human * synthetic * a + synthetic * (synthetic - 1) * b
        c = pairs / (total * (total - 1))
        b = second / total + (1 - 1 / total) * c
        written = second + added(second - c, total)
        if generation:
            a = (1 + synthetic * a) / total if kept else 0.0
        elif len(sizes) > 1 and kept and sizes[1][0]:
            # Only those human samples that generation 0 saw have anything in common with what it writes.
            a = min(first, sizes[1][0]) / (first * sizes[1][0])
    return second - c


def mixed_sizes(n: int, generation: int, synthetic_ratio: float) -> list[tuple[int, int]]:
    """(human, synthetic) samples of generations 0 to ``generation``, the share rounded to whole samples.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0 <= synthetic_ratio <= 1:
        raise ValueError(f"synthetic_ratio must lie in [0, 1]: {synthetic_ratio} does not")
    synthetic = round(synthetic_ratio * n)
    return [(n, 0)] + [(n - synthetic, synthetic)] * generation
