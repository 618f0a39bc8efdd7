"""The fidelity-interval ratio of each cell to the baseline, a row per cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from fortifai_ray.report.charts.encodings import GREY, Width, colour_of, height_of, inline, rows_of
from fortifai_ray.report.criteria import criterion_rows
from fortifai_ray.report.points import MANY_CHAINS
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.words import MARKS, finite, ratio, seed_ratios
from fortifai_ray.statistics import CollapseCriterion

_BOUNDS = {"exact": "diamond", "lower": "triangle-right", "upper": "triangle-left"}


def ratio_chart(
    fidelity: pl.DataFrame, criterion: CollapseCriterion, cells: Cells, unit: str, *, width: Width = 300
) -> alt.LayerChart | None:
    """Fidelity-interval ratios to the baseline: point and interval, and up to a dozen seeds' ratios as small dots.

    A triangle to the right is a lower bound, one to the left an upper bound. An undetermined ratio has no large mark.

    Args:
        fidelity: ``fidelity.parquet``.
        criterion: the criterion to show.
        cells: the study's cells.
        unit: ``generations`` or ``synthetic``.
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
    rule = alt.Chart(inline([{"at": 1.0}])).mark_rule(color=GREY, strokeDash=[4, 4]).encode(x=x)
    shape = alt.Shape("bound:N", legend=None, scale=alt.Scale(domain=list(_BOUNDS), range=list(_BOUNDS.values())))
    encoded = {"y": rows_of(cells, without=cells.baselines), "color": colour_of(cells)}
    tooltip = ["cell:N", "ratio:N", "bound:N"]
    layers = [rule]
    if intervals := [point | {"at": point["low"]} for point in points if "low" in point]:
        line = alt.Chart(inline(intervals)).mark_rule(strokeWidth=3)
        layers.append(line.encode(x=x, x2="high:Q", tooltip=tooltip, **encoded))
    if seeds:
        dots = alt.Chart(inline(seeds)).mark_point(filled=True, size=24, opacity=0.6)
        one = alt.Tooltip("at:Q", title="one seed", format=".3~g")
        layers.append(dots.encode(x=x, tooltip=["cell:N", one, "bound:N"], **encoded))
    if points:
        mark = alt.Chart(inline(points)).mark_point(filled=True, size=120, opacity=1)
        layers.append(mark.encode(x=x, shape=shape, tooltip=tooltip, **encoded))
    return alt.LayerChart(layer=layers, width=width, height=height_of(cells, without=len(cells.baselines)))


def _ratio_values(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The cells' ratios and, where they are not too many, the single seeds', as far as they are numbers."""
    points: list[dict[str, Any]] = []
    seeds: list[dict[str, Any]] = []
    for row in rows:
        bound = row["bound"]
        if len(row["seed_ratios"] or []) <= MANY_CHAINS:
            seeds += [{"cell": row["cell"], "at": value, "bound": each} for value, each in seed_ratios(row)]
        if bound in MARKS and finite([row["fi_ratio"]]):
            low, high = row.get("fi_ratio_low"), row.get("fi_ratio_high")
            point = {"cell": row["cell"], "at": row["fi_ratio"], "bound": bound, "ratio": ratio(row, is_baseline=False)}
            if low is not None or high is not None:  # one-sided for a bound: drawn as far as the ratio itself
                point |= {"low": low or row["fi_ratio"], "high": high or row["fi_ratio"]}
            points.append(point)
    return points, seeds
