"""Logistic regression: labels written by the last fit (Dey and Donoho 2024)."""

from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fortifai_ray.families import EXCESS_RISK, PARAMETER_ERROR
from fortifai_ray.families.analytic.arrays import ones_unless_given
from fortifai_ray.families.analytic.base import AnalyticFamily, Array, Model, Streams
from fortifai_ray.metrics import Metric

_STEPS = 100
_HALVINGS = 40
_NODES = 32


class LogisticRegression(AnalyticFamily):
    """P(y = 1 | x) = 1/(1 + e^(−x·w)) with standard normal inputs; a sample is a row (x, y) of ``dim`` + 1 numbers.

    ``design`` is as for linear regression. The true weights are all equal, of length ``signal``. The fit minimises
    Σ log-loss + ½·``penalty``·‖w‖² by Newton's method with step halving, each chain until it converges. The penalty is
    not multiplied by the number of samples: it vanishes against them, and is there for samples that a plane separates,
    whose maximum-likelihood fit is infinite. Metrics:

    - ``parameter_error``: ‖w − w*‖²;
    - ``excess_risk``: the expected log-loss above the truth's on new inputs labelled by the truth, which is
      E_x KL(Bernoulli(x·w*) ‖ Bernoulli(x·w)), by Gauss–Hermite quadrature in the plane of w and w*, where all of it
      happens.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (EXCESS_RISK, PARAMETER_ERROR)

    kind: Literal["logistic_regression"] = "logistic_regression"
    dim: int = Field(ge=1)
    signal: float = Field(1.0, ge=0.0, allow_inf_nan=False)
    design: Literal["fixed", "fresh"] = "fixed"
    penalty: float = Field(1e-3, gt=0.0, allow_inf_nan=False)

    def human(self, n: int, streams: Streams) -> Array:
        return self._rows(self.truth()["weights"], n, streams)

    def generate(self, model: Model, n: int, streams: Streams) -> Array:
        return self._rows(model["weights"], n, streams)

    def _rows(self, weights: Array, n: int, streams: Streams) -> Array:
        inputs = streams.normal("inputs", (n, self.dim), every_generation_alike=self.design == "fixed")
        labels = streams.uniform("label", (n,)) < np.exp(_log_sigmoid(_margin(inputs, weights)))
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
        losses = -weights * _log_sigmoid(signs * _margin(inputs, fitted))
        return losses.sum(-1) + self.penalty * (fitted**2).sum(-1) / 2

    def _newton_step(self, fitted: Array, inputs: Array, signs: Array, weights: Array) -> tuple[Array, Array]:
        """The step (B, d), and gᵀH⁻¹g (B,)."""
        margin = _margin(inputs, fitted)
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
        return _log_sigmoid((2 * data[..., -1] - 1) * _margin(inputs, model["weights"]))

    def truth(self) -> Model:
        return {"weights": np.full((1, self.dim), self.signal / np.sqrt(self.dim))}


def _margin(inputs: Array, weights: Array) -> Array:
    """(B, n) x·w"""
    return (inputs @ weights[..., None])[..., 0]


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
