"""The plane of two varied keys: which share of the chains collapses at each point, and where the boundary runs.

The boundary is the value of the horizontal key at which half of the chains collapse. Where the study searched for it
(``collapse_points.parquet``, over that key) it is the search's. Else it is read off the grid, one row of the plane at a
time, by the posterior that the search itself believes in (:mod:`fortifai_ray.search.posterior`), given what the grid's
chains did: with its interval, a bound where the boundary lies beyond the grid, and nothing where collapse is not
monotone in the key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.search.monotone import contradiction
from fortifai_ray.search.points import Lattice
from fortifai_ray.search.posterior import Posterior
from fortifai_ray.statistics import CollapseCriterion, criterion_rows, critical_ratios
from fortifai_ray.study.search import BoundarySearch

LEVEL = 0.90
_FINEST, _COARSEST = 150, 40  # steps of the lattice that a row's boundary is looked for on
_LOG_SPAN = 20  # a positive key that spans more than this factor multiplies


@dataclass(frozen=True)
class Plane:
    """Two keys, and what chains did at each of their values.

    Attributes:
        x, y: the keys; ``y`` is None where only one numeric key varies.
        rest: the other varied keys: a panel for each combination of their values.
        shares: ``panel, x, y, chains, collapsed, share``: the cells of the plane (``y`` null where it has no value
            there, as cross entropy has no γ).
        boundaries: ``panel, y, critical, low, high, bound, source, why``: a row of the plane each.
    """

    x: str
    y: str | None
    rest: tuple[str, ...]
    shares: pl.DataFrame
    boundaries: pl.DataFrame

    @property
    def panels(self) -> list[str]:
        """The panels' names, in order."""
        return self.shares["panel"].unique(maintain_order=True).to_list()


def numeric_keys(results: StudyResults) -> list[str]:
    """The varied keys whose values are numbers, and at least two; the synthetic ratio first, then γ."""
    tables = [table for table in (results.chains, _points(results)) if table is not None]
    found: dict[str, None] = {}
    for table in tables:
        for key in results.cells.keys:
            if key in table.columns and table[key].dtype.is_numeric() and table[key].drop_nulls().n_unique() > 1:
                found[key] = None
    points = _points(results)
    if points is not None:
        found |= dict.fromkeys(points["over"].drop_nulls().unique(maintain_order=True).to_list())
    order = ("synthetic_ratio", "gamma", "temperature")
    return sorted(found, key=lambda key: next((i for i, name in enumerate(order) if key.endswith(name)), len(order)))


def plane(results: StudyResults, criterion: CollapseCriterion, x: str, y: str | None) -> Plane:
    """The plane of ``x`` and ``y``, judged by ``criterion``.

    Raises:
        UserError: the keys are the same, or no chain has a verdict under the criterion.
    """
    if x == y:
        raise UserError(f"the plane needs two different keys: {x} was picked twice")
    rest = tuple(key for key in results.cells.keys if key not in (x, y))
    points = _points(results)
    chains = _verdicts(results, criterion, x, y, rest)
    if chains.is_empty() and points is None:
        raise UserError("no chain has a verdict under this criterion: there is no plane to draw")
    shares = chains.group_by("panel", "x", "y", maintain_order=True).agg(
        chains=pl.len(), collapsed=pl.col("collapsed").sum(), share=pl.col("collapsed").mean()
    )
    searched = _searched(results, points, criterion, x, y, rest)
    rows = list(searched.rows(named=True))
    known = {(row["panel"], row["y"]) for row in rows}
    for (panel, height), group in chains.group_by("panel", "y", maintain_order=True):
        if (panel, height) not in known:
            rows.append({"panel": panel, "y": height, "source": "grid", **_grid_boundary(group, x)})
    return Plane(
        x,
        y,
        rest,
        shares.sort("panel", "y", "x"),
        pl.DataFrame(rows, schema=_BOUNDARY, strict=False).sort("panel", "y"),
    )


def tolerated(results: StudyResults, criterion: CollapseCriterion, x: str) -> pl.DataFrame | None:
    """How much more of ``x`` each cell tolerates than the baseline (:func:`~fortifai_ray.statistics.critical_ratios`),
    with ``cell``, its name; None where the study did not search over ``x`` under this criterion."""
    points = _points(results)
    found = None if points is None else points.filter(criterion_rows(criterion), pl.col("over") == x)
    if found is None or found.is_empty():
        return None
    keys = [key for key in results.cells.keys if key in found.columns and key != x]
    ratios = critical_ratios(found, keys, results.baseline)
    return Cells.of(ratios, keys, results.baseline, results.study).name(ratios)


_BOUNDARY = pl.Schema(
    {
        **{"panel": pl.String, "y": pl.Float64},
        **dict.fromkeys(("critical", "low", "high"), pl.Float64),
        **dict.fromkeys(("bound", "source", "why"), pl.String),
    }
)


def _verdicts(
    results: StudyResults, criterion: CollapseCriterion, x: str, y: str | None, rest: tuple[str, ...]
) -> pl.DataFrame:
    """``panel, x, y, seed, collapsed`` of the chains with a verdict. One that ended in an unconfirmed crossing did not
    collapse within its horizon, as in the search."""
    assert results.chains is not None
    table = results.chains.filter(criterion_rows(criterion), pl.col("status") != "failed")
    if x not in table.columns:
        return pl.DataFrame(
            schema={"panel": pl.String, "x": pl.Float64, "y": pl.Float64, "seed": pl.Int64, "collapsed": pl.Boolean}
        )
    table = _panelled(results, table, rest).filter(pl.col(x).is_not_null())
    height = pl.col(y).cast(pl.Float64) if y is not None and y in table.columns else pl.lit(None, pl.Float64)
    return table.select(
        "panel",
        pl.col(x).cast(pl.Float64).alias("x"),
        height.alias("y"),
        "seed",
        collapsed=pl.col("status") == "collapsed",
    )


def _panelled(results: StudyResults, table: pl.DataFrame, rest: tuple[str, ...]) -> pl.DataFrame:
    """Adds ``panel``: the combination of the other keys' values, in words. Keys with one value only are left out."""
    keys = [key for key in rest if key in table.columns and table[key].n_unique() > 1]
    if not keys:
        return table.with_columns(panel=pl.lit("all chains"))
    named = Cells.of(table.drop("chain_id", strict=False), keys, results.baseline, results.study)
    return named.name(table.drop("chain_id", strict=False)).rename({"cell": "panel"})


def _points(results: StudyResults) -> pl.DataFrame | None:
    """The search's collapse points, where the study has any."""
    table = results.table("collapse_points")
    return None if table is None or table.is_empty() else table


def _searched(
    results: StudyResults,
    points: pl.DataFrame | None,
    criterion: CollapseCriterion,
    x: str,
    y: str | None,
    rest: tuple[str, ...],
) -> pl.DataFrame:
    """The boundaries that a search over ``x`` found."""
    if points is None:
        return pl.DataFrame(schema=_BOUNDARY)
    found = points.filter(criterion_rows(criterion), pl.col("over") == x)
    if found.is_empty():
        return pl.DataFrame(schema=_BOUNDARY)
    found = _panelled(results, found, rest)
    height = pl.col(y).cast(pl.Float64) if y is not None and y in found.columns else pl.lit(None, pl.Float64)
    evidence = pl.col("evidence") if "evidence" in found.columns else pl.lit(None, pl.String)
    return found.select(
        "panel",
        height.alias("y"),
        "critical",
        "low",
        "high",
        "bound",
        pl.lit("search").alias("source"),
        evidence.alias("why"),
    ).cast(_BOUNDARY)


def _grid_boundary(group: pl.DataFrame, x: str) -> dict[str, Any]:
    """Where half of the chains of one row of the plane collapse: ``critical, low, high, bound, why``."""
    values = np.unique(group["x"].to_numpy())
    unknown: dict[str, Any] = {"critical": None, "low": None, "high": None, "bound": "undetermined"}
    if values.size < 2:
        return unknown | {"why": f"one value of {x} only"}
    search = _search(values, x)
    lattice = Lattice(search, whole=False)
    place = {value: round(lattice.place(value)) for value in values.tolist()}
    answers = [(place[at], seed, fell) for at, seed, fell in group.select("x", "seed", "collapsed").iter_rows()]
    first, last = place[values[0]], place[values[-1]]
    signs = {"rises": (1,), "falls": (-1,), "detect": (1, -1)}[search.known_direction]
    if contradiction(answers, first, last, signs).proven:
        return unknown | {"why": f"collapse neither only rises nor only falls with {x}: there is no one boundary"}
    tail = (1 - LEVEL) / 2
    belief = Posterior(first, last, signs).belief(answers)
    low, middle, high = belief.quantile(np.array([tail, 0.5, 1 - tail])).tolist()
    if low < first and high > last:
        return unknown | {"why": f"the grid's chains leave open where it is along {x}"}
    if low < first:  # an upper bound
        edge = lattice.between(max(high, first))
        return {"critical": edge, "low": None, "high": edge, "bound": "upper", "why": None}
    if high > last:
        edge = lattice.between(min(low, last))
        return {"critical": edge, "low": edge, "high": None, "bound": "lower", "why": None}
    ends = {name: lattice.between(at) for name, at in (("critical", middle), ("low", low), ("high", high))}
    return {**ends, "bound": "exact", "why": None}


def is_log(values: np.ndarray) -> bool:
    """Whether a key's values multiply rather than add up: positive, and spread over more than a factor of 20."""
    return bool(values.min() > 0 and values.max() / values.min() > _LOG_SPAN)


def _search(values: np.ndarray, x: str) -> BoundarySearch:
    """The settings of a search over the grid's range, fine enough to tell its values apart."""
    log = is_log(values)
    spaced = np.log(values) if log else values
    width = float(spaced[-1] - spaced[0])
    steps = min(_FINEST, max(_COARSEST, math.ceil(4 * width / float(np.diff(spaced).min()))))
    tolerance = 2 * width / steps
    settings: dict[str, Any] = {"over": x, "low": float(values[0]), "high": float(values[-1]), "tolerance": tolerance}
    return BoundarySearch.model_validate(settings | {"level": LEVEL, "scale": "log" if log else "linear"})
