"""Cohorts of a study: chains of a batched family that differ in their seed alone, computed and stored together.

A cohort runs to its horizon: its chains cost almost nothing, and theory predicts the mean over all seeds, which a late
generation only has where no chain has stopped early.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fortifai_ray.chain.recursion import Generation, recursion
from fortifai_ray.chain.rows import generation_rows
from fortifai_ray.recipe.curation import sources
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.results.schema import SECONDS
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageKey
from fortifai_ray.study.study import Chain

VERSION = 2  # bump when the same recipe and seeds give other numbers
_TABLE = "generations.parquet"
_CHAINS = 200  # at most: a large study spreads over workers, and a killed one loses little


@dataclass(frozen=True)
class CohortTask:
    """Chains of one cell, and the located recipe of the first."""

    chains: Sequence[Chain]
    recipe: Recipe

    @cached_property
    def key(self) -> StageKey:
        recipe = self.recipe
        inputs = {
            "recipe": recipe.model_dump(mode="json", exclude={"seed"}),
            "family": recipe.family.identity(),
            "loss": recipe.loss.identity(),
            "seeds": self.seeds,
            **sources(recipe.curation.steps),
        }
        return StageKey("cohort", VERSION, inputs, cheap=True)

    @property
    def id(self) -> str:
        return self.key.hash

    @property
    def seeds(self) -> list[int]:
        return [chain.recipe.seed for chain in self.chains]


def cohorts(chains: Sequence[Chain]) -> list[CohortTask]:
    """Group the batched chains among ``chains`` into cohorts: at most 200 seeds of one cell each."""
    cells: dict[str, list[Chain]] = defaultdict(list)
    for chain in chains:
        if chain.recipe.batched:
            cells[chain.cell_id].append(chain)
    return [
        CohortTask(cell[start : start + _CHAINS], cell[0].recipe.located())
        for cell in cells.values()
        for start in range(0, len(cell), _CHAINS)
    ]


def run_cohort(task: CohortTask, steps: Steps) -> Stage:
    """The cohort's stage, a table of every chain's generations: taken from the store, or computed.

    Raises :class:`fortifai_ray.storage.store.NotStored` where ``steps`` only replays.
    """
    from fortifai_ray.families.analytic.cohort import CohortFamily

    def compute(folder: Path) -> Mapping[str, Any]:
        family = CohortFamily(task.recipe, task.seeds)  # type: ignore[arg-type]
        generations = recursion(task.recipe, family, lambda history: False, task.seeds)
        table = _table(generations, task)
        table.write_parquet(folder / _TABLE)
        return {"chains": len(task.chains), "generations": int(table["generation"].max()) + 1}  # type: ignore[arg-type]

    return steps.run(task.key, f"compute {len(task.chains)} chains", compute)


def _table(generations: Iterator[Generation[Any]], task: CohortTask) -> pl.DataFrame:
    """A row per chain and generation, put together at once: a small table takes as long as a generation."""
    count, numbers, ends = len(task.chains), list[int](), list[tuple[str | None, str | None]]()
    columns: dict[str, list[Any]] = defaultdict(list)
    for generation in generations:
        sets = generation.data.of_each(count) if generation.data.by_seed else [generation.data]
        outputs: dict[str, Any] = {}
        written = [one and one.stage for one in (generation.synthetic, generation.curated)]
        for step in (generation.model, generation.scores, *written):
            outputs |= step.outputs if step else {}
        numbers.append(generation.number)
        ends.append((generation.collapse_reason, generation.ended(task.recipe)))
        columns["human_size"].append([one.human_size for one in sets])
        columns["synthetic_size"].append([one.synthetic_size for one in sets])
        for name in task.recipe.metrics:
            columns[name].append(outputs.get(name))
        for name in SECONDS:
            columns[name].append(outputs.get(name, 0.0))
    reasons, ended = ([one for one in column for _ in range(count)] for column in zip(*ends, strict=True))
    return pl.DataFrame(
        {
            "seed": task.seeds * len(numbers),
            "generation": np.repeat(numbers, count),
            **{name: _column(values, count) for name, values in columns.items()},
            "collapse_reason": pl.Series(reasons, dtype=pl.String),
            "ended": pl.Series(ended, dtype=pl.String),
        }
    )


def _column(generations: Sequence[Any], count: int) -> pl.Series:
    """The values of all generations, one per chain each; what was not measured in a generation is null there."""
    measured = [values is not None for values in generations]
    if not any(measured):
        return pl.repeat(None, len(generations) * count, dtype=pl.Float64, eager=True)
    spread = [np.full(count, np.nan) if values is None else _spread(values, count) for values in generations]
    series = pl.Series(np.concatenate(spread))
    return series if all(measured) else series.set(~pl.Series(np.repeat(measured, count)), None)


def _spread(values: Any, count: int) -> np.ndarray:
    """One value per chain."""
    array = np.asarray(values).reshape(-1)
    return array if array.size == count else np.broadcast_to(array, (count,))


def first_metrics(stage: Stage) -> dict[str, Any]:
    """What the first chain of a cohort's stage had in generation 0, without the milliseconds of its rows."""
    return pl.read_parquet(stage.path / _TABLE, n_rows=1).row(0, named=True)


def cohort_rows(task: CohortTask, stage: Stage) -> pl.DataFrame:
    """A cohort's rows of ``generations.parquet``, from its stage, chain by chain."""
    table = pl.read_parquet(stage.path / _TABLE).sort("seed", "generation", maintain_order=True)
    return generation_rows(
        task.chains,
        table.with_columns(
            synthetic_size_cum=pl.col("synthetic_size").cum_sum().over("seed"),
            reused=pl.lit(stage.reused),
            computed_seconds=pl.lit(0.0) if stage.reused else pl.sum_horizontal(*SECONDS),
            stage=pl.lit(stage.hash),
        ),
    )
