"""Training sets that grow with the generation, and what of a Gaussian is left then.

A generation's step multiplies what is left by 1 − 1/n_g, so that the product over generations stays above 0 if and only
if Σ 1/n_g is finite: sizes that grow in proportion to the generation still collapse, and any power of it above 1 does
not (Xu, He and Cheng 2025, "A probabilistic perspective on model collapse": superlinear growth; Shumailov et al. 2024).
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fortifai_ray.theory.registry import Recipe, check_choice, closed_form

Growth = Literal["linear", "power", "geometric"]


def sample_sizes(
    initial: int, growth: Growth, generations: int, increment: float = 0.0, exponent: float = 1.0, ratio: float = 1.0
) -> list[int]:
    """Samples of generations 0 to ``generations`` − 1: n + ``increment``·g, n·(g + 1)^``exponent`` or n·``ratio``^g
    with n = ``initial``, to the nearest whole number.

    Raises:
        ValueError: another kind of growth.
        OverflowError: a size beyond the largest float.
    """
    check_choice("growth", growth, Growth)
    laws: Mapping[str, Any] = {
        "linear": lambda g: initial + increment * g,
        "power": lambda g: initial * float(g + 1) ** exponent,
        "geometric": lambda g: initial * float(ratio) ** g,
    }
    return [round(laws[growth](g)) for g in range(generations)]


def _maximum_likelihood(recipe: Recipe) -> bool:
    return recipe.get("family.covariance_estimator", "maximum_likelihood") == "maximum_likelihood"


def _sizes(initial: int, growth: Growth, generation: int, **law: float) -> Any:
    if initial < 2 or generation < 0:
        raise ValueError(
            f"initial must be 2 or more and generation 0 or more (initial {initial}, generation {generation})"
        )
    return np.array(sample_sizes(initial, growth, generation + 1, **law), dtype=np.float64)


@closed_form("trace_ratio", family="gaussian", regime="replace", when=_maximum_likelihood, grows=True)
def gaussian_growth_mean_variance(
    generation: int,
    initial: int,
    growth: Growth,
    increment: float = 0.0,
    exponent: float = 1.0,
    ratio: float = 1.0,
) -> float:
    """E σ̂²_g/σ² = ∏_{j≤g} (1 − 1/n_j) under replace, n_j the samples of generation j; maximum likelihood.

    σ̂²_j/σ̂²_{j−1} is χ²_{n_j−1}/n_j, independent of what came before.
    """
    sizes = _sizes(initial, growth, generation, increment=increment, exponent=exponent, ratio=ratio)
    return float(np.prod(1 - 1 / sizes))


@closed_form("mean_error", family="gaussian", regime="replace", when=_maximum_likelihood, grows=True)
def gaussian_growth_mean_error(
    generation: int,
    initial: int,
    growth: Growth,
    increment: float = 0.0,
    exponent: float = 1.0,
    ratio: float = 1.0,
) -> float:
    """E (μ̂_g − μ)²/σ² in the same setting: one minus the variance that is left."""
    return 1 - gaussian_growth_mean_variance(generation, initial, growth, increment, exponent, ratio)


@closed_form("trace_ratio", family="gaussian", regime="accumulate", when=_maximum_likelihood, grows=True)
def gaussian_growth_accumulate_mean_variance(
    generation: int,
    initial: int,
    growth: Growth,
    increment: float = 0.0,
    exponent: float = 1.0,
    ratio: float = 1.0,
) -> float:
    """E σ̂²_g/σ² = (1 − 1/n_0) ∏_{1≤j≤g} (1 − n_j/N_j²) under accumulate, N_j = n_0 + … + n_j; maximum likelihood.

    A batch of n_j samples, of N_j in all, moves the pooled mean by a variance of (n_j/N_j)²·v/n_j. Derived.
    """
    sizes = _sizes(initial, growth, generation, increment=increment, exponent=exponent, ratio=ratio)
    return float(np.prod(1 - sizes / np.cumsum(sizes) ** 2))
