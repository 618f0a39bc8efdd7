"""One chain of a study: its recursion, when it stops, and a row of the results table for each generation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fortifai_ray.chain.recursion import Generation, first_metrics, recursion
from fortifai_ray.losses import Loss
from fortifai_ray.metrics import register
from fortifai_ray.recipe.executor import Executor
from fortifai_ray.recipe.family import Family, Metrics
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.statistics import CollapseCriterion
from fortifai_ray.statistics.crossing import Ruling, ruling
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage
from fortifai_ray.study.search import BoundarySearch, SurvivalRules
from fortifai_ray.study.study import Chain, Study


@dataclass(frozen=True)
class Inputs:
    """The data of a study's recipes, prepared in the store once each: by class of recipe and what it reads."""

    prepared: Mapping[tuple[type[Recipe], Any], str | None]

    def of(self, recipe: Recipe) -> str | None:
        """What a recipe's family is built from."""
        return self.prepared[type(recipe), recipe.shared_input]


_USEFUL = ("train_seconds", "generate_seconds", "evaluate_seconds")  # first batch to last, nothing else


@dataclass(frozen=True)
class ChainTask:
    """What a chain needs to know: its place in the grid, what decides whether it collapsed, and relative to what.

    Without ``criteria`` it runs to its horizon, with them until each of them is decided; ``survival`` holds the
    premises under which that may be survival.
    ``recipe`` and ``baseline`` are located, their data prepared in the store: they can be carried out in any folder.
    """

    chain: Chain
    criteria: Sequence[CollapseCriterion]
    recipe: Recipe
    prepared: str | None
    baseline: Recipe
    baseline_prepared: str | None
    survival: SurvivalRules

    @classmethod
    def of(cls, study: Study, chain: Chain, inputs: Inputs) -> "ChainTask":
        """The task of a study's chain."""
        baseline = study.baseline_of(chain)
        stops, search = study.settings.early_stopping, study.settings.search
        return cls(
            chain,
            study.settings.collapse if stops else (),
            chain.recipe.located(),
            inputs.of(chain.recipe),
            baseline.located(),
            inputs.of(baseline),
            search.survival if isinstance(search, BoundarySearch) else SurvivalRules(),
        )

    def baseline_metrics(self, steps: Steps, executor: Executor) -> Metrics:
        """The metrics of the baseline's generation 0 at the same seed; none where that collapsed at once.

        It is a step like any other, taken from the store or computed by whichever chain needs it first: when a chain
        stops never depends on who was faster.
        """
        family: Family[Stage] = self.baseline.build(self.baseline_prepared, steps, executor)
        return first_metrics(self.baseline, family) or {}


@dataclass(frozen=True)
class GenerationResult:
    """A row of ``generations.parquet``, and what goes with it: counts and reasons that no column holds (JSON), sample
    texts, or a picture (PNG) of samples."""

    row: Mapping[str, Any]
    details: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]] = ()
    picture: bytes | None = None


def run_chain(task: ChainTask, steps: Steps, executor: Executor) -> Iterator[GenerationResult]:
    """The generations of a chain, computed or taken from the store, each as it is completed.

    Raises :class:`fortifai_ray.storage.steps.NotStored` at the first missing step where ``steps`` only replays.
    """
    register(*task.recipe.declared)  # in this process too: the criteria ask for their scales
    family: Any = task.recipe.build(task.prepared, steps, executor)
    stop = _Stop(task, steps, executor)
    consumed = 0
    for generation in recursion(task.recipe, family, stop.decided):
        consumed += generation.data.synthetic_size
        row = {**_row(task.chain, generation, consumed), "ended": generation.ended(task.recipe) or stop.reason}
        details = _details(generation)
        if generation.synthetic is None:
            yield GenerationResult(row, details)
        else:
            written = generation.synthetic
            samples = family.samples(written) if hasattr(family, "samples") else ()
            yield GenerationResult(
                row, details, samples, family.picture(written) if hasattr(family, "picture") else None
            )


class _Stop:
    """Whether it is decided, under every criterion of the study, that a chain collapsed or that it cannot any more."""

    def __init__(self, task: ChainTask, steps: Steps, executor: Executor) -> None:
        self._task, self._steps, self._executor = task, steps, executor
        self._baseline: Metrics | None = None
        self._rulings: list[Ruling] = []

    @property
    def reason(self) -> str | None:
        """What was decided, criterion by criterion; None while a criterion is open."""
        return None if "open" in self._rulings else ", ".join(dict.fromkeys(self._rulings)) or None

    def decided(self, history: list[Metrics]) -> bool:
        criteria = self._task.criteria
        # A criterion needs `confirm` generations after the first: before that there is no collapse to ask about.
        asks = self._task.survival.never_recorded or len(history) > min((c.confirm for c in criteria), default=0)
        if not criteria or not asks:
            return False
        self._rulings = [self._ruling(criterion, history) for criterion in criteria]
        return "open" not in self._rulings

    def _ruling(self, criterion: CollapseCriterion, history: list[Metrics]) -> Ruling:
        if any(metrics.get(criterion.metric) is None for metrics in history):
            return "open"  # known only once the generation has been written: not judged here
        values = [float(metrics[criterion.metric]) for metrics in history]
        limit = criterion.limit(values[0], self._baseline_value(criterion))
        return ruling(values, limit, criterion, self._task.recipe.generations, **self._task.survival.model_dump())

    def _baseline_value(self, criterion: CollapseCriterion) -> float | None:
        if criterion.relative_to != "baseline_generation_0":
            return None
        if self._baseline is None:
            self._baseline = self._task.baseline_metrics(self._steps, self._executor)
        return self._baseline.get(criterion.metric)


def _row(chain: Chain, generation: Generation[Stage], consumed: int) -> dict[str, Any]:
    recipe, data = chain.recipe, generation.data
    stages = list(_stages(generation))
    outputs: dict[str, Any] = {}
    for stage in stages:
        outputs |= stage.outputs
    return {
        "chain_id": chain.chain_id,
        "generation": generation.number,
        "family": recipe.family.kind,
        "loss": recipe.loss.kind,
        "gamma": _gamma(recipe.loss, outputs),
        "regime": recipe.regime.kind,
        "seed": recipe.seed,
        **{key: value for key, value in chain.varied.items() if key != "seed"},
        "synthetic_ratio": recipe.regime.asked_ratio,
        "synthetic_ratio_realised": None if math.isnan(data.synthetic_ratio) else data.synthetic_ratio,
        "unit": recipe.unit,
        "human_size": data.human_size,
        "synthetic_size": data.synthetic_size,
        "synthetic_size_cum": consumed,
        **{name: outputs.get(name) for name in recipe.metrics},
        **{name: sum(float(stage.outputs.get(name) or 0.0) for stage in stages) for name in _USEFUL},
        "reused": all(stage.reused for stage in stages),
        "computed_seconds": sum(_computed_seconds(stage) for stage in stages),
        "world_size": outputs.get("world_size"),
        "collapse_reason": generation.collapse_reason,
        "stage": generation.model.hash if generation.model is not None else None,
        "synthetic_stage": generation.curated.stage.hash if generation.curated is not None else None,
    }


def _stages(generation: Generation[Stage]) -> Iterator[Stage]:
    """Every stage of a generation, each once."""
    written, curated = generation.synthetic, generation.curated
    yield from (stage for stage in (generation.model, generation.scores) if stage is not None)
    if written is not None:
        yield from (written.stage, *written.measures)
    if curated is not None and curated is not written:
        yield from (curated.stage, *curated.measures)


def _details(generation: Generation[Stage]) -> dict[str, Any]:
    details: dict[str, Any] = {}
    for stage in _stages(generation):
        details |= stage.outputs.get("details") or {}
    return details


def _gamma(loss: Loss, outputs: Mapping[str, Any]) -> float | None:
    """The loss's γ: as asked for, or, where each epoch sets its own, that of the generation's last epoch."""
    by_epoch = outputs.get("gamma_by_epoch")
    return by_epoch[-1] if by_epoch else getattr(loss, "gamma", None)


def _computed_seconds(stage: Stage) -> float:
    """Useful seconds spent on a stage in this run: none where it came from the store."""
    return 0.0 if stage.reused else sum(float(stage.outputs.get(name) or 0.0) for name in _USEFUL)
