"""What all charts share: colours, shapes, and how a cell becomes a legend entry or a row."""

from __future__ import annotations

from typing import Any, Literal

import altair as alt

from fortifai_ray.report.cells import Cells

# Okabe & Ito (2008), "Color Universal Design", without black and yellow, which vanish on one of the two grounds.
PALETTE = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F"]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke"]
GREY = "#808080"

Width = int | Literal["container"]
Tooltips = list[str | alt.Tooltip]


def inline(rows: list[dict[str, Any]]) -> alt.InlineData:
    """Rows as a chart's own data."""
    return alt.InlineData(values=rows)


def colour_of(cells: Cells, legend: bool = True) -> alt.Color:
    """A colour per cell; viridis, in the cells' order, where there are more cells than colours to tell apart."""
    scale = alt.Scale(domain=cells.order, scheme="viridis")
    if len(cells.order) <= len(PALETTE):
        scale = alt.Scale(domain=cells.order, range=PALETTE[: len(cells.order)])
    shown = alt.Legend(orient="top", columns=4, labelLimit=320, symbolLimit=0, symbolOpacity=1, title=None)
    return alt.Color("cell:N", title=None, scale=scale, legend=shown if legend else None)


def rows_of(cells: Cells, without: frozenset[str] = frozenset()) -> alt.Y:
    """A row per cell, in the cells' order."""
    order = [cell for cell in cells.order if cell not in without]
    return alt.Y("cell:N", title=None, scale=alt.Scale(domain=order), axis=alt.Axis(labelLimit=240, ticks=False))


def height_of(cells: Cells, without: int = 0) -> int:
    """The height that a chart with a row per cell needs, in pixels."""
    return 36 * max(1, len(cells.order) - without)
