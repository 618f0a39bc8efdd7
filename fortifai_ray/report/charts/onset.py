"""Charts with a row per cell: when its chains collapsed, and its fidelity-interval ratio to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from fortifai_ray.report.charts.encodings import (
    GREY,
    Tooltips,
    Width,
    bound_shape,
    broad,
    chart_of,
    colour_of,
    height_of,
    outcome_marks,
    rows_of,
    spread_by_seed,
    verdicts_of,
)
from fortifai_ray.report.points import MANY_CHAINS
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.words import MARKS, count, finite, number, ratio, ratio_bound, seed_ratios
from fortifai_ray.statistics.criterion import Collapse, criterion_rows
from fortifai_ray.statistics.survival import kaplan_meier

_RATIOS = 1.25  # the least factor that an axis of ratios spans


def onset_chart(
    chains: pl.DataFrame,
    criterion: Collapse,
    cells: Cells,
    *,
    medians: Mapping[str, float | None] | None = None,
    width: Width = 640,
) -> alt.LayerChart | None:
    """Each chain's collapse onset, a row per cell: a filled circle for a collapse, an open triangle for censoring.

    A cell with more than :data:`~fortifai_ray.report.points.MANY_CHAINS` chains shows its Kaplan–Meier quantiles: thin
    from 5 to 95 %, thick from 25 to 75 %; an open triangle where censoring leaves the end unknown.

    Args:
        chains: ``chains.parquet``.
        criterion: the criterion to show.
        cells: the study's cells.
        medians: the Kaplan–Meier median by cell, drawn as a bar; None where it is not reached.
        width: in pixels, or "container".

    Returns:
        None where no chain has a verdict.
    """
    verdicts = verdicts_of(chains, criterion, cells).filter(pl.col("fi_generations").is_finite())
    verdicts = verdicts.with_columns(at="fi_generations", collapsed=pl.col("status") == "collapsed")
    verdicts = verdicts.select("cell", "seed", "status", "at", "fi_synthetic", "collapsed")
    if verdicts.is_empty():
        return None
    many = pl.len().over("cell") > MANY_CHAINS
    layers = [*_quantile_layers(verdicts.filter(many), cells), *_median_bars(medians or {}, cells)]
    layers += _chain_marks(verdicts.filter(~many), cells)
    layers += broad([*verdicts["at"], *(medians or {}).values()], 1.0, x=_onset_axis())
    return alt.LayerChart(layer=layers, width=width, height=height_of(cells))


def _onset_axis() -> alt.X:
    scale = alt.Scale(zero=False, nice=False, padding=10)  # begins near the data, and has no generation before 0
    label = "datum.value < 0 ? '' : datum.label"
    axis = alt.Axis(tickMinStep=1, tickCount=12, labelOverlap=True, labelExpr=label)
    return alt.X("at:Q", title="onset (generations)", scale=scale, axis=axis)


def _median_bars(medians: Mapping[str, float | None], cells: Cells) -> list[alt.Chart]:
    bars = [{"cell": cell, "at": median} for cell, median in medians.items() if finite([median])]
    if not bars:
        return []
    bar = chart_of(bars).mark_tick(thickness=3, size=min(24, height_of(cells) // len(cells.order)), color=GREY)
    tooltip: Tooltips = ["cell:N", alt.Tooltip("at:Q", title="median FI", format=".4~g")]
    return [bar.encode(x=_onset_axis(), y=rows_of(cells), tooltip=tooltip)]


def _chain_marks(verdicts: pl.DataFrame, cells: Cells) -> list[alt.Chart]:
    """A mark per chain."""
    rows, offset = spread_by_seed(verdicts, edge=1.2)
    rows = [row | {"consumed": count(row["fi_synthetic"])} for row in rows]
    at = alt.Tooltip("at:Q", title="generations", format=".2f")
    tooltip: Tooltips = ["cell:N", "seed:Q", "status:N", at, "consumed:N"]
    return [
        mark.encode(x=_onset_axis(), y=rows_of(cells), yOffset=offset, color=colour_of(cells), tooltip=tooltip)
        for mark in outcome_marks(rows, ("circle", "triangle-right"), size=80, opacity=1, strokeWidth=2)
    ]


def _quantile_layers(verdicts: pl.DataFrame, cells: Cells) -> list[alt.Chart]:
    """Two bars per cell with many chains, and a triangle where the longer one has no known end."""
    rows = _onset_quantiles(verdicts)
    if not rows:
        return []
    tooltip: Tooltips = ["cell:N", "middle:N", "most:N", alt.Tooltip("chains:Q", format=","), "censored:N"]
    encoded = {"x": _onset_axis(), "y": rows_of(cells), "color": colour_of(cells), "tooltip": tooltip}
    layers = []
    for low, high, thickness in (("q05", "q95", 2), ("q25", "q75", 8)):
        bars = chart_of([row | {"at": row[low], "to": row[high]} for row in rows])
        layers.append(bars.mark_rule(strokeWidth=thickness, opacity=0.9).encode(x2="to:Q", **encoded))
    if ends := [row | {"at": row["q95"]} for row in rows if row["open"]]:
        mark = chart_of(ends).mark_point(shape="triangle-right", size=80, strokeWidth=2, filled=False)
        layers.append(mark.encode(**encoded))
    return layers


def _onset_quantiles(verdicts: pl.DataFrame) -> list[dict[str, Any]]:
    """Kaplan–Meier quantiles of the fidelity interval by cell; one that is not reached ends at the longest interval."""
    if verdicts.is_empty():
        return []
    lost = kaplan_meier(verdicts.with_columns(censored=~pl.col("collapsed")), ["cell"], time="at")
    at, survival = pl.col("at"), pl.col("_survival")
    shares = {f"q{round(100 * share):02}": share for share in (0.05, 0.25, 0.75, 0.95)}
    ends = {name: at.filter(survival <= 1 - share + 1e-12).min() for name, share in shares.items()}
    table = lost.group_by("cell").agg(last=at.max(), chains=pl.len(), censored=pl.col("censored").mean(), **ends)
    rows = []
    for row in table.sort("cell").iter_rows(named=True):
        known = {name: row["last"] if row[name] is None else row[name] for name in ends}
        texts = {name: f"≥{number(row['last'])}" if row[name] is None else number(row[name]) for name in ends}
        rows.append(
            known
            | {"cell": row["cell"], "chains": row["chains"], "open": row["q95"] is None}
            | {"middle": f"{texts['q25']} to {texts['q75']}", "most": f"{texts['q05']} to {texts['q95']}"}
            | {"censored": f"{100 * row['censored']:.3g} %"}
        )
    return rows


def ratio_chart(
    fidelity: pl.DataFrame, criterion: Collapse, cells: Cells, unit: str, *, width: Width = 640
) -> alt.LayerChart | None:
    """Fidelity-interval ratios to the baseline: point and interval, and up to a dozen seeds' ratios as small dots.

    A triangle pointing right is a lower bound, one pointing left an upper bound. An undetermined ratio has no large
    mark.

    Args:
        fidelity: ``fidelity.parquet``.
        criterion: the criterion to show.
        cells: the study's cells.
        unit: one of :data:`~fortifai_ray.results.schema.FI_UNITS`.
        width: in pixels, or "container".

    Returns:
        None where no ratio can be drawn.
    """
    table = cells.name(fidelity.filter(criterion_rows(criterion), pl.col("unit") == unit)).filter(
        pl.col("cell").is_not_null(), ~pl.col("cell").is_in(sorted(cells.baselines))
    )
    points, seeds = _ratio_values(table.rows(named=True))
    if not points and not seeds:
        return None
    positive = min(point["at"] for point in points + seeds) > 0
    scale = alt.Scale(type="log", nice=False, padding=18) if positive else alt.Scale(zero=False, padding=18)
    x = alt.X("at:Q", title="FI ratio to the baseline", scale=scale, axis=alt.Axis(format="~g", tickCount=5))
    rule = chart_of([{"at": 1.0}]).mark_rule(color=GREY, strokeDash=[4, 4]).encode(x=x)
    encoded = {"y": rows_of(cells, without=cells.baselines), "color": colour_of(cells)}
    tooltip = ["cell:N", "ratio:N", "bound:N"]
    ends = [point.get(name, point["at"]) for point in points for name in ("at", "low", "high")]
    layers = [rule, *broad([1.0, *ends, *(seed["at"] for seed in seeds)], _RATIOS, log=positive, x=x)]
    if intervals := [point | {"at": point["low"]} for point in points if "low" in point]:
        line = chart_of(intervals).mark_rule(strokeWidth=3)
        layers.append(line.encode(x=x, x2="high:Q", tooltip=tooltip, **encoded))
    if seeds:
        dots = chart_of(seeds).mark_point(filled=True, size=24, opacity=0.6)
        one = alt.Tooltip("at:Q", title="one seed", format=".3~g")
        layers.append(dots.encode(x=x, tooltip=["cell:N", one, "bound:N"], **encoded))
    if points:
        mark = chart_of(points).mark_point(filled=True, size=120, opacity=1)
        layers.append(mark.encode(x=x, shape=bound_shape(), tooltip=tooltip, **encoded))
    return alt.LayerChart(layer=layers, width=width, height=height_of(cells, without=len(cells.baselines)))


def _ratio_values(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The finite ratios: the cells', and the single seeds' where there are not too many."""
    points: list[dict[str, Any]] = []
    seeds: list[dict[str, Any]] = []
    for row in rows:
        bound = ratio_bound(row)
        if len(row["seed_ratios"] or []) <= MANY_CHAINS:
            seeds += [{"cell": row["cell"], "at": value, "bound": each} for value, each in seed_ratios(row)]
        if bound in MARKS and finite([row["fi_ratio"]]):
            low, high = row.get("fi_ratio_low"), row.get("fi_ratio_high")
            point = {"cell": row["cell"], "at": row["fi_ratio"], "bound": bound, "ratio": ratio(row, is_baseline=False)}
            if low is not None or high is not None:  # one-sided for a bound: drawn as far as the ratio itself
                point |= {"low": low or row["fi_ratio"], "high": high or row["fi_ratio"]}
            points.append(point)
    return points, seeds
