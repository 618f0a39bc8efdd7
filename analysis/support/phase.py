"""The plane of two varied keys: the share of chains that collapses at each point, and the boundary, as chart and table.

The boundary is the value of the horizontal key at which half of the chains collapse. Where the study searched over that
key (``collapse_points.parquet``), it is the search's. Otherwise it is read off the grid, one row of the plane at a
time, by the posterior of :mod:`support.posterior` given the grid's chains: with an interval, as
a bound where the boundary lies beyond the grid, and undetermined where collapse is not monotone in the key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.report.charts.encodings import GREY, PALETTE, SHAPES, Tooltips, bound_shape, by_name, chart_of
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.words import MARKS, number
from fortifai_ray.search.monotone import PROVEN, contradiction
from fortifai_ray.search.points import Lattice
from fortifai_ray.statistics.criterion import Collapse, criterion_rows
from fortifai_ray.statistics.critical import critical_ratios
from fortifai_ray.statistics.intervals import clopper_pearson
from fortifai_ray.study.search import BoundarySearch
from support.posterior import Posterior

LEVEL = 0.90
WIDTH, HEIGHT = 560, 300
_FINEST, _COARSEST = 150, 40  # steps of the lattice on which a row's boundary is located
_LOG_SPAN = 20  # a positive key that spans more than this factor is on a log scale
_LINE = PALETTE[0]
_BOUNDS = {"exact": "circle", "lower": "triangle-right", "upper": "triangle-left"}
_BOUNDARY = pl.Schema(
    {
        **{"panel": pl.String, "y": pl.Float64},
        **dict.fromkeys(("critical", "low", "high"), pl.Float64),
        **dict.fromkeys(("bound", "source", "why"), pl.String),
    }
)


@dataclass(frozen=True)
class Plane:
    """Two keys, and how many chains collapse at each pair of their values.

    Attributes:
        x, y: the keys; ``y`` is None where only one numeric key varies.
        shares: ``panel, x, y, chains, collapsed, share``, a row per cell of the plane (``y`` is null for cells without
            that key, as cross entropy has no γ). Each combination of the other varied keys' values is a panel.
        boundaries: ``panel, y, critical, low, high, bound, source, why``, a row per row of the plane.
    """

    x: str
    y: str | None
    shares: pl.DataFrame
    boundaries: pl.DataFrame

    @property
    def panels(self) -> list[str]:
        """The panels' names, in order: those with chains, or else those that a search located a boundary for."""
        table = self.boundaries if self.shares.is_empty() else self.shares
        return table["panel"].unique(maintain_order=True).to_list()


def numeric_keys(results: StudyResults) -> list[str]:
    """The varied keys with at least two numeric values; the synthetic ratio first, then γ."""
    points = _points(results)
    tables = [table for table in (results.chains, points) if table is not None]
    numeric = [
        key
        for table in tables
        for key in results.cells.keys
        if key in table.columns and table[key].dtype.is_numeric() and table[key].drop_nulls().n_unique() > 1
    ]
    searched = points["over"].drop_nulls().unique(maintain_order=True) if points is not None else ()
    order = ("synthetic_ratio", "gamma", "temperature")
    keys = dict.fromkeys([*numeric, *searched])
    return sorted(keys, key=lambda key: next((i for i, name in enumerate(order) if key.endswith(name)), len(order)))


def plane(results: StudyResults, criterion: Collapse, x: str, y: str | None) -> Plane:
    """The plane of ``x`` and ``y``, judged by ``criterion``.

    Raises:
        UserError: the keys are the same, or no chain has a verdict under the criterion.
    """
    if x == y:
        raise UserError(f"the plane needs two different keys: {x} is picked twice")
    chains = _verdicts(results, criterion, x, y)
    if chains.is_empty() and _points(results) is None:
        raise UserError("no chain has a verdict under this criterion: there is no plane to draw")
    shares = chains.group_by("panel", "x", "y", maintain_order=True).agg(
        chains=pl.len(), collapsed=pl.col("collapsed").sum(), share=pl.col("collapsed").mean()
    )
    rows = list(_searched(results, criterion, x, y).iter_rows(named=True))
    known = {(row["panel"], row["y"]) for row in rows}
    for (panel, height), group in chains.group_by("panel", "y", maintain_order=True):
        if (panel, height) not in known:
            rows.append({"panel": panel, "y": height, "source": "grid", **_grid_boundary(group, x)})
    boundaries = pl.DataFrame(rows, schema=_BOUNDARY, strict=False)
    return Plane(x, y, shares.sort("panel", "y", "x"), boundaries.sort("panel", "y"))


def tolerated(results: StudyResults, criterion: Collapse, x: str) -> pl.DataFrame | None:
    """How much more of ``x`` each cell tolerates than the baseline, with the cell's name as ``cell``
    (:func:`~fortifai_ray.statistics.critical.critical_ratios`); None where the study did not search over ``x``
    under this criterion."""
    points = _points_over(results, criterion, x)
    if points is None:
        return None
    keys = [key for key in results.cells.keys if key in points.columns and key != x]
    ratios = critical_ratios(points, keys, results.baseline)
    return Cells.of(ratios, keys, results.baseline, results.study).name(ratios)


def _verdicts(results: StudyResults, criterion: Collapse, x: str, y: str | None) -> pl.DataFrame:
    """``panel, x, y, seed, collapsed`` of the chains with a verdict. As in the search, a chain that ended in an
    unconfirmed crossing did not collapse within its horizon."""
    assert results.chains is not None
    table = results.chains.filter(criterion_rows(criterion), pl.col("status") != "failed")
    if x not in table.columns:  # it is searched over, and no chain has been recorded yet
        table = table.clear().with_columns(pl.lit(None, pl.Float64).alias(x))
    return (
        _panelled(results, table, x, y)
        .filter(pl.col(x).is_not_null())
        .select("panel", pl.col(x).cast(pl.Float64).alias("x"), "y", "seed", collapsed=pl.col("status") == "collapsed")
    )


def _panelled(results: StudyResults, table: pl.DataFrame, x: str, y: str | None) -> pl.DataFrame:
    """Add ``y``, and ``panel``: the other keys' values in words. Keys with a single value are left out."""
    table = table.drop("chain_id", strict=False)
    height = pl.col(y).cast(pl.Float64) if y in table.columns else pl.lit(None, pl.Float64)
    others = [key for key in results.cells.keys if key in table.columns and key not in (x, y)]
    keys = [key for key in others if table[key].n_unique() > 1]
    named = table.with_columns(panel=pl.lit("all chains"))
    if keys:
        named = Cells.of(table, keys, results.baseline, results.study).name(table).rename({"cell": "panel"})
    return named.with_columns(height.alias("y"))


def _points(results: StudyResults) -> pl.DataFrame | None:
    """The collapse points that a search located; None where there are none."""
    table = results.table("collapse_points")
    return None if table is None or table.is_empty() else table


def _points_over(results: StudyResults, criterion: Collapse, x: str) -> pl.DataFrame | None:
    """The collapse points of a search over ``x`` under one criterion; None where there are none."""
    points = _points(results)
    over = None if points is None else points.filter(criterion_rows(criterion), pl.col("over") == x)
    return None if over is None or over.is_empty() else over


def _searched(results: StudyResults, criterion: Collapse, x: str, y: str | None) -> pl.DataFrame:
    """The boundaries that a search over ``x`` located."""
    points = _points_over(results, criterion, x)
    if points is None:
        return pl.DataFrame(schema=_BOUNDARY)
    named = _panelled(results, points, x, y).with_columns(source=pl.lit("search"), why="evidence")
    return named.select(_BOUNDARY.names()).cast(_BOUNDARY)


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
    bound, ends = "exact", {"critical": middle, "low": low, "high": high}
    if low < first:
        bound, ends = "upper", dict.fromkeys(("critical", "high"), max(high, first))
    elif high > last:
        bound, ends = "lower", dict.fromkeys(("critical", "low"), min(low, last))
    return unknown | {name: lattice.between(at) for name, at in ends.items()} | {"bound": bound, "why": None}


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


def phase_chart(plane: Plane) -> alt.ConcatChart | alt.LayerChart | str:
    """Share of chains collapsed at each point of the plane (white: none, dark: all), and the boundary (orange).

    With a single numeric key: the share by that key, a line per panel. A sentence where there is nothing to draw.
    """
    if plane.y is None or plane.shares["y"].null_count() == plane.shares.height > 0:
        return _line_chart(plane)
    placed = plane.shares.filter(pl.col("y").is_not_null())
    if placed.is_empty() and plane.boundaries["y"].count() == 0:
        return "No cell has a value for both keys: pick other keys."
    level = placed["panel"].unique(maintain_order=True).to_list()
    panels = [_panel(plane, name) for name in level or plane.panels]
    return alt.ConcatChart(concat=panels, columns=1) if len(panels) > 1 else panels[0]


def _panel(plane: Plane, name: str) -> alt.LayerChart:
    shares = plane.shares.filter(pl.col("panel") == name, pl.col("y").is_not_null())
    x, y = _axis(plane.x, _values(plane, "x")), _axis(str(plane.y), _values(plane, "y"))
    layers = [_tiles(shares, x, y)] if shares.height else []
    boundary = plane.boundaries.filter(pl.col("panel") == name, pl.col("y").is_not_null())
    layers += _boundary_layers(boundary, x, y)
    layers += _references(plane, x)
    title = alt.Undefined if name == "all chains" else name
    return alt.LayerChart(layer=layers, width=WIDTH, height=HEIGHT, title=title)


def _values(plane: Plane, axis: str) -> np.ndarray:
    """The values along an axis, in all panels."""
    values = plane.shares[axis].drop_nulls()
    if values.is_empty():
        ends = ("y",) if axis == "y" else ("critical", "low", "high")
        values = pl.concat([plane.boundaries[end] for end in ends]).drop_nulls()
    return np.unique(values.to_numpy())


def _axis(key: str, values: np.ndarray) -> dict[str, Any]:
    """Title, scale and tile edges of an axis."""
    log = is_log(values)
    return {"title": title_of(key), "log": log, "values": values, "edges": _edges(values, log)}


def title_of(key: str) -> str:
    """A key as an axis names it."""
    named = {"synthetic_ratio": "synthetic ratio r", "gamma": "γ", "temperature": "sampling temperature"}
    return f"{named.get(key.rpartition('.')[2], key.rpartition('.')[2].replace('_', ' '))} ({key})"


def _edges(values: np.ndarray, log: bool) -> np.ndarray:
    """Halfway between neighbouring values, and the same distance beyond the ends."""
    spaced = np.log(values) if log else values
    if spaced.size == 1:
        edges = spaced[0] + np.array([-0.5, 0.5])
    else:
        middles = (spaced[1:] + spaced[:-1]) / 2
        edges = np.concatenate([[2 * spaced[0] - middles[0]], middles, [2 * spaced[-1] - middles[-1]]])
    return np.exp(edges) if log else edges


def _encoding(channel: type[Any], field: str, axis: dict[str, Any]) -> Any:
    domain = [float(axis["edges"][0]), float(axis["edges"][-1])]
    scale = alt.Scale(type="log" if axis["log"] else "linear", domain=domain, nice=False, zero=False, clamp=True)
    return channel(f"{field}:Q", title=axis["title"], scale=scale, axis=alt.Axis(format="~g", grid=False))


def _tiles(shares: pl.DataFrame, x: dict[str, Any], y: dict[str, Any]) -> alt.Chart:
    columns, lines = (dict(zip(axis["values"], pairwise(axis["edges"].tolist()), strict=True)) for axis in (x, y))
    rows = []
    for row in shares.iter_rows(named=True):
        (left, right), (bottom, top) = columns[row["x"]], lines[row["y"]]
        rows.append(row | {"left": left, "right": right, "bottom": bottom, "top": top})
    places = (alt.Tooltip(f"{name}:Q", title=axis["title"], format="~g") for name, axis in (("x", x), ("y", y)))
    tooltip: Tooltips = [*places, alt.Tooltip("share:Q", title="collapsed", format=".0%"), "collapsed:Q", "chains:Q"]
    legend = alt.Legend(format=".0%", orient="right", gradientLength=140)
    scale = alt.Scale(domain=[0, 1], range=["#ffffff", "#4d4d4d"])
    mark = chart_of(rows).mark_rect(stroke="#d9d9d9", strokeWidth=0.5)
    return mark.encode(
        x=_encoding(alt.X, "left", x),
        x2="right:Q",
        y=_encoding(alt.Y, "bottom", y),
        y2="top:Q",
        color=alt.Color("share:Q", title="chains collapsed", scale=scale, legend=legend),
        tooltip=tooltip,
    )


def _boundary_layers(boundary: pl.DataFrame, x: dict[str, Any], y: dict[str, Any]) -> list[alt.Chart]:
    """Band, line and points; a bound is a triangle that points towards the boundary."""
    known = boundary.filter(pl.col("critical").is_not_null())
    rows = [row | {"interval": interval_text(row)} for row in known.iter_rows(named=True)]
    exact = [row for row in rows if row["bound"] == "exact"]
    at_x, at_y = _encoding(alt.X, "critical", x), _encoding(alt.Y, "y", y)
    tooltip: Tooltips = [alt.Tooltip("interval:N", title="boundary"), alt.Tooltip("y:Q", title=y["title"]), "source:N"]
    layers: list[alt.Chart] = []
    if len(exact) > 1:
        base = chart_of(exact)
        band = base.mark_area(orient="horizontal", opacity=0.3, color=_LINE)
        layers.append(band.encode(x=_encoding(alt.X, "low", x), x2="high:Q", y=at_y))
        layers.append(base.mark_line(color=_LINE, strokeWidth=2.5).encode(x=at_x, y=at_y, order="y:Q"))
    if exact:
        rule = chart_of(exact).mark_rule(color=_LINE, strokeWidth=2)
        layers.append(rule.encode(x=_encoding(alt.X, "low", x), x2="high:Q", y=at_y, tooltip=tooltip))
    if rows:
        mark = chart_of(rows).mark_point(color=_LINE, filled=True, size=80, opacity=1)
        layers.append(mark.encode(x=at_x, y=at_y, shape=bound_shape(_BOUNDS), tooltip=tooltip))
    return layers


def _references(plane: Plane, x: dict[str, Any]) -> list[alt.Chart]:
    """The boundaries of panels without a second key (cross entropy has no γ), as dashed vertical lines."""
    flat = plane.boundaries.filter(pl.col("y").is_null(), pl.col("critical").is_not_null())
    rows = [row | {"text": f"{row['panel']}: {interval_text(row)}"} for row in flat.iter_rows(named=True)]
    if not rows:
        return []
    at, base = _encoding(alt.X, "critical", x), chart_of(rows)
    label = base.mark_text(align="right", baseline="top", dx=-4, dy=4, color=PALETTE[1])
    rule = base.mark_rule(color=PALETTE[1], strokeDash=[6, 4], strokeWidth=2)
    return [rule.encode(x=at, tooltip=["text:N"]), label.encode(x=at, y=alt.value(0), text="text:N")]


def _line_chart(plane: Plane) -> alt.LayerChart | str:
    """Share collapsed by the only numeric key, with Clopper–Pearson intervals, and the boundaries at one half."""
    shares = plane.shares
    if shares.is_empty() and plane.boundaries["critical"].count() == 0:
        return "No chain has a value of this key, and no search has located a boundary: there is nothing to draw."
    collapsed, chains = (shares[name].cast(pl.Int64).to_numpy() for name in ("collapsed", "chains"))
    low, high = clopper_pearson(collapsed, chains, LEVEL)
    rows = shares.with_columns(low=pl.Series(low, dtype=pl.Float64), high=pl.Series(high, dtype=pl.Float64))
    axis = _axis(plane.x, _values(plane, "x"))
    x = _encoding(alt.X, "x", axis)
    y = alt.Y("share:Q", title="share of chains collapsed", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"))
    legend = alt.Legend(orient="top", labelLimit=320, symbolLimit=0, symbolOpacity=1)
    colour = by_name(alt.Color, "panel", plane.panels, PALETTE, legend)
    shape = by_name(alt.Shape, "panel", plane.panels, SHAPES)
    tooltip: Tooltips = ["panel:N", alt.Tooltip("x:Q", title=plane.x, format="~g")]
    tooltip += [alt.Tooltip("share:Q", format=".0%"), "collapsed:Q", "chains:Q"]
    base = chart_of(rows)
    layers = [
        base.mark_area(opacity=0.12).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip),
        chart_of([{"share": 0.5}]).mark_rule(color=GREY, strokeDash=[4, 4]).encode(y=y),
    ]
    exact = plane.boundaries.filter(pl.col("bound") == "exact").iter_rows(named=True)
    if halves := [row | {"share": 0.5, "interval": interval_text(row)} for row in exact]:
        rule = chart_of(halves).mark_rule(strokeWidth=5, opacity=0.7)
        names = ["panel:N", "interval:N", "source:N"]
        layers.append(rule.encode(x=_encoding(alt.X, "low", axis), x2="high:Q", y=y, color=colour, tooltip=names))
    return alt.LayerChart(layer=layers, width=WIDTH, height=HEIGHT)


def interval_text(row: dict[str, Any]) -> str:
    """``0.91 [0.88, 0.95]``, ``≥0.97``."""
    if row["critical"] is None:
        return "undetermined"
    ends = "" if None in (row["low"], row["high"]) else f" [{number(row['low'])}, {number(row['high'])}]"
    return f"{MARKS.get(row['bound'], '')}{number(row['critical'])}{ends}"


def boundary_rows(plane: Plane) -> list[dict[str, str]]:
    """The boundaries as a table of text."""
    return [
        {
            "chains": row["panel"],
            **({title_of(plane.y): "–" if row["y"] is None else number(row["y"])} if plane.y else {}),
            f"half of them collapse at {title_of(plane.x)}": interval_text(row),
            "method": {"search": "searched for", "grid": "read off the grid"}[row["source"]],
            "note": row["why"] or "",
        }
        for row in plane.boundaries.iter_rows(named=True)
    ]


def tolerated_rows(ratios: pl.DataFrame | None) -> list[dict[str, str]]:
    """:func:`tolerated` as a table of text; empty where the study did not search."""
    rows = []
    for row in ratios.iter_rows(named=True) if ratios is not None else ():
        texts = {"cell": row["cell"], f"critical {title_of(row['over'])}": interval_text(row)}
        texts["times the baseline's"] = "baseline" if row["is_baseline"] else _ratio_text(row, "ratio")
        if row["human"] is not None:
            human = "–" if row["is_baseline"] else _ratio_text(row, "human_ratio")
            texts["human share needed, times the baseline's"] = human
        rows.append(texts)
    return rows


def _ratio_text(row: dict[str, Any], name: str) -> str:
    ends = {"low": row[f"{name}_low"], "high": row[f"{name}_high"]}
    return interval_text({"critical": row[name], "bound": row[f"{name}_bound"], **ends})
