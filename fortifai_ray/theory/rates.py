"""How fast a chain forgets a rare symbol under replace (Suresh et al. 2025, "Rate of model collapse").

Their finding (the abstract's; the numbers here are derived, docs/ngrams.md): the time to forget a symbol is about
linear in how often it occurred, and a Gaussian's standard deviation goes to 0 in about n generations. Both follow here
from the exact law of a count. With n samples of mean m̂, the next generation's total is Poisson(n·m̂), so that the
total is a branching process whose members have Poisson(1) children each (Harris 1963, section I.5): the share of chains
that have forgotten tends to e^(−2c/g) for a mean count c. For Bernoulli samples the total is Binomial(n, m̂): the
Wright–Fisher chain of genetic drift. The logarithm of a Gaussian's variance falls by about 1/n a generation under the
unbiased estimator, and 2/n by maximum likelihood, which is
:func:`fortifai_ray.theory.gaussian.gaussian_replace_mean_log_variance`.
"""

import math

from fortifai_ray.theory.discrete import lost_by_count
from fortifai_ray.theory.registry import check_arguments, closed_form


@closed_form()
def poisson_forgotten(n: int, generation: int, mean: float) -> float:
    """The share of chains in which all samples are 0, fitted to ``generation`` + 1 training sets of n Poisson samples
    each, the first of mean ``mean``: exp(c(q_g − 1)), with c = n·mean, q_0 = 0 and q_{g+1} = exp(q_g − 1).

    Exact and derived: a member's line has died out after g generations with probability q_g, and 1 − q_g is about 2/g.
    """
    check_arguments(n, generation)
    if not mean > 0:
        raise ValueError(f"mean must be above 0: {mean} is not")
    dead = 0.0
    for _ in range(generation):
        dead = math.exp(dead - 1)
    return math.exp(n * mean * (dead - 1))


@closed_form()
def bernoulli_forgotten(n: int, generation: int, mean: float) -> float:
    """As :func:`poisson_forgotten`, of Bernoulli samples of probability ``mean``: the share of chains in which a symbol
    of that probability is lost from a discrete distribution's training sets of n samples. Exact; costs (n + 1)²
    numbers."""
    from scipy.stats import binom

    check_arguments(n, generation)
    if not 0 < mean < 1:
        raise ValueError(f"mean must lie between 0 and 1: {mean} does not")
    return float(binom.pmf(range(n + 1), n, mean) @ lost_by_count(n, generation))
