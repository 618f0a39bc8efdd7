"""What all analytic families share: many chains that differ in their seed alone, fitted at once as arrays.

No chain's number depends on another's.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fortifai_ray.losses.base import LossConfig
from fortifai_ray.metrics import Metric
from fortifai_ray.seeds import derive_seed, generator
from fortifai_ray.validation import Section

BEFORE = -1  # the generation that the human data belong to
_DIRECTIONS = 16  # of a sliced distance
_COMPARED = 256  # samples of each of two models
_ALWAYS = "every generation"  # in the place of the generation in what all generations share


Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Streams:
    """Random numbers of many chains at once: a pure function of each chain's seed, the purpose and the generation.

    Generation −1 is that of the human data. The numbers of one purpose come from one stream in the order of the array,
    so that the first rows do not depend on how many follow.

    Philox (Salmon et al. 2011) is a cipher of a counter under a key. A chain's stream is a key, put into one generator
    whose state is reset: a tenth of the cost of a new generator, which counts for 3,000 chains × 100 generations.
    """

    seeds: tuple[int, ...]
    generation: int

    def generators(self, purpose: str, *, every_generation_alike: bool = False) -> Iterator[np.random.Generator]:
        """One generator per chain, in order. All are the same object: draw from one before taking the next."""
        bits = np.random.Philox(key=0)
        generator, state = np.random.Generator(bits), bits.state
        when = _ALWAYS if every_generation_alike else self.generation
        for seed in self.seeds:
            state["state"]["key"][0] = derive_seed(seed, "analytic", purpose, when)
            bits.state = state
            yield generator

    def normal(self, purpose: str, shape: tuple[int, ...], *, every_generation_alike: bool = False) -> Array:
        """(chains, \\*shape) Standard normal numbers."""
        out = np.empty((len(self.seeds), *shape))
        for row, own in zip(out, self.generators(purpose, every_generation_alike=every_generation_alike), strict=True):
            own.standard_normal(out=row)
        return out

    def uniform(self, purpose: str, shape: tuple[int, ...]) -> Array:
        """(chains, \\*shape) Uniform numbers in [0, 1)."""
        out = np.empty((len(self.seeds), *shape))
        for row, own in zip(out, self.generators(purpose), strict=True):
            own.random(out=row)
        return out


Model = dict[str, Array]
"""A fitted model of each chain: arrays of shape (B, …), one entry per chain."""


class AnalyticFamily(Section, ABC):
    """A family's configuration in a study file, and the family itself: pure functions of arrays, chains along the first
    axis.

    B is the number of chains, n of samples, and ``width`` of numbers in a sample. A chain's results do not depend, to
    the last bit, on which other chains are computed with it: sums run over contiguous memory of one chain, matrix
    products and decompositions are computed chain by chain, and an iteration ends for each chain separately.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    """What :meth:`evaluate` returns, in order."""

    kind: str

    @property
    def truth_is_known(self) -> bool:
        """Whether :meth:`truth` can be asked, and :meth:`log_likelihood` with it."""
        return True

    def with_data_of(self, family: Self) -> Self:
        """This family with the data that another one of its kind is bound to. ValueError where it cannot read them."""
        return self

    def identity(self) -> dict[str, Any]:
        """What of this family determines a fitted model: its settings, and the source code of a user's own family."""
        return self.model_dump(mode="json")

    @abstractmethod
    def human(self, n: int, streams: Streams) -> Array:
        """(B, n, width) Samples of the truth, different for each chain."""

    @abstractmethod
    def fit(self, data: Array, weights: Array | None = None, generation: int = 0) -> Model:
        """Each chain's model.

        Args:
            data: (B, n, width) with n ≥ 1.
            weights: (B, n), not negative and not all 0 in any chain; None is 1 for each sample.
            generation: the one being fitted; only settings that adapt to it use it.
        """

    @abstractmethod
    def evaluate(self, model: Model, data: Array, generation: int = 0) -> dict[str, Array]:
        """Each of :attr:`metrics`, (B,) numbers.

        ``data`` (B, n, width) is what the model was fitted to, ``generation`` the one that is scored.
        """

    @abstractmethod
    def generate(self, model: Model, n: int, streams: Streams) -> Array:
        """(B, n, width) Samples of each chain's model."""

    def distance(self, model: Model, other: Model, streams: Streams) -> Array:
        """(B,) How far two models of each chain are apart: sliced 2-Wasserstein between 256 samples of each, which are
        drawn with the same random numbers."""
        return sliced_distance(*(self.generate(each, _COMPARED, streams) for each in (model, other)))

    @abstractmethod
    def log_likelihood(self, model: Model, data: Array) -> Array:
        """(B, n) log p of each sample, in nats; of the target given its inputs for a regression.

        Either leading axis may be 1. A model that has degenerated to a point gives ±∞, never NaN.
        """

    def loss_weights(self, model: Model, data: Array, loss: LossConfig) -> tuple[Array, Array] | None:
        """The weights (B, n, …) under which :meth:`fit` gives what a loss leads to, and the share of targets (B,) that
        it does not truncate; None where the loss acts on ranks (:mod:`fortifai_ray.families.analytic.weighting`).

        ``model`` was fitted to ``data`` by maximum likelihood.
        """
        return None

    @abstractmethod
    def truth(self) -> Model:
        """The truth as a model, with a leading axis of 1: for verifiers and distances."""


# Sums and distances over many chains at once, in which no chain's number depends on another's.


def samples_last(data: Array) -> Array:
    """(B, width, n) The same samples in C order, so that NumPy's pairwise summation runs over each chain in one piece.

    Otherwise the order of summation, and so the last bits, would depend on the layout that indexing left behind.
    """
    return np.ascontiguousarray(np.moveaxis(data, 1, -1))


def ones_unless_given(weights: Array | None, data: Array) -> Array:
    """(B, n) The weights in C order; 1 for each sample if None."""
    return np.ones(data.shape[:2]) if weights is None else np.ascontiguousarray(weights, dtype=np.float64)


def moments(samples: Array, weights: Array) -> tuple[Array, Array]:
    """Mean (B, d) and maximum-likelihood covariance (B, d, d) of ``samples`` (B, d, n) with ``weights`` (B, n)."""
    total = weights.sum(-1)
    mean = (samples * weights[:, None]).sum(-1) / total[:, None]
    centred = samples - mean[..., None]
    covariance = (centred * weights[:, None]) @ np.swapaxes(centred, 1, 2) / total[:, None, None]
    return mean, (covariance + np.swapaxes(covariance, 1, 2)) / 2


def log_sum_exp(values: Array, axis: int) -> Array:
    """log Σ exp along an axis; −∞ where every term is."""
    highest = values.max(axis, keepdims=True)
    shift = np.where(np.isfinite(highest), highest, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - shift).sum(axis)) + np.squeeze(shift, axis)


def choose(uniforms: Array, weights: Array) -> np.ndarray:
    """(B, n) Indices drawn with probabilities in proportion to ``weights`` (B or 1, K), by inversion of ``uniforms``.

    Chain by chain: one search over all would add an offset, and lose bits of each number to it. An outcome of weight 0
    is never drawn.
    """
    ladders = np.broadcast_to(np.cumsum(weights, axis=1), (len(uniforms), weights.shape[1]))
    chosen = [np.searchsorted(steps / steps[-1], u, side="right") for steps, u in zip(ladders, uniforms, strict=True)]
    return np.stack(chosen)


def sliced_wasserstein(points: Array, truth: Array) -> Array:
    """Sliced 2-Wasserstein distance of each chain's points (B, m, d) to the truth's (m, d): (B,).

    The root mean square, over 16 fixed directions (evenly spaced ones in the plane, one on the line), of the distance
    between the projections (Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures").
    """
    return sliced_distance(points, truth[None])


def sliced_distance(points: Array, others: Array) -> Array:
    """The same between the points (B, m, d) and others (B or 1, m, d) of each chain: (B,)."""
    directions = _directions(points.shape[2])
    ours, theirs = (
        np.sort(samples_last(np.ascontiguousarray(each) @ directions), axis=-1) for each in (points, others)
    )
    squared = ((ours - theirs) ** 2).sum(-1) / others.shape[1]
    return np.sqrt(squared.sum(-1) / len(directions.T))


@lru_cache
def _directions(dim: int) -> Array:
    """(dim, count) Unit vectors."""
    if dim == 1:
        return np.ones((1, 1))
    if dim == 2:
        angles = np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
        return np.stack([np.cos(angles), np.sin(angles)])
    drawn = generator(0, "directions", dim).standard_normal((dim, _DIRECTIONS))
    return drawn / np.linalg.norm(drawn, axis=0)
