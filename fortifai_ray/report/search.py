"""The outcome of a search: collapse points with intervals, ratios and probes, or the points that an optimiser tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from fortifai_ray.report.charts.encodings import (
    GREY,
    Tooltips,
    chart_of,
    colour_of,
    height_of,
    outcome_marks,
    rows_of,
    spread_by_seed,
    verdicts_of,
)
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.words import count, number
from fortifai_ray.statistics.criterion import Collapse, criterion_rows
from fortifai_ray.statistics.critical import critical_ratios

POINT_HEADINGS = (
    "cell",
    "critical value",
    "interval",
    "over the baseline's",
    "chains",
    "generations",
    "narrowest zone seen",
    "ended",
)
BEST_HEADINGS = ("point", "FI ratio", "interval", "pairs")
_MOST_TRIED = 12  # points of an optimise search in its table, best first
_SIGN = {"exact": "", "lower": "> ", "upper": "< "}
_LEAST = {"exact": "", "lower": "≥ ", "upper": "≤ "}
_RATIO = ("is_baseline", "ratio", "ratio_low", "ratio_high", "ratio_bound")
_PROBES = "● collapsed within the horizon, ○ did not. Bar: the interval; tick: the critical value."
_ONSETS = "● the onset of a chain that collapsed; ▷ one that did not, at its last generation."


class Figure(NamedTuple):
    """A chart and what its marks mean."""

    title: str
    caption: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class SearchTable:
    """A table of results; ``notes`` say how to read it, and which cells the search refused, and why."""

    title: str
    headings: Sequence[str]
    rows: list[tuple[str, ...]]
    notes: list[str]
    figures: list[Figure]


def search_tables(results: StudyResults, *, draw: bool = True) -> list[SearchTable]:
    """A table per criterion for a boundary search, one for an optimise search, none where the study has no search."""
    if results.search.get("kind") == "optimise":
        return [_best(results, draw)] if results.searched.get("points") else []
    if results.points is None:
        return []
    return [_points(results, results.points, criterion, draw) for criterion in results.criteria]


def _points(results: StudyResults, points: pl.DataFrame, criterion: Collapse, draw: bool) -> SearchTable:
    over = str(results.search["over"])
    judged = points.filter(criterion_rows(criterion))
    ratios = critical_ratios(judged, results.varied, results.baseline)
    both = results.cells.name(pl.concat([judged, ratios.select(_RATIO)], how="horizontal"))
    lines = both.filter(pl.col("cell").is_not_null()).to_dicts()
    lines.sort(key=lambda line: results.cells.order.index(line["cell"]))
    refusals = [f"{line['cell']} was refused: {line['evidence']}." for line in lines if line["evidence"]]
    figures = []
    if draw and results.chains is not None:
        probes = _probes(verdicts_of(results.chains, criterion, results.cells), over)
        chart = probe_chart(probes, both, over, results.cells)
        figures.append(Figure("The chains that were probed, and the interval", _PROBES, chart.to_dict()))
        if onsets := onset_over_key(probes, over, results.cells):
            figures.append(Figure("Onset over the key searched", _ONSETS, onsets.to_dict()))
    rows = [_point_row(line) for line in lines]
    notes = [_point_note(results, over), *refusals]
    return SearchTable(f"{over}: {criterion.words}", POINT_HEADINGS, rows, notes, figures)


def _point_row(line: Mapping[str, Any]) -> tuple[str, ...]:
    critical = "not determined" if line["critical"] is None else _SIGN[line["bound"]] + number(line["critical"])
    interval = _ends(line["low"], line["high"])
    zone = "" if line["audit_width"] is None else number(line["audit_width"])
    counts = (count(line["chains_run"]), count(line["generations_run"]), zone)
    return (line["cell"], critical, interval, _ratio_text(line), *counts, line["ended"] or "running")


def _ends(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


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
        f"Critical value: the value of {over} at which half of a cell's chains collapse within the horizon, with its "
        f"{level} interval, whatever the form of the curve. > and <: the boundary lies above or below. Not determined: "
        "the search ended before its interval was within the tolerance; the boundary lies within the interval, where "
        "one is given. Over the baseline's: the ratio of the critical values, with an interval made from both (MOVER). "
        "Narrowest zone seen: an audit of the whole range would have shown, with a probability of 90%, any wider zone "
        "in which 19 chains of 20 do the opposite of those around it. Ended: settled (the interval is within the "
        "tolerance, or the boundary outside the range), budget (spent before that), refused (collapse is not monotone "
        "in the key), failed (too many chains failed)."
    )


def _probes(verdicts: pl.DataFrame, over: str) -> pl.DataFrame:
    """The chains that a search ran: ``cell, seed, status, onset, collapsed``, and ``at``, the value of the key."""
    return verdicts.select(
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
    tooltip: Tooltips = ["cell:N", alt.Tooltip("at:Q", title=over), "seed:Q", "status:N"]
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
    y = alt.Y("onset:Q", title="onset (generations)", scale=alt.Scale(zero=True, nice=False, padding=8))
    tooltip: Tooltips = ["cell:N", alt.Tooltip("at:Q", title=over), "seed:Q", "status:N", "onset:Q"]
    layers = [
        mark.encode(x=_key_axis(over), y=y, color=colour_of(cells), tooltip=tooltip)
        for mark in outcome_marks(rows, ("circle", "triangle-right"), size=40, opacity=0.8)
    ]
    return alt.LayerChart(layer=layers, width="container", height=260)


def _key_axis(key: str, **scale: Any) -> alt.X:
    return alt.X("at:Q", title=key, scale=alt.Scale(**scale, zero=False, nice=False, padding=12))


def _best(results: StudyResults, draw: bool) -> SearchTable:
    searched = results.searched
    tried: list[dict[str, Any]] = searched["points"]
    ranked = sorted(tried, key=lambda point: -(point["fi_ratio"] or 0.0))
    notes = [
        f"{len(tried)} points were tried. FI ratio: the fidelity interval over the baseline's, over seeds, in "
        "generations. ≥: a lower bound, because no chain of it is known to have collapsed. The best of many "
        "is flattered by chance: run it again with other seeds before quoting it."
    ]
    figures = []
    for key in results.search["over"] if draw else ():
        if chart := tried_chart(tried, key, log=key in (results.search.get("log") or [])):
            figures.append(Figure(f"FI ratio over {key}", "Bars: intervals, where seeds suffice.", chart.to_dict()))
    rows = [_tried_row(point) for point in ranked[:_MOST_TRIED]]
    return SearchTable(f"largest FI ratio: {searched['criterion']}", BEST_HEADINGS, rows, notes, figures)


def _tried_row(point: Mapping[str, Any]) -> tuple[str, ...]:
    values = " ".join(f"{key}={value:.4g}" for key, value in point["values"].items())
    ratio = "none" if point["fi_ratio"] is None else _LEAST[point["bound"]] + number(point["fi_ratio"])
    return (values, ratio, _ends(point["fi_ratio_low"], point["fi_ratio_high"]), count(point["n_pairs"]))


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
    tooltip: Tooltips = [alt.Tooltip("at:Q", title=key), alt.Tooltip("ratio:Q", format=".3f"), "bound:N"]
    layers.append(chart_of(rows).mark_point(filled=True, size=60).encode(x=x, y=y, tooltip=tooltip))
    return alt.LayerChart(layer=layers, width="container", height=260)
