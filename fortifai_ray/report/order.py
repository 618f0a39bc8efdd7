"""Which criterion is crossed first: the share of chains in which one onset precedes another ("tails first").

An onset that was not seen is not unknown altogether: a chain that was faithful up to generation *t* crosses after *t*
or never, so that a criterion crossed before *t* came first. Only what such bounds leave open is undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import polars as pl

from fortifai_ray.report.criteria import criterion_rows, criterion_text, short_text
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.reader import Results
from fortifai_ray.results.words import number
from fortifai_ray.statistics import CollapseCriterion

MOST_CELLS = 12  # more are told together


@dataclass(frozen=True)
class Order:
    """Of one cell's chains: how many crossed the first criterion earlier, the second, both at once, and undecided."""

    cell: str
    first: int
    second: int
    together: int
    undecided: int

    @property
    def texts(self) -> tuple[str, ...]:
        """The line's columns: the cell and four counts, the first two with their share of all chains."""
        total = self.first + self.second + self.together + self.undecided
        shares = [f"{part:,} of {total:,} ({number(100 * part / total)} %)" for part in (self.first, self.second)]
        return (self.cell, *shares, f"{self.together:,}", f"{self.undecided:,}")


@dataclass(frozen=True)
class OrderTable:
    """Two criteria in short words, and the orders of their onsets by cell."""

    first: str
    second: str
    rows: list[Order]

    @property
    def headings(self) -> tuple[str, ...]:
        return ("cell", f"{self.first} first", f"{self.second} first", "at once", "undecided")


def order_tables(results: Results) -> list[OrderTable]:
    """A table for each pair of the study's criteria; none where there is but one."""
    if results.chains is None:
        return []
    names = _names(results.criteria)
    return [
        OrderTable(names[a], names[b], _orders(results.chains, results.criteria[a], results.criteria[b], results.cells))
        for a, b in combinations(range(len(results.criteria)), 2)
    ]


def _names(criteria: Sequence[CollapseCriterion]) -> list[str]:
    """Short words for each criterion, the whole of it where short words would be the same."""
    short = [short_text(criterion) for criterion in criteria]
    return [
        criterion_text(criterion) if short.count(name) > 1 else name
        for criterion, name in zip(criteria, short, strict=True)
    ]


def _orders(chains: pl.DataFrame, a: CollapseCriterion, b: CollapseCriterion, cells: Cells) -> list[Order]:
    first, second = (_bounds(chains.filter(criterion_rows(criterion))) for criterion in (a, b))
    named = cells.name(chains.filter(criterion_rows(a))).select("chain_id", "cell")
    both = (
        named.join(first, on="chain_id").join(second, on="chain_id", suffix="_2").filter(pl.col("cell").is_not_null())
    )
    verdict = (
        pl.when(_before("", "_2"))
        .then(pl.lit("first"))
        .when(_before("_2", ""))
        .then(pl.lit("second"))
        .when(pl.col("latest") == pl.col("earliest"), pl.col("latest_2") == pl.col("earliest_2"))
        .then(pl.lit("together"))
        .otherwise(pl.lit("undecided"))
    )
    both = both.with_columns(verdict.alias("verdict"))
    order = cells.order
    if len(order) > MOST_CELLS:
        both, order = both.with_columns(pl.lit(f"all {len(order)} cells").alias("cell")), [f"all {len(order)} cells"]
    counts = {key: len(group) for key, group in both.group_by("cell", "verdict")}
    kinds = ("first", "second", "together", "undecided")
    rows = [Order(cell, *(counts.get((cell, kind), 0) for kind in kinds)) for cell in order]
    return [row for row in rows if any(getattr(row, kind) for kind in kinds)]


def _before(one: str, other: str) -> pl.Expr:
    """Whether ``one``'s onset surely precedes the other's.

    A chain seen uncrossed *at* a generation crosses later than that, so that equality decides for it.
    """
    latest, earliest = pl.col(f"latest{one}"), pl.col(f"earliest{other}")
    return (latest < earliest) | ((latest == earliest) & (pl.col(f"status{other}") == "survived"))


def _bounds(chains: pl.DataFrame) -> pl.DataFrame:
    """Between which generations each chain's onset lies: ``earliest`` and ``latest`` (infinite where it has none)."""
    known = pl.col("status") == "collapsed"
    # An unconfirmed crossing lies between the last generation but one and the last, if it is one.
    seen = pl.col("fi_generations") - (pl.col("status") == "unconfirmed").cast(pl.Int64)
    return chains.select(
        "chain_id",
        "status",
        pl.when(known).then("onset").otherwise(seen.fill_null(0.0).clip(lower_bound=0.0)).alias("earliest"),
        pl.when(known).then(pl.col("onset")).otherwise(float("inf")).alias("latest"),
    )
