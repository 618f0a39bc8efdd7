"""Run one chain of a study: its recursion, until it stops, and a result for each generation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fortifai_ray.chain.recursion import Lineage, first_metrics, together
from fortifai_ray.chain.rows import chain_row, stages_of
from fortifai_ray.chain.stop import Stop
from fortifai_ray.metrics import register
from fortifai_ray.recipe.ecosystem import Ecosystem, lineage_of
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

    def located(self, whole: Recipe) -> "dict[str | None, Prepared]":
        """The recipe of each lineage with its data, for any folder; of a single chain itself, without a name."""
        return {
            name: Prepared(one.located(), self.of(one), name, whole.ecosystem) for name, one in whole.lineages().items()
        }


@dataclass(frozen=True)
class Prepared:
    """A recipe that runs in any folder, the key of its data in the store, and the lineage and ecosystem that it is of,
    if any."""

    recipe: Recipe
    data: str | None
    lineage: str | None = None
    ecosystem: Ecosystem | None = None

    def of_seed(self, seed: int) -> "Prepared":
        return replace(self, recipe=self.recipe.model_copy(update={"seed": seed}))

    @property
    def drawing(self) -> Recipe:
        """The recipe with the seed that it draws by."""
        if self.ecosystem is None or self.lineage is None:
            return self.recipe
        return self.recipe.model_copy(update={"seed": self.ecosystem.seed_of(self.lineage, self.recipe.seed)})


@dataclass(frozen=True)
class ChainTask:
    """All that a process needs to run a chain: its recipe, the collapse criteria and the baseline they refer to.

    Without ``criteria`` the chain runs to its horizon, with them until each is decided; ``survival`` holds the premises
    under which survival is decided early. The recipes of its lineages and of the baseline's are located and their data
    are prepared in the store, so that they run in any folder.
    """

    chain: Chain
    criteria: Sequence[Collapse]
    recipe: Recipe
    lineages: Mapping[str | None, Prepared]
    baseline: Mapping[str | None, Prepared]
    survival: SurvivalRules

    @classmethod
    def of(cls, study: Study, chain: Chain, inputs: Inputs) -> "ChainTask":
        """The task of a study's chain."""
        stops, search = study.settings.early_stopping, study.settings.search
        return cls(
            chain,
            study.settings.collapse if stops else (),
            chain.recipe,
            inputs.located(chain.recipe),
            inputs.located(study.baseline_of(chain)),
            search.survival if isinstance(search, BoundarySearch) else SurvivalRules(),
        )

    def of_seed(self, chain: Chain, baseline_seed: int) -> "ChainTask":
        """The task of a chain that differs from this one's in its seed alone; it runs in any folder, as this does."""
        recipe = self.recipe.model_copy(update={"seed": chain.recipe.seed})
        lineages = {name: one.of_seed(recipe.seed) for name, one in self.lineages.items()}
        baseline = {name: one.of_seed(baseline_seed) for name, one in self.baseline.items()}
        return replace(self, chain=chain, recipe=recipe, lineages=lineages, baseline=baseline)

    @property
    def results(self) -> int:
        """How many results it has at most: one for each generation of each lineage."""
        return self.recipe.generations * len(self.lineages)

    def baseline_metrics(self, steps: Steps, executor: Executor, lineage: str | None = None) -> Metrics:
        """The metrics of the baseline's generation 0 with the same seed, of the lineage of the same name, or of its one
        model; empty where there is none, or that generation collapsed.

        They are a step like any other: taken from the store, or computed by the first chain that needs them. So when a
        chain stops never depends on which chain was faster.
        """
        against = self.baseline.get(lineage) or (
            next(iter(self.baseline.values())) if len(self.baseline) == 1 else None
        )
        if against is None:
            return {}
        recipe = against.drawing
        family: Family[Stage] = recipe.build(against.data, steps, executor)
        return first_metrics(recipe, family) or {}


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
    members = {member.lineage: member for member in task.chain.members}
    ecosystem, lineages = task.recipe.ecosystem, list[Lineage[Any]]()
    families, stops, consumed = dict[str | None, Any](), dict[str | None, Stop](), dict.fromkeys(task.lineages, 0)
    for name, one in task.lineages.items():
        register(*one.recipe.declared)  # in this process too: the criteria need their scales
        recipe = one.drawing
        families[name] = recipe.build(one.data, steps, executor)
        baseline = partial(task.baseline_metrics, steps, executor, name)
        stops[name] = Stop(task.criteria, task.recipe.generations, task.survival, baseline)
        lineages.append(Lineage(recipe, families[name], stops[name].decided, **lineage_of(ecosystem, name)))
    for generation in together(lineages):
        name, family = generation.lineage, families[generation.lineage]
        consumed[name] += generation.data.synthetic_size
        ended = generation.ended(task.recipe) or stops[name].reason
        row = chain_row(members[name], generation, consumed[name], ended)
        written = generation.synthetic
        samples = family.samples(written) if written and hasattr(family, "samples") else ()
        picture = family.picture(written) if written and hasattr(family, "picture") else None
        details = [stage.outputs.get("details") or {} for stage in stages_of(generation)]
        yield GenerationResult(row, {key: value for one in details for key, value in one.items()}, samples, picture)
