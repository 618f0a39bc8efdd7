"""The outcome of a search: collapse points with intervals, ratios and probes, or the points that an optimiser tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from fortifai_ray.report.charts.encodings import (
    GREY,
    Tooltips,
    Width,
    colour_of,
    height_of,
    inline,
    rows_of,
    spread_by_seed,
)
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.words import count, number
from fortifai_ray.statistics.criterion import CollapseCriterion, criterion_rows
from fortifai_ray.statistics.critical import critical_ratios

POINT_HEADINGS = ("cell", "critical value", "interval", "over the baseline's", "chains", "generations", "ended")
BEST_HEADINGS = ("point", "FI ratio", "interval", "pairs")
_WIDTH: Width = "container"
_MOST_TRIED = 12  # points of an optimise search in its table, best first
_SIGN = {"exact": "", "lower": "> ", "upper": "< "}
_LEAST = {"exact": "", "lower": "≥ ", "upper": "≤ "}


@dataclass(frozen=True)
class SearchTable:
    """A table of results; ``notes`` say how to read it, and which cells the search refused, and why."""

    title: str
    headings: Sequence[str]
    rows: list[tuple[str, ...]]
    notes: list[str]
    figures: list[tuple[str, str, dict[str, Any]]]  # title, caption, specification


def search_tables(results: StudyResults, *, draw: bool = True) -> list[SearchTable]:
    """A table per criterion for a boundary search, one for an optimise search, none where the study has no search."""
    if results.search.get("kind") == "optimise":
        return [_best(results, draw)] if results.searched.get("points") else []
    if results.points is None:
        return []
    return [_points(results, results.points, criterion, draw) for criterion in results.criteria]


def _points(results: StudyResults, points: pl.DataFrame, criterion: CollapseCriterion, draw: bool) -> SearchTable:
    over = str(results.search["over"])
    judged = points.filter(criterion_rows(criterion))
    ratios = critical_ratios(judged, results.varied, results.baseline)
    both = results.cells.name(pl.concat([judged, ratios.select(_RATIO)], how="horizontal"))
    lines = both.filter(pl.col("cell").is_not_null()).to_dicts()
    lines.sort(key=lambda line: results.cells.order.index(line["cell"]))
    notes = [_point_note(results, over), *(_refusal(line) for line in lines if line["evidence"])]
    figures = []
    if draw and results.chains is not None:
        chains = results.chains.filter(criterion_rows(criterion))
        chart = probe_chart(chains, both, over, results.cells)
        figures.append(("The chains that were probed, and the interval", _PROBES, chart.to_dict()))
        chart_of_onsets = onset_over_key(chains, over, results.cells)
        if chart_of_onsets is not None:
            figures.append(("Onset over the key searched", _ONSETS, chart_of_onsets.to_dict()))
    rows = [_point_row(line) for line in lines]
    return SearchTable(f"{over}: {criterion.words}", POINT_HEADINGS, rows, notes, figures)


_RATIO = ("is_baseline", "ratio", "ratio_low", "ratio_high", "ratio_bound")
_PROBES = "● collapsed within the horizon, ○ did not. Bar: the interval; tick: the critical value."
_ONSETS = "● the onset of a chain that collapsed; ▷ one that did not, at its last generation."


def _point_row(line: Mapping[str, Any]) -> tuple[str, ...]:
    critical = "not determined" if line["critical"] is None else _SIGN[line["bound"]] + number(line["critical"])
    interval = f"{number(line['low'])} to {number(line['high'])}" if line["bound"] == "exact" else ""
    counts = (count(line["chains_run"]), count(line["generations_run"]))
    return (line["cell"], critical, interval, _ratio_text(line), *counts, line["ended"] or "running")


def _ratio_text(line: Mapping[str, Any]) -> str:
    if line["is_baseline"]:
        return "baseline"
    if line["ratio"] is None:
        return "not determined"
    ends = (line["ratio_low"], line["ratio_high"])
    interval = f" [{number(ends[0])}, {number(ends[1])}]" if None not in ends else ""
    return f"{_LEAST[line['ratio_bound']]}{number(line['ratio'])}{interval}"


def _point_note(results: StudyResults, over: str) -> str:
    level = f"{100 * float(results.search.get('level', 0.9)):g}%"
    return (
        f"Critical value: the value of {over} at which half of a cell's chains collapse within the horizon (the "
        f"posterior's median), with its {level} interval. > and <: the boundary lies beyond the range searched. Over "
        "the baseline's: the ratio of the critical values, with an interval made from both (MOVER). Ended: settled "
        "(the interval is within the tolerance), budget (spent before that), refused (collapse is not monotone in the "
        "key), failed (too many chains failed)."
    )


def _refusal(line: Mapping[str, Any]) -> str:
    return f"{line['cell']} was refused: {line['evidence']}."


def probe_chart(
    chains: pl.DataFrame, points: pl.DataFrame, over: str, cells: Cells, *, width: Width = _WIDTH
) -> alt.LayerChart:
    """Each probe at its value of the key, a row per cell, over the interval of the critical value.

    Args:
        chains: ``chains.parquet`` for one criterion; ``over`` is one of its columns.
        points: collapse points with a column ``cell``.
        over: the key searched.
        cells: the study's cells.
        width: in pixels, or "container".
    """
    x = alt.X("at:Q", title=over, scale=alt.Scale(zero=False, nice=False, padding=12))
    layers: list[alt.Chart] = []
    intervals = points.filter(pl.col("low").is_not_null() & pl.col("high").is_not_null()).select(
        "cell", "critical", "high", pl.col("low").alias("at")
    )
    if not intervals.is_empty():
        rule = alt.Chart(inline(intervals.to_dicts())).mark_rule(strokeWidth=14, opacity=0.35)
        layers.append(rule.encode(x=x, x2="high:Q", y=rows_of(cells), color=colour_of(cells)))
    ticks = points.filter(pl.col("critical").is_not_null()).select("cell", pl.col("critical").alias("at"))
    if not ticks.is_empty():
        tick = alt.Chart(inline(ticks.to_dicts())).mark_tick(thickness=3, size=30, color=GREY)
        layers.append(tick.encode(x=x, y=rows_of(cells), tooltip=["cell:N", alt.Tooltip("at:Q", title="critical")]))
    probes, offset = spread_by_seed(_probes(chains, over, cells), edge=1.3)
    tooltip: Tooltips = ["cell:N", alt.Tooltip("at:Q", title=over), "seed:Q", "status:N"]
    for collapsed in (True, False):
        if rows := [probe for probe in probes if probe["collapsed"] == collapsed]:
            mark = alt.Chart(inline(rows)).mark_point(filled=collapsed, size=36, opacity=0.8, strokeWidth=1.5)
            layers.append(mark.encode(x=x, y=rows_of(cells), yOffset=offset, color=colour_of(cells), tooltip=tooltip))
    return alt.LayerChart(layer=layers, width=width, height=max(120, 2 * height_of(cells)))


def onset_over_key(chains: pl.DataFrame, over: str, cells: Cells, *, width: Width = _WIDTH) -> alt.LayerChart | None:
    """The onset of each probe's chain over the key searched; None where no chain has a verdict."""
    probes = _probes(chains, over, cells).filter(pl.col("onset").is_finite())
    if probes.is_empty():
        return None
    x = alt.X("at:Q", title=over, scale=alt.Scale(zero=False, nice=False, padding=12))
    y = alt.Y("onset:Q", title="onset (generations)", scale=alt.Scale(zero=True, nice=False, padding=8))
    tooltip: Tooltips = ["cell:N", alt.Tooltip("at:Q", title=over), "seed:Q", "status:N", "onset:Q"]
    layers = []
    for collapsed, shape in ((True, "circle"), (False, "triangle-right")):
        rows = probes.filter(pl.col("collapsed") == collapsed).to_dicts()
        if rows:
            mark = alt.Chart(inline(rows)).mark_point(filled=collapsed, shape=shape, size=40, opacity=0.8)
            layers.append(mark.encode(x=x, y=y, color=colour_of(cells), tooltip=tooltip))
    return alt.LayerChart(layer=layers, width=width, height=260)


def _probes(chains: pl.DataFrame, over: str, cells: Cells) -> pl.DataFrame:
    judged = cells.name(chains.filter(pl.col("status") != "failed")).filter(pl.col("cell").is_not_null())
    return judged.select(
        "cell",
        "seed",
        "status",
        pl.col(over).cast(pl.Float64).alias("at"),
        pl.col("fi_generations").alias("onset"),
        (pl.col("status") == "collapsed").alias("collapsed"),
    )


def _best(results: StudyResults, draw: bool) -> SearchTable:
    searched = results.searched
    tried: list[dict[str, Any]] = searched["points"]
    ranked = sorted(tried, key=lambda point: -(point["fi_ratio"] or 0.0))
    notes = [
        f"{len(tried)} points were tried. FI ratio: geometric mean over seeds of the fidelity interval over the "
        "baseline's, in generations. ≥: a lower bound, because some of its chains did not collapse. The best of many "
        "is flattered by chance: run it again with other seeds before quoting it."
    ]
    figures = []
    if draw:
        for key in results.search["over"]:
            chart = tried_chart(tried, key, log=key in (results.search.get("log") or []))
            if chart is not None:
                figures.append((f"FI ratio over {key}", "Bars: intervals, where seeds suffice.", chart.to_dict()))
    rows = [_tried_row(point) for point in ranked[:_MOST_TRIED]]
    return SearchTable(f"largest FI ratio: {searched['criterion']}", BEST_HEADINGS, rows, notes, figures)


def _tried_row(point: Mapping[str, Any]) -> tuple[str, ...]:
    values = " ".join(f"{key}={value:.4g}" for key, value in point["values"].items())
    ends = (point["fi_ratio_low"], point["fi_ratio_high"])
    interval = f"{number(ends[0])} to {number(ends[1])}" if None not in ends else ""
    ratio = "none" if point["fi_ratio"] is None else _LEAST[point["bound"]] + number(point["fi_ratio"])
    return (values, ratio, interval, count(point["n_pairs"]))


def tried_chart(tried: Sequence[Mapping[str, Any]], key: str, *, log: bool = False, width: Width = _WIDTH) -> Any:
    """The FI ratio of each point tried, over one of its keys; None where no point has a ratio."""
    rows = [
        {"at": point["values"][key], "ratio": point["fi_ratio"], "low": point["fi_ratio_low"]}
        | {"high": point["fi_ratio_high"], "bound": point["bound"]}
        for point in tried
        if point["fi_ratio"] is not None
    ]
    if not rows:
        return None
    x = alt.X("at:Q", title=key, scale=alt.Scale(type="log" if log else "linear", zero=False, nice=False, padding=12))
    y = alt.Y("ratio:Q", title="FI ratio to the baseline", scale=alt.Scale(zero=False, padding=8))
    layers: list[alt.Chart] = [alt.Chart(inline([{"ratio": 1}])).mark_rule(strokeDash=[4, 4], color=GREY).encode(y=y)]
    if spans := [row | {"ratio": row["low"]} for row in rows if row["low"] is not None and row["high"] is not None]:
        layers.append(alt.Chart(inline(spans)).mark_rule(opacity=0.6).encode(x=x, y=y, y2="high:Q"))
    tooltip: Tooltips = [alt.Tooltip("at:Q", title=key), alt.Tooltip("ratio:Q", format=".3f"), "bound:N"]
    layers.append(alt.Chart(inline(rows)).mark_point(filled=True, size=60).encode(x=x, y=y, tooltip=tooltip))
    return alt.LayerChart(layer=layers, width=width, height=260)
