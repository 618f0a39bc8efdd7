"""Collapse curves: a metric by generation, as an Altair chart for the report, notebooks and figures alike.

It takes tables as the result contract has them and returns an ordinary chart: ``chart.save("x.png")`` works. Colours
are Okabe and Ito's (safe for colour-blind readers), and cells differ in shape as well; what is drawn in grey reads on
light and on dark. Values that are no number (a diverged generation) are drawn as triangles at the top edge, so that
they neither vanish nor bend the axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from fortifai_ray.fidelity import CollapseCriterion, is_log_scale
from fortifai_ray.report.cells import BASELINE, Cells, varied_keys
from fortifai_ray.report.criteria import criteria_of, criterion_rows, limit_text, metric_title
from fortifai_ray.report.encodings import GREY, SHAPES, Tooltips, Width, colour_of, inline

MOST_POINTS = 4_000  # thin lines with more points than this only blacken the chart and swell the page
MINMAX_SEEDS = 10  # up to here the band is the whole range; above, the 10 to 90 % quantiles
# 5,000 and 1e+9: thousands are read at a glance, rows of zeros are not. A label that the axis left empty stays so.
_LOG_LABEL = "datum.label && datum.value >= 1e7 ? format(datum.value, '.0e') : datum.label"


def collapse_curves(
    generations: pl.DataFrame,
    chains: pl.DataFrame | None,
    metric: str,
    *,
    cells: Cells | None = None,
    criteria: Sequence[CollapseCriterion] | None = None,
    baseline: Mapping[str, Any] = BASELINE,
    log_scale: bool | None = None,
    width: Width = 640,
    height: int = 340,
) -> alt.LayerChart:
    """A metric by generation: a colour per cell, the median over seeds, a band over seeds and a thin line per seed.

    The median and the band reach as far as *every* chain of the cell has a value: chains stop once they have
    collapsed, and a median over the survivors would flatter the rest. Failed chains are drawn as lines only. Dashed
    lines are the criterion's limits (with their range over seeds, where the reference differs by seed). Above
    ``MOST_POINTS`` points the thin lines are left out.

    Args:
        generations: ``generations.parquet``.
        chains: ``chains.parquet``, for the limits and the failed chains; None draws neither.
        metric: the column to draw, in its own unit.
        cells: the study's cells; by default found by the dotted columns.
        criteria: limits to draw; by default those ``chains`` has for this metric.
        baseline: the dotted keys of a baseline chain; its cell comes first.
        log_scale: None takes a log axis for perplexity and ratio metrics whose values allow it.
        width: in pixels, or "container".
        height: in pixels.

    Raises:
        KeyError: ``generations`` has no such column.
    """
    if metric not in generations.columns:
        raise KeyError(f"generations has no column {metric!r}")
    if cells is None:
        keys = varied_keys(generations if chains is None else chains)
        cells = Cells.of(generations, [key for key in keys if key in generations.columns], baseline)
    if criteria is None:
        criteria = [] if chains is None else [item for item in criteria_of(chains) if item.metric == metric]
    points = _points(generations, metric, cells)
    numbers = points.filter(pl.col("value").is_not_null())
    if log_scale is None:
        log_scale = is_log_scale(metric) and (numbers["value"] > 0).all()
    y = _value_axis(metric_title(metric), bool(log_scale))
    spread = _spread(points, _failed(chains))
    layers = [*_limit_layers(chains, criteria, cells, y), *_band_layers(spread, y, cells)]
    layers += _seed_layers(points, y, cells)
    return alt.LayerChart(layer=layers, width=width, height=height)


def band_text(generations: pl.DataFrame, cells: Cells) -> str:
    """What the band of :func:`collapse_curves` is, for a caption."""
    chains = cells.name(generations).group_by("cell").agg(pl.col("chain_id").n_unique())["chain_id"]
    if chains.max() == 1:
        return "One chain per cell: no band."
    band = "lowest to highest value over seeds"
    if int(str(chains.max())) > MINMAX_SEEDS:
        band += f" (10 to 90 % quantiles above {MINMAX_SEEDS} chains)"
    thin = "; thin: single chains" if len(generations) <= MOST_POINTS else ""
    return f"Thick: median over seeds; band: {band}, both as far as every chain has a value{thin}."


def _value_axis(title: str, log_scale: bool) -> alt.Y:
    if not log_scale:
        return alt.Y("value:Q", title=title, scale=alt.Scale(zero=False))
    scale, axis = alt.Scale(type="log", nice=False), alt.Axis(format=",~g", labelExpr=_LOG_LABEL)
    return alt.Y("value:Q", title=f"{title}, log scale", scale=scale, axis=axis)


def _failed(chains: pl.DataFrame | None) -> list[str]:
    """The chains without a verdict under any criterion."""
    if chains is None:
        return []
    verdicts = chains.group_by("chain_id").agg((pl.col("status") == "failed").all().alias("failed"))
    return verdicts.filter("failed")["chain_id"].to_list()


def _points(generations: pl.DataFrame, metric: str, cells: Cells) -> pl.DataFrame:
    """``cell, chain, seed, generation, value, shown``: value is null, and shown says so, where it is no number."""
    value = pl.col(metric).cast(pl.Float64)
    return (
        cells.name(generations)
        .filter(pl.col(metric).is_not_null(), pl.col("cell").is_not_null())
        .select(
            "cell",
            pl.col("chain_id").alias("chain"),
            "seed",
            "generation",
            pl.when(value.is_finite()).then(value.round_sig_figs(6)).alias("value"),
            pl.when(value.is_nan()).then(pl.lit("NaN")).when(value.is_infinite()).then(pl.lit("∞")).alias("shown"),
        )
        .sort("cell", "seed", "generation")
    )


def _spread(points: pl.DataFrame, failed: list[str]) -> pl.DataFrame:
    """Median and band over the chains of a cell, at the generations where every one of them has a number."""
    sound = points.filter(~pl.col("chain").is_in(failed))
    low, high = pl.col("value").min(), pl.col("value").max()
    inner_low, inner_high = (pl.col("value").quantile(q, "linear") for q in (0.1, 0.9))
    many = pl.col("chain").n_unique() > MINMAX_SEEDS
    spread = sound.group_by("cell", "generation").agg(
        pl.col("value").median().alias("value"),
        pl.when(many).then(inner_low).otherwise(low).alias("low"),
        pl.when(many).then(inner_high).otherwise(high).alias("high"),
        pl.col("value").count().alias("chains"),
    )
    asked = sound.group_by("cell").agg(pl.col("chain").n_unique().alias("asked"))
    spread = spread.join(asked, on="cell").filter(pl.col("chains") == pl.col("asked"))
    return spread.drop("asked").sort("cell", "generation")


def _band_layers(spread: pl.DataFrame, y: alt.Y, cells: Cells) -> list[alt.Chart]:
    pick = alt.selection_point(fields=["cell"], bind="legend")
    colour = colour_of(cells)
    fade = alt.condition(pick, alt.value(1.0), alt.value(0.12))
    data = inline(spread.to_dicts())
    tooltip: Tooltips = [
        "cell:N",
        "generation:Q",
        alt.Tooltip("value:Q", title="median", format=",.4~g"),
        alt.Tooltip("low:Q", title="band from", format=",.4~g"),
        alt.Tooltip("high:Q", title="to", format=",.4~g"),
        "chains:Q",
    ]
    base = alt.Chart(data).encode(x=_generation(), color=colour)
    band = base.mark_area().encode(
        y=alt.Y("low:Q"), y2="high:Q", opacity=alt.condition(pick, alt.value(0.16), alt.value(0.03))
    )
    line = base.mark_line(strokeWidth=2.5).encode(y=y, opacity=fade)
    shape = alt.Shape("cell:N", title=None, scale=alt.Scale(domain=cells.order, range=_cycle(SHAPES, cells)))
    dots = base.mark_point(filled=True, size=60).encode(y=y, shape=shape, opacity=fade, tooltip=tooltip)
    layers = [line, dots.add_params(pick)]
    return [band, *layers] if len(spread) and spread["chains"].max() != 1 else layers


def _seed_layers(points: pl.DataFrame, y: alt.Y, cells: Cells) -> list[alt.Chart]:
    """A thin line per chain (where a cell has several) and the values that are no number, at the top edge."""
    which: Tooltips = ["cell:N", "seed:Q", "generation:Q"]
    colour = colour_of(cells)
    layers = []
    several = points.group_by("cell").agg(pl.col("chain").n_unique())["chain"].max()
    if several not in (None, 1) and len(points) <= MOST_POINTS:
        data = inline(points.filter(pl.col("value").is_not_null()).to_dicts())
        tooltip = [*which, alt.Tooltip("value:Q", format=",.4~g")]
        base = alt.Chart(data).encode(x=_generation(), y=y, color=colour, detail="chain:N", tooltip=tooltip)
        layers.append(base.mark_line(strokeWidth=0.8, opacity=0.55, point=alt.OverlayMarkDef(size=14, opacity=0.55)))
    broken = points.filter(pl.col("value").is_null())
    if len(broken):
        tooltip = [*which, alt.Tooltip("shown:N", title="value")]
        base = alt.Chart(inline(broken.to_dicts())).encode(x=_generation(), color=colour, tooltip=tooltip)
        layers.append(base.mark_point(shape="triangle-up", size=90, strokeWidth=2, filled=False).encode(y=alt.value(6)))
    return layers


def _limit_layers(
    chains: pl.DataFrame | None, criteria: Sequence[CollapseCriterion], cells: Cells, y: alt.Y
) -> list[alt.Chart]:
    """A dashed line per criterion, grey where all cells share the limit and in the cell's colour where they do not."""
    layers: list[alt.Chart] = []
    if chains is None:
        return layers
    for criterion in criteria:
        limits = cells.name(chains.filter(criterion_rows(criterion))).filter(pl.col("cell").is_not_null())
        spread = limits.filter(pl.col("limit").is_finite()).group_by("cell", maintain_order=True)
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


def _cycle(values: Sequence[str], cells: Cells) -> list[str]:
    return [values[index % len(values)] for index in range(len(cells.order))]


def _generation() -> alt.X:
    return alt.X(
        "generation:Q", title="generation", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False)
    )
