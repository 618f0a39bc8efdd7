"""What all charts share: colours, shapes, legends, a row per cell, and the criterion's limit."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from textwrap import wrap
from typing import Any, Literal, TypeVar, cast

import altair as alt
import polars as pl

from fortifai_ray.report.points import Curve
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.words import finite
from fortifai_ray.statistics.criterion import Collapse, CollapseCriterion, criterion_rows

# Okabe & Ito (2008), "Color Universal Design", without black and yellow, which vanish on one of the two grounds.
PALETTE = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F"]
# Viridis (Smith & van der Walt, 2015) from 15 to 85 %: its dark end vanishes on a dark ground, its yellow on white.
_VIRIDIS = [(70, 51, 127), (54, 92, 141), (39, 127, 142), (31, 161, 135), (74, 194, 109), (159, 218, 58)]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke"]
GLYPHS = ["●", "■", "▲", "◆", "✚", "▼", "▬"]
GREY = "#808080"
MOST_IN_LEGEND = 24  # a longer legend is taller than its chart: the table lists the cells, and tooltips name them
_LINE = 30  # letters of a cell's name beside its row: a chart has room beside them on a telephone, too
_LEGEND_LINE = 44  # letters of a cell's name in a legend
_LEGEND_WIDTH = 520  # pixels, of a chart in half a page; a letter takes 7 of them, a symbol 30
_NEAR = 0.05  # of the axis: what is nearer to a limit is in the way of its label
MOST_BANDS = 12  # the most cells that get a band or a limit of their own: more are illegible
# What the shape of a mark on a horizontal axis says of a value: exact, at least, at most.
BOUNDS = {"exact": "diamond", "lower": "triangle-right", "upper": "triangle-left"}

Width = int | Literal["container"]
Side = Literal["left", "right"]
Tooltips = list[str | alt.Tooltip]
Channel = TypeVar("Channel", alt.Color, alt.Shape)


def chart_of(rows: pl.DataFrame | list[dict[str, Any]]) -> alt.Chart:
    """A chart that contains its rows."""
    return alt.Chart(alt.InlineData(values=rows.to_dicts() if isinstance(rows, pl.DataFrame) else rows))


def colours(cells: Cells) -> list[str]:
    """A colour per cell, in the cells' order: viridis where there are more cells than distinct colours, and grey for
    what is judged of a whole ecosystem."""
    n = len(cells.order) - len(cells.wholes)
    known = iter(PALETTE if n <= len(PALETTE) else [_viridis(index / (n - 1)) for index in range(n)])
    return [GREY if cell in cells.wholes else next(known) for cell in cells.order]


def _viridis(share: float) -> str:
    place = share * (len(_VIRIDIS) - 1)
    left = min(int(place), len(_VIRIDIS) - 2)
    mixed = (a + (b - a) * (place - left) for a, b in zip(_VIRIDIS[left], _VIRIDIS[left + 1], strict=True))
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def key(cells: Cells) -> list[tuple[str, str, str]]:
    """(name, colour, glyph) of each cell that has generations: the key to charts without a legend."""
    known = [pair for pair in zip(cells.order, colours(cells), strict=True) if pair[0] not in cells.wholes]
    return [(name, colour, glyph) for (name, colour), glyph in zip(known, cycle(GLYPHS), strict=False)]


def by_name(
    channel: type[Channel], field: str, names: Sequence[str], values: Sequence[str], legend: alt.Legend | None = None
) -> Channel:
    """A colour or a shape per name, in order; ``values`` repeat where there are more names."""
    scale = alt.Scale(domain=list(names), range=list(islice(cycle(values), len(names))))
    return channel(f"{field}:N", title=None, scale=scale, legend=legend)


def legend_of(cells: Cells, present: Collection[str] | None = None) -> alt.Legend | None:
    """A legend of the cells in ``present`` (by default all); None where it would be too long."""
    shown = [cell for cell in cells.order if present is None or cell in present]
    if len(shown) > MOST_IN_LEGEND:
        return None
    longest = min(_LEGEND_LINE, max(map(len, shown), default=1))
    columns = max(1, min(4, _LEGEND_WIDTH // (30 + 7 * longest)))
    label = {"labelLimit": 0, "labelExpr": _wrapped(shown, _LEGEND_LINE)}
    return alt.Legend(orient="top", columns=columns, symbolLimit=0, symbolOpacity=1, title=None, values=shown, **label)


def _wrapped(names: Iterable[str], width: int) -> Any:
    """The expression of labels that are names, those of more than ``width`` letters in several lines."""
    lines = {name: lines for name in names if len(lines := _lines(name, width)) > 1}
    return f"{json.dumps(lines)}[datum.label] || datum.label" if lines else alt.Undefined


def colour_of(cells: Cells, legend: alt.Legend | None = None) -> alt.Color:
    """A colour per cell, the same in every chart of a study."""
    return by_name(alt.Color, "cell", cells.order, colours(cells), legend)


def shape_of(cells: Cells, legend: alt.Legend | None = None) -> alt.Shape:
    """A shape per cell, the same in every chart of a study; its names are the colours', for they share a legend."""
    known = cycle(SHAPES)
    shapes = [SHAPES[0] if cell in cells.wholes else next(known) for cell in cells.order]
    return by_name(alt.Shape, "cell", cells.order, shapes, legend)


def bound_shape(of: Mapping[str, str] = BOUNDS) -> alt.Shape:
    """The shape of a mark by its column ``bound``."""
    return alt.Shape("bound:N", legend=None, scale=alt.Scale(domain=list(of), range=list(of.values())))


def verdicts_of(chains: pl.DataFrame, criterion: Collapse, cells: Cells) -> pl.DataFrame:
    """The rows of the chains with a verdict under a criterion, with a column ``cell``."""
    judged = cells.name(chains.filter(criterion_rows(criterion), pl.col("status") != "failed"))
    return judged.filter(pl.col("cell").is_not_null())


def spread_by_seed(rows: pl.DataFrame, edge: float) -> tuple[list[dict[str, Any]], alt.YOffset]:
    """Rows of chains, spread evenly by seed within their cell's row so that equal values do not hide each other.

    Args:
        rows: with columns ``cell`` and ``seed``.
        edge: where a row ends; chains lie between −1 and 1.
    """
    jitter = (2 * (pl.int_range(pl.len()) + 0.5) / pl.len() - 1).over("cell")
    spread = rows.sort("seed").with_columns(jitter.alias("jitter")).to_dicts()
    return spread, alt.YOffset("jitter:Q", scale=alt.Scale(domain=[-edge, edge]))


def outcome_marks(
    rows: list[dict[str, Any]], shapes: Sequence[Any] = (alt.Undefined, alt.Undefined), **mark: Any
) -> list[alt.Chart]:
    """A mark per chain, filled where it ``collapsed`` and open where it did not: a layer each, as far as they occur."""
    layers = []
    for collapsed, shape in zip((True, False), shapes, strict=True):
        if own := [row for row in rows if row["collapsed"] == collapsed]:
            layers.append(chart_of(own).mark_point(filled=collapsed, shape=shape, **mark))
    return layers


def _lines(name: str, width: int) -> list[str]:
    """A cell's name in lines of at most ``width`` letters, with the parts of one section of the recipe together."""
    lines, is_whole = list[str](), False
    for part in name.split(" · "):
        if is_whole and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f" · {part}"
        else:
            lines += (wrapped := wrap(part, width))
            is_whole = len(wrapped) == 1
    return lines


def rows_of(cells: Cells, without: frozenset[str] = frozenset()) -> alt.Y:
    """A row per cell, in the cells' order."""
    order = [cell for cell in cells.order if cell not in without]
    axis = alt.Axis(labelLimit=0, labelExpr=_wrapped(order, _LINE), ticks=False)
    return alt.Y("cell:N", title=None, scale=alt.Scale(domain=order), axis=axis)


def height_of(cells: Cells, without: int = 0) -> int:
    """The height of a chart with a row per cell, in pixels: its name has room, however many lines it takes."""
    rows = max(1, len(cells.order) - without)
    lines = max((len(_lines(cell, _LINE)) for cell in cells.order), default=1)
    return rows * max(36 if rows <= MOST_IN_LEGEND else 20, 6 + 14 * lines)


def broad(values: Iterable[float | None], least: float, *, log: bool = False, **axis: alt.X | alt.Y) -> list[alt.Chart]:
    """An invisible layer that widens an ``axis`` (``x`` or ``y``) whose values span less than ``least``, which is a
    factor where it is ``log``: one from 0.9999 to 1 tells nothing."""
    known = finite(list(values))
    low, high = min(known, default=0.0), max(known, default=least)
    if not known or (high >= low * least if log else high - low >= least):
        return []
    if log:
        ends = math.sqrt(low * high / least), math.sqrt(low * high * least)
    else:
        start = (low + high - least) / 2
        start = max(start, 0.0) if low >= 0 else start
        ends = start, start + least
    [on] = axis.values()
    field = cast(dict[str, str], on.to_dict())["field"]
    return [chart_of([{field: end} for end in ends]).mark_square(opacity=0).encode(**axis)]


def limit_layers(
    chains: pl.DataFrame | None, drawn: Curve, criteria: Sequence[Collapse], cells: Cells, y: alt.Y
) -> list[alt.Chart]:
    """A dashed line at each of the criteria's limits on a curve's metric: in a cell's colour where the cells' limits
    differ, else grey. Its label is where no curve begins or ends, and no other label is.

    With more than ``MOST_BANDS`` cells the limits are drawn as one, with their range over cells and seeds. On a log
    axis, a limit of zero or less is left out.
    """
    if chains is None:
        return []
    lines: list[tuple[list[dict[str, Any]], bool]] = []
    limit, metric, log_scale = pl.col("limit"), drawn.metric, drawn.log_scale
    for criterion in criteria:
        judged = cells.name(chains.filter(criterion_rows(criterion)))
        judged = judged.filter(~pl.col("cell").is_in(sorted(cells.wholes)))  # no curve is theirs
        for member, limits in _limits_on(metric, judged, criterion):
            if len(cells.order) > MOST_BANDS:
                limits = limits.with_columns(cell=pl.lit("all cells"))
            shown = limits.filter(limit.is_finite() & ((limit > 0) | (not log_scale)))
            spread = shown.group_by("cell", maintain_order=True)
            table = spread.agg(value=limit.median(), low=limit.min(), high=limit.max())
            if not table.is_empty():
                shared = table.select("value", "low", "high").n_unique() == 1
                rows = table.with_columns(text=pl.lit(f"collapse: {member.limit_words}")).to_dicts()
                lines.append((rows[:1] if shared else rows, shared))
    sides = _sides([rows[0]["value"] for rows, _ in lines], drawn)
    return [
        layer
        for (rows, shared), side in zip(lines, sides, strict=True)
        for layer in _limit_lines(rows, shared, side, y, cells)
    ]


def _sides(limits: Sequence[float], drawn: Curve) -> list[Side]:
    """The end of its line at which each limit's label is: the left one, unless a curve begins or a label is there."""
    scale = math.log if drawn.log_scale else float
    table = pl.concat([one.select("generation", "value").drop_nulls() for one in (drawn.spread, drawn.points)])
    table = table.filter((pl.col("value") > 0) | (not drawn.log_scale))
    places = [scale(value) for value in (*table["value"], *limits)]
    span = max(places, default=0.0) - min(places, default=0.0) or 1.0

    def room(limit: float, generation: int | None) -> float:
        ends = table.filter(generation=generation)["value"]
        return min((abs(scale(value) - scale(limit)) / span for value in ends), default=1.0)

    first, last = min(drawn.generations, default=None), max(drawn.generations, default=None)
    sides: dict[float, Side] = {}
    for limit in sorted(limits):
        crowded = room(limit, first) < min(_NEAR, room(limit, last))
        wanted: tuple[Side, Side] = ("right", "left") if crowded else ("left", "right")
        taken = {side for other, side in sides.items() if abs(scale(other) - scale(limit)) < _NEAR * span}
        sides[limit] = next((side for side in wanted if side not in taken), wanted[0])
    return [sides[limit] for limit in limits]


def _limits_on(
    metric: str, rows: pl.DataFrame, criterion: Collapse
) -> Iterator[tuple[CollapseCriterion, pl.DataFrame]]:
    """Each limit of a criterion on a metric: whose it is, and the ``cell`` and ``limit`` of each chain."""
    limits = pl.col("limits") if "limits" in rows.columns else pl.concat_list("limit")  # null for the one limit
    owners = [member for member in criterion.members for _ in member.thresholds]
    named = rows.filter(pl.col("cell").is_not_null())
    for place, member in enumerate(owners):
        if member.metric == metric:
            yield member, named.select("cell", limit=limits.list.get(place, null_on_oob=True))


def _limit_lines(rows: list[dict[str, Any]], shared: bool, side: Side, y: alt.Y, cells: Cells) -> list[alt.Chart]:
    base = chart_of(rows)
    ends = (("value", "median over seeds"), ("low", "lowest"), ("high", "highest"))
    tooltip = ["text:N", *(alt.Tooltip(f"{name}:Q", title=title, format=",.4~g") for name, title in ends)]
    colour = alt.value(GREY) if shared else colour_of(cells)
    layers = [base.mark_rule(strokeDash=[6, 4], strokeWidth=1.5).encode(y=y, color=colour, tooltip=tooltip)]
    if shared and rows[0]["low"] < rows[0]["high"]:
        layers.insert(0, base.mark_rect(opacity=0.12, color=GREY).encode(y=alt.Y("low:Q"), y2="high:Q"))
    inwards, end = (6, 0) if side == "left" else (-6, "width")
    label = chart_of([max(rows, key=lambda row: float(row["value"]))]).mark_text(
        align=side, baseline="bottom", dx=inwards, dy=-3, color=GREY
    )
    return [*layers, label.encode(x=alt.value(end), y=y, text="text:N")]
