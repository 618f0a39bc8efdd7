"""Least squares and ridge regression on targets that earlier fits wrote; any workflow given as a matrix of weights."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fortifai_ray.theory.registry import Recipe, check_arguments, closed_form, evaluate

Array = npt.NDArray[np.float64]


def input_variances(dim: int, spectrum_exponent: float) -> Array:
    """(dim,) λ_i = i^−β."""
    ranks: Array = np.arange(1, dim + 1, dtype=np.float64)
    return ranks**-spectrum_exponent


def true_weights(dim: int, signal: float, spectrum_exponent: float, source: float) -> Array:
    """(dim,) w* with w*ᵀΣw* = signal²; for an isotropic Σ all are equal."""
    if not spectrum_exponent:
        return np.full(dim, signal / np.sqrt(dim))
    powers = np.arange(1.0, dim + 1) ** -(1 + 2 * source * spectrum_exponent)
    return signal * np.sqrt(powers / powers.sum() / input_variances(dim, spectrum_exponent))


def _constant_ridge(recipe: Recipe) -> bool:
    """A penalty that is a number, and more samples than the fit needs for a finite expectation."""
    enough = recipe["samples_per_generation"] > recipe["family.dim"] + 1
    return enough and not isinstance(recipe.get("family.ridge", 0.0), str)


def _least_squares(recipe: Recipe) -> bool:
    return _constant_ridge(recipe) and recipe.get("family.ridge", 0.0) == 0


def _least_squares_on_a_fixed_design(recipe: Recipe) -> bool:
    return _least_squares(recipe) and recipe.get("family.design", "fixed") == "fixed"


def _ridge_on_labels_of_least_squares(recipe: Recipe) -> bool:
    written_by, design = recipe.get("family.written_by"), recipe.get("family.design")
    return _constant_ridge(recipe) and not _least_squares(recipe) and (written_by, design) == ("least_squares", "fresh")


def _times_generation_0(ratio: float, recipe: Recipe, generation: int) -> float:
    return evaluate("regression_excess", {}, recipe, 0) * ratio


@closed_form()
def regression_replace_excess(generation: int) -> float:
    """Expected excess risk over generation 0's under replace: g + 1 (Dohmatob et al. 2024; Gerstgrasser et al. 2024).

    Least squares with enough samples; each generation adds an independent error of the same size to the last one's.
    """
    check_arguments(2, generation)
    return float(generation + 1)


@closed_form(
    "excess_risk",
    family="linear_regression",
    regime="accumulate",
    when=_least_squares_on_a_fixed_design,
    to_metric=_times_generation_0,
    label="regression_accumulate_excess, times regression_excess at generation 0",
)
def regression_accumulate_excess(generation: int) -> float:
    """Expected excess risk over generation 0's under accumulate: Σ_{j=1}^{g+1} 1/j² ≤ π²/6, for a fixed design.

    Gerstgrasser et al. 2024's main theorem. For other models it is the limit of many samples (Dey and Donoho 2024).
    """
    check_arguments(2, generation)
    return float(sum(1 / j**2 for j in range(1, generation + 2)))


@closed_form("excess_risk", family="linear_regression", regime="replace", when=_least_squares)
def regression_excess(n: int, generation: int, dim: int, noise_std: float = 1.0) -> float:
    """Expected excess risk of least squares under replace on Gaussian inputs: (g+1)·σ²·d/(n − d − 1).

    Exact, for fixed and fresh designs (the mean is over designs too) and for any covariance of the inputs, as E(XᵀX)⁻¹
    is Σ⁻¹/(n − d − 1). It is Dohmatob et al. 2024's σ²φ/(1 − φ), once a generation, at finite size.
    """
    check_arguments(n, generation)
    if n <= dim + 1:
        raise ValueError(f"n must be above dim + 1: {n} samples in {dim} dimensions have no finite expectation")
    return (generation + 1) * noise_std**2 * dim / (n - dim - 1)


@closed_form(
    "excess_risk",
    family="linear_regression",
    regime="replace",
    when=_ridge_on_labels_of_least_squares,
    limit="in the limit of many dimensions and samples",
)
def ridge_excess(
    n: int,
    generation: int,
    dim: int,
    noise_std: float = 1.0,
    ridge: float = 0.0,
    signal: float = 1.0,
    spectrum_exponent: float = 0.0,
    source: float = 0.5,
) -> float:
    """Excess risk of a ridge fit to labels that g least-squares fits wrote one after another, on fresh designs.

    The setting of ``written_by: least_squares``. In the limit of many dimensions and samples, with κ − λ = κ·df₁/n and
    df_m = Σ_i (λ_i/(λ_i + κ))^m (Dohmatob et al. 2024's bias, variance and fake-data terms):
    [κ²·Σ_i λ_i w_i²/(λ_i + κ)² + σ²·df₂/n]/(1 − df₂/n), and, for the g earlier fits, whose errors have covariance
    ρΣ⁻¹ with ρ = gσ²/(n − d − 1), ρ·[d − 2κ·Σ_i 1/(λ_i + κ) + κ²·Σ_i (λ_i + κ)⁻²/(1 − df₂/n)] (derived: the
    deterministic equivalents of λ(S + λ)⁻¹ and of its square about Σ).
    """
    check_arguments(n, generation)
    if ridge < 0 or n <= dim + 1:
        raise ValueError(f"ridge must be 0 or more and n above dim + 1 (ridge {ridge}, n {n}, dim {dim})")
    spectrum = input_variances(dim, spectrum_exponent)
    weights = true_weights(dim, signal, spectrum_exponent, source)
    kappa = _effective_ridge(spectrum, ridge, n)
    shrunk = 1 / (spectrum + kappa)
    freedom = ((spectrum * shrunk) ** 2).sum() / n
    own = (kappa**2 * (spectrum * (weights * shrunk) ** 2).sum() + noise_std**2 * freedom) / (1 - freedom)
    inherited = dim - 2 * kappa * shrunk.sum() + kappa**2 * (shrunk**2).sum() / (1 - freedom)
    return float(own + generation * noise_std**2 / (n - dim - 1) * inherited)


def _effective_ridge(spectrum: Array, ridge: float, n: int) -> float:
    """The κ ≥ λ with κ − λ = κ·Σ_i λ_i/(λ_i + κ)/n; 0 without a ridge, as there are more samples than dimensions."""
    from scipy.optimize import brentq

    if ridge == 0:
        return 0.0

    def gap(kappa: float) -> float:
        return kappa - ridge - kappa * float((spectrum / (spectrum + kappa)).sum()) / n

    return float(brentq(gap, ridge, ridge + float(spectrum.sum()) / n, xtol=1e-15, rtol=1e-14))


def workflow_variance(weights: Sequence[Sequence[float]] | Array) -> Array:
    """(G,) Variance of each generation's error over generation 0's, in a workflow of ``weights`` (G, G).

    Row g holds the weights of batches j ≤ g in generation g's fit; generation j − 1 writes batch j, the truth batch 0.
    In the limit of many samples the errors are a Gaussian process, θ_g = Σ_j W_gj (θ_{j−1} + ε_j) with independent
    standard normal ε (Dey and Donoho 2024, sequential Gaussian process limit). The identity is replace, with variances
    g + 1; rows 1/(g+1) are accumulate, with Σ 1/j².

    Raises:
        ValueError: not a square lower triangular matrix whose rows sum to 1.
    """
    matrix = np.asarray(weights, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or np.triu(matrix, 1).any():
        raise ValueError("weights must be square and zero above the diagonal: a fit cannot use later batches")
    if not np.allclose(matrix.sum(1), 1.0, atol=1e-9):
        raise ValueError(f"weights: each row must sum to 1 (they sum to {matrix.sum(1).tolist()})")
    count = len(matrix)
    written = np.eye(count)  # row j: batch j's mean as a combination of the noises
    errors = np.zeros((count, count))
    for generation in range(count):
        errors[generation] = matrix[generation, : generation + 1] @ written[: generation + 1]
        if generation + 1 < count:
            written[generation + 1] += errors[generation]
    variances = (errors**2).sum(1)
    return variances / variances[0]


@closed_form()
def workflow_excess(weights: Sequence[Sequence[float]], generation: int) -> float:
    """One generation's entry of :func:`workflow_variance`."""
    variances = workflow_variance(weights)
    if not 0 <= generation < len(variances):
        raise ValueError(f"weights has generations 0 to {len(variances) - 1}, and no {generation}")
    return float(variances[generation])
