"""A cohort: chains that differ in their seed alone, computed together as arrays and kept in memory.

It implements the recursion's steps as every family does, on arrays with one entry per chain; no number of a chain
depends on which other chains it is computed with.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fortifai_ray.families import LINEAGE_DISTANCE
from fortifai_ray.families.analytic.base import BEFORE, AnalyticFamily, Array, Model, Streams
from fortifai_ray.families.analytic.curating import Written, curated, whole
from fortifai_ray.families.analytic.detecting import Detectors
from fortifai_ray.families.analytic.recipe import AnalyticRecipe
from fortifai_ray.families.analytic.weighting import fit_with_loss
from fortifai_ray.losses import Loss
from fortifai_ray.recipe.curation import Detector, of_pool, of_written
from fortifai_ray.recipe.family import Collapsed, Others, Synthetic
from fortifai_ray.recipe.pools import Human, Pool, TrainingSet

_HUMAN = "human"
_COMPARISON = -2  # in the place of a generation: its random numbers are the same for every model


@dataclass(frozen=True, eq=False)
class Arrays:
    """A completed step of a cohort: ``outputs`` has an array (chains,) or a number; models and samples stay here."""

    hash: str
    outputs: Mapping[str, Any] = field(default_factory=dict)
    model: Model | None = None
    data: Array | None = None
    reused: bool = False


@dataclass
class Samples:
    """The samples (chains, n, …) of each pool, which the lineages of an ecosystem share; ``all``: whether some regime
    draws from earlier pools than the last."""

    pools: dict[str, Array] = field(default_factory=dict)
    all: bool = False


class CohortFamily:
    """The family of a cohort's chains; ``seeds`` has one entry per chain.

    ``lineage`` names it among those that keep their samples together; ``family`` is the recipe's with its data.
    """

    def __init__(
        self,
        recipe: AnalyticRecipe,
        seeds: Sequence[int],
        samples: Samples | None = None,
        lineage: str = "",
        family: AnalyticFamily | None = None,
    ) -> None:
        self._recipe, self._seeds, self._lineage = recipe, tuple(seeds), lineage
        self._family = family or recipe.family
        self._shared = samples or Samples(all=recipe.regime.memory == "all")
        self._samples, self._human = self._shared.pools, self._named(_HUMAN)
        self._detectors: Detectors | None = None

    def _named(self, pool: str) -> str:
        return f"{self._lineage}/{pool}" if self._lineage else pool

    def human(self) -> Human:
        """As many samples of the truth as the regime uses in all; generation 0 gets the first of them."""
        recipe, sizes = self._recipe, self._recipe.sizes
        budgets = sizes if len(set(sizes)) > 1 else ()
        count = math.ceil(recipe.regime.human_needed(sizes[0], recipe.generations, budgets))
        self._samples[self._human] = self._family.human(count, Streams(self._seeds, BEFORE))
        return Human(Pool(self._human, np.ones(count), synthetic=False), np.arange(count), sizes[0], budgets)

    def init(self, previous: Arrays | None, generation: int) -> Arrays:
        """These families need no starting model."""
        return previous or Arrays("start")

    def resample(self, data: TrainingSet, *, generation: int) -> tuple[TrainingSet, Arrays]:
        """What the curation's detector makes of the training sets, pools whose origins nobody knows; as they are, where
        generation 0 drew too few samples to train it."""
        if self._detectors is None:
            return data, Arrays(f"pool-{generation}")
        drawn, found = self._detectors.resample(data, self._samples, Streams(self._seeds, generation))
        return drawn, Arrays(f"pool-{generation}", found)

    def fit(self, data: TrainingSet, loss: Loss, *, start_from: Arrays, generation: int) -> Arrays:
        """Every chain's fit to its training set."""
        samples = self._gather(data)
        if not samples.shape[1]:
            raise Collapsed("the training set is empty")
        started = time.perf_counter()
        model, kept = fit_with_loss(self._family, samples, loss, generation, self._weights(data))
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
        started, name, count = time.perf_counter(), self._named(f"synthetic-{generation}"), whole(size)
        samples = self._family.generate(model.model, count, Streams(self._seeds, generation))
        seconds = self._share(started)
        self._keep(name, samples)
        step, first = of_pool(self._recipe.curation.steps), self._recipe.sizes[0]
        if isinstance(step, Detector) and not generation and self._recipe.generations > 1:
            least = whole(self._recipe.regime.synthetic_size(first, generation))
            if count < 2 <= least:  # a lineage whose output nobody reads has a pool to judge all the same
                samples = self._family.generate(model.model, least, Streams(self._seeds, generation))
            if min(samples.shape[1], first) > 1:
                human = self._samples[self._human][:, : whole(first)]
                self._detectors = Detectors.trained(step, human, self._human, samples, name)
        return Synthetic(Arrays(name, {"generate_seconds": seconds}), Pool(name, np.ones(count), synthetic=True))

    def curate(
        self, written: Synthetic[Arrays], size: float, *, model: Arrays, verifier: Arrays, generation: int
    ) -> Synthetic[Arrays]:
        """The best ``size`` of the written samples, in each chain by its own scores."""
        steps = of_written(self._recipe.curation.steps)
        if not steps:
            return written
        assert model.model is not None
        assert verifier.model is not None
        samples = self._samples[written.stage.hash]
        items = Written(
            self._family,
            samples,
            np.broadcast_to(np.arange(samples.shape[1]), samples.shape[:2]),
            self._samples[self._human],
            {"own": model.model, "generation_0": verifier.model},
            Streams(self._seeds, generation),
        )
        kept, measures = curated(steps, size, items)
        name = f"curated-{written.stage.hash}"
        self._keep(name, kept)
        return Synthetic(Arrays(name, measures), Pool(name, np.ones(kept.shape[1]), synthetic=True))

    compared = 0.0  # models alone are compared

    def compare(self, model: Arrays, written: Synthetic[Arrays], others: Others[Arrays]) -> Arrays:
        """The mean distance of each chain's model from the other lineages'."""
        assert model.model is not None
        streams = Streams(self._seeds, _COMPARISON)
        away = [self._family.distance(model.model, one.model, streams) for one, _ in others.values() if one.model]
        return Arrays(f"compared-{model.hash}", {LINEAGE_DISTANCE.name: np.mean(away, axis=0)})

    def _keep(self, name: str, samples: Array) -> None:
        """Keep samples for later training sets; drop those that the regime cannot draw from again."""
        own = f"{self._lineage}/" if self._lineage else ""
        for old in [one for one in self._samples if one.startswith(own) and one != self._human]:
            if not self._shared.all:
                del self._samples[old]
        self._samples[name] = samples

    def _gather(self, data: TrainingSet) -> Array:
        """(chains, n, …) The samples of each chain's training set."""
        if not data.by_seed:
            drawn = [self._samples[draw.pool.stage][:, draw.items] for draw in data.draws]
            return np.concatenate([self._samples[self._human][:, :0], *drawn], axis=1)
        each = [
            np.concatenate([self._samples[draw.pool.stage][chain, draw.items] for draw in own.draws])
            for chain, own in enumerate(data.by_seed)
        ]
        return np.stack(each)

    def _weights(self, data: TrainingSet) -> Array | None:
        """(chains, n) The weight of each sample under the regime; None where all are alike."""
        own = [one.item_weights() for one in (data.by_seed or (data,))]
        if all(weights is None for weights in own):
            return None
        size = max(len(weights) for weights in own if weights is not None)
        weights = np.stack([np.ones(size) if weights is None else weights for weights in own])
        return np.ascontiguousarray(np.broadcast_to(weights, (len(self._seeds), size)))

    def _share(self, started: float) -> float:
        """One chain's share of the seconds since ``started``."""
        return (time.perf_counter() - started) / len(self._seeds)
