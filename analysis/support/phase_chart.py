"""The plane of two keys as a chart: a panel per loss, dark where chains collapse, and the boundary with its band."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from fortifai_ray.report.charts.encodings import GREY, PALETTE, SHAPES, Tooltips, bound_shape, inline
from fortifai_ray.results.words import MARKS, number
from fortifai_ray.statistics.intervals import clopper_pearson
from support.phase import LEVEL, Plane, is_log

_LINE = PALETTE[0]
_BOUNDS = {"exact": "circle", "lower": "triangle-right", "upper": "triangle-left"}


def phase_chart(plane: Plane, *, width: int = 560, height: int = 300) -> alt.ConcatChart | alt.LayerChart | str:
    """Share of chains collapsed at each point of the plane (white: none, dark: all), and the boundary (orange).

    With a single numeric key: the share by that key, a line per panel. A sentence where there is nothing to draw.
    """
    if plane.y is None or plane.shares["y"].null_count() == plane.shares.height > 0:
        return _line_chart(plane, width, height)
    placed = plane.shares.filter(pl.col("y").is_not_null())
    if placed.is_empty() and plane.boundaries["y"].count() == 0:
        return "No cell has a value for both keys: pick other keys."
    names = plane.panels or plane.boundaries["panel"].unique(maintain_order=True).to_list()
    level = [name for name in names if plane.shares.filter(pl.col("panel") == name, pl.col("y").is_not_null()).height]
    panels = [_panel(plane, name, width, height) for name in level or names]
    return alt.ConcatChart(concat=panels, columns=1) if len(panels) > 1 else panels[0]


def _panel(plane: Plane, name: str, width: int, height: int) -> alt.LayerChart:
    shares = plane.shares.filter(pl.col("panel") == name, pl.col("y").is_not_null())
    x, y = _axis(plane.x, _values(plane, "x")), _axis(str(plane.y), _values(plane, "y"))
    layers = [_tiles(shares, x, y)] if shares.height else []
    boundary = plane.boundaries.filter(pl.col("panel") == name, pl.col("y").is_not_null())
    layers += _boundary_layers(boundary, x, y)
    layers += _references(plane, x)
    title = "" if name == "all chains" else name
    return alt.LayerChart(layer=layers, width=width, height=height, title=title or alt.Undefined)


def _values(plane: Plane, axis: str) -> np.ndarray:
    """The values along an axis, in all panels."""
    tables = [plane.shares[axis]]
    tables += [plane.boundaries["y"]] if axis == "y" else [plane.boundaries[end] for end in ("critical", "low", "high")]
    known = plane.shares[axis].drop_nulls()
    return np.unique((known if known.len() else pl.concat(tables).drop_nulls()).to_numpy())


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
    between = {
        name: dict(zip(axis["values"].tolist(), pairwise(axis["edges"].tolist()), strict=True))
        for name, axis in (("x", x), ("y", y))
    }
    rows = []
    for row in shares.iter_rows(named=True):
        (left, right), (bottom, top) = between["x"][row["x"]], between["y"][row["y"]]
        rows.append(row | {"left": left, "right": right, "bottom": bottom, "top": top})
    tooltip: Tooltips = [
        alt.Tooltip("x:Q", title=x["title"], format="~g"),
        alt.Tooltip("y:Q", title=y["title"], format="~g"),
    ]
    tooltip += [alt.Tooltip("share:Q", title="collapsed", format=".0%"), "collapsed:Q", "chains:Q"]
    legend = alt.Legend(format=".0%", orient="right", gradientLength=140)
    colour = alt.Color(
        "share:Q", title="chains collapsed", scale=alt.Scale(domain=[0, 1], range=["#ffffff", "#4d4d4d"]), legend=legend
    )
    mark = alt.Chart(inline(rows)).mark_rect(stroke="#d9d9d9", strokeWidth=0.5)
    return mark.encode(
        x=_encoding(alt.X, "left", x),
        x2="right:Q",
        y=_encoding(alt.Y, "bottom", y),
        y2="top:Q",
        color=colour,
        tooltip=tooltip,
    )


def _boundary_layers(boundary: pl.DataFrame, x: dict[str, Any], y: dict[str, Any]) -> list[alt.Chart]:
    """Band, line and points; a bound is a triangle that points towards the boundary."""
    rows = [
        row | {"interval": interval_text(row)}
        for row in boundary.filter(pl.col("critical").is_not_null()).iter_rows(named=True)
    ]
    exact = [row for row in rows if row["bound"] == "exact"]
    at_x, at_y = _encoding(alt.X, "critical", x), _encoding(alt.Y, "y", y)
    tooltip: Tooltips = [alt.Tooltip("interval:N", title="boundary"), alt.Tooltip("y:Q", title=y["title"]), "source:N"]
    layers: list[alt.Chart] = []
    if len(exact) > 1:
        base = alt.Chart(inline(exact))
        band = base.mark_area(orient="horizontal", opacity=0.3, color=_LINE)
        layers.append(band.encode(x=_encoding(alt.X, "low", x), x2="high:Q", y=at_y))
        layers.append(base.mark_line(color=_LINE, strokeWidth=2.5).encode(x=at_x, y=at_y, order="y:Q"))
    if exact:
        rule = alt.Chart(inline(exact)).mark_rule(color=_LINE, strokeWidth=2)
        layers.append(rule.encode(x=_encoding(alt.X, "low", x), x2="high:Q", y=at_y, tooltip=tooltip))
    if rows:
        mark = alt.Chart(inline(rows)).mark_point(color=_LINE, filled=True, size=80, opacity=1)
        layers.append(mark.encode(x=at_x, y=at_y, shape=bound_shape(_BOUNDS), tooltip=tooltip))
    return layers


def _references(plane: Plane, x: dict[str, Any]) -> list[alt.Chart]:
    """The boundaries of panels without a second key (cross entropy has no γ), as dashed vertical lines."""
    flat = plane.boundaries.filter(pl.col("y").is_null(), pl.col("critical").is_not_null())
    rows = [row | {"text": f"{row['panel']}: {interval_text(row)}"} for row in flat.iter_rows(named=True)]
    if not rows:
        return []
    at, base = _encoding(alt.X, "critical", x), alt.Chart(inline(rows))
    label = base.mark_text(align="right", baseline="top", dx=-4, dy=4, color=PALETTE[1])
    rule = base.mark_rule(color=PALETTE[1], strokeDash=[6, 4], strokeWidth=2)
    return [rule.encode(x=at, tooltip=["text:N"]), label.encode(x=at, y=alt.value(0), text="text:N")]


def _line_chart(plane: Plane, width: int, height: int) -> alt.LayerChart | str:
    """Share collapsed by the only numeric key, with Clopper–Pearson intervals, and the boundaries at one half."""
    shares = plane.shares
    if shares.is_empty() and plane.boundaries["critical"].count() == 0:
        return "No chain has a value of this key, and no search has located a boundary: there is nothing to draw."
    low, high = clopper_pearson(
        shares["collapsed"].cast(pl.Int64).to_numpy(), shares["chains"].cast(pl.Int64).to_numpy(), LEVEL
    )
    rows = shares.with_columns(low=pl.Series(low, dtype=pl.Float64), high=pl.Series(high, dtype=pl.Float64)).to_dicts()
    axis = _axis(plane.x, _values(plane, "x"))
    x = _encoding(alt.X, "x", axis)
    y = alt.Y("share:Q", title="share of chains collapsed", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"))
    names = plane.panels or plane.boundaries["panel"].unique(maintain_order=True).to_list()
    palette = [PALETTE[index % len(PALETTE)] for index in range(len(names))]
    colour = alt.Color(
        "panel:N",
        title=None,
        scale=alt.Scale(domain=names, range=palette),
        legend=alt.Legend(orient="top", labelLimit=320, symbolLimit=0, symbolOpacity=1),
    )
    shape = alt.Shape(
        "panel:N",
        title=None,
        legend=None,
        scale=alt.Scale(domain=names, range=[SHAPES[i % len(SHAPES)] for i in range(len(names))]),
    )
    tooltip: Tooltips = [
        "panel:N",
        alt.Tooltip("x:Q", title=plane.x, format="~g"),
        alt.Tooltip("share:Q", format=".0%"),
        "collapsed:Q",
        "chains:Q",
    ]
    base = alt.Chart(inline(rows))
    layers = [
        base.mark_area(opacity=0.12).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip),
        alt.Chart(inline([{"share": 0.5}])).mark_rule(color=GREY, strokeDash=[4, 4]).encode(y=y),
    ]
    exact = [
        row | {"share": 0.5, "interval": interval_text(row)}
        for row in plane.boundaries.filter(pl.col("bound") == "exact").iter_rows(named=True)
    ]
    if exact:
        rule = alt.Chart(inline(exact)).mark_rule(strokeWidth=5, opacity=0.7)
        layers.append(
            rule.encode(
                x=_encoding(alt.X, "low", axis),
                x2="high:Q",
                y=y,
                color=colour,
                tooltip=["panel:N", "interval:N", "source:N"],
            )
        )
    return alt.LayerChart(layer=layers, width=width, height=height)


def interval_text(row: dict[str, Any]) -> str:
    """``0.91 [0.88, 0.95]``, ``≥0.97``."""
    if row["critical"] is None:
        return "undetermined"
    text = f"{MARKS.get(row['bound'], '')}{number(row['critical'])}"
    if row["low"] is None or row["high"] is None:
        return text
    return f"{text} [{number(row['low'])}, {number(row['high'])}]"


def boundary_rows(plane: Plane) -> list[dict[str, str]]:
    """The boundaries as a table of text."""
    named = {"search": "searched for", "grid": "read off the grid"}
    return [
        {
            "chains": row["panel"],
            **({title_of(plane.y): "–" if row["y"] is None else number(row["y"])} if plane.y else {}),
            f"half of them collapse at {title_of(plane.x)}": interval_text(row),
            "method": named[row["source"]],
            "note": row["why"] or "",
        }
        for row in plane.boundaries.iter_rows(named=True)
    ]


def tolerated_rows(ratios: pl.DataFrame | None) -> list[dict[str, str]]:
    """:func:`~support.phase.tolerated` as a table of text; empty where the study did not search."""
    if ratios is None:
        return []
    rows = []
    for row in ratios.iter_rows(named=True):
        texts = {"cell": row["cell"], f"critical {title_of(row['over'])}": interval_text(row)}
        texts["times the baseline's"] = "baseline" if row["is_baseline"] else _ratio_text(row, "ratio")
        if row["human"] is not None:
            texts["human share needed, times the baseline's"] = (
                "–" if row["is_baseline"] else _ratio_text(row, "human_ratio")
            )
        rows.append(texts)
    return rows


def _ratio_text(row: dict[str, Any], name: str) -> str:
    ends = {"low": row[f"{name}_low"], "high": row[f"{name}_high"]}
    return interval_text({"critical": row[name], "bound": row[f"{name}_bound"], **ends})
