"""A history's steps as generations: strides, and metrics that are not there at each."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.histories.source import Columns
from fortifai_ray.results.words import counted

BROKEN = "where a run broke down, say so in a column collapse_reason"


def named(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """A chain for messages: ``loss=tce gamma=0.9 seed=0``, without what it lacks."""
    return " ".join(f"{name}={row[name]}" for name in names if row[name] is not None)


def stride_of(steps: pl.Series) -> int:
    """The stride in which the steps of all chains together count from 0 on without a gap; 1 where there is none."""
    known = steps.unique().to_list()
    stride = math.gcd(*known)
    return stride if stride > 1 and max(known) == stride * (len(known) - 1) else 1


def check_measured(table: pl.DataFrame, asked: Columns, source: str, notes: list[str]) -> None:
    """Each metric is there at every generation of a chain up to some last one: a criterion judges each of them.

    ``notes`` say where a metric ends before its chain does, and where it is NaN or infinite.

    Raises:
        UserError: a chain has no value of a metric at a generation, and one later, or none at all.
    """
    recorded = pl.col("collapse_reason").is_not_null() if "collapse_reason" in table.columns else pl.lit(False)
    for name in asked.metrics:
        there, at = pl.col(name).is_not_null(), pl.col("generation")
        chains = table.group_by(*asked.by, "seed", maintain_order=True).agg(
            missing=at.filter(~there & ~recorded).min(),
            last=at.filter(there).max(),
            broken=at.filter(~pl.col(name).is_finite() & ~recorded).min(),
        )
        for column, holds in (("missing", pl.col("last").is_null() | (pl.col("missing") < pl.col("last"))),
                              ("missing", True), ("broken", True)):  # fmt: skip
            found = chains.filter(pl.col(column).is_not_null() & holds)
            if found.is_empty():
                continue
            row = found.row(0, named=True)
            chain = named({**row, asked.seed: row["seed"]}, [*asked.by, asked.seed])
            more = f" (and {counted(found.height - 1, 'more chain')})" if found.height > 1 else ""
            if holds is not True:
                raise UserError(
                    f"{source}: --metric {name}: {chain} has no value at generation {row['missing']}{more}, and a "
                    "criterion judges every generation: give a value at each, or only the rows that have every metric"
                )
            if column == "missing":
                notes.append(f"{name}: {chain} has no value from generation {row['missing']} on{more}; {BROKEN}")
            else:
                notes.append(
                    f"{name} is NaN or infinite in generation {row['broken']} of {chain}{more}, which counts as beyond "
                    "the limit; a column collapse_reason says that a chain ended so, and confirms it"
                )
