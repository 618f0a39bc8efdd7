"""Numbers that a study's tables give per cell: FI ratios (``fidelity.parquet``) and critical values
(``collapse_points.parquet``)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from fortifai_ray.claims.tables import StudyTables, Undecided
from fortifai_ray.statistics.criterion import CollapseCriterion, criterion_rows, with_chance
from fortifai_ray.statistics.intervals import Interval, NoInterval, geometric_mean, share
from fortifai_ray.statistics.ratios import MIN_PAIRS
from fortifai_ray.study.claim_statistics import Criterion, CriticalPoint, FidelityRatio, OnsetOrder, OnsetShare, Where

_CRITERION = ("metric", "threshold", "relative_to", "direction", "confirm")
_FIDELITY = (*_CRITERION, "unit", "seed_ratios", "seed_bounds", "bound", "n_failed")
_POINTS = (*_CRITERION, "over", "critical", "low", "high", "level", "bound", "chains_run")


def fidelity_ratio(tables: StudyTables, statistic: FidelityRatio, where: Where, level: float) -> tuple[Interval, int]:
    """A cell's FI ratio with its interval at ``level`` (the table has its own), and how many pairs it rests on.

    A bound has an infinite or a zero end: a ratio of at least 2 may be anything above.

    Raises:
        Undecided, NoInterval: see :mod:`fortifai_ray.claims.check`.
    """
    table = tables.table("fidelity", _FIDELITY)
    row = _one_cell(tables, table.filter(pl.col("unit") == statistic.unit), statistic.criterion, where)
    ratios, bounds = row["seed_ratios"] or [], row["seed_bounds"] or []
    if row["n_failed"]:
        raise Undecided(f"{row['n_failed']} chains of the cell failed; leaving them out would favour those that lasted")
    if row["bound"] == "undetermined" or not ratios:
        raise Undecided("the ratio is undetermined: too few chains collapsed")
    if bounds.count("exact") < MIN_PAIRS:
        raise Undecided(f"{bounds.count('exact')} uncensored pairs: an interval needs {MIN_PAIRS}")
    found = geometric_mean(np.asarray(ratios, dtype=np.float64), level)
    low = 0.0 if row["bound"] == "upper" else found.low
    high = math.inf if row["bound"] == "lower" else found.high
    note = found.note if row["bound"] == "exact" else f"censored chains make it {_A_BOUND[row['bound']]} bound"
    return Interval(found.measured, low, high, found.method, note), len(ratios)


_A_BOUND = {"lower": "a lower", "upper": "an upper"}


def critical_point(tables: StudyTables, statistic: CriticalPoint, where: Where, level: float) -> tuple[Interval, int]:
    """A cell's critical value with the search's own interval, and how many chains it ran.

    Raises:
        Undecided, NoInterval: see :mod:`fortifai_ray.claims.check`; also where the search's level is under ``level``.
    """
    table = tables.table("collapse_points", _POINTS)
    if statistic.over is not None:
        table = table.filter(pl.col("over") == statistic.over)
    row = _one_cell(tables, table, statistic.criterion, where)
    if row["bound"] == "undetermined":
        raise Undecided("the search found no critical value: it is undetermined")
    if row["level"] < level:
        raise NoInterval(f"the search's interval is at {100 * row['level']:g} %, the claim asks for {100 * level:g} %")
    low, high = row["low"], row["high"]
    if row["bound"] == "lower":
        high = math.inf
    elif row["bound"] == "upper":
        low = -math.inf
    if low is None or high is None:
        raise NoInterval("the search gave no interval")
    measured = next((row[name] for name in ("critical", "low", "high") if row[name] is not None), math.nan)
    note = "" if row["bound"] == "exact" else f"the search gave {_A_BOUND[row['bound']]} bound"
    return Interval(measured, low, high, "the search's own", note), row["chains_run"]


def _one_cell(tables: StudyTables, table: pl.DataFrame, criterion: Criterion, where: Where) -> Mapping[str, Any]:
    wanted = tables.criterion(criterion)
    table = with_chance(table)
    rows = table.filter(tables.matches(table, where), criterion_rows(CollapseCriterion.model_validate(wanted)))
    if rows.height != 1:
        raise Undecided("no cell matches" if rows.is_empty() else f"where matches {rows.height} cells: name one")
    return rows.row(0, named=True)


# Shares of chains by their collapse onsets, from ``chains.parquet``.

_COLUMNS = (
    "metric",
    "threshold",
    "relative_to",
    "direction",
    "confirm",
    "chain_id",
    "seed",
    "onset",
    "status",
    "fi_generations",
    "horizon",
)


def onset_share(tables: StudyTables, statistic: OnsetShare, where: Where, level: float) -> tuple[Interval, int]:
    """The share of chains that collapsed by a generation, and how many chains there are.

    Raises:
        Undecided, NoInterval: see :mod:`fortifai_ray.claims.check`.
    """
    chains = _bounded(tables, statistic.criterion, where)
    horizon = max(chains["horizon"].to_list())
    by = horizon if statistic.by is None else statistic.by
    if by > horizon:
        raise Undecided(f"generation {by:g} lies beyond the horizon, {horizon}")
    verdict = pl.when(pl.col("latest") <= by).then(True).when(pl.col("earliest") > by).then(False)
    # A chain seen to the horizon without a crossing has not collapsed by then, though it may just afterwards.
    verdict = verdict.when((pl.col("status") == "survived") & (pl.col("earliest") >= by)).then(False)
    return _share(chains.with_columns(verdict=verdict), level)


def onset_order(tables: StudyTables, statistic: OnsetOrder, where: Where, level: float) -> tuple[Interval, int]:
    """The share of chains in which one onset lies strictly before the other, and how many chains there are.

    Raises:
        Undecided, NoInterval: see :mod:`fortifai_ray.claims.check`.
    """
    first, second = (_bounded(tables, criterion, where) for criterion in (statistic.first, statistic.second))
    both = first.join(second.drop("seed"), on="chain_id", how="inner", suffix="_2")
    # A chain that was seen uncrossed at a generation collapses later than that, never at it.
    open_second = pl.col("latest_2").is_infinite()
    surely = (pl.col("latest") < pl.col("earliest_2")) | (
        (pl.col("latest") <= pl.col("earliest_2")) & open_second & (pl.col("status_2") == "survived")
    )
    surely_not = pl.col("earliest") >= pl.col("latest_2")
    verdict = pl.when(surely).then(True).when(surely_not).then(False)
    return _share(both.with_columns(verdict=verdict), level)


def _bounded(tables: StudyTables, criterion: Criterion, where: Where) -> pl.DataFrame:
    """A row per chain with ``earliest`` and ``latest``, between which its onset lies (0 to infinity if it failed)."""
    table = tables.table("chains", _COLUMNS)
    wanted = tables.criterion(criterion)
    table = with_chance(table)
    rows = table.filter(tables.matches(table, where), criterion_rows(CollapseCriterion.model_validate(wanted)))
    if rows.is_empty():
        raise Undecided("no chain matches")
    known = pl.col("status") == "collapsed"
    # an unconfirmed crossing lies within the last `confirm` generations
    seen = (
        pl.when(pl.col("status") == "unconfirmed")
        .then(pl.col("fi_generations") - pl.col("confirm"))
        .otherwise("fi_generations")
    )
    return rows.select(
        "chain_id",
        "seed",
        "status",
        "horizon",
        earliest=pl.when(known).then("onset").otherwise(seen.fill_null(0.0).clip(lower_bound=0.0)),
        latest=pl.when(known).then("onset").otherwise(float("inf")),
    )


def _share(chains: pl.DataFrame, level: float) -> tuple[Interval, int]:
    if chains["seed"].is_duplicated().any():
        raise Undecided("where matches several chains of one seed, and a share over seeds needs one: narrow it")
    verdicts = chains["verdict"]
    yes, no = int(verdicts.sum()), int((~verdicts).sum())
    return share(yes, no, chains.height - yes - no, level), chains.height
