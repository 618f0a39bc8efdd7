"""Kernel density estimates of point clouds in the plane (Kazdan et al. 2025; Fu et al. 2024)."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from fortifai_ray.families import TRACE_RATIO, WASSERSTEIN
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
from fortifai_ray.metrics import DISTRIBUTION, Metric
from fortifai_ray.seeds import generator

Shape = Literal["blobs", "circles", "moons", "swiss_roll"]
_DIM = 2
_POPULATION = 100_000
_HELD_OUT = 500  # of the population; also the points of a Wasserstein distance
_STANDS_FOR_THE_TRUTH = 2_000
_BLOCK = 2_000_000  # distances held at once


class Kde(AnalyticFamily):
    """A density estimate with one kernel on each training sample.

    The truth is a population of 100,000 points of the ``shape`` (the clouds that the diffusion model learns too; of the
    swiss roll, its spiral cross-section). Human samples are drawn from it with replacement, but for 500 points that
    are held out and the same for every chain.

    ``silverman`` is (4/(d + 2))^(1/6) times ``scott``, which is the same in the plane; s² is the mean over axes of the
    samples' unbiased variance, and n under weights (Σw)²/Σw². ``trace_ratio`` counts the kernel's covariance too;
    ``wasserstein`` is sliced (16 directions), from 500 draws of the estimate, by noise that is the same each time, to
    the held-out points. Two samples of that size of one density are not at distance 0.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "held_out_nll",
            "nats",
            "−mean ln p of held-out points of the truth; ∞ if a top-hat estimate leaves one of them uncovered",
            "Silverman 1986",
            "above",
            title="held-out negative log-likelihood",
            group=DISTRIBUTION,
            role="fit",
            rank=2,
        ),
        TRACE_RATIO,
        WASSERSTEIN,
    )

    kind: Literal["kde"] = "kde"
    shape: Shape = Field(description="the truth: a point cloud of scikit-learn's in the plane, of mean variance 1")
    kernel: Literal["gaussian", "tophat"] = Field(
        "gaussian", description="Gaussian of standard deviation h along each axis, or flat on a disc of radius h"
    )
    bandwidth: float | Literal["scott", "silverman"] = Field(
        "scott", description="h, or the rule for it: Scott 1992's n^(−1/6)·s or Silverman 1986's, section 4.3"
    )

    @field_validator("bandwidth")
    @classmethod
    def _is_positive(cls, bandwidth: float | str) -> float | str:
        if not isinstance(bandwidth, str) and not 0.0 < bandwidth < math.inf:
            raise ValueError(f"a bandwidth is a number above 0, scott or silverman: {bandwidth} is not")
        return bandwidth

    def human(self, n: int, streams: Streams) -> Array:
        population = _points(self.shape)[_HELD_OUT:]
        return population[(streams.uniform("human", (n,)) * len(population)).astype(np.int64)]

    def fit(self, data: Array, weights: Array | None = None, generation: int = 0) -> Model:
        data, weights = np.ascontiguousarray(data), ones_unless_given(weights, data)
        weights = weights / weights.sum(-1, keepdims=True)
        return {"points": data, "weights": weights, "bandwidth": self._bandwidth(data, weights)}

    def _bandwidth(self, data: Array, weights: Array) -> Array:
        """(B,)"""
        if not isinstance(self.bandwidth, str):
            return np.full(len(data), self.bandwidth)
        _, covariance = moments(samples_last(data), weights)
        size = 1 / (weights**2).sum(-1)
        variance = np.trace(covariance, axis1=1, axis2=2) / _DIM
        unbiased = variance * np.divide(size, size - 1, out=np.zeros_like(size), where=size > 1)
        base = size if self.bandwidth == "scott" else size * (_DIM + 2) / 4
        return base ** (-1 / (_DIM + 4)) * np.sqrt(unbiased)

    def evaluate(self, model: Model, data: Array, generation: int = 0) -> dict[str, Array]:
        held_out = _points(self.shape)[:_HELD_OUT]
        likelihood = self.log_likelihood(model, held_out[None])
        _, covariance = moments(samples_last(model["points"]), model["weights"])
        kernel = model["bandwidth"] ** 2 * (1.0 if self.kernel == "gaussian" else 1 / (_DIM + 2))
        drawn = self._draw(model, *(np.repeat(part, len(data), axis=0) for part in _same_noise(self.kernel)))
        return {
            "held_out_nll": -likelihood.sum(-1) / _HELD_OUT,
            "trace_ratio": np.trace(covariance, axis1=1, axis2=2) / _DIM + kernel,
            "wasserstein": sliced_wasserstein(drawn, held_out),
        }

    def generate(self, model: Model, n: int, streams: Streams) -> Array:
        noise = streams.normal("noise", (n, _DIM))
        if self.kernel == "tophat":
            noise = _on_disc(noise, streams.uniform("radius", (n,)))
        return self._draw(model, streams.uniform("point", (n,)), noise)

    def _draw(self, model: Model, uniforms: Array, noise: Array) -> Array:
        centres = np.take_along_axis(model["points"], choose(uniforms, model["weights"])[..., None], axis=1)
        return centres + model["bandwidth"][:, None, None] * noise

    def log_likelihood(self, model: Model, data: Array) -> Array:
        chains = max(len(data), len(model["points"]))
        samples = np.broadcast_to(data, (chains, *data.shape[1:]))
        fitted = {name: np.broadcast_to(part, (chains, *part.shape[1:])) for name, part in model.items()}
        density = _log_gaussian if self.kernel == "gaussian" else _log_tophat
        return np.stack(
            [
                _in_blocks(density, *chain)
                for chain in zip(samples, fitted["points"], fitted["weights"], fitted["bandwidth"], strict=True)
            ]
        )

    def truth(self) -> Model:
        """2,000 points of the population under Scott's bandwidth: its density has no closed form."""
        points = _points(self.shape)[None, _HELD_OUT : _HELD_OUT + _STANDS_FOR_THE_TRUTH]
        return self.model_copy(update={"bandwidth": "scott"}).fit(points)


def _in_blocks(
    density: Callable[[Array, Array, float], Array], samples: Array, points: Array, weights: Array, bandwidth: float
) -> Array:
    """(m,) log densities, some samples at a time, so that the table of distances stays small."""
    rows = max(1, _BLOCK // len(points))
    parts = [samples[start : start + rows] for start in range(0, len(samples), rows)]
    squared = (_squared_distances(part, points) for part in parts)
    if bandwidth == 0:  # every sample was the same: a point mass
        return np.concatenate([np.where((part == 0).any(-1), np.inf, -np.inf) for part in squared])
    return np.concatenate([density(part, weights, bandwidth) for part in squared])


def _squared_distances(samples: Array, points: Array) -> Array:
    """(m, n)"""
    across, up = (samples[:, None, axis] - points[None, :, axis] for axis in range(_DIM))
    return across * across + up * up


def _log_gaussian(squared: Array, weights: Array, bandwidth: float) -> Array:
    with np.errstate(divide="ignore", over="ignore"):
        terms = np.log(weights) - squared / (2 * bandwidth**2)
    return log_sum_exp(terms, -1) - math.log(2 * math.pi) - 2 * np.log(bandwidth)


def _log_tophat(squared: Array, weights: Array, bandwidth: float) -> Array:
    covered = np.where(squared <= bandwidth**2, weights, 0.0).sum(-1)
    with np.errstate(divide="ignore"):
        return np.log(covered) - math.log(math.pi) - 2 * np.log(bandwidth)


def _on_disc(normal: Array, uniforms: Array) -> Array:
    """Points spread evenly on the unit disc: a normal's direction, at radius √u."""
    length = np.sqrt((normal[..., 0] ** 2 + normal[..., 1] ** 2)[..., None])
    return normal / length * np.sqrt(uniforms)[..., None]


@lru_cache
def _points(shape: Shape) -> Array:
    """(100,000, 2) The population in random order, its held-out part first; not to be written to."""
    from fortifai_ray.families.images.data import shape_points

    points = shape_points(shape, _POPULATION)[0].astype(np.float64)
    points = points[generator(0, "population", shape).permutation(_POPULATION)]
    points.setflags(write=False)
    return points


@lru_cache
def _same_noise(kernel: Literal["gaussian", "tophat"]) -> tuple[Array, Array]:
    """Uniforms (1, 500) and kernel noise (1, 500, 2) for the draws that distances are measured on."""
    drawn = generator(0, "distance", kernel)
    uniforms, noise = drawn.random((1, _HELD_OUT)), drawn.standard_normal((1, _HELD_OUT, _DIM))
    return uniforms, noise if kernel == "gaussian" else _on_disc(noise, drawn.random((1, _HELD_OUT)))
