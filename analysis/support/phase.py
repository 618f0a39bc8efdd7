"""The plane of two varied keys: the share of chains that collapses at each point, and the boundary.

The boundary is the value of the horizontal key at which half of the chains collapse. Where the study searched over that
key (``collapse_points.parquet``), it is the search's. Otherwise it is read off the grid, one row of the plane at a
time, by the search's own posterior (:mod:`fortifai_ray.search.posterior`) given the grid's chains: with an interval, as
a bound where the boundary lies beyond the grid, and undetermined where collapse is not monotone in the key.
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
from fortifai_ray.search.monotone import PROVEN, contradiction
from fortifai_ray.search.points import Lattice
from fortifai_ray.search.posterior import Posterior
from fortifai_ray.statistics.criterion import CollapseCriterion, criterion_rows
from fortifai_ray.statistics.critical import critical_ratios
from fortifai_ray.study.search import BoundarySearch

LEVEL = 0.90
_FINEST, _COARSEST = 150, 40  # steps of the lattice on which a row's boundary is located
_LOG_SPAN = 20  # a positive key that spans more than this factor is on a log scale


@dataclass(frozen=True)
class Plane:
    """Two keys, and how many chains collapse at each pair of their values.

    Attributes:
        x, y: the keys; ``y`` is None where only one numeric key varies.
        rest: the other varied keys; each combination of their values is a panel.
        shares: ``panel, x, y, chains, collapsed, share``, a row per cell of the plane (``y`` is null for cells without
            that key, as cross entropy has no γ).
        boundaries: ``panel, y, critical, low, high, bound, source, why``, a row per row of the plane.
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
    """The varied keys with at least two numeric values; the synthetic ratio first, then γ."""
    tables = [table for table in (results.chains, _points(results)) if table is not None]
    keys: dict[str, None] = {}
    for table in tables:
        for key in results.cells.keys:
            if key in table.columns and table[key].dtype.is_numeric() and table[key].drop_nulls().n_unique() > 1:
                keys[key] = None
    points = _points(results)
    if points is not None:
        keys |= dict.fromkeys(points["over"].drop_nulls().unique(maintain_order=True).to_list())
    order = ("synthetic_ratio", "gamma", "temperature")
    return sorted(keys, key=lambda key: next((i for i, name in enumerate(order) if key.endswith(name)), len(order)))


def plane(results: StudyResults, criterion: CollapseCriterion, x: str, y: str | None) -> Plane:
    """The plane of ``x`` and ``y``, judged by ``criterion``.

    Raises:
        UserError: the keys are the same, or no chain has a verdict under the criterion.
    """
    if x == y:
        raise UserError(f"the plane needs two different keys: {x} is picked twice")
    rest = tuple(key for key in results.cells.keys if key not in (x, y))
    points = _points(results)
    chains = _verdicts(results, criterion, x, y, rest)
    if chains.is_empty() and points is None:
        raise UserError("no chain has a verdict under this criterion: there is no plane to draw")
    shares = chains.group_by("panel", "x", "y", maintain_order=True).agg(
        chains=pl.len(), collapsed=pl.col("collapsed").sum(), share=pl.col("collapsed").mean()
    )
    searched = _searched(results, criterion, x, y, rest)
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
    """How much more of ``x`` each cell tolerates than the baseline, with the cell's name as ``cell``
    (:func:`~fortifai_ray.statistics.critical.critical_ratios`); None where the study did not search over ``x``
    under this criterion."""
    points = _points_over(results, criterion, x)
    if points is None:
        return None
    keys = [key for key in results.cells.keys if key in points.columns and key != x]
    ratios = critical_ratios(points, keys, results.baseline)
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
    """``panel, x, y, seed, collapsed`` of the chains with a verdict. As in the search, a chain that ended in an
    unconfirmed crossing did not collapse within its horizon."""
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
    """Add ``panel``: the other keys' values in words. Keys with a single value are left out."""
    keys = [key for key in rest if key in table.columns and table[key].n_unique() > 1]
    if not keys:
        return table.with_columns(panel=pl.lit("all chains"))
    named = Cells.of(table.drop("chain_id", strict=False), keys, results.baseline, results.study)
    return named.name(table.drop("chain_id", strict=False)).rename({"cell": "panel"})


def _points(results: StudyResults) -> pl.DataFrame | None:
    """The collapse points that a search located; None where there are none."""
    table = results.table("collapse_points")
    return None if table is None or table.is_empty() else table


def _points_over(results: StudyResults, criterion: CollapseCriterion, x: str) -> pl.DataFrame | None:
    """The collapse points of a search over ``x`` under one criterion; None where there are none."""
    points = _points(results)
    over = None if points is None else points.filter(criterion_rows(criterion), pl.col("over") == x)
    return None if over is None or over.is_empty() else over


def _searched(
    results: StudyResults,
    criterion: CollapseCriterion,
    x: str,
    y: str | None,
    rest: tuple[str, ...],
) -> pl.DataFrame:
    """The boundaries that a search over ``x`` located."""
    points = _points_over(results, criterion, x)
    if points is None:
        return pl.DataFrame(schema=_BOUNDARY)
    points = _panelled(results, points, rest)
    height = pl.col(y).cast(pl.Float64) if y is not None and y in points.columns else pl.lit(None, pl.Float64)
    measured = ("critical", "low", "high", "bound")
    return points.select(
        "panel", height.alias("y"), *measured, pl.lit("search").alias("source"), pl.col("evidence").alias("why")
    ).cast(_BOUNDARY)


def _grid_boundary(group: pl.DataFrame, x: str) -> dict[str, Any]:
    """Where half of the chains of one row of the plane collapse: ``critical, low, high, bound, why``."""
    values = np.unique(group["x"].to_numpy())
    unknown: dict[str, Any] = {"critical": None, "low": None, "high": None, "bound": "undetermined"}
    if values.size < 2:
        return unknown | {"why": f"there is only one value of {x}"}
    search = _search(values, x)
    lattice = Lattice(search, whole=False)
    place = {value: round(lattice.place(value)) for value in values.tolist()}
    answers = [(place[at], seed, fell) for at, seed, fell in group.select("x", "seed", "collapsed").iter_rows()]
    first, last = place[values[0]], place[values[-1]]
    signs = {"rises": (1,), "falls": (-1,), "detect": (1, -1)}[search.known_direction]
    if contradiction(answers, first, last, signs) > PROVEN:
        return unknown | {"why": f"collapse is not monotone in {x}: there is no single boundary"}
    tail = (1 - LEVEL) / 2
    belief = Posterior(first, last, signs).belief(answers)
    low, middle, high = belief.quantile(np.array([tail, 0.5, 1 - tail])).tolist()
    if low < first and high > last:
        return unknown | {"why": f"the grid's chains do not determine where it lies along {x}"}
    if low < first:  # an upper bound
        edge = lattice.between(max(high, first))
        return {"critical": edge, "low": None, "high": edge, "bound": "upper", "why": None}
    if high > last:
        edge = lattice.between(min(low, last))
        return {"critical": edge, "low": edge, "high": None, "bound": "lower", "why": None}
    ends = {name: lattice.between(at) for name, at in (("critical", middle), ("low", low), ("high", high))}
    return {**ends, "bound": "exact", "why": None}


def is_log(values: np.ndarray) -> bool:
    """Whether a key is drawn on a log scale: its values are positive and span more than a factor of 20."""
    return bool(values.min() > 0 and values.max() / values.min() > _LOG_SPAN)


def _search(values: np.ndarray, x: str) -> BoundarySearch:
    """The settings of a search over the grid's range, fine enough to distinguish its values."""
    log = is_log(values)
    spaced = np.log(values) if log else values
    width = float(spaced[-1] - spaced[0])
    steps = min(_FINEST, max(_COARSEST, math.ceil(4 * width / float(np.diff(spaced).min()))))
    tolerance = 2 * width / steps
    settings: dict[str, Any] = {"over": x, "low": float(values[0]), "high": float(values[-1]), "tolerance": tolerance}
    return BoundarySearch.model_validate(settings | {"level": LEVEL, "scale": "log" if log else "linear"})
