"""Gaussians that train on mixtures of each other's output, under ``replace`` and maximum likelihood.

Let C be the covariance of the lineages' fitted means over chains, in units of the true variance. As in
:mod:`fortifai_ray.theory.gaussian`, each sample of any generation has second moment 1 about the true mean, so that the
expected variance of lineage l is 1 − C_ll, and its mean's squared error C_ll. Given the models, the samples that
lineages read are independent, and no two read the same one. With W the mixing and n_l the size of l's training set,

    C'_lm = (W C Wᵀ)_lm for l ≠ m,    C'_ll = (W C Wᵀ)_ll + (1 − Σ_k W_lk C_kk)/n_l,    C_0 = diag(1/n_l):

of the pairs of two samples of l's set, those of one sample with itself have 1 in the place of C_kk. A lineage that
stays as it is, an outside model or a human-only one, has the row of W that names it alone, and no second term. Derived;
W = 1 gives (1 − 1/n)^(g+1), and lineages that read all alike are one chain of Σ n_l samples but for each one's own fit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fortifai_ray.theory.registry import Recipe, check_arguments, closed_form, regime_of

Shares = Sequence[Sequence[float]]


def _exact(recipe: Recipe) -> bool:
    """Whether nothing but sizes tells the lineages apart, each draws for itself, and no set mixes in human data."""
    still = recipe["ecosystem.still"][recipe["ecosystem.place"]]
    return (
        recipe.get("ecosystem.draws") == "own"
        and (still or regime_of(recipe) == "replace")
        and all(isinstance(size, int) for size in recipe["ecosystem.sizes"])
        and recipe.get("family.covariance_estimator") == "maximum_likelihood"
        and set(recipe.get("ecosystem.own") or ()) <= {"samples_per_generation"}
    )


_SETTING: dict[str, Any] = {
    "family": "gaussian",
    "regime": ("replace", "mixed"),
    "when": _exact,
    "lineages": True,
    "sizes": lambda recipe: recipe.get("ecosystem.sizes"),
    "mixing": lambda recipe: recipe.get("ecosystem.shares"),
    "still": lambda recipe: recipe.get("ecosystem.still"),
    "lineage": lambda recipe: recipe.get("ecosystem.place"),
}


@closed_form("trace_ratio", **_SETTING)
def gaussian_ecosystem_mean_variance(
    sizes: Sequence[int], mixing: Shares, lineage: int, generation: int, still: Sequence[bool] = ()
) -> float:
    """E σ̂²_g/σ² of a lineage, counted from 0, whose row of ``mixing`` says of which lineages' output its set is made.

    Exact where the shares of the sizes are whole numbers of samples. ``still``: which lineages stay as they are.
    """
    return 1 - _covariance(sizes, mixing, lineage, generation, still)


@closed_form("mean_error", **_SETTING)
def gaussian_ecosystem_mean_error(
    sizes: Sequence[int], mixing: Shares, lineage: int, generation: int, still: Sequence[bool] = ()
) -> float:
    """E (μ̂_g − μ)²/σ² in the same setting: 1 − E σ̂²_g/σ². Derived: see the module docstring."""
    return _covariance(sizes, mixing, lineage, generation, still)


def _covariance(sizes: Sequence[int], mixing: Shares, lineage: int, generation: int, still: Sequence[bool]) -> float:
    """C_ll of the module docstring, after ``generation`` generations."""
    check_arguments(min(sizes), generation)
    fixed = np.array(still or [False] * len(sizes), dtype=bool)
    shares, own = np.array(mixing, dtype=np.float64), 1 / np.array(sizes, dtype=np.float64)
    if shares.shape != (len(sizes), len(sizes)) or len(fixed) != len(sizes) or not 0 <= lineage < len(sizes):
        raise ValueError(f"{len(sizes)} sizes need as many rows and columns of mixing, and a lineage among them")
    shares = np.where(fixed[:, None], np.eye(len(sizes)), shares)
    covariance = np.diag(own)
    for _ in range(generation):
        fit = np.where(fixed, 0.0, own * (1 - shares @ np.diagonal(covariance)))
        covariance = shares @ covariance @ shares.T + np.diag(fit)
    return float(covariance[lineage, lineage])
