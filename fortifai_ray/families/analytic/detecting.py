"""The detector of a cohort: a classifier for each chain, of its human samples against those that generation 0 drew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fortifai_ray.families.analytic.base import Array, Streams
from fortifai_ray.families.detector import counts, decisions, draw_weights, fit, measures, probabilities
from fortifai_ray.recipe.curation import Detector, resampled
from fortifai_ray.recipe.pools import TrainingSet

_FEATURES = 1 << 14  # of samples of whole numbers: their counts, by a hash


@dataclass(frozen=True)
class Detectors:
    """The trained classifiers of a cohort's chains.

    Attributes:
        human: (B, m, …) the samples that trained them, of the pool ``human_pool``, which are its first ones.
        written: the pool of those that generation 0 drew.
        known: of each chain, what :func:`fortifai_ray.families.detector.fit` found.
    """

    step: Detector
    human: Array
    human_pool: str
    written: str
    known: Sequence[Mapping[str, np.ndarray]]

    @classmethod
    def trained(cls, step: Detector, human: Array, human_pool: str, samples: Array, written: str) -> "Detectors":
        truth = np.arange(human.shape[1] + samples.shape[1]) < human.shape[1]
        known = [
            fit(features(np.concatenate([own, drawn]), own), truth) for own, drawn in zip(human, samples, strict=True)
        ]
        return cls(step, human, human_pool, written, known)

    def resample(
        self, data: TrainingSet, pools: Mapping[str, Array], streams: Streams
    ) -> tuple[TrainingSet, dict[str, Array]]:
        """Each chain's draw from its training set as a pool, and the measures (B,) of the judgement."""
        sets, found = [], list[Mapping[str, Any]]()
        escapes, draws = streams.generators("escape"), streams.generators("resample")
        for chain, own in enumerate(data.of_each(len(self.known))):
            truth = np.concatenate([np.full(len(draw.items), not draw.pool.synthetic) for draw in own.draws])
            human = self._judge(chain, own, pools, truth, next(escapes))
            found.append(measures(human, truth))
            sets.append(resampled(own, draw_weights(human, self.step.bias), next(draws)))
        return TrainingSet((), tuple(sets)), {name: np.array([each[name] for each in found]) for name in found[0]}

    def _judge(
        self, chain: int, data: TrainingSet, pools: Mapping[str, Array], truth: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        """(n,) The probability of each sample to be human."""
        known, count = self.known[chain], self.human.shape[1]
        samples = np.concatenate([pools[draw.pool.stage][chain, draw.items] for draw in data.draws])
        folds = np.concatenate([self._folds(known["folds"], draw.pool.stage, draw.items, count) for draw in data.draws])
        decided = decisions(known, features(samples, self.human[chain]), folds.tolist())
        rewritten = random.choice(known["decisions"][:count], len(truth))
        escapes = (random.random(len(truth)) < self.step.escape) & ~truth
        return probabilities(known, np.where(escapes, rewritten, decided))

    def _folds(self, folds: np.ndarray, pool: str, items: np.ndarray, human: int) -> np.ndarray:
        """The fit that left out each item; −1 for what trained none."""
        own = {self.human_pool: folds[:human], self.written: folds[human:]}.get(pool, folds[:0])
        return np.array([own[item] if item < len(own) else -1 for item in items], dtype=np.int64)


def features(samples: Array, human: Array) -> Any:
    """(n, features) What a classifier sees of one chain's samples (n, …).

    Numbers in units of the human samples (m, …), their squares and products: with them, the log-ratio of two Gaussians
    is linear. Whole numbers (outcomes, tokens): the counts of each and of each pair of neighbours, at norm 1.
    """
    rows = samples.reshape(len(samples), -1)
    if not np.issubdtype(samples.dtype, np.integer):
        reference = human.reshape(len(human), -1)
        spread = reference.std(0)
        standard = (rows - reference.mean(0)) / np.where(spread > 0, spread, 1.0)
        first, second = np.triu_indices(rows.shape[1])
        return np.concatenate([standard, standard[:, first] * standard[:, second]], axis=1)
    return counts(rows.ravel(), np.repeat(np.arange(len(rows)), rows.shape[1]), len(rows), _FEATURES)
