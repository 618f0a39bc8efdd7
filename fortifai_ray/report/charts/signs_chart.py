"""Charts and tables of what collapses first: fidelity left by generation, the order of onsets, and what it hangs on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from fortifai_ray.notebooks.signs import Sign
from fortifai_ray.report.charts.curves import generation_axis
from fortifai_ray.report.charts.encodings import GREY, PALETTE, SHAPES, Tooltips, inline
from fortifai_ray.results.words import number
from fortifai_ray.statistics import crossing_order, first_crossings
from fortifai_ray.statistics.survival import kaplan_meier, median

_AXIS = "fidelity left (1: its own generation 0)"
_ROOF = 1.5  # a sign that improves leaves the chart there


MOST_CELLS = 8  # cells that get a chart of their own


def left_charts(
    table: pl.DataFrame, chosen: Sequence[Sign], cells: Sequence[str], left: float
) -> alt.VConcatChart | str:
    """Fidelity left of each sign by generation, a chart for each of the first cells; or why there is none."""
    known = set(table["cell"])
    charts = [_left_chart(table, chosen, cell, left) for cell in cells[:MOST_CELLS] if cell in known]
    return alt.VConcatChart(vconcat=charts) if charts else "No chain has anything to lose in generation 0."


def when_charts(table: pl.DataFrame, chosen: Sequence[Sign], cells: Sequence[str]) -> alt.VConcatChart | str:
    """Median onsets by the share that counts as lost, a chart for each of the first cells; or why there is none."""
    charts = [_when_chart(table, chosen, cell) for cell in cells[:MOST_CELLS]]
    found = [chart for chart in charts if chart is not None]
    if not found:
        return (
            "No sign is lost by half of the chains of any cell, at any share: nothing comes first within this horizon."
        )
    return alt.VConcatChart(vconcat=found)


def _left_chart(
    table: pl.DataFrame, chosen: Sequence[Sign], cell: str, left: float, *, width: int = 560
) -> alt.LayerChart:
    """Fidelity left of each sign in one cell: median over seeds, lowest to highest as a band; dashed: when it is lost.

    Medians reach as far as every chain of the cell has a value.
    """
    rows = _spread(table.filter(pl.col("cell") == cell))
    colour, shape = _sign_colour(chosen), _sign_shape(chosen)
    y = alt.Y(
        "value:Q", title=_AXIS, scale=alt.Scale(domain=[0, _ROOF], clamp=True, nice=False), axis=alt.Axis(format="~g")
    )
    tooltip: Tooltips = ["sign:N", "generation:Q", alt.Tooltip("value:Q", title="median", format=".3~g")]
    tooltip += [alt.Tooltip("low:Q", format=".3~g"), alt.Tooltip("high:Q", format=".3~g"), "chains:Q"]
    base = alt.Chart(inline(rows)).encode(x=generation_axis(), color=colour)
    layers = [
        base.mark_area(opacity=0.13, clip=True).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(strokeWidth=2.5, clip=True).encode(y=y),
        base.mark_point(filled=True, size=60, opacity=1, clip=True).encode(y=y, shape=shape, tooltip=tooltip),
        alt.Chart(inline([{"value": left}])).mark_rule(color=GREY, strokeDash=[6, 4]).encode(y=y),
    ]
    return alt.LayerChart(layer=layers, width=width, height=280, title=cell)


def order_chart(table: pl.DataFrame, chosen: Sequence[Sign], *, width: int = 560) -> alt.LayerChart | str:
    """How often the sign of a row is lost before that of a column, over all cells' chains whose order is known."""
    counts = crossing_order(table, ["seed"])
    if counts.is_empty():
        return "Fewer than two signs have a verdict: there is no order."
    names = dict(table.select("metric", "sign").unique().iter_rows())
    rows = []
    for row in counts.iter_rows(named=True):
        share = row["share"]
        known = f"{row['n_before']} of {row['n_chains'] - row['n_open']}"
        rows.append(
            {
                "first": names[row["metric"]],
                "second": names[row["other_metric"]],
                "share": share,
                "text": "?" if share is None else known,
                "interval": f"{100 * row['share_low']:.0f} to {100 * row['share_high']:.0f} %",
                "open": row["n_open"],
                "tied": row["n_tied"],
                "dark": share is not None and share > 0.55,
            }
        )
    order = [sign.name for sign in chosen]
    tooltip: Tooltips = [
        "first:N",
        "second:N",
        alt.Tooltip("share:Q", format=".0%"),
        alt.Tooltip("interval:N", title="90 % interval"),
    ]
    tooltip += ["tied:Q", alt.Tooltip("open:Q", title="order unknown")]
    axis = alt.Axis(labelLimit=220, labelAngle=-25)
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("second:N", title="before this one", scale=alt.Scale(domain=order), axis=axis),
        y=alt.Y("first:N", title="is lost", scale=alt.Scale(domain=order), axis=alt.Axis(labelLimit=220)),
    )
    scale = alt.Scale(domain=[0, 1], range=["#ffffff", PALETTE[1]], interpolate="rgb")
    fill = alt.Color("share:Q", title="share of chains", scale=scale, legend=alt.Legend(format=".0%"))
    tiles = base.mark_rect(stroke="#d9d9d9").encode(color=fill, tooltip=tooltip)
    ink = alt.condition("datum.dark", alt.value("white"), alt.value("black"))
    texts = base.mark_text(fontSize=12).encode(text="text:N", color=ink)
    return alt.LayerChart(layer=[tiles, texts], width=width, height=max(120, 44 * len(order)))


def _when_chart(table: pl.DataFrame, chosen: Sequence[Sign], cell: str, *, width: int = 560) -> alt.LayerChart | None:
    """The Kaplan–Meier median onset of each sign by the share that counts as lost, in one cell; it ends where fewer
    than half of the chains lose it."""
    judged = table.filter(pl.col("cell") == cell, pl.col("status") != "failed")
    if judged.is_empty():
        return None
    curves = kaplan_meier(judged.with_columns(fi=pl.col("fi_generations").cast(pl.Float64)), ["sign", "left"])
    medians = curves.group_by("sign", "left").agg(at=median(), chains=pl.len(), censored=pl.col("censored").sum())
    rows = medians.filter(pl.col("at").is_not_null()).sort("sign", "left").to_dicts()
    if not rows:
        return None
    x = alt.X(
        "left:Q",
        title="lost means: less than this share of the fidelity is left",
        scale=alt.Scale(domain=[1, 0], nice=False),
        axis=alt.Axis(format="~g"),
    )
    y = alt.Y("at:Q", title="median onset (generations)", scale=alt.Scale(zero=True))
    tooltip: Tooltips = [
        "sign:N",
        alt.Tooltip("left:Q", format=".2~g"),
        alt.Tooltip("at:Q", title="median onset", format=".3~g"),
        "chains:Q",
        "censored:Q",
    ]
    base = alt.Chart(inline(rows)).encode(x=x, y=y, color=_sign_colour(chosen))
    points = base.mark_point(filled=True, size=45, opacity=1).encode(shape=_sign_shape(chosen), tooltip=tooltip)
    return alt.LayerChart(layer=[base.mark_line(strokeWidth=2), points], width=width, height=240, title=cell)


def firsts(
    table: pl.DataFrame, chosen: Sequence[Sign], keys: Sequence[str], cells: Sequence[str]
) -> list[dict[str, str]]:
    """Per cell: which sign is lost first, by how many chains."""
    found = first_crossings(table, keys)
    cell_of = table.select("chain_id", "cell").unique("chain_id")
    names = dict(table.select("metric", "sign").unique().iter_rows())
    found = found.join(cell_of, on="chain_id", how="left")
    rows = []
    for cell in cells:
        group = found.filter(pl.col("cell") == cell)
        if group.is_empty():
            continue
        counts = dict(group.filter(pl.col("order") == "first").group_by("metric").len().iter_rows())
        row = {"cell": cell, "chains": f"{group.height:,}"}
        row |= {
            f"{sign.name} first": str(next((n for m, n in counts.items() if names[m] == sign.name), 0))
            for sign in chosen
        }
        others = {"tie": "several at once", "open": "order unknown", "none": "nothing lost"}
        rows.append(row | {text: str(group.filter(pl.col("order") == kind).height) for kind, text in others.items()})
    return rows


def onsets(table: pl.DataFrame, chosen: Sequence[Sign], cells: Sequence[str]) -> list[dict[str, str]]:
    """Per cell and sign: the criterion in the metric's own terms, chains that lost it, and the median onset."""
    judged = table.filter(pl.col("status") != "failed").with_columns(fi=pl.col("fi_generations").cast(pl.Float64))
    curves = kaplan_meier(judged, ["cell", "sign"])
    medians = {
        (row["cell"], row["sign"]): row["at"]
        for row in curves.group_by("cell", "sign").agg(at=median()).iter_rows(named=True)
    }
    rows: list[dict[str, str]] = []
    for cell in cells:
        for sign in chosen:
            group = table.filter(pl.col("cell") == cell, pl.col("sign") == sign.name)
            if group.is_empty():
                continue
            lost, known = (group["status"] == "collapsed").sum(), group.filter(pl.col("status") != "failed").height
            at = medians.get((cell, sign.name))
            reached = number(at) if at is not None else ("not reached" if known else "–")
            rows.append(
                {
                    "cell": cell,
                    "sign": sign.name,
                    "lost by": f"{lost} of {known}",
                    "median onset (generations)": reached,
                    "no verdict": str(group.height - known),
                }
            )
    return rows


def _spread(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Median, lowest and highest by sign and generation, where every chain has a value."""
    value = pl.col("left").filter(pl.col("left").is_finite())
    spread = table.group_by("sign", "generation").agg(
        value=value.median(), low=value.min(), high=value.max(), chains=value.count()
    )
    asked = table.group_by("sign").agg(asked=pl.col("chain_id").n_unique())
    whole = spread.join(asked, on="sign").filter(pl.col("chains") == pl.col("asked"))
    return whole.sort("sign", "generation").to_dicts()


def _sign_colour(chosen: Sequence[Sign]) -> alt.Color:
    names = [sign.name for sign in chosen]
    palette = [PALETTE[index % len(PALETTE)] for index in range(len(names))]
    legend = alt.Legend(orient="top", columns=3, labelLimit=320, symbolLimit=0, symbolOpacity=1)
    return alt.Color("sign:N", title=None, scale=alt.Scale(domain=names, range=palette), legend=legend)


def _sign_shape(chosen: Sequence[Sign]) -> alt.Shape:
    names = [sign.name for sign in chosen]
    shapes = [SHAPES[index % len(SHAPES)] for index in range(len(names))]
    legend = alt.Legend(orient="top", columns=3, labelLimit=320, symbolLimit=0)
    return alt.Shape("sign:N", title=None, scale=alt.Scale(domain=names, range=shapes), legend=legend)
