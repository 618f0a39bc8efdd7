"""What a study's tables say of its cells: FI ratios (``fidelity.parquet``), critical values
(``collapse_points.parquet``) and shares of chains by their onsets (``chains.parquet``)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from fortifai_ray.claims.chains import Undecided, criterion, matches
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.statistics.criterion import CRITERION_COLUMNS, criterion_rows
from fortifai_ray.statistics.intervals import Interval, NoInterval, geometric_mean, share
from fortifai_ray.statistics.order import collapsed_by, onset_bounds, onset_orders
from fortifai_ray.statistics.ratios import MIN_PAIRS
from fortifai_ray.study.claim_statistics import Criterion, CriticalPoint, FidelityRatio, OnsetOrder, OnsetShare, Where

_A_BOUND = {"lower": "a lower", "upper": "an upper"}
# The columns of each table read here, besides the criterion's.
_READ = {
    "fidelity": ("unit", "seed_ratios", "seed_bounds", "bound", "n_failed"),
    "collapse_points": ("over", "critical", "low", "high", "level", "bound", "chains_run"),
    "chains": ("chain_id", "seed", "onset", "status", "fi_generations", "horizon"),
}


def fidelity_ratio(results: StudyResults, statistic: FidelityRatio, where: Where, level: float) -> tuple[Interval, int]:
    """A cell's FI ratio with its interval at ``level`` (the table's interval has its own), and the number of pairs.

    The interval of a bound has an infinite end or one at zero: a ratio of at least 2 may be anything above.

    Raises:
        Undecided, NoInterval: see :mod:`fortifai_ray.claims.check`.
    """
    row = _one_cell(results, "fidelity", statistic.criterion, where, pl.col("unit") == statistic.unit)
    ratios, bounds = row["seed_ratios"] or [], row["seed_bounds"] or []
    if row["n_failed"]:
        raise Undecided(f"{row['n_failed']} chains of the cell failed; leaving them out would favour those that lasted")
    if row["bound"] == "undetermined" or not ratios:
        raise Undecided("the ratio is undetermined: too few chains collapsed")
    if bounds.count("exact") < MIN_PAIRS:
        raise Undecided(f"{bounds.count('exact')} uncensored pairs: an interval needs {MIN_PAIRS}")
    mean = geometric_mean(np.asarray(ratios, dtype=np.float64), level)
    low = 0.0 if row["bound"] == "upper" else mean.low
    high = math.inf if row["bound"] == "lower" else mean.high
    note = mean.note if row["bound"] == "exact" else f"censored chains make it {_A_BOUND[row['bound']]} bound"
    return Interval(mean.measured, low, high, mean.method, note), len(ratios)


def critical_point(results: StudyResults, statistic: CriticalPoint, where: Where, level: float) -> tuple[Interval, int]:
    """A cell's critical value with the search's own interval, and the number of chains run.

    Raises:
        Undecided, NoInterval: see :mod:`fortifai_ray.claims.check`; also where the search's level is below ``level``.
    """
    over = pl.lit(True) if statistic.over is None else pl.col("over") == statistic.over
    row = _one_cell(results, "collapse_points", statistic.criterion, where, over)
    if row["bound"] == "undetermined":
        raise Undecided("the search could not determine the critical value")
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


def _rows(results: StudyResults, name: str, of: Criterion, where: Where, *conditions: pl.Expr) -> pl.DataFrame:
    """The rows of one of the study's tables that belong to a criterion and match ``where``."""
    table = results.table(name, (*CRITERION_COLUMNS, *_READ[name]))
    if table is None:
        raise Undecided(f"results/{name}.parquet is missing")
    return table.filter(criterion_rows(criterion(results, of)), matches(results, table, where), *conditions)


def _one_cell(results: StudyResults, name: str, of: Criterion, where: Where, *conditions: pl.Expr) -> Mapping[str, Any]:
    rows = _rows(results, name, of, where, *conditions)
    if rows.height != 1:
        raise Undecided("no cell matches" if rows.is_empty() else f"where matches {rows.height} cells: name one")
    return rows.row(0, named=True)


def onset_share(results: StudyResults, statistic: OnsetShare, where: Where, level: float) -> tuple[Interval, int]:
    """The share of chains that collapsed by a generation, and the number of chains.

    Raises:
        Undecided, NoInterval: see :mod:`fortifai_ray.claims.check`.
    """
    chains = _rows(results, "chains", statistic.criterion, where)
    if chains.is_empty():
        raise Undecided("no chain matches")
    horizon = max(chains["horizon"].to_list())
    by = horizon if statistic.by is None else statistic.by
    if by > horizon:
        raise Undecided(f"generation {by:g} lies beyond the horizon, {horizon}")
    return _share(onset_bounds(chains).with_columns(verdict=collapsed_by(by)), level)


def onset_order(results: StudyResults, statistic: OnsetOrder, where: Where, level: float) -> tuple[Interval, int]:
    """The share of chains in which one onset lies strictly before the other, and the number of chains.

    Raises:
        Undecided, NoInterval: see :mod:`fortifai_ray.claims.check`.
    """
    rows = [_rows(results, "chains", one, where) for one in (statistic.first, statistic.second)]
    if any(table.is_empty() for table in rows):
        raise Undecided("no chain matches")
    first, second = (criterion(results, one) for one in (statistic.first, statistic.second))
    return _share(onset_orders(pl.concat(rows), first, second).rename({"precedes": "verdict"}), level)


def _share(chains: pl.DataFrame, level: float) -> tuple[Interval, int]:
    if chains["seed"].is_duplicated().any():
        raise Undecided("where matches several chains of one seed, and a share over seeds needs one: narrow it")
    verdicts = chains["verdict"]
    yes, no = int(verdicts.sum()), int((~verdicts).sum())
    return share(yes, no, chains.height - yes - no, level), chains.height
