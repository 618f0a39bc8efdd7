"""What a search's trials run: the chains of a suggested configuration, and what became of them.

A prober knows which chains a configuration means and what to say once they have run; :func:`probe_reports` runs them.
Driver and trials make the same chains of the same configuration, so that nothing but the configuration travels.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from fortifai_ray.chain.chain import ChainTask, GenerationResult, Inputs, run_chain
from fortifai_ray.chain.cohort import CohortTask, cohort_rows, run_cohort
from fortifai_ray.recipe.devices import Devices
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.statistics import CollapseCriterion, Reference, chain_table, criterion_rows, fidelity_table, judge
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage
from fortifai_ray.study.search import BoundarySearch, OptimiseSearch
from fortifai_ray.study.study import Chain, Study

if TYPE_CHECKING:  # SciPy takes its time to import, and only a study that searches needs it
    from fortifai_ray.search.boundary import BoundaryFinder

Task = ChainTask | CohortTask
Config = Mapping[str, Any]


@dataclass(frozen=True)
class CohortResult:
    """A completed cohort of a probe."""

    task: CohortTask
    stage: Stage
    rows: pl.DataFrame


@dataclass(frozen=True)
class Verdict:
    """What a configuration came to: ``outcome`` is for the searcher, ``references`` for the tables."""

    outcome: Mapping[str, Any]
    references: Sequence[Reference] = ()


class Prober(Protocol):
    """The chains of a search's configurations; ``outcomes`` are the keys of their verdicts' outcomes."""

    @property
    def outcomes(self) -> tuple[str, ...]: ...

    def tasks(self, config: Config) -> list[Task]:
        """What a configuration runs, in this order."""

    def verdict(self, config: Config, generations: pl.DataFrame, steps: Steps, devices: Devices) -> Verdict:
        """What it came to, from the rows of its chains."""


def probe_reports(
    prober: Prober, config: Config, steps: Steps, devices: Devices
) -> Iterator[GenerationResult | CohortResult | Verdict]:
    """Each generation or cohort of a configuration as it is completed, and at last its verdict.

    Raises :class:`fortifai_ray.storage.steps.NotStored` at the first missing step where ``steps`` only replays.
    """
    rows: list[Mapping[str, Any]] = []
    tables: list[pl.DataFrame] = []
    for task in prober.tasks(config):
        if isinstance(task, CohortTask):
            stage = run_cohort(task, steps)
            tables.append(cohort_rows(task, stage))
            yield CohortResult(task, stage, tables[-1])
            continue
        for result in run_chain(task, steps, devices):
            rows.append(result.row)
            yield result
    if rows:
        tables.append(pl.DataFrame(rows, infer_schema_length=None, strict=False))
    yield prober.verdict(config, pl.concat(tables, how="diagonal_relaxed"), steps, devices)


@dataclass(frozen=True)
class BoundaryProber:
    """Configurations ``{"cell": name, "value": number, "seed": whole number}``: one chain each.

    ``names`` are those of the cells' searches: with several criteria, a cell has one for each of them.
    """

    study: Study
    inputs: Inputs
    outcomes: tuple[str, ...] = ("collapsed", "generations")

    @cached_property
    def names(self) -> dict[str, tuple[Chain, CollapseCriterion]]:
        criteria = self.study.settings.collapse
        return {
            f"{cell.cell_id}/{index}": (cell, criterion)
            for cell in self.study.cells
            for index, criterion in enumerate(criteria)
        }

    def finder(self, name: str) -> "BoundaryFinder":
        """A new search of a cell."""
        from fortifai_ray.search.boundary import BoundaryFinder

        cell, _ = self.names[name]
        whole = isinstance(cell.recipe.flat()[self.search.over], int)
        return BoundaryFinder(self.search, whole, cell.recipe.seed)

    @property
    def search(self) -> BoundarySearch:
        assert isinstance(self.study.settings.search, BoundarySearch)
        return self.study.settings.search

    def chain(self, config: Config) -> Chain:
        """The chain of a configuration."""
        key = (config["cell"], config["value"], config["seed"])
        if key not in self._known:
            cell, _ = self.names[config["cell"]]
            self._known[key] = self.study.probe(cell, {self.search.over: config["value"]}, config["seed"])
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[str, float, int], Chain]:
        """Chains made so far: to check a recipe takes milliseconds, and each is asked for several times."""
        return {}

    def tasks(self, config: Config) -> list[Task]:
        chain = self.chain(config)
        return [_cohort([chain]) if chain.recipe.batched else ChainTask.of(self.study, chain, self.inputs)]

    def verdict(self, config: Config, generations: pl.DataFrame, steps: Steps, devices: Devices) -> Verdict:
        """Whether the chain collapsed within its horizon by the cell's criterion; None where nobody can tell."""
        _, criterion = self.names[config["cell"]]
        references = self._references(config, steps, devices)
        baseline = {metric: value for _, metric, value in references}.get(criterion.metric)
        status = chain_status(generations, criterion, baseline)
        collapsed = None if status == "failed" else status == "collapsed"
        return Verdict({"collapsed": collapsed, "generations": generations.height}, references)

    def _references(self, config: Config, steps: Steps, devices: Devices) -> list[Reference]:
        """What the study's criteria are relative to, where that is another chain's."""
        wanted = {c.metric for c in self.study.settings.collapse if c.relative_to == "baseline_generation_0"}
        if not wanted:
            return []
        (task,) = self.tasks(config)
        if isinstance(task, ChainTask):
            chain, metrics = task.chain, dict(task.baseline_metrics(steps, devices))
        else:
            (chain,) = task.chains
            metrics = self._cohort_baseline(chain, steps)
        found = {name: metrics.get(name) for name in sorted(wanted)}
        return [(chain.chain_id, name, float(value)) for name, value in found.items() if value is not None]

    def _cohort_baseline(self, chain: Chain, steps: Steps) -> dict[str, Any]:
        """The metrics of the baseline's generation 0, of a family whose chains are arrays."""
        first = self.study.baseline_of(chain).model_copy(update={"generations": 1})
        task = _cohort([self.study.chain(first)])
        return cohort_rows(task, run_cohort(task, steps)).row(0, named=True)


@dataclass(frozen=True)
class OptimiseProber:
    """Configurations ``{key: number, …}``: a chain for each seed of the study, and the baseline's of the same seed."""

    study: Study
    inputs: Inputs
    outcomes: tuple[str, ...] = ("fi_ratio", "fi_ratio_low", "fi_ratio_high", "bound", "n_pairs")

    @property
    def search(self) -> OptimiseSearch:
        assert isinstance(self.study.settings.search, OptimiseSearch)
        return self.study.settings.search

    def chains(self, config: Config) -> list[Chain]:
        """The chains at these values, one for each seed."""
        cell = self.study.cells[0]
        values = {key: config[key] for key in self.search.over}
        return [self.study.probe(cell, values, chain.recipe.seed) for chain in self.study.chains]

    def tasks(self, config: Config) -> list[Task]:
        chains = self.chains(config)
        baselines = [self.study.chain(self.study.baseline_of(chain)) for chain in chains]
        if chains[0].recipe.batched:
            return [_cohort(baselines), _cohort(chains)]
        return [ChainTask.of(self.study, chain, self.inputs) for chain in (*baselines, *chains)]

    def verdict(self, config: Config, generations: pl.DataFrame, steps: Steps, devices: Devices) -> Verdict:
        """The ratio of fidelity intervals to the baseline's, in generations, by the study's first criterion.

        It is None where there is none; with censored chains in it, it is the bound that ``bound`` says.
        """
        criterion, study = self.study.settings.collapse[0], self.study
        chains = chain_table(generations, [criterion], study.settings.baseline, study.varied, study.generations_asked)
        fidelity = fidelity_table(chains, study.varied, study.settings.baseline)
        found = fidelity.filter(criterion_rows(criterion), ~pl.col("is_baseline"), pl.col("unit") == "generations")
        row = found.row(0, named=True)
        ratio = row["fi_ratio"] if row["bound"] in ("exact", "lower") else None
        return Verdict({**{name: row[name] for name in self.outcomes}, "fi_ratio": ratio})


def chain_status(generations: pl.DataFrame, criterion: CollapseCriterion, baseline: float | None) -> str:
    """The status that :func:`fortifai_ray.statistics.chain_table` gives one chain, from its rows in order, without the
    milliseconds of a table; ``baseline`` is the metric at the baseline's generation 0."""
    values = list(itertools.takewhile(lambda value: value is not None, generations[criterion.metric].to_list()))
    reasons = generations["collapse_reason"].to_list()
    recorded = len(values) < len(reasons) and reasons[len(values)] is not None
    limit = criterion.limit(values[0] if values else None, baseline)
    return judge([*values, math.nan] if recorded else values, limit, criterion, recorded=recorded)


def _cohort(chains: Sequence[Chain]) -> CohortTask:
    recipe: Recipe = chains[0].recipe
    return CohortTask(chains, recipe.located())
