"""What a cohort shows the steps of its curation, and the samples that they leave of those that were written."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from fortifai_ray.errors import UserError
from fortifai_ray.families.analytic.base import AnalyticFamily, Array, Model, Streams
from fortifai_ray.families.analytic.user import UserFamily, validate_user_family
from fortifai_ray.recipe.curation import (
    KEPT,
    PLAUSIBLE,
    PRECISION,
    RECALL,
    By,
    Judge,
    Kept,
    Step,
    apply,
    blocks,
    one_truth,
    ratio,
    sizes,
    together,
)


def whole(size: float) -> int:
    """``size`` rounded up: whether the last sample is used depends on the size of the human part."""
    return math.ceil(size - 1e-9)


@dataclass(frozen=True)
class Written:
    """The samples of a generation, before its curation or between two of its steps.

    Attributes:
        samples: (B, n, …) of each chain.
        places: (B, n) their numbers among those that were written.
        human: (B, m, …) the human data of each chain.
        models: ``generation_0`` and ``own`` (the model that wrote the samples), by name.
        streams: the random numbers of the generation.
        purpose: of the step, to which its random numbers belong.
    """

    family: AnalyticFamily
    samples: Array
    places: np.ndarray
    human: Array
    models: Mapping[str, Model]
    streams: Streams
    purpose: str = "curation"
    notes: dict[str, Any] = field(default_factory=dict)

    def contents(self) -> Sequence[Any]:
        return list(self.samples)

    def _model(self, by: By) -> Model:
        if isinstance(by, Judge):
            return varied(self.family, by).truth()
        return self.family.truth() if by == "truth" else self.models[by]

    def scores(self, by: By) -> np.ndarray:
        return self.family.log_likelihood(self._model(by), self.samples)

    def typical(self, by: By) -> np.ndarray:
        return np.median(self.family.log_likelihood(self._model(by), self.human), axis=1)

    def plausible(self) -> np.ndarray | None:
        return self._plausible

    @cached_property
    def _plausible(self) -> np.ndarray | None:
        if not self.family.truth_is_known:
            return None
        of_human = self.family.log_likelihood(self.family.truth(), self.human)
        return self.scores("truth") >= np.quantile(of_human, PLAUSIBLE, axis=1)[:, None]

    def generators(self) -> Iterator[np.random.Generator]:
        return self.streams.generators(self.purpose)

    def origin(self, chain: int) -> str:
        return f"generation {self.streams.generation}, seed {self.streams.seeds[chain]}"


def varied(family: AnalyticFamily, by: Judge) -> AnalyticFamily:
    """The family of a judge: the chain's own with some of its keys changed. ValidationError for keys it lacks."""
    content = {**family.model_dump(), **(by.family or {})}
    if isinstance(family, UserFamily):
        return validate_user_family(content)
    return type(family).model_validate(content).with_data_of(family)


def curated(steps: Sequence[Step], size: float, written: Written) -> tuple[Array, dict[str, Any]]:
    """(B, size, …) The samples that all steps leave, and the curation's measures, (B,) each.

    Chains of one array have as many samples each: where a step lets fewer pass than are needed, those are repeated in
    turn, so that each is there as often as the others, or once more.

    Raises:
        UserError: a step lets nothing pass.
    """
    measures: list[Mapping[str, Any]] = []
    planned = zip(steps, sizes(steps, size), blocks(steps), strict=True)
    count, true, places = written.places.shape[1], None, list[np.ndarray]()
    for number, (step, needed, block) in enumerate(planned):
        items = replace(written, purpose=f"curation {number}", notes={})
        selection = apply(step, items, whole(needed), block)
        measures.append(selection.measures)
        if len(steps) > 1:  # else the step's measures are the curation's
            if not number and one_truth(steps, known=written.family.truth_is_known):
                true = selection.true
            places = [np.unique(own[passed]) for own, passed in zip(items.places, selection.passed, strict=True)]
        chosen = _filled(selection.passed, whole(needed), step, written.streams)
        index = chosen.reshape(*chosen.shape, *[1] * (written.samples.ndim - 2))
        written = replace(
            written,
            samples=np.take_along_axis(written.samples, index, axis=1),
            places=np.take_along_axis(written.places, chosen, axis=1),
        )
    return written.samples, together(measures, _counted(places, count, true))


def _counted(passed: Sequence[np.ndarray], count: int, true: np.ndarray | None) -> dict[str, np.ndarray]:
    """The measures (B,) of a curation as a whole: which of ``count`` items ``passed`` every step, by their numbers, and
    which are ``true`` (B, count)."""
    lengths = np.array([len(own) for own in passed])
    if true is None:
        return {KEPT: lengths / count}
    hits = np.array([right[own].sum() for right, own in zip(true, passed, strict=True)])
    return {KEPT: lengths / count, PRECISION: ratio(hits, lengths), RECALL: ratio(hits, true.sum(1))}


def _filled(passed: Kept, count: int, step: Step, streams: Streams) -> np.ndarray:
    """(B, count) Of each chain the first indices, in turn where they are fewer."""
    if isinstance(passed, np.ndarray) and passed.shape[1] == count:
        return passed
    for seed, own in zip(streams.seeds, passed, strict=True):
        if count and not len(own):
            raise UserError(
                f"curation: {step.kind} lets none of the samples pass that seed {seed} wrote in generation "
                f"{streams.generation}: more samples, a smaller share to keep, or a smaller error rate is right"
            )
    return np.stack([np.sort(np.resize(own, count)) for own in passed])
