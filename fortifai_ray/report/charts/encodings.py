"""What all charts share: colours, shapes, and how a cell becomes a legend entry or a row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import altair as alt
import polars as pl

from fortifai_ray.report.criteria import criterion_rows, limit_text
from fortifai_ray.results.cells import Cells
from fortifai_ray.statistics import CollapseCriterion

# Okabe & Ito (2008), "Color Universal Design", without black and yellow, which vanish on one of the two grounds.
PALETTE = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F"]
# Viridis (Smith & van der Walt, 2015) from 15 to 85 %: its dark end vanishes on a dark ground, its yellow on white.
_VIRIDIS = [(70, 51, 127), (54, 92, 141), (39, 127, 142), (31, 161, 135), (74, 194, 109), (159, 218, 58)]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke"]
GLYPHS = ["●", "■", "▲", "◆", "✚", "▼", "▬"]
GREY = "#808080"
MOST_IN_LEGEND = 24  # a longer legend is taller than its chart; the table lists the cells, and marks name theirs

MOST_BANDS = 12  # cells that get a band or a limit of their own: more are mud

Width = int | Literal["container"]
Tooltips = list[str | alt.Tooltip]


def inline(rows: list[dict[str, Any]]) -> alt.InlineData:
    """Rows as a chart's own data."""
    return alt.InlineData(values=rows)


def colours(cells: Cells) -> list[str]:
    """A colour per cell, in the cells' order: viridis where there are more cells than colours to tell apart."""
    n = len(cells.order)
    if n <= len(PALETTE):
        return PALETTE[:n]
    return [_viridis(index / (n - 1)) for index in range(n)]


def _viridis(share: float) -> str:
    place = share * (len(_VIRIDIS) - 1)
    left = min(int(place), len(_VIRIDIS) - 2)
    mixed = (a + (b - a) * (place - left) for a, b in zip(_VIRIDIS[left], _VIRIDIS[left + 1], strict=True))
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def shapes(cells: Cells) -> list[str]:
    """A shape per cell, in the cells' order; shapes recur where there are more cells than shapes."""
    return [SHAPES[index % len(SHAPES)] for index in range(len(cells.order))]


def key(cells: Cells) -> list[tuple[str, str, str]]:
    """(name, colour, glyph) of each cell: the key to charts that have no legend of their own."""
    glyphs = [GLYPHS[index % len(GLYPHS)] for index in range(len(cells.order))]
    return list(zip(cells.order, colours(cells), glyphs, strict=True))


def legend_of(cells: Cells, present: Collection[str] | None = None) -> alt.Legend | None:
    """A legend of the cells that are ``present`` (by default all of them); None where it would be too long."""
    shown = [cell for cell in cells.order if present is None or cell in present]
    if len(shown) > MOST_IN_LEGEND:
        return None
    return alt.Legend(orient="top", columns=4, labelLimit=320, symbolLimit=0, symbolOpacity=1, title=None, values=shown)


def colour_of(cells: Cells, legend: alt.Legend | None = None) -> alt.Color:
    """A colour per cell, the same in every chart of a study."""
    scale = alt.Scale(domain=cells.order, range=colours(cells))
    return alt.Color("cell:N", title=None, scale=scale, legend=legend)


def rows_of(cells: Cells, without: frozenset[str] = frozenset()) -> alt.Y:
    """A row per cell, in the cells' order."""
    order = [cell for cell in cells.order if cell not in without]
    return alt.Y("cell:N", title=None, scale=alt.Scale(domain=order), axis=alt.Axis(labelLimit=240, ticks=False))


def height_of(cells: Cells, without: int = 0) -> int:
    """The height that a chart with a row per cell needs, in pixels."""
    rows = max(1, len(cells.order) - without)
    return rows * (36 if rows <= MOST_IN_LEGEND else 20)


# The collapse criterion in a chart: the limit that the chains were judged by.


def limit_layers(
    chains: pl.DataFrame | None, criteria: Sequence[CollapseCriterion], cells: Cells, y: alt.Y, log_scale: bool
) -> list[alt.Chart]:
    """A dashed line per criterion: in a cell's colour where the cells' limits differ, else grey.

    With more cells than bands the limits are told as one, with their range over cells and seeds. A limit of zero or
    less has no place on a log axis.
    """
    layers: list[alt.Chart] = []
    if chains is None:
        return layers
    for criterion in criteria:
        limits = cells.name(chains.filter(criterion_rows(criterion))).filter(pl.col("cell").is_not_null())
        if len(cells.order) > MOST_BANDS:
            limits = limits.with_columns(pl.lit("all cells").alias("cell"))
        drawable = pl.col("limit").is_finite() & ((pl.col("limit") > 0) | (not log_scale))
        spread = limits.filter(drawable).group_by("cell", maintain_order=True)
        table = spread.agg(
            pl.col("limit").median().alias("value"),
            pl.col("limit").min().alias("low"),
            pl.col("limit").max().alias("high"),
        )
        if table.is_empty():
            continue
        shared = table.select("value", "low", "high").n_unique() == 1
        rows = [row | {"text": f"collapse: {limit_text(criterion)}"} for row in table.to_dicts()]
        layers += _limit_lines(rows[:1] if shared else rows, shared, y, cells)
    return layers


def _limit_lines(rows: list[dict[str, Any]], shared: bool, y: alt.Y, cells: Cells) -> list[alt.Chart]:
    base = alt.Chart(inline(rows))
    tooltip: Tooltips = [
        "text:N",
        alt.Tooltip("value:Q", title="median over seeds", format=",.4~g"),
        alt.Tooltip("low:Q", title="lowest", format=",.4~g"),
        alt.Tooltip("high:Q", title="highest", format=",.4~g"),
    ]
    colour = alt.value(GREY) if shared else colour_of(cells)
    layers = [base.mark_rule(strokeDash=[6, 4], strokeWidth=1.5).encode(y=y, color=colour, tooltip=tooltip)]
    if shared and rows[0]["low"] < rows[0]["high"]:
        layers.insert(0, base.mark_rect(opacity=0.12, color=GREY).encode(y=alt.Y("low:Q"), y2="high:Q"))
    label = alt.Chart(inline(rows[:1])).mark_text(align="left", baseline="bottom", dx=6, dy=-3, color=GREY)
    return [*layers, label.encode(x=alt.value(0), y=y, text="text:N")]
