"""The outcome of a search: collapse points with intervals, ratios and probes, or the points that an optimiser tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl

from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.words import count, in_words, key_words, number
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
    named = key_words(over)
    judged = points.filter(criterion_rows(criterion))
    ratios = critical_ratios(judged, results.varied, results.baseline)
    both = results.cells.name(pl.concat([judged, ratios.select(_RATIO)], how="horizontal"))
    lines = both.filter(pl.col("cell").is_not_null()).to_dicts()
    lines.sort(key=lambda line: results.cells.order.index(line["cell"]))
    refusals = [
        f"{line['cell']} was refused: {line['evidence'].replace(over, named)}." for line in lines if line["evidence"]
    ]
    figures = []
    if draw and results.chains is not None:
        from fortifai_ray.report.charts.search import onset_over_key, probe_chart, probes_of  # Altair: not for a table

        probes = probes_of(results.chains, criterion, results.cells, over)
        chart = probe_chart(probes, both, over, results.cells)
        figures.append(Figure("The chains that were probed, and the interval", _PROBES, chart.to_dict(validate=False)))
        if onsets := onset_over_key(probes, over, results.cells):
            figures.append(Figure("Onset over the key searched", _ONSETS, onsets.to_dict(validate=False)))
    rows = [_point_row(line) for line in lines]
    notes = [_point_note(results, named), *refusals]
    return SearchTable(f"{named}: {criterion.words}", POINT_HEADINGS, rows, notes, figures)


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
    if draw:
        from fortifai_ray.report.charts.search import tried_chart

        logarithmic = results.search.get("log") or []
        for key in results.search["over"]:
            if chart := tried_chart(tried, key, log=key in logarithmic):
                figures.append(
                    Figure(
                        f"FI ratio over {key_words(key)}",
                        "Bars: intervals, where seeds suffice.",
                        chart.to_dict(validate=False),
                    )
                )
    rows = [_tried_row(point) for point in ranked[:_MOST_TRIED]]
    return SearchTable(f"largest FI ratio: {searched['criterion']}", BEST_HEADINGS, rows, notes, figures)


def _tried_row(point: Mapping[str, Any]) -> tuple[str, ...]:
    values = in_words({key: float(f"{value:.4g}") for key, value in point["values"].items()})
    ratio = "none" if point["fi_ratio"] is None else _LEAST[point["bound"]] + number(point["fi_ratio"])
    return (values, ratio, _ends(point["fi_ratio_low"], point["fi_ratio_high"]), count(point["n_pairs"]))
