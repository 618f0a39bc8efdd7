"""What every analytic family has in common: many chains that differ in their seed alone, fitted at once as arrays."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from fortifai_ray.metrics import Metric
from fortifai_ray.seeds import derive_seed

# Random numbers of many chains at once: of each, a pure function of its seed, the purpose and the generation.

_ALWAYS = "every generation"  # stands for the generation in what all of them share


@dataclass(frozen=True)
class Streams:
    """The streams of chains with these seeds in one generation; −1 is the generation that the human data belong to.

    A chain's numbers depend on no other chain. Those of one purpose come from one stream in the order in which they
    stand in the array, so that the first rows do not depend on how many follow.

    Philox (Salmon et al. 2011) is a cipher of a counter under a key. A chain's stream is a key, put into one generator
    whose state is reset: a tenth of the cost of a new generator, which counts for 3,000 chains × 100 generations.
    """

    seeds: tuple[int, ...]
    generation: int

    def generators(self, purpose: str, *, every_generation_alike: bool = False) -> Iterator[np.random.Generator]:
        """One generator per chain, in order. It is the same object each time: draw from it before taking the next."""
        bits = np.random.Philox(key=0)
        generator, state = np.random.Generator(bits), bits.state
        when = _ALWAYS if every_generation_alike else self.generation
        for seed in self.seeds:
            state["state"]["key"][0] = derive_seed(seed, "analytic", purpose, when)
            bits.state = state
            yield generator

    def normal(
        self, purpose: str, shape: tuple[int, ...], *, every_generation_alike: bool = False
    ) -> npt.NDArray[np.float64]:
        """(chains, \\*shape) Standard normal numbers."""
        out = np.empty((len(self.seeds), *shape))
        generators = self.generators(purpose, every_generation_alike=every_generation_alike)
        for row, generator in zip(out, generators, strict=True):
            generator.standard_normal(out=row)
        return out

    def uniform(
        self, purpose: str, shape: tuple[int, ...], *, every_generation_alike: bool = False
    ) -> npt.NDArray[np.float64]:
        """(chains, \\*shape) Uniform numbers in [0, 1)."""
        out = np.empty((len(self.seeds), *shape))
        generators = self.generators(purpose, every_generation_alike=every_generation_alike)
        for row, generator in zip(out, generators, strict=True):
            generator.random(out=row)
        return out


Array = npt.NDArray[np.float64]
Model = dict[str, Array]
"""A fitted model of each chain: arrays of shape (B, …), one entry per chain."""


class AnalyticFamily(BaseModel, ABC):
    """What a study file says of a family, and the family itself: pure functions of arrays, chains along the first axis.

    B is the number of chains, n of samples, and ``width`` of numbers in a sample. What is computed for a chain does not
    depend, to the last bit, on which others it is computed with: sums run over contiguous memory of one chain, matrix
    products and decompositions are taken chain by chain, and an iteration ends for each chain by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    metrics: ClassVar[tuple[Metric, ...]]
    """What :meth:`evaluate` returns, in order."""

    kind: str

    def identity(self) -> dict[str, Any]:
        """What of this family determines a fitted model: its settings, and the source where that is a user's own."""
        return self.model_dump(mode="json")

    @abstractmethod
    def human(self, n: int, streams: Streams) -> Array:
        """(B, n, width) Samples of the truth, for each chain its own."""

    @abstractmethod
    def fit(self, data: Array, weights: Array | None = None, generation: int = 0) -> Model:
        """Each chain's model.

        Args:
            data: (B, n, width) with n ≥ 1.
            weights: (B, n), not negative and not all 0 in any chain; None is 1 for each sample.
            generation: the one that is fitted; only settings that adapt to it look.
        """

    @abstractmethod
    def evaluate(self, model: Model, data: Array, generation: int = 0) -> dict[str, Array]:
        """Each of :attr:`metrics`, (B,) numbers.

        ``data`` (B, n, width) is what the model was fitted to, ``generation`` the one that is scored.
        """

    @abstractmethod
    def generate(self, model: Model, n: int, streams: Streams) -> Array:
        """(B, n, width) Samples of each chain's model."""

    @abstractmethod
    def log_likelihood(self, model: Model, data: Array) -> Array:
        """(B, n) log p of each sample, in nats; of the target given its inputs for a regression.

        Either leading axis may be 1. A model that has degenerated to a point gives ±∞, never NaN.
        """

    @abstractmethod
    def truth(self) -> Model:
        """The truth as a model, with a leading axis of 1: for verifiers and distances."""
