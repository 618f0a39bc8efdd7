"""Charts of a search: its probes over the key searched, or the points that an optimiser tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from fortifai_ray.report.charts.encodings import (
    GREY,
    Tooltips,
    broad,
    chart_of,
    colour_of,
    height_of,
    outcome_marks,
    rows_of,
    spread_by_seed,
    verdicts_of,
)
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.words import key_words
from fortifai_ray.statistics.criterion import Collapse


def probes_of(chains: pl.DataFrame, criterion: Collapse, cells: Cells, over: str) -> pl.DataFrame:
    """The chains that a search ran: ``cell, seed, status, onset, collapsed``, and ``at``, the value of the key."""
    return verdicts_of(chains, criterion, cells).select(
        "cell",
        "seed",
        "status",
        at=pl.col(over).cast(pl.Float64),
        onset="fi_generations",
        collapsed=pl.col("status") == "collapsed",
    )


def probe_chart(probes: pl.DataFrame, points: pl.DataFrame, over: str, cells: Cells) -> alt.LayerChart:
    """Each probe at its value of the key, a row per cell, over the interval of the critical value.

    Args:
        probes: the chains that the search ran under one criterion.
        points: collapse points with a column ``cell``.
        over: the key searched.
        cells: the study's cells.
    """
    x, y, colour = _key_axis(over), rows_of(cells), colour_of(cells)
    layers: list[alt.Chart] = []
    intervals = points.filter(pl.col("low").is_not_null() & pl.col("high").is_not_null())
    if not intervals.is_empty():
        rule = chart_of(intervals.select("cell", "critical", "high", at="low")).mark_rule(strokeWidth=14, opacity=0.35)
        layers.append(rule.encode(x=x, x2="high:Q", y=y, color=colour))
    ticks = points.filter(pl.col("critical").is_not_null()).select("cell", at="critical")
    if not ticks.is_empty():
        tick = chart_of(ticks).mark_tick(thickness=3, size=30, color=GREY)
        layers.append(tick.encode(x=x, y=y, tooltip=["cell:N", alt.Tooltip("at:Q", title="critical")]))
    rows, offset = spread_by_seed(probes, edge=1.3)
    tooltip: Tooltips = ["cell:N", alt.Tooltip("at:Q", title=key_words(over)), "seed:Q", "status:N"]
    layers += [
        mark.encode(x=x, y=y, yOffset=offset, color=colour, tooltip=tooltip)
        for mark in outcome_marks(rows, size=36, opacity=0.8, strokeWidth=1.5)
    ]
    return alt.LayerChart(layer=layers, width="container", height=max(120, 2 * height_of(cells)))


def onset_over_key(probes: pl.DataFrame, over: str, cells: Cells) -> alt.LayerChart | None:
    """The onset of each probe's chain over the key searched; None where no chain has a verdict."""
    rows = probes.filter(pl.col("onset").is_finite()).to_dicts()
    if not rows:
        return None
    y = alt.Y("onset:Q", title="onset (generations)", scale=alt.Scale(zero=False, nice=False, padding=8))
    tooltip: Tooltips = ["cell:N", alt.Tooltip("at:Q", title=key_words(over)), "seed:Q", "status:N", "onset:Q"]
    layers = [
        mark.encode(x=_key_axis(over), y=y, color=colour_of(cells), tooltip=tooltip)
        for mark in outcome_marks(rows, ("circle", "triangle-right"), size=40, opacity=0.8)
    ]
    return alt.LayerChart(layer=layers, width="container", height=260)


def _key_axis(key: str, **scale: Any) -> alt.X:
    return alt.X("at:Q", title=key_words(key), scale=alt.Scale(**scale, zero=False, nice=False, padding=12))


def tried_chart(tried: Sequence[Mapping[str, Any]], key: str, *, log: bool) -> alt.LayerChart | None:
    """The FI ratio of each point tried, over one of its keys; None where no point has a ratio."""
    rows = [
        {"at": point["values"][key], "ratio": point["fi_ratio"], "low": point["fi_ratio_low"]}
        | {"high": point["fi_ratio_high"], "bound": point["bound"]}
        for point in tried
        if point["fi_ratio"] is not None
    ]
    if not rows:
        return None
    x = _key_axis(key, type="log" if log else "linear")
    y = alt.Y("ratio:Q", title="FI ratio to the baseline", scale=alt.Scale(zero=False, padding=8))
    layers = [chart_of([{"ratio": 1}]).mark_rule(strokeDash=[4, 4], color=GREY).encode(y=y)]
    if spans := [row | {"ratio": row["low"]} for row in rows if row["low"] is not None and row["high"] is not None]:
        layers.append(chart_of(spans).mark_rule(opacity=0.6).encode(x=x, y=y, y2="high:Q"))
    tooltip: Tooltips = [alt.Tooltip("at:Q", title=key_words(key)), alt.Tooltip("ratio:Q", format=".3f"), "bound:N"]
    layers += broad([1.0, *(row["ratio"] for row in rows)], 0.25, y=y)
    layers.append(chart_of(rows).mark_point(filled=True, size=60).encode(x=x, y=y, tooltip=tooltip))
    return alt.LayerChart(layer=layers, width="container", height=260)
