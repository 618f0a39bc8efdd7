"""What MLflow shows of a cell with many seeds: each metric's mean and quantiles over the seeds, by generation."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl

Series = list[tuple[int, dict[str, float]]]

_STEPS = 200  # a longer chain is shown at this many generations, evenly spread
_QUANTILES = {"q05": 0.05, "median": 0.5, "q95": 0.95}


def seed_quantiles(
    generations: pl.DataFrame, cell_of: Mapping[str, str], metrics: Sequence[str]
) -> Iterator[tuple[str, Series]]:
    """Each cell's series: (generation, ``{"trace_ratio/mean": …, "trace_ratio/q05": …}``), by ascending generation.

    Args:
        generations: a row per chain and generation, with the metrics as columns.
        cell_of: the cell of each chain that is to be shown.
    """
    rows = generations.with_columns(_cell=pl.col("chain_id").replace_strict(cell_of, default=None)).drop_nulls("_cell")
    present = [name for name in metrics if rows[name].count()]
    shown = rows.group_by("_cell", "generation").agg(
        expression
        for name in present
        for expression in (
            pl.col(name).mean().alias(f"{name}/mean"),
            *(pl.col(name).quantile(q, "linear").alias(f"{name}/{label}") for label, q in _QUANTILES.items()),
        )
    )
    for (cell,), table in shown.group_by("_cell", maintain_order=True):
        table = table.sort("generation").drop("_cell")
        kept = np.unique(np.linspace(0, table.height - 1, min(_STEPS, table.height)).round().astype(int))
        yield str(cell), [(row.pop("generation"), _known(row)) for row in table[kept].to_dicts()]


def _known(row: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in row.items() if value is not None}
