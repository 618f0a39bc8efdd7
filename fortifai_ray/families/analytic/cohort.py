"""A cohort: chains that differ in their seed alone, computed together as arrays and kept in memory.

It implements the recursion's steps as every family does, on arrays with one entry per chain; no number of a chain
depends on which other chains it is computed with.

*Losses on densities.* A pointwise loss is f(log p), and its gradient is f′(log p) times that of log p: an optimiser
gives each target the weight −f′(log p). A density has no scale on which 0.9 would be likely, so p is replaced by the
rank u in (0, 1] of the sample's likelihood among the training samples, under the model just fitted, and the fit is
repeated with the weights −f′(log u). Cross entropy is weight 1. TCE omits the samples whose likelihood lies above the
γ-quantile. On densities that *inflates* the variance: the likeliest samples lie in the middle. For a Gaussian at
γ = 0.9 the central tenth is omitted, and the variance of the rest is 1.11 times as large, in each generation. So a
criterion that looks for shrinking never fires: such studies need a two-sided one (``direction: outside``), the KL
divergence or the Wasserstein distance to the truth.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fortifai_ray.families import LINEAGE_DISTANCE
from fortifai_ray.families.analytic.base import AnalyticFamily, Array, Model, Streams
from fortifai_ray.families.analytic.curating import Written, curated, whole
from fortifai_ray.families.analytic.recipe import AnalyticRecipe
from fortifai_ray.losses import CrossEntropy, Loss, PointwiseLoss, TruncatedCrossEntropy, value_and_derivative
from fortifai_ray.losses.base import LossConfig
from fortifai_ray.recipe.family import Collapsed, Others, Synthetic
from fortifai_ray.recipe.pools import Human, Pool, TrainingSet

_HUMAN = "human"
_COMPARISON = -2  # in the place of a generation: its random numbers are the same for every model
_BEFORE = -1  # the generation that the human data belong to


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

    ``lineage`` names it among those that keep their samples together.
    """

    def __init__(
        self, recipe: AnalyticRecipe, seeds: Sequence[int], samples: Samples | None = None, lineage: str = ""
    ) -> None:
        self._recipe, self._family, self._seeds, self._lineage = recipe, recipe.family, tuple(seeds), lineage
        self._shared = samples or Samples(all=recipe.regime.memory == "all")
        self._samples, self._human = self._shared.pools, self._named(_HUMAN)
        self._generation = 0  # that wrote last

    def _named(self, pool: str) -> str:
        return f"{self._lineage}/{pool}" if self._lineage else pool

    def human(self) -> Human:
        """As many samples of the truth as the regime uses in all; generation 0 gets the first of them."""
        recipe, sizes = self._recipe, self._recipe.sizes
        budgets = sizes if len(set(sizes)) > 1 else ()
        count = math.ceil(recipe.regime.human_needed(sizes[0], recipe.generations, budgets))
        self._samples[self._human] = self._family.human(count, Streams(self._seeds, _BEFORE))
        return Human(Pool(self._human, np.ones(count), synthetic=False), np.arange(count), sizes[0], budgets)

    def init(self, previous: Arrays | None, generation: int) -> Arrays:
        """These families need no starting model."""
        return previous or Arrays("start")

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
        self._generation = generation
        started, name, count = time.perf_counter(), self._named(f"synthetic-{generation}"), whole(size)
        samples = self._family.generate(model.model, count, Streams(self._seeds, generation))
        seconds = self._share(started)
        self._keep(name, samples)
        return Synthetic(Arrays(name, {"generate_seconds": seconds}), Pool(name, np.ones(count), synthetic=True))

    def curate(self, written: Synthetic[Arrays], size: float, *, model: Arrays, verifier: Arrays) -> Synthetic[Arrays]:
        """The best ``size`` of the written samples, in each chain by its own scores."""
        steps = self._recipe.curation.steps
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
            Streams(self._seeds, self._generation),
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


def fit_with_loss(
    family: AnalyticFamily, data: Array, loss: LossConfig, generation: int = 0, given: Array | None = None
) -> tuple[Model, Array]:
    """Each chain's model under a loss, and the share of its samples (B,) that the loss does not omit.

    ``given`` (B, n) are the regime's weights, which those of the loss multiply. A chain with no sample left has no
    gradient: it keeps the first fit.

    Raises:
        ValueError: the loss is not pointwise, follows the course of training, or pushes samples away.
    """
    model = family.fit(data, given, generation)
    if isinstance(loss, CrossEntropy):
        return model, np.ones(len(data))
    of_loss = sample_weights(loss, likelihood_rank(family.log_likelihood(model, data)))
    weights = of_loss if given is None else of_loss * given
    kept, some = (of_loss != 0).mean(-1), (weights != 0).any(-1)
    if some.any() and not (of_loss == 1).all():
        again = family.fit(np.ascontiguousarray(data)[some], weights[some], generation)
        for name, values in again.items():
            model[name] = model[name].copy()
            model[name][some] = values
    return model, kept


def likelihood_rank(log_likelihood: Array) -> Array:
    """(B, n) u in (0, 1]: how many of a chain's samples are no likelier, over n. Ties share the lowest rank."""
    # A chain at a time: SciPy's rankdata takes a tenth of a millisecond for a few numbers, and a second to import.
    ranks = [np.searchsorted(np.sort(own), own) + 1 for own in log_likelihood]
    return np.stack(ranks) / log_likelihood.shape[1]


def sample_weights(loss: LossConfig, rank: Array) -> Array:
    """−f′(log u) of each sample, of the shape of ``rank``."""
    if not isinstance(loss, PointwiseLoss):
        raise ValueError(f"loss.kind: {loss.kind} gives single samples no weight: on densities, use a pointwise loss")
    if isinstance(loss, TruncatedCrossEntropy):  # known without torch
        return (rank <= loss.gamma).astype(np.float64)
    import torch

    weights = -value_and_derivative(loss, torch.from_numpy(np.log(rank)))[1].numpy()
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError(
            f"loss.kind: {loss.kind} gives some samples the weight {weights.min():.3g}, and a density is fitted with"
            " weights of 0 or more"
        )
    return weights + 0.0  # no negative zeros
