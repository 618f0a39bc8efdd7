"""Collapse curves: a metric by generation, as an Altair chart for the report, notebooks and figures.

The input is the result tables, the output an ordinary chart: ``chart.save("x.png")`` works. Colours are Okabe and
Ito's (safe for colour-blind readers), cells differ in shape as well, and grey is legible on light and dark grounds.
Values that are not finite (a diverged generation) are drawn as triangles at the edge, so that they neither vanish nor
distort the axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import polars as pl

from fortifai_ray import metrics
from fortifai_ray.report.charts.encodings import (
    MOST_BANDS,
    MOST_IN_LEGEND,
    Tooltips,
    Width,
    broad,
    chart_of,
    colour_of,
    legend_of,
    limit_layers,
    shape_of,
)
from fortifai_ray.report.points import MOST_POINTS, Curve, curve, thin
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.words import finite
from fortifai_ray.statistics.criterion import Collapse, criteria_of

MOST_SYMBOLS = 25  # the most generations with a symbol on the median: more run into each other
# 5,000 and 1e+9: thousands are read at a glance, rows of zeros are not. A label that the axis leaves empty stays so.
_LOG_LABEL = "datum.label && (datum.value >= 1e6 || datum.value < 1e-4) ? format(datum.value, '.0e') : datum.label"


def collapse_curves(
    generations: pl.DataFrame,
    chains: pl.DataFrame | None,
    metric: str,
    cells: Cells,
    *,
    criteria: Sequence[Collapse] | None = None,
    log_scale: bool | None = None,
) -> alt.LayerChart:
    """A metric by generation: a colour per cell, the median over seeds, a band over seeds and a thin line per seed.

    A cell with more than :data:`~fortifai_ray.report.points.MANY_CHAINS` chains shows its median and 5–95 % band only.
    Median and band extend as far as *every* chain of the cell has a value: chains stop once they have collapsed, and a
    median over the survivors would flatter the cell. Failed chains are drawn as lines only. Dashed lines are the
    criterion's limits (with their range over seeds, where the reference differs by seed).

    Args:
        generations: ``generations.parquet``.
        chains: ``chains.parquet``, for the limits and the failed chains; None draws neither.
        metric: the column to draw, in its own unit.
        cells: the study's cells; the baseline's comes first.
        criteria: whose limits on this metric to draw; by default all those in ``chains``.
        log_scale: None uses a log axis for positive values that span decades, and for metrics on a log scale.

    Raises:
        KeyError: ``generations`` has no such column.
    """
    if metric not in generations.columns:
        raise KeyError(f"generations has no column {metric!r}")
    return draw(curve(generations, metric, cells, chains, log_scale=log_scale), chains, cells, criteria)


def draw(
    drawn: Curve,
    chains: pl.DataFrame | None,
    cells: Cells,
    criteria: Sequence[Collapse] | None = None,
    *,
    small: bool = False,
    most_points: int = MOST_POINTS,
    width: Width = 640,
    height: int = 340,
) -> alt.LayerChart:
    """Draw a :class:`~fortifai_ray.report.points.Curve`, as :func:`collapse_curves`.

    A ``small`` chart has no legend, and its value axis shows the metric's unit alone. Thin lines are left out where
    they have more than ``most_points`` points.
    """
    if criteria is None:
        criteria = [] if chains is None else criteria_of(chains)
    metric = metrics.metric(drawn.metric)
    y = _value_axis(metric.unit if small else metric.axis, drawn.log_scale)
    names = None if small else legend_of(cells, drawn.cells)
    colour = colour_of(cells, names)
    layers = [*_median_layers(drawn, y, colour, names, cells), *_chain_layers(drawn, y, colour, most_points)]
    values = [*drawn.spread["value"], *drawn.spread["low"], *drawn.spread["high"], *drawn.points["value"]]
    largest = max(map(abs, finite(values)), default=0.0)
    layers += broad(values, 1.01 if drawn.log_scale else 0.01 * largest, log=drawn.log_scale, y=y)
    layers += [
        *_broken_layers(drawn, colour, height),
        *limit_layers(chains, drawn, criteria, cells, y),
    ]
    return alt.LayerChart(layer=layers, width=width, height=height)


def _value_axis(title: str, log_scale: bool) -> alt.Y:
    if not log_scale:
        return alt.Y("value:Q", title=title, scale=alt.Scale(zero=False))
    scale, axis = alt.Scale(type="log", nice=False), alt.Axis(format=",~g", labelExpr=_LOG_LABEL)
    return alt.Y("value:Q", title=f"{title}, log scale" if title else "log scale", scale=scale, axis=axis)


def _median_layers(
    drawn: Curve, y: alt.Y, colour: alt.Color, legend: alt.Legend | None, cells: Cells
) -> list[alt.Chart]:
    """Band, thick line and symbols of each cell; a click on a cell's name or symbol highlights it."""
    pick = alt.selection_point(name="pick", fields=["cell"], bind="legend" if legend else alt.Undefined)
    fade = alt.condition(pick, alt.value(1.0), alt.value(0.12))
    banded = drawn.spread["cell"].n_unique() <= MOST_BANDS and drawn.spread["chains"].max() not in (None, 1)
    table = drawn.spread if banded else drawn.spread.drop("low", "high")
    crowded = len(drawn.cells) > MOST_IN_LEGEND
    base = chart_of(table).encode(x=generation_axis(), color=colour, detail="part:Q")
    line = base.mark_line(strokeWidth=1.2 if crowded else 2.5).encode(y=y, opacity=fade)
    tooltip: Tooltips = ["cell:N", "generation:Q", alt.Tooltip("value:Q", title="median", format=",.4~g")]
    tooltip += ["band:N", alt.Tooltip("chains:Q", format=",")]
    marked = table.filter(pl.col("generation").is_in(thin(drawn.generations, MOST_SYMBOLS)))
    symbols = chart_of(marked).mark_point(filled=True, size=24 if crowded else 60).add_params(pick)
    layers = [
        line,
        symbols.encode(
            x=generation_axis(), y=y, color=colour, shape=shape_of(cells, legend), opacity=fade, tooltip=tooltip
        ),
    ]
    if not banded:
        return layers
    clear = alt.condition(pick, alt.value(0.16), alt.value(0.03))
    return [base.mark_area().encode(y=alt.Y("low:Q"), y2="high:Q", opacity=clear), *layers]


def _chain_layers(drawn: Curve, y: alt.Y, colour: alt.Color, most_points: int) -> list[alt.Chart]:
    """A thin line per chain, where a cell has several chains but not too many."""
    points = drawn.points.filter(pl.col("value").is_not_null())
    several = points.group_by("cell").agg(pl.col("chain").n_unique())["chain"].max()
    if several in (None, 1) or len(points) > most_points:
        return []
    tooltip: Tooltips = ["cell:N", "seed:Q", "generation:Q", alt.Tooltip("value:Q", format=",.4~g")]
    base = chart_of(points.drop("shown")).encode(
        x=generation_axis(), y=y, color=colour, detail=["chain:N", "part:Q"], tooltip=tooltip
    )
    return [base.mark_line(strokeWidth=0.8, opacity=0.55, point=alt.OverlayMarkDef(size=14, opacity=0.55))]


def _broken_layers(drawn: Curve, colour: alt.Color, height: int) -> list[alt.Chart]:
    """Values that are not finite: triangles at the top edge, or for −∞ at the bottom."""
    single = drawn.points.filter(pl.col("value").is_null()).select("cell", "seed", "generation", "shown")
    broken = pl.concat([single, drawn.broken], how="diagonal_relaxed").sort("cell", "generation")
    tooltip: Tooltips = ["cell:N", "seed:Q", "generation:Q", alt.Tooltip("shown:N", title="value")]
    layers = []
    for below, shape, edge in ((False, "triangle-up", 6), (True, "triangle-down", height - 6)):
        rows = broken.filter(pl.col("shown").str.starts_with("−∞") == below)
        if not rows.is_empty():
            mark = chart_of(rows).mark_point(shape=shape, size=90, strokeWidth=2, filled=False)
            layers.append(mark.encode(x=generation_axis(), y=alt.value(edge), color=colour, tooltip=tooltip))
    return layers


def generation_axis() -> alt.X:
    """Whole generations."""
    return alt.X(
        "generation:Q", title="generation", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False)
    )
