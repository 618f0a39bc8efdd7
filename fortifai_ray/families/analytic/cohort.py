"""A cohort: chains that differ in their seed alone, computed together as arrays and kept in memory.

It takes the recursion's steps as any family does. What it hands on are arrays with one entry per chain; no number of a
chain depends on which others it is computed with.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fortifai_ray.families.analytic.base import Array, Model, Streams
from fortifai_ray.families.analytic.recipe import AnalyticRecipe
from fortifai_ray.families.analytic.weighting import fit_with_loss
from fortifai_ray.losses import Loss
from fortifai_ray.recipe.curation import NoCuration, Surplexity, Verifier, select
from fortifai_ray.recipe.family import Collapsed, Synthetic
from fortifai_ray.recipe.regimes import Human, Pool, TrainingSet

_HUMAN = "human"
_BEFORE = -1  # the generation that the human data belong to


@dataclass(frozen=True, eq=False)
class Arrays:
    """A completed step of a cohort: ``outputs`` has an array (chains,) or a number; models and samples stay here."""

    hash: str
    outputs: Mapping[str, Any] = field(default_factory=dict)
    model: Model | None = None
    data: Array | None = None
    reused: bool = False


class CohortFamily:
    """The family of a cohort's chains; ``seeds`` has one entry per chain."""

    def __init__(self, recipe: AnalyticRecipe, seeds: Sequence[int]) -> None:
        self._recipe, self._family, self._seeds = recipe, recipe.family, tuple(seeds)
        self._samples: dict[str, Array] = {}

    def human(self) -> Human:
        """As many samples of the truth as the regime uses up; generation 0 gets the first of them."""
        recipe, budget = self._recipe, self._recipe.samples_per_generation
        count = math.ceil(recipe.regime.human_needed(budget, recipe.generations))
        self._samples[_HUMAN] = self._family.human(count, Streams(self._seeds, _BEFORE))
        return Human(Pool(_HUMAN, np.ones(count), synthetic=False), np.arange(count), budget)

    def init(self, previous: Arrays | None, generation: int) -> Arrays:
        """These families are fitted from nothing."""
        return previous or Arrays("start")

    def fit(self, data: TrainingSet, loss: Loss, *, start_from: Arrays, generation: int) -> Arrays:
        """Every chain's fit to its training set."""
        samples = self._gather(data)
        if not samples.shape[1]:
            raise Collapsed("the training set is empty")
        started = time.perf_counter()
        model, kept = fit_with_loss(self._family, samples, loss, generation)
        outputs = {"kept_fraction": kept, "train_seconds": self._share(started)}
        return Arrays(f"model-{generation}", outputs, model, samples)

    def evaluate(self, model: Arrays, *, generation: int) -> Arrays:
        """The family's metrics, one value per chain."""
        assert model.model is not None
        assert model.data is not None
        started = time.perf_counter()
        scores = self._family.evaluate(model.model, model.data, generation)
        return Arrays(f"scores-{model.hash}", {**scores, "evaluate_seconds": self._share(started)})

    def generate(self, model: Arrays, size: float, *, generation: int) -> Synthetic[Arrays]:
        """``size`` samples of each chain's model."""
        assert model.model is not None
        started, name, count = time.perf_counter(), f"synthetic-{generation}", _whole(size)
        samples = self._family.generate(model.model, count, Streams(self._seeds, generation))
        seconds = self._share(started)
        self._keep(name, samples)
        return Synthetic(Arrays(name, {"generate_seconds": seconds}), Pool(name, np.ones(count), synthetic=True))

    def curate(self, written: Synthetic[Arrays], size: float, *, model: Arrays, verifier: Arrays) -> Synthetic[Arrays]:
        """The best ``size`` of what was written, in each chain by its own scores."""
        curation = self._recipe.curation
        if not isinstance(curation, Verifier | Surplexity):
            assert isinstance(curation, NoCuration)
            return written
        judge = model if isinstance(curation, Surplexity) else verifier
        by_truth = isinstance(curation, Verifier) and curation.by == "truth"
        scorer = self._family.truth() if by_truth else judge.model
        assert scorer is not None
        samples = self._samples[written.stage.hash]
        scores = self._family.log_likelihood(scorer, samples)
        typical = np.median(self._family.log_likelihood(scorer, self._samples[_HUMAN]), axis=1)
        chosen = select(scores, _whole(size), curation, typical)
        index = chosen.reshape(*chosen.shape, *[1] * (samples.ndim - 2))
        name = f"curated-{written.stage.hash}"
        self._keep(name, np.take_along_axis(samples, index, axis=1))
        return Synthetic(Arrays(name), Pool(name, np.ones(chosen.shape[1]), synthetic=True))

    def _keep(self, name: str, samples: Array) -> None:
        """Hold samples for the training sets to come; what the regime cannot draw from again is let go."""
        if self._recipe.regime.memory == "last":
            self._samples = {_HUMAN: self._samples[_HUMAN]}
        self._samples[name] = samples

    def _gather(self, data: TrainingSet) -> Array:
        """(chains, n, …) The samples of each chain's training set."""
        if not data.by_seed:
            return np.concatenate([self._samples[_HUMAN][:, :0], *self._drawn(data)], axis=1)
        each = [
            np.concatenate([self._samples[draw.pool.stage][chain, draw.items] for draw in own.draws])
            for chain, own in enumerate(data.by_seed)
        ]
        return np.stack(each)

    def _drawn(self, data: TrainingSet) -> list[Array]:
        return [self._samples[draw.pool.stage][:, draw.items] for draw in data.draws]

    def _share(self, started: float) -> float:
        """Seconds since ``started`` that fall to one chain."""
        return (time.perf_counter() - started) / len(self._seeds)


def _whole(size: float) -> int:
    """As many samples as ``size`` may need: half a one is one, which is used or not as the human part comes out."""
    return math.ceil(size - 1e-9)
