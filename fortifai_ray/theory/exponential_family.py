"""Members of the exponential family, by their mean parameter."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from fortifai_ray.theory.registry import check_arguments, check_choice, closed_form

Member = Literal["exponential", "poisson", "bernoulli"]


@closed_form("parameter_error", family="exponential_family", regime="replace")
def exponential_family_replace_error(n: int, generation: int, member: Member, mean: float) -> float:
    """E (m̂_g − m)²/m² under replace: exponential (1 + 1/n)^(g+1) − 1, Poisson (g+1)/(nm), Bernoulli
    ((1 − m)/m)(1 − (1 − 1/n)^(g+1)).

    The fitted mean is a martingale whose next step has variance m̂²/n, m̂/n or m̂(1 − m̂)/n. Exact and derived; each
    tends to g + 1 times generation 0's as n grows (Dey and Donoho 2024).
    """
    check_arguments(n, generation)
    return _drift(np.full(generation + 1, 1 / n), member, mean)


@closed_form("parameter_error", family="exponential_family", regime="accumulate")
def exponential_family_accumulate_error(n: int, generation: int, member: Member, mean: float) -> float:
    """E (m̂_g − m)²/m² under accumulate: exponential ∏(1 + 1/(nt²)) − 1, Poisson Σ 1/(nmt²), Bernoulli
    ((1 − m)/m)(1 − ∏(1 − 1/(nt²))), with t from 1 to g + 1.

    As under replace, with steps 1/t times as long. Exact and derived; each tends to Σ 1/t² times generation 0's as n
    grows, so at most to π²/6 (Dey and Donoho 2024).
    """
    check_arguments(n, generation)
    return _drift(1 / (n * np.arange(1.0, generation + 2) ** 2), member, mean)


def _drift(steps: npt.NDArray[np.float64], member: Member, mean: float) -> float:
    """The relative variance of a mean whose steps have these variances, over the variance of one sample."""
    check_choice("member", member, Member)
    if member == "exponential":
        return float(np.prod(1 + steps) - 1)
    if member == "poisson":
        return float(steps.sum() / mean)
    return float((1 - mean) / mean * (1 - np.prod(1 - steps)))
