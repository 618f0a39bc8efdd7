"""Cohorts of a study: chains of a batched family that differ in their seed alone, computed and stored together.

A cohort runs to its horizon: its chains cost almost nothing, and theory predicts the mean over all seeds, which a late
generation only has where no chain has stopped early. A search asks for its chains a few at a time, each a cohort of its
own: those that differ in their seed alone are computed together there, too.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fortifai_ray.chain.chain import Inputs
from fortifai_ray.chain.recursion import Generation, Lineage, together
from fortifai_ray.chain.rows import generation_rows
from fortifai_ray.recipe.curation import sources
from fortifai_ray.recipe.ecosystem import lineage_of
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.results.schema import LINEAGE, SECONDS
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageKey, StageStore, canonical_hash
from fortifai_ray.study.study import Chain

VERSION = 2  # bump when the same recipe and seeds give other numbers
_TABLE = "generations.parquet"
_CHAINS = 200  # at most: a large study spreads over workers, and a killed one loses little


@dataclass(frozen=True)
class CohortTask:
    """Chains of one cell, the located recipe of the first, and its prepared data."""

    chains: Sequence[Chain]
    recipe: Recipe
    prepared: str | None = None

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        recipe = self.recipe
        inputs: dict[str, Any] = {
            "recipe": recipe.model_dump(mode="json", exclude={"seed", *recipe.read_apart}),
            **({} if self.prepared is None else {"prepared": self.prepared}),
            "family": recipe.family.identity(),
            "loss": recipe.loss.identity(),
            **sources(recipe.curation.steps),
        }
        if recipe.ecosystem is not None:
            inputs["lineages"] = {
                name: [one.family.identity(), one.loss.identity(), sources(one.curation.steps)]
                for name, one in recipe.lineages().items()
            }
            inputs["order"] = recipe.ecosystem.order  # a mapping's keys are hashed in no order
        return inputs

    @cached_property
    def but_seeds(self) -> str:
        """A hash of what determines the cohort, but for its seeds."""
        return canonical_hash(self._inputs)

    @cached_property
    def key(self) -> StageKey:
        return StageKey("cohort", VERSION, {**self._inputs, "seeds": self.seeds}, cheap=True)

    @cached_property
    def id(self) -> str:
        return self.key.hash

    @property
    def seeds(self) -> list[int]:
        return [chain.recipe.seed for chain in self.chains]


def cohorts(chains: Sequence[Chain], inputs: Inputs | None = None) -> list[CohortTask]:
    """Group the batched chains among ``chains`` into cohorts: at most 200 seeds of one cell each.

    Families of a text need their ``inputs``.
    """
    cells: dict[str, list[Chain]] = defaultdict(list)
    for chain in chains:
        if chain.recipe.batched:
            cells[chain.cell_id].append(chain)
    return [
        cohort(cell[start : start + _CHAINS], inputs)
        for cell in cells.values()
        for start in range(0, len(cell), _CHAINS)
    ]


def cohort(chains: Sequence[Chain], inputs: Inputs | None) -> CohortTask:
    """The cohort of chains that differ in their seed alone."""
    recipe = chains[0].recipe
    return CohortTask(chains, recipe.located(), None if inputs is None else inputs.of(recipe))


@dataclass(frozen=True)
class Computed:
    """A cohort's stage and the table in it, a row for each chain and generation."""

    task: CohortTask
    stage: Stage
    table: pl.DataFrame


def run_cohort(task: CohortTask, steps: Steps) -> Stage:
    """The cohort's stage, a table of every chain's generations: taken from the store, or computed.

    Raises :class:`fortifai_ray.storage.store.NotStored` where ``steps`` only replays.
    """
    return _run(task, steps, lambda: _table(task, task.seeds, steps.store))


def run_cohorts(tasks: Sequence[CohortTask], steps: Steps) -> list[Computed]:
    """Several cohorts. The chains of those that are missing and differ in their seeds alone are computed in one
    recursion: no chain's number depends on its neighbours, so each stage is as it would be by itself.

    Raises :class:`fortifai_ray.storage.store.NotStored` where ``steps`` only replays.
    """
    alike: dict[str, list[CohortTask]] = defaultdict(list)
    for task in tasks:
        alike[task.but_seeds].append(task)
    made: dict[str, pl.DataFrame] = {}

    def table(task: CohortTask) -> pl.DataFrame:
        if task.id not in made:
            group = [one for one in alike[task.but_seeds] if one is task or steps.store.find(one.key) is None]
            whole, start = _table(task, [seed for one in group for seed in one.seeds], steps.store), 0
            length = whole.height // sum(len(one.seeds) for one in group)
            for one in group:
                made[one.id] = whole.slice(start, length * len(one.seeds))
                start += length * len(one.seeds)
        return made[task.id]

    found = [(task, _run(task, steps, partial(table, task))) for task in tasks]
    return [Computed(task, stage, _read(stage) if stage.reused else made[task.id]) for task, stage in found]


def cohort_table(task: CohortTask, steps: Steps) -> pl.DataFrame:
    """The table of a cohort's stage, taken from the store, or computed; see :func:`run_cohort`."""
    (one,) = run_cohorts([task], steps)
    return one.table


def _run(task: CohortTask, steps: Steps, make: Callable[[], pl.DataFrame]) -> Stage:
    def compute(folder: Path) -> Mapping[str, Any]:
        table, content = make(), BytesIO()
        table.write_parquet(content)  # into a file, Polars writes by threads that a busy machine lets wait for 5 ms
        (folder / _TABLE).write_bytes(content.getvalue())
        return {"chains": len(task.chains), "generations": table.height // len(task.chains)}

    return steps.run(task.key, f"compute {len(task.chains)} chains", compute)


def _table(task: CohortTask, seeds: Sequence[int], store: StageStore) -> pl.DataFrame:
    """Compute chains: a row per chain, lineage and generation, chain by chain."""
    recipe = task.recipe
    lineages, each = _lineages(task, seeds, store), defaultdict[str | None, list[Generation[Any]]](list)
    for generation in together(lineages):
        each[generation.lineage].append(_without_samples(generation))
    tables = [_table_of(each[one.name], one, seeds) for one in lineages]
    if recipe.ecosystem is None:
        return tables[0]
    chains = np.concatenate([np.repeat(np.arange(len(seeds)), table.height // len(seeds)) for table in tables])
    return pl.concat(tables, how="diagonal")[np.argsort(chains, kind="stable")]


def _lineages(task: CohortTask, seeds: Sequence[int], store: StageStore) -> list[Lineage[Any]]:
    """The lineages of a cohort, or its one model; they keep their samples together, where their readers find them."""
    from fortifai_ray.families.analytic.cohort import CohortFamily, Samples

    recipe = task.recipe
    ecosystem, samples, lineages = recipe.ecosystem, Samples(), list[Lineage[Any]]()
    recipes: Mapping[str | None, Any] = recipe.lineages()
    samples.all = any(one.regime.memory == "all" for one in recipes.values())
    for name, own in recipes.items():
        drawn = [seed if ecosystem is None or name is None else ecosystem.seed_of(name, seed) for seed in seeds]
        family = CohortFamily(own, drawn, samples, name or "", own.bound(task.prepared, store))
        lineages.append(Lineage(own, family, lambda history: False, seeds=drawn, **lineage_of(ecosystem, name)))
    return lineages


def _without_samples(generation: Generation[Any]) -> Generation[Any]:
    return replace(generation, model=generation.model and replace(generation.model, model=None, data=None))


def _table_of(generations: Sequence[Generation[Any]], lineage: Lineage[Any], seeds: Sequence[int]) -> pl.DataFrame:
    """The table of one lineage, put together at once: a small table takes as long as a generation."""
    recipe, count, numbers, ends = lineage.recipe, len(seeds), list[int](), list[tuple[str | None, str | None]]()
    columns: dict[str, list[Any]] = defaultdict(list)
    for generation in generations:
        sets = generation.data.of_each(count) if generation.data.by_seed else [generation.data]
        outputs: dict[str, Any] = {}
        written = [one and one.stage for one in (generation.synthetic, generation.curated)]
        for step in (generation.judged, generation.model, generation.scores, *written, generation.compared):
            outputs |= step.outputs if step else {}
        numbers.append(generation.number)
        ends.append((generation.collapse_reason, generation.ended(recipe)))
        columns["human_size"].append([one.human_size for one in sets])
        columns["synthetic_size"].append([one.synthetic_size for one in sets])
        for name in (*recipe.metrics, *recipe.compared):
            columns[name].append(outputs.get(name))
        for name in SECONDS:
            columns[name].append(outputs.get(name, 0.0))
    reasons, ended = (list(column) * count for column in zip(*ends, strict=True))
    return pl.DataFrame(
        {
            "seed": np.repeat(seeds, len(numbers)),
            **({} if lineage.name is None else {LINEAGE: [lineage.name] * (count * len(numbers))}),
            "generation": np.tile(numbers, count),
            **{name: _column(values, count) for name, values in columns.items()},
            "collapse_reason": pl.Series(reasons, dtype=pl.String),
            "ended": pl.Series(ended, dtype=pl.String),
        }
    )


def _column(generations: Sequence[Any], count: int) -> pl.Series:
    """The values of all generations, one per chain each, chain by chain; what was not measured in a generation, or of
    a chain (None), is null there."""
    measured = [values is not None for values in generations]
    if not any(measured):
        return pl.Series([None] * (len(generations) * count), dtype=pl.Float64)
    spread = [np.full(count, np.nan) if values is None else _spread(values, count) for values in generations]
    flat = np.stack(spread, axis=1).reshape(-1)
    series = pl.Series(flat.tolist() if flat.dtype == object else flat)
    return series if all(measured) else series.set(~pl.Series(np.tile(measured, count)), None)


def _spread(values: Any, count: int) -> np.ndarray:
    """One value per chain."""
    array = np.asarray(values).reshape(-1)
    return array if array.size == count else np.broadcast_to(array, (count,))


def _read(stage: Stage) -> pl.DataFrame:
    """A stage's table, chain by chain: some are stored generation by generation."""
    table = pl.read_parquet(stage.path / _TABLE)
    return table if table["seed"].is_sorted() else table.sort("seed", "generation", maintain_order=True)


def cohort_rows(task: CohortTask, stage: Stage) -> pl.DataFrame:
    """A cohort's rows of ``generations.parquet``, from its stage, chain by chain."""
    return rows_of([Computed(task, stage, _read(stage))])


def rows_of(cohorts: Sequence[Computed]) -> pl.DataFrame:
    """The rows of ``generations.parquet`` of cohorts that differ in their seeds alone, chain by chain."""
    ecosystem = cohorts[0].task.recipe.ecosystem
    if ecosystem is None:
        return _rows(cohorts, [chain for one in cohorts for chain in one.task.chains])
    members = zip(*(chain.members for one in cohorts for chain in one.task.chains), strict=True)
    each = [
        _rows([replace(one, table=one.table.filter(pl.col(LINEAGE) == own[0].lineage)) for one in cohorts], own)
        for own in members
    ]
    return pl.concat(each, how="diagonal_relaxed")


def _rows(cohorts: Sequence[Computed], chains: Sequence[Chain]) -> pl.DataFrame:
    table = pl.concat([one.table for one in cohorts])
    lengths = [one.table.height for one in cohorts]
    reused = pl.Series(np.repeat([one.stage.reused for one in cohorts], lengths))
    own = {
        "synthetic_size_cum": _since_the_first(table["generation"], table["synthetic_size"]),
        "reused": reused,
        "computed_seconds": sum(table[name] for name in SECONDS).set(reused, 0.0),  # type: ignore[union-attr]
        "stage": pl.Series([one.stage.hash for one in cohorts for _ in range(one.table.height)]),
    }
    return generation_rows(chains, table.hstack([column.alias(name) for name, column in own.items()]))


def _since_the_first(generation: pl.Series, size: pl.Series) -> pl.Series:
    """The sum of ``size`` over a chain's generations so far, of chains one after the other."""
    sums, starts = np.cumsum(size.to_numpy()), np.flatnonzero(generation.to_numpy() == 0)
    before = np.concatenate([[0], sums])[starts]
    return pl.Series(sums - np.repeat(before, np.diff([*starts, len(sums)])))
