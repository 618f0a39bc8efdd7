"""Gaussians: the family whose collapse has a closed form (Shumailov et al. 2024, Kazdan et al. 2025)."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fortifai_ray.families import KL_DIVERGENCE, TRACE_RATIO, WASSERSTEIN
from fortifai_ray.families.analytic.base import (
    AnalyticFamily,
    Array,
    Model,
    Streams,
    moments,
    ones_unless_given,
    samples_last,
)
from fortifai_ray.metrics import DISTRIBUTION, Metric

_ROUNDING = np.finfo(np.float64).eps


class Gaussian(AnalyticFamily):
    """A Gaussian with full covariance; the truth is isotropic.

    A sample too small or a collapsed chain gives a covariance of lower rank; metrics are then −∞ or ∞ where they have
    to be. With Σ̂, μ̂ fitted and σ², μ true, ``trace_ratio`` is tr Σ̂ / (d σ²), ``wasserstein``
    √(‖μ̂ − μ‖² + Σ_i (√λ_i − σ)²) with λ_i the eigenvalues of Σ̂, and ``kl_divergence`` is ∞ once the model has lost a
    direction.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        TRACE_RATIO,
        Metric(
            "log_variance_ratio",
            "ln σ̂²/σ²",
            "mean over axes of ln(Σ̂_ii / σ²), fitted over true variance",
            "Kazdan et al. 2025",
            "below",
            title="mean log variance ratio",
            group=DISTRIBUTION,
        ),
        Metric(
            "mean_error",
            "squared, over the variance",
            "‖μ̂ − μ‖² / (d σ²), squared distance of the fitted mean over the trace of the true covariance",
            "Shumailov et al. 2024, AI models collapse when trained on recursively generated data",
            "above",
            title="error of the mean",
            group=DISTRIBUTION,
        ),
        KL_DIVERGENCE,
        WASSERSTEIN,
    )

    kind: Literal["gaussian"] = "gaussian"
    dim: int = Field(1, ge=1, description="dimensions")
    mean: float = Field(0.0, allow_inf_nan=False, description="of the truth, along each axis")
    std: float = Field(1.0, gt=0.0, allow_inf_nan=False, description="of the truth, along each axis")
    covariance_estimator: Literal["maximum_likelihood", "unbiased"] = Field(
        "maximum_likelihood", description="divides by n, or by n − 1 (under weights, by Σw − Σw²/Σw)"
    )

    def human(self, n: int, streams: Streams) -> Array:
        return self.mean + self.std * streams.normal("human", (n, self.dim))

    def fit(self, data: Array, weights: Array | None = None, generation: int = 0) -> Model:
        weights = ones_unless_given(weights, data)
        mean, covariance = moments(samples_last(data), weights)
        if self.covariance_estimator == "unbiased":
            total = weights.sum(-1)
            freedom = total - (weights**2).sum(-1) / total
            # One sample says nothing of the variance: it is left at 0.
            factor = np.divide(total, freedom, out=np.zeros_like(total), where=freedom > 0)
            covariance = covariance * factor[:, None, None]
        return {"mean": mean, "covariance": covariance}

    def evaluate(self, model: Model, data: Array, generation: int = 0) -> dict[str, Array]:
        spread, directions = _axes(model["covariance"])
        axes = np.diagonal(model["covariance"], axis1=1, axis2=2) / self.std**2
        mean_error = ((model["mean"] - self.mean) ** 2).sum(-1)
        with np.errstate(divide="ignore"):
            log_axes = np.log(axes)
        return {
            "trace_ratio": axes.sum(-1) / self.dim,
            "log_variance_ratio": log_axes.sum(-1) / self.dim,
            "mean_error": mean_error / (self.dim * self.std**2),
            "kl_divergence": self._kl_divergence(model["mean"], spread, directions),
            "wasserstein": np.sqrt(mean_error + ((np.sqrt(spread) - self.std) ** 2).sum(-1)),
        }

    def _kl_divergence(self, mean: Array, spread: Array, directions: Array) -> Array:
        """½ Σ_i [σ²/λ_i + (v_i·(μ̂ − μ))²/λ_i − 1 + ln(λ_i/σ²)] over the axes v_i of the fitted covariance."""
        along = ((mean - self.mean)[:, None] @ directions)[:, 0]
        alive = np.where(spread > 0, spread, 1.0)
        with np.errstate(over="ignore"):
            terms = (self.std**2 + along**2) / alive - 1 + np.log(alive / self.std**2)
        return np.where((spread > 0).all(-1), terms.sum(-1) / 2, np.inf)

    def generate(self, model: Model, n: int, streams: Streams) -> Array:
        spread, directions = _axes(model["covariance"])
        # The symmetric root is unique: unlike the eigenvectors, it does not hang on a choice of signs.
        root = (directions * np.sqrt(spread)[:, None]) @ np.swapaxes(directions, 1, 2)
        return model["mean"][:, None] + streams.normal("noise", (n, self.dim)) @ root

    def distance(self, model: Model, other: Model, streams: Streams) -> Array:
        """2-Wasserstein: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁^½ Σ₂ Σ₁^½)^½), its root (Dowson and Landau 1982)."""
        spread, directions = _axes(model["covariance"])
        if self.dim == 1:
            apart = np.sqrt(spread) - np.sqrt(_axes(other["covariance"])[0])
            return np.sqrt(((model["mean"] - other["mean"]) ** 2 + apart**2)[:, 0])
        root = (directions * np.sqrt(spread)[:, None]) @ np.swapaxes(directions, 1, 2)
        cross = np.sqrt(_axes(root @ other["covariance"] @ root)[0]).sum(-1)
        traces = [np.trace(each["covariance"], axis1=1, axis2=2) for each in (model, other)]
        moved = ((model["mean"] - other["mean"]) ** 2).sum(-1)
        return np.sqrt(np.maximum(moved + traces[0] + traces[1] - 2 * cross, 0.0))

    def log_likelihood(self, model: Model, data: Array) -> Array:
        spread, directions = _axes(model["covariance"])
        away = (np.ascontiguousarray(data) - model["mean"][:, None]) @ directions
        alive = np.where(spread > 0, spread, 1.0)[:, None]
        with np.errstate(over="ignore"):
            within = -(away**2 / alive + np.log(2 * np.pi * alive)) / 2
        # Along an axis without spread the density is a point mass: ∞ on it, −∞ off it.
        off = away**2 > _ROUNDING * spread.max(-1)[:, None, None]
        flat = (spread <= 0)[:, None]
        likelihood = np.where(flat, 0.0, within).sum(-1)
        likelihood = np.where(flat.any(-1), np.inf, likelihood)
        return np.where((flat & off).any(-1), -np.inf, likelihood)

    def truth(self) -> Model:
        return {
            "mean": np.full((1, self.dim), self.mean),
            "covariance": self.std**2 * np.eye(self.dim)[None],
        }


def _axes(covariance: Array) -> tuple[Array, Array]:
    """Eigenvalues (B, d), 0 where they are rounding alone, and eigenvectors (B, d, d) in columns."""
    if covariance.shape[-1] == 1:  # as below, sooner
        values = covariance[..., 0]
        return np.where(values > _ROUNDING * values, values, 0.0), np.ones_like(covariance)
    values, vectors = np.linalg.eigh(covariance)
    noise = _ROUNDING * values.shape[1] * values.max(-1, keepdims=True)
    return np.where(values > noise, values, 0.0), vectors
