"""Gaussian mixtures fitted by expectation–maximisation (Shumailov et al. 2024, Alemohammad et al. 2023)."""

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fortifai_ray.families import KL_DIVERGENCE, TRACE_RATIO, WASSERSTEIN
from fortifai_ray.families.analytic.base import (
    AnalyticFamily,
    Array,
    Model,
    Streams,
    choose,
    log_sum_exp,
    moments,
    ones_unless_given,
    samples_last,
    sliced_wasserstein,
)
from fortifai_ray.metrics import SAMPLES, Metric
from fortifai_ray.seeds import generator

_TINY = 10 * np.finfo(np.float64).eps
_HELD_OUT = 1_000
_DRAWN = 500


class Gmm(AnalyticFamily):
    """A mixture of ``components`` Gaussians with full covariances, by EM (Dempster et al. 1977).

    The truth has as many components, of equal weight: on a line in one dimension, else on a circle in the first two.
    Seeding by ``kmeans++`` uses uniforms that are the same in each fit. EM ends for each chain by itself.

    ``kl_divergence`` is the mean over 1,000 points of the truth, the same for every chain; ``wasserstein`` is sliced
    (16 directions), from 500 draws of the model, by noise that is the same each time, to 500 of those points. Two
    samples of that size of one density are not at distance 0.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "modes",
            "modes",
            "true components with a fitted one of weight ≥ 1/(10·components) within half of `separation`",
            "fortifai_ray.families.analytic.gmm",
            "below",
            title="modes that survive",
            group=SAMPLES,
            role="tails",
            rank=3,
        ),
        TRACE_RATIO,
        KL_DIVERGENCE,
        WASSERSTEIN,
    )

    kind: Literal["gmm"] = "gmm"
    components: int = Field(3, ge=2, description="Gaussians, of the truth as of the model")
    dim: int = Field(2, ge=1, description="dimensions")
    separation: float = Field(6.0, gt=0.0, allow_inf_nan=False, description="distance of neighbours in the truth")
    std: float = Field(1.0, gt=0.0, allow_inf_nan=False, description="of each true component, along each axis")
    start: Literal["truth", "kmeans++"] = Field(
        "truth",
        description="where EM starts: from the truth, so that the loss of information alone is measured and not a poor "
        "start, or from a seeding of the samples (Arthur and Vassilvitskii 2007)",
    )
    tolerance: float = Field(1e-4, gt=0.0, description="EM ends once the mean log-likelihood gains less")
    max_iterations: int = Field(200, ge=1, description="EM's iterations, at most")
    regularisation: float = Field(
        1e-6, gt=0.0, description="added to the variances, as in scikit-learn, so that no component shrinks to a point"
    )

    def human(self, n: int, streams: Streams) -> Array:
        chains = len(streams.seeds)
        truth = {name: np.repeat(part, chains, axis=0) for name, part in self.truth().items()}
        return self._draw(truth, streams.uniform("human component", (n,)), streams.normal("human", (n, self.dim)))

    def generate(self, model: Model, n: int, streams: Streams) -> Array:
        return self._draw(model, streams.uniform("component", (n,)), streams.normal("noise", (n, self.dim)))

    def _draw(self, model: Model, uniforms: Array, noise: Array) -> Array:
        chosen = choose(uniforms, model["weights"])
        roots = np.linalg.cholesky(model["covariances"])
        drawn = np.take_along_axis(model["means"], chosen[..., None], axis=1)
        for axis in range(self.dim):
            columns = np.take_along_axis(roots[..., axis], chosen[..., None], axis=1)
            drawn = drawn + columns * noise[..., axis, None]
        return drawn

    def fit(self, data: Array, weights: Array | None = None, generation: int = 0) -> Model:
        samples, weights = samples_last(data), ones_unless_given(weights, data)
        model, total = self._start(samples, weights), weights.sum(-1)
        active, before = np.arange(len(data)), np.full(len(data), -np.inf)
        for _ in range(self.max_iterations):
            own, part = {name: values[active] for name, values in model.items()}, samples[active]
            joint = _log_joint(own, part)
            likelihood = log_sum_exp(joint, 1)
            mean = (weights[active] * likelihood).sum(-1) / total[active]
            shares = np.exp(joint - likelihood[:, None]) * weights[active][:, None]
            for name, values in self._maximise(part, shares, total[active]).items():
                model[name][active] = values
            gain, before[active] = mean - before[active], mean
            active = active[gain >= self.tolerance]
            if not len(active):
                break
        return model

    def _maximise(self, samples: Array, shares: Array, total: Array) -> Model:
        """The model that fits samples (B, d, n) held by components in these shares (B, k, n)."""
        held = shares.sum(-1) + _TINY
        means = shares @ np.swapaxes(samples, 1, 2) / held[..., None]
        centred = samples[:, None] - means[..., None]
        covariances = (centred * shares[:, :, None]) @ np.swapaxes(centred, 2, 3) / held[..., None, None]
        covariances = (covariances + np.swapaxes(covariances, 2, 3)) / 2
        return {
            "weights": held / held.sum(-1, keepdims=True),
            "means": means,
            "covariances": covariances + self.regularisation * np.eye(self.dim),
        }

    def _start(self, samples: Array, weights: Array) -> Model:
        model = {name: np.repeat(part, len(samples), axis=0) for name, part in self.truth().items()}
        if self.start == "truth":
            return model
        _, covariance = moments(samples, weights)
        spread = covariance + self.regularisation * np.eye(self.dim)
        covariances = np.repeat(spread[:, None], self.components, axis=1)
        return {**model, "means": self._seeds(samples, weights), "covariances": covariances}

    def _seeds(self, samples: Array, weights: Array) -> Array:
        """(B, k, d) Samples, each drawn with probability in proportion to its squared distance from those before."""
        uniforms = generator(0, "kmeans++").random(self.components)
        nearest, seeds = np.ones_like(weights), []
        for uniform in uniforms:
            ladder = np.cumsum(weights * nearest, axis=1)
            chosen = (ladder <= uniform * ladder[:, -1:]).sum(-1).clip(max=samples.shape[2] - 1)
            seeds.append(np.take_along_axis(samples, chosen[:, None, None], axis=2)[..., 0])
            distance = ((samples - seeds[-1][..., None]) ** 2).sum(1)
            nearest = distance if len(seeds) == 1 else np.minimum(nearest, distance)
        return np.stack(seeds, axis=1)

    def evaluate(self, model: Model, data: Array, generation: int = 0) -> dict[str, Array]:
        truth, chains = self.truth(), len(model["weights"])
        points, (uniforms, noise) = self._held_out()[None], self._same_noise(_DRAWN)
        drawn = self._draw(model, np.repeat(uniforms, chains, axis=0), np.repeat(noise, chains, axis=0))
        gap = self.log_likelihood(truth, points) - self.log_likelihood(model, points)
        return {
            "modes": self._modes(model),
            "trace_ratio": _trace(model) / _trace(truth),
            "kl_divergence": gap.sum(-1) / _HELD_OUT,
            "wasserstein": sliced_wasserstein(drawn, points[0, :_DRAWN]),
        }

    def _modes(self, model: Model) -> Array:
        away = model["means"][:, None] - self.truth()["means"][:, :, None]
        near = np.sqrt((away**2).sum(-1)) <= self.separation / 2
        heavy = model["weights"] >= 1 / (10 * self.components)
        return (near & heavy[:, None]).any(-1).sum(-1).astype(np.float64)

    def _held_out(self) -> Array:
        """(1,000, d) Points of the truth."""
        uniforms, noise = self._same_noise(_HELD_OUT, "held_out")
        return self._draw(self.truth(), uniforms, noise)[0]

    def _same_noise(self, n: int, purpose: str = "distance") -> tuple[Array, Array]:
        drawn = generator(0, "gmm", purpose)
        return drawn.random((1, n)), drawn.standard_normal((1, n, self.dim))

    def log_likelihood(self, model: Model, data: Array) -> Array:
        return log_sum_exp(_log_joint(model, samples_last(data)), 1)

    def truth(self) -> Model:
        count = np.arange(self.components)
        means = np.zeros((self.components, self.dim))
        if self.dim == 1:
            means[:, 0] = self.separation * (count - (self.components - 1) / 2)
        else:
            radius = self.separation / (2 * math.sin(math.pi / self.components))
            angles = 2 * np.pi * count / self.components
            means[:, 0], means[:, 1] = radius * np.cos(angles), radius * np.sin(angles)
        covariances = np.repeat(self.std**2 * np.eye(self.dim)[None], self.components, axis=0)
        weights = np.full(self.components, 1 / self.components)
        return {"weights": weights[None], "means": means[None], "covariances": covariances[None]}


def _log_joint(model: Model, samples: Array) -> Array:
    """(B, k, n) log of each component's weight times its density, at samples (B, d, n)."""
    roots = np.linalg.cholesky(model["covariances"])
    inverse = np.linalg.inv(roots)
    white = inverse @ (samples[:, None] - model["means"][..., None])
    dim = samples.shape[1]
    squared = (white**2).sum(2)
    log_root = np.log(np.diagonal(roots, axis1=2, axis2=3)).sum(-1)
    with np.errstate(divide="ignore"):
        constant = np.log(model["weights"]) - log_root - dim * math.log(2 * math.pi) / 2
    return constant[..., None] - squared / 2


def _trace(model: Model) -> Array:
    """(B,) Trace of the mixture's covariance."""
    within = np.trace(model["covariances"], axis1=2, axis2=3)
    centre = (model["weights"][..., None] * model["means"]).sum(1)
    between = ((model["means"] - centre[:, None]) ** 2).sum(-1)
    return (model["weights"] * (within + between)).sum(-1)
