"""What a study's tables say of its cells: FI ratios (``fidelity.parquet``), critical values
(``collapse_points.parquet``) and shares of chains by their onsets (``chains.parquet``)."""

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from fortifai_ray.claims.chains import Undecided, criterion, matches
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import CRITERION_COLUMNS
from fortifai_ray.statistics.criterion import Collapse, criterion_rows
from fortifai_ray.statistics.fidelity import fidelity_table
from fortifai_ray.statistics.intervals import Interval, NoInterval, share
from fortifai_ray.statistics.order import collapsed_by, onset_bounds, onset_orders
from fortifai_ray.statistics.ratios import MIN_PAIRS
from fortifai_ray.study.claim_statistics import Criterion, CriticalPoint, FidelityRatio, OnsetOrder, OnsetShare, Where

_A_BOUND = {"lower": "a lower", "upper": "an upper"}
# The columns of each table read here, besides the criterion's.
_READ = {
    "collapse_points": ("over", "critical", "low", "high", "level", "bound", "chains_run"),
    "chains": ("chain_id", "seed", "onset", "status", "fi_generations", "horizon"),
}


Measured = tuple[Interval, int, list[int]]
"""A statistic's interval, the number of independent chains behind it, and the seeds of the chains that it is about."""


def fidelity_ratio(results: StudyResults, statistic: FidelityRatio, where: Where, level: float) -> Measured:
    """A cell's FI ratio with its interval at ``level``, as the fidelity table has it, the number of pairs, and the
    cell's seeds.

    The interval of a bound has an infinite end or one at zero: a ratio of at least 2 may be anything above.

    Raises:
        Undecided, NoInterval: see :mod:`fortifai_ray.claims.check`.
    """
    of = criterion(results, statistic.criterion)
    table = _fidelity_at(results, of, level)
    if statistic.unit not in table["unit"]:
        raise Undecided(
            "there is nothing to count it in: the training sets do not grow from generation to generation, or no chain "
            "is known to be faithful beyond generation 1"
        )
    row = _single(table.filter(matches(results, table.schema, where), pl.col("unit") == statistic.unit))
    if row["n_failed"]:
        raise Undecided(f"{row['n_failed']} chains of the cell failed; leaving them out would favour those that lasted")
    if row["fi_ratio_low"] is None and row["fi_ratio_high"] is None:
        if row["fi_ratio"] is None:
            raise Undecided("the ratio is undetermined: too few chains collapsed, or one did at generation 0")
        raise Undecided(f"{row['n_pairs']} pairs give no interval: it takes {MIN_PAIRS} that are not all alike")
    low = 0.0 if row["fi_ratio_low"] is None else row["fi_ratio_low"]
    high = math.inf if row["fi_ratio_high"] is None else row["fi_ratio_high"]
    bound = _A_BOUND.get(row["fi_ratio_bound"])
    note = f"censored chains make it {bound} bound" if bound else ""
    measured = math.nan if row["fi_ratio"] is None else row["fi_ratio"]
    seeds = _rows(results, "chains", statistic.criterion, where)["seed"].to_list()
    return Interval(measured, low, high, row["estimator"] or "", note), row["n_pairs"], seeds


def _fidelity_at(results: StudyResults, of: Collapse, level: float) -> pl.DataFrame:
    """The rows of the fidelity table under a criterion, with intervals at ``level``: the table's own is one level."""
    columns = ("chain_id", "seed", "status", "censored", "horizon", "fi_generations", "fi_synthetic")
    chains = results.table("chains", (*CRITERION_COLUMNS, *columns))
    if chains is None:
        raise Undecided("results/chains.parquet is missing")
    return fidelity_table(chains.filter(criterion_rows(of)), [*results.varied, "seed"], results.baseline, level=level)


def critical_point(results: StudyResults, statistic: CriticalPoint, where: Where, level: float) -> Measured:
    """A cell's critical value with the search's own interval, the number of chains run, and the seed from which the
    search's seeds follow.

    A search that has not settled has no value (NaN), but it has an interval where the answers leave some values out: a
    claim that all of it agrees with is decided. An end that the range did not reach is infinite.

    Raises:
        Undecided, NoInterval: see :mod:`fortifai_ray.claims.check`; also where the search's level is below ``level``.
    """
    over = pl.lit(True) if statistic.over is None else pl.col("over") == statistic.over
    row = _one_cell(results, "collapse_points", statistic.criterion, where, over)
    low, high = row["low"], row["high"]
    if low is None and high is None:
        raise Undecided("the search could not determine the critical value")
    if row["level"] < level:
        raise NoInterval(f"the search's interval is at {100 * row['level']:g} %, the claim asks for {100 * level:g} %")
    notes = {"exact": "", "lower": "the search gave a lower bound", "upper": "the search gave an upper bound"}
    note = notes.get(row["bound"], "the search has not settled")
    low = -math.inf if low is None or row["bound"] == "upper" else low
    high = math.inf if high is None or row["bound"] == "lower" else high
    measured = math.nan if row["critical"] is None else row["critical"]
    seed = results.study.get("seed", 0)
    return Interval(measured, low, high, "the search's own", note), row["chains_run"], [seed]


def _rows(results: StudyResults, name: str, of: Criterion, where: Where, *conditions: pl.Expr) -> pl.DataFrame:
    """The rows of one of the study's tables that belong to a criterion and match ``where``."""
    table = results.table(name, (*CRITERION_COLUMNS, *_READ[name]))
    if table is None:
        raise Undecided(f"results/{name}.parquet is missing")
    return table.filter(criterion_rows(criterion(results, of)), matches(results, table.schema, where), *conditions)


def _one_cell(results: StudyResults, name: str, of: Criterion, where: Where, *conditions: pl.Expr) -> Mapping[str, Any]:
    return _single(_rows(results, name, of, where, *conditions))


def _single(rows: pl.DataFrame) -> Mapping[str, Any]:
    if rows.height != 1:
        raise Undecided("no cell matches" if rows.is_empty() else f"where matches {rows.height} cells: name one")
    return rows.row(0, named=True)


def onset_share(results: StudyResults, statistic: OnsetShare, where: Where, level: float) -> Measured:
    """The share of chains that collapsed by a generation, the number of chains and their seeds.

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


def onset_order(results: StudyResults, statistic: OnsetOrder, where: Where, level: float) -> Measured:
    """The share of chains in which one onset lies strictly before the other, the number of chains and their seeds.

    Raises:
        Undecided, NoInterval: see :mod:`fortifai_ray.claims.check`.
    """
    rows = [_rows(results, "chains", one, where) for one in (statistic.first, statistic.second)]
    if any(table.is_empty() for table in rows):
        raise Undecided("no chain matches")
    first, second = (criterion(results, one) for one in (statistic.first, statistic.second))
    return _share(onset_orders(pl.concat(rows), first, second).rename({"precedes": "verdict"}), level)


def _share(chains: pl.DataFrame, level: float) -> Measured:
    if chains["seed"].is_duplicated().any():
        raise Undecided("where matches several chains of one seed, and a share over seeds needs one: narrow it")
    verdicts = chains["verdict"]
    yes, no = int(verdicts.sum()), int((~verdicts).sum())
    return share(yes, no, chains.height - yes - no, level), chains.height, chains["seed"].to_list()
