"""Linear and logistic regression: targets written by the last fit (Gerstgrasser et al. 2024, Dohmatob et al. 2024, Dey
and Donoho 2024)."""

import math
from functools import lru_cache
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fortifai_ray.families import EXCESS_RISK, PARAMETER_ERROR
from fortifai_ray.families.analytic.base import AnalyticFamily, Array, Model, Streams, ones_unless_given
from fortifai_ray.metrics import DISTRIBUTION, Metric
from fortifai_ray.theory.regression import input_variances, true_weights

_ROUNDING = np.finfo(np.float64).eps
# Of the logistic fit and its quadrature.
_STEPS = 100
_HALVINGS = 40
_NODES = 32


_DESIGN = "fixed: the same inputs in each generation, with fresh noise (Gerstgrasser et al. 2024); fresh: new ones"


class LinearRegression(AnalyticFamily):
    """y = x·w + ``noise_std``·ε with Gaussian inputs; a sample is a row (x, y) of ``dim`` + 1 numbers.

    Inputs are independent. The true weights are equal where the inputs are isotropic, and otherwise λ_i w*_i² is in
    proportion to i^−(1 + 2·r·β), with Dohmatob et al. 2024's capacity β and source condition r.

    The fit minimises the mean squared residual plus λ‖w‖²; least squares is of minimum norm where the samples are too
    few. ``ridge: adaptive`` is Dohmatob et al. 2024's mitigation, a ridge whose exponent follows the generations: with
    λ = n^−ℓ the bias scales as n^−2rℓ and the variance of g generations as g·n^−(1 − ℓ/β), and they balance at
    ℓ = (1 − log_n g)·ℓ_crit, at most β, where ℓ_crit = β/(2βr + 1) is the optimum for human data: as if the samples
    were g times fewer. With ``written_by: least_squares``, their setting, the ridge affects only the evaluated model.

    ``excess_risk`` is (w − w*)ᵀΣ(w − w*), the risk on noiseless targets, exact.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        EXCESS_RISK,
        Metric(
            "test_error",
            "mean squared error",
            "excess risk plus the variance of the noise: the risk on noisy targets",
            "Gerstgrasser et al. 2024",
            "above",
            group=DISTRIBUTION,
        ),
    )

    kind: Literal["linear_regression"] = "linear_regression"
    dim: int = Field(ge=1, description="inputs x of a sample")
    noise_std: float = Field(1.0, gt=0.0, allow_inf_nan=False, description="standard deviation of the targets' noise")
    signal: float = Field(1.0, ge=0.0, allow_inf_nan=False, description="√(w*ᵀΣw*) of the true weights w*")
    design: Literal["fixed", "fresh"] = Field("fixed", description=_DESIGN)
    ridge: float | Literal["adaptive"] = Field(
        0.0, description="λ of the penalty λ‖w‖²; 0: least squares; adaptive: (n/g)^(−β/(2βr + 1)) in generation g"
    )
    written_by: Literal["same", "least_squares"] = Field(
        "same", description="the fit that writes the next targets: the ridge's own, or least squares on the same data"
    )
    spectrum_exponent: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="capacity β: the inputs have variances i^−β; 0: isotropic"
    )
    source: float | None = Field(
        None, gt=0.0, le=1.0, description="source condition r of w*, where `spectrum_exponent` is not 0; null: ½"
    )

    @model_validator(mode="after")
    def _ridge_fits(self) -> Self:
        if self.ridge == "adaptive" and not self.spectrum_exponent:
            raise ValueError("ridge: adaptive follows the decay of the inputs' variances: set spectrum_exponent")
        if not isinstance(self.ridge, str) and not 0.0 <= self.ridge < np.inf:
            raise ValueError(f"ridge: a number of 0 or more, or adaptive: {self.ridge} is not")
        if not self.spectrum_exponent and self.source is not None:
            raise ValueError("source: belongs to a spectrum_exponent above 0")
        return self

    @property
    def _source(self) -> float:
        return 0.5 if self.source is None else self.source

    def human(self, n: int, streams: Streams) -> Array:
        return self._rows(self.truth()["weights"], n, streams)

    def generate(self, model: Model, n: int, streams: Streams) -> Array:
        return self._rows(model["writer"], n, streams)

    def _rows(self, weights: Array, n: int, streams: Streams) -> Array:
        fixed = self.design == "fixed"
        inputs = streams.normal("inputs", (n, self.dim), every_generation_alike=fixed)
        inputs *= np.sqrt(input_variances(self.dim, self.spectrum_exponent))
        noise = self.noise_std * streams.normal("noise", (n,))
        return np.concatenate([inputs, (_along(inputs, weights) + noise)[..., None]], axis=-1)

    def fit(self, data: Array, weights: Array | None = None, generation: int = 0) -> Model:
        data, weights = np.ascontiguousarray(data), ones_unless_given(weights, data)
        inputs, targets = np.ascontiguousarray(data[..., :-1]), data[..., -1]
        weighted = np.swapaxes(inputs, 1, 2) * weights[:, None]
        total = weights.sum(-1)
        gram = weighted @ inputs / total[:, None, None]
        moment = (weighted @ targets[..., None])[..., 0] / total[:, None]
        fitted = _solve(gram, moment, self.penalty(data.shape[1], generation))
        writer = _solve(gram, moment, 0.0) if self.written_by == "least_squares" else fitted
        return {"weights": fitted, "writer": writer}

    def penalty(self, n: int, generation: int) -> float:
        """λ for ``n`` samples, of which the last of ``generation`` earlier fits wrote the targets."""
        if not isinstance(self.ridge, str):
            return self.ridge
        exponent = self.spectrum_exponent / (2 * self.spectrum_exponent * self._source + 1)
        # A set smaller than the number of generations carries no information: λ is 1 there.
        return max((n / max(1, generation)) ** -exponent if n > generation else 1.0, n**-self.spectrum_exponent)

    def evaluate(self, model: Model, data: Array, generation: int = 0) -> dict[str, Array]:
        variances = input_variances(self.dim, self.spectrum_exponent)
        excess = (variances * (model["weights"] - self.truth()["weights"]) ** 2).sum(-1)
        return {"excess_risk": excess, "test_error": excess + self.noise_std**2}

    def log_likelihood(self, model: Model, data: Array) -> Array:
        """log p(y | x) with the true noise's variance."""
        data = np.ascontiguousarray(data)
        residual = data[..., -1] - _along(np.ascontiguousarray(data[..., :-1]), model["weights"])
        variance = self.noise_std**2
        return -(residual**2 / variance + math.log(2 * math.pi * variance)) / 2

    def truth(self) -> Model:
        weights = true_weights(self.dim, self.signal, self.spectrum_exponent, self._source)[None]
        return {"weights": weights, "writer": weights}


class LogisticRegression(AnalyticFamily):
    """P(y = 1 | x) = 1/(1 + e^(−x·w)) with standard normal inputs; a sample is a row (x, y) of ``dim`` + 1 numbers.

    The fit minimises Σ log-loss + ½·``penalty``·‖w‖² by Newton's method with step halving, each chain until it
    converges. The penalty is not multiplied by the number of samples: it vanishes against them, and is there for
    samples that a plane separates, whose maximum-likelihood fit is infinite. Metrics:

    - ``parameter_error``: ‖w − w*‖²;
    - ``excess_risk``: the expected log-loss above the truth's on new inputs labelled by the truth, which is
      E_x KL(Bernoulli(x·w*) ‖ Bernoulli(x·w)), by Gauss–Hermite quadrature in the plane of w and w*, where all of it
      happens.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (EXCESS_RISK, PARAMETER_ERROR)

    kind: Literal["logistic_regression"] = "logistic_regression"
    dim: int = Field(ge=1, description="inputs x of a sample")
    signal: float = Field(1.0, ge=0.0, allow_inf_nan=False, description="length of the true weights, which are equal")
    design: Literal["fixed", "fresh"] = Field("fixed", description=_DESIGN)
    penalty: float = Field(1e-3, gt=0.0, allow_inf_nan=False, description="λ in Σ log-loss + ½λ‖w‖²")

    def human(self, n: int, streams: Streams) -> Array:
        return self._rows(self.truth()["weights"], n, streams)

    def generate(self, model: Model, n: int, streams: Streams) -> Array:
        return self._rows(model["weights"], n, streams)

    def _rows(self, weights: Array, n: int, streams: Streams) -> Array:
        inputs = streams.normal("inputs", (n, self.dim), every_generation_alike=self.design == "fixed")
        labels = streams.uniform("label", (n,)) < np.exp(_log_sigmoid(_along(inputs, weights)))
        return np.concatenate([inputs, labels[..., None]], axis=-1)

    def fit(self, data: Array, weights: Array | None = None, generation: int = 0) -> Model:
        data, weights = np.ascontiguousarray(data), ones_unless_given(weights, data)
        inputs, signs = np.ascontiguousarray(data[..., :-1]), 2 * data[..., -1] - 1
        fitted = np.zeros((len(data), self.dim))
        active = np.arange(len(data))
        for _ in range(_STEPS):
            part = inputs[active], signs[active], weights[active]
            step, decrement = self._newton_step(fitted[active], *part)
            fitted[active] = self._line_search(fitted[active], step, decrement, *part)
            # The decrement is about twice the loss still to be gained.
            active = active[decrement > 1e-18 * (1 + weights[active].sum(-1))]
            if not len(active):
                break
        return {"weights": fitted}

    def _objective(self, fitted: Array, inputs: Array, signs: Array, weights: Array) -> Array:
        """(B,)"""
        losses = -weights * _log_sigmoid(signs * _along(inputs, fitted))
        return losses.sum(-1) + self.penalty * (fitted**2).sum(-1) / 2

    def _newton_step(self, fitted: Array, inputs: Array, signs: Array, weights: Array) -> tuple[Array, Array]:
        """The step (B, d), and gᵀH⁻¹g (B,)."""
        margin = _along(inputs, fitted)
        wrong = np.exp(_log_sigmoid(-signs * margin))
        curvature = weights * np.exp(_log_sigmoid(margin) + _log_sigmoid(-margin))
        across = np.swapaxes(inputs, 1, 2)
        gradient = self.penalty * fitted - (across @ (weights * signs * wrong)[..., None])[..., 0]
        hessian = (across * curvature[:, None]) @ inputs + self.penalty * np.eye(self.dim)
        step = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
        return step, -(step * gradient).sum(-1)

    def _line_search(self, fitted: Array, step: Array, decrement: Array, *data: Array) -> Array:
        """The weights after the longest of the steps 1, ½, ¼ … that gains enough (Armijo's rule), chain by chain."""
        start, length = self._objective(fitted, *data), np.ones(len(fitted))
        for _ in range(_HALVINGS):
            after = self._objective(fitted + length[:, None] * step, *data)
            # Close to the end the gain is below rounding: the full step is right there.
            enough = (after <= start - 1e-4 * length * decrement) | (decrement < 1e-10 * (1 + np.abs(start)))
            if enough.all():
                break
            length = np.where(enough, length, length / 2)
        return fitted + length[:, None] * step

    def evaluate(self, model: Model, data: Array, generation: int = 0) -> dict[str, Array]:
        fitted, true = model["weights"], self.truth()["weights"]
        first, second, mass = _plane()
        # x·w* and x·w as functions of two independent standard normals: one along w*, one across it.
        along = fitted.sum(-1) / np.sqrt(self.dim)
        across = np.sqrt(((fitted - (along / np.sqrt(self.dim))[:, None]) ** 2).sum(-1))
        ours = along[:, None] * first + across[:, None] * second
        theirs = self.signal * first[None]
        gaps = [
            np.exp(_log_sigmoid(sign * theirs)) * (_log_sigmoid(sign * theirs) - _log_sigmoid(sign * ours))
            for sign in (1.0, -1.0)
        ]
        return {
            "excess_risk": ((gaps[0] + gaps[1]) * mass).sum(-1),
            "parameter_error": ((fitted - true) ** 2).sum(-1),
        }

    def log_likelihood(self, model: Model, data: Array) -> Array:
        """log P(y | x)"""
        data = np.ascontiguousarray(data)
        inputs = np.ascontiguousarray(data[..., :-1])
        return _log_sigmoid((2 * data[..., -1] - 1) * _along(inputs, model["weights"]))

    def truth(self) -> Model:
        return {"weights": np.full((1, self.dim), self.signal / np.sqrt(self.dim))}


def _along(inputs: Array, weights: Array) -> Array:
    """(B, n) x·w"""
    return (inputs @ weights[..., None])[..., 0]


def _solve(gram: Array, moment: Array, ridge: float) -> Array:
    """(B, d) (G + λI)⁺ m: with λ = 0 and too few samples, the least-squares solution of minimum norm."""
    values, vectors = np.linalg.eigh(gram)
    values = np.where(values > _ROUNDING * values.shape[1] * values.max(-1, keepdims=True), values, 0.0) + ridge
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
    along = (np.swapaxes(vectors, 1, 2) @ moment[..., None])[..., 0] * inverse
    return (vectors @ along[..., None])[..., 0]


def _log_sigmoid(margin: Array) -> Array:
    # Neither exponential overflows; a quarter of logaddexp's time.
    return np.minimum(margin, 0.0) - np.log1p(np.exp(-np.abs(margin)))


@lru_cache
def _plane() -> tuple[Array, Array, Array]:
    """Nodes of two standard normals and their weights, (nodes²,) each."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    first, second = (part.ravel() for part in np.meshgrid(nodes, nodes))
    mass = np.outer(weights, weights).ravel()
    return first, second, mass / mass.sum()
