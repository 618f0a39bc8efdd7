"""Run one chain of a study: its recursion, until it stops, and a result for each generation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fortifai_ray.chain.recursion import first_metrics, recursion
from fortifai_ray.chain.rows import chain_row, stages_of
from fortifai_ray.chain.stop import Stop
from fortifai_ray.metrics import register
from fortifai_ray.recipe.executor import Executor
from fortifai_ray.recipe.family import Family, Metrics
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.statistics.criterion import Collapse
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage
from fortifai_ray.study.search import BoundarySearch, SurvivalRules
from fortifai_ray.study.study import Chain, Study


@dataclass(frozen=True)
class Inputs:
    """The prepared data of a study's recipes: one entry per class of recipe and input."""

    prepared: Mapping[tuple[type[Recipe], Any], str | None]

    def of(self, recipe: Recipe) -> str | None:
        """The prepared data that a recipe's family is built from."""
        return self.prepared[type(recipe), recipe.shared_input]


@dataclass(frozen=True)
class ChainTask:
    """All that a process needs to run a chain: its recipe, the collapse criteria and the baseline they refer to.

    Without ``criteria`` the chain runs to its horizon, with them until each is decided; ``survival`` holds the premises
    under which survival is decided early. ``recipe`` and ``baseline`` are located and their data are prepared in the
    store, so that they run in any folder.
    """

    chain: Chain
    criteria: Sequence[Collapse]
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

    def of_seed(self, chain: Chain, baseline_seed: int) -> "ChainTask":
        """The task of a chain that differs from this one's in its seed alone; it runs in any folder, as this does."""
        recipe = self.recipe.model_copy(update={"seed": chain.recipe.seed})
        baseline = self.baseline.model_copy(update={"seed": baseline_seed})
        return replace(self, chain=chain, recipe=recipe, baseline=baseline)

    def baseline_metrics(self, steps: Steps, executor: Executor) -> Metrics:
        """The metrics of the baseline's generation 0 with the same seed; empty where that generation collapsed.

        They are a step like any other: taken from the store, or computed by the first chain that needs them. So when a
        chain stops never depends on which chain was faster.
        """
        family: Family[Stage] = self.baseline.build(self.baseline_prepared, steps, executor)
        return first_metrics(self.baseline, family) or {}


@dataclass(frozen=True)
class GenerationResult:
    """A completed generation: its row of ``generations.parquet``, details that no column holds (JSON), sample texts,
    and a picture (PNG) of samples."""

    row: Mapping[str, Any]
    details: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]] = ()
    picture: bytes | None = None


def run_chain(task: ChainTask, steps: Steps, executor: Executor) -> Iterator[GenerationResult]:
    """Yield each generation of a chain as it completes, computed or taken from the store.

    Raises :class:`fortifai_ray.storage.store.NotStored` at the first missing step where ``steps`` only replays.
    """
    register(*task.recipe.declared)  # in this process too: the criteria need their scales
    family: Any = task.recipe.build(task.prepared, steps, executor)
    baseline = partial(task.baseline_metrics, steps, executor)
    stop = Stop(task.criteria, task.recipe.generations, task.survival, baseline)
    consumed = 0
    for generation in recursion(task.recipe, family, stop.decided):
        consumed += generation.data.synthetic_size
        row = chain_row(task.chain, generation, consumed, generation.ended(task.recipe) or stop.reason)
        written = generation.synthetic
        samples = family.samples(written) if written and hasattr(family, "samples") else ()
        picture = family.picture(written) if written and hasattr(family, "picture") else None
        details = [stage.outputs.get("details") or {} for stage in stages_of(generation)]
        yield GenerationResult(row, {key: value for one in details for key, value in one.items()}, samples, picture)
