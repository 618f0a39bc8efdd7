"""The page's charts: which there are, in which order, and what their marks mean."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import polars as pl

from fortifai_ray import metrics
from fortifai_ray.report.charts.curves import curve_of, draw
from fortifai_ray.report.charts.encodings import MOST_BANDS, MOST_IN_LEGEND, Width
from fortifai_ray.report.charts.onset import onset_chart, ratio_chart
from fortifai_ray.report.points import BAND, MANY_CHAINS, MOST_POINTS, Curve
from fortifai_ray.report.tables import FidelityRow, fidelity_rows, median_intervals
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import metric_columns
from fortifai_ray.statistics.criterion import CollapseCriterion

FEW_METRICS = 6  # up to this many, further measurements are open; above, they are folded into groups of small charts
SMALL_POINTS = 600  # in a small chart
_WIDTH: Width = "container"


@dataclass(frozen=True)
class Figure:
    """A chart and what its marks mean."""

    title: str
    caption: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class FigureGroup:
    """Charts that belong together; ``small`` ones have no legend and are folded away."""

    title: str
    figures: list[Figure]
    small: bool


@dataclass(frozen=True)
class CriterionSection:
    """Everything that depends on one collapse criterion, which ``title`` spells out."""

    title: str
    rows: list[FidelityRow]
    figures: list[Figure]


def section(results: StudyResults, criterion: CollapseCriterion) -> CriterionSection:
    """A criterion's fidelity table, onsets and ratios."""
    figures: list[Figure] = []
    if results.chains is not None:
        medians = median_intervals(results, criterion)
        chart = onset_chart(results.chains, criterion, results.cells, medians=medians, width=_WIDTH)
        if chart is not None:
            figures.append(Figure("Onset per chain", _onset_caption(results), chart.to_dict()))
    for unit, name in (("generations", "generations"), ("synthetic", f"synthetic {results.unit}")):
        if results.fidelity is None:
            break
        chart = ratio_chart(results.fidelity, criterion, results.cells, unit, width=_WIDTH)
        caption = "Large: all seeds, with the interval where there is one; small: single seeds"
        caption += f" (up to {MANY_CHAINS}). ▷ at least, ◁ at most."
        if chart is not None:
            figures.append(Figure(f"Ratio to the baseline, in {name}", caption, chart.to_dict()))
    return CriterionSection(criterion.words, fidelity_rows(results, criterion), figures)


def curves(results: StudyResults) -> list[Figure]:
    """A chart for each metric that a criterion judges."""
    judged = dict.fromkeys(criterion.metric for criterion in results.criteria)
    return [_curve(results, metric, 360) for metric in judged if _drawable(results.generations, metric)]


def other_curves(results: StudyResults) -> list[FigureGroup]:
    """The kept fraction, where a loss truncates, and every other metric: a few are open, many are folded by group."""
    table = results.generations
    judged = {criterion.metric for criterion in results.criteria}
    names = [name for name in metric_columns(table.columns, results.varied) if name not in {*judged, "kept_fraction"}]
    names = [name for name in names if not metrics.is_bookkeeping(name)]
    if "kept_fraction" not in judged and _drawable(table, "kept_fraction"):
        names = ["kept_fraction", *names] if (table["kept_fraction"].drop_nulls() < 1).any() else names
    names = [name for name in names if _drawable(table, name)]
    if len(names) <= FEW_METRICS:
        return [FigureGroup("", [_curve(results, name, 240) for name in names], small=False)] if names else []
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[metrics.metric(name).group].append(name)
    return [
        FigureGroup(title, [_curve(results, name, 170, small=True) for name in members], small=True)
        for title, members in groups.items()
    ]


def _curve(results: StudyResults, metric: str, height: int, small: bool = False) -> Figure:
    text = metrics.metric(metric)
    points = SMALL_POINTS if small else MOST_POINTS
    drawn = curve_of(results.generations, results.chains, metric, results.cells, most_points=points)
    criteria = [criterion for criterion in results.criteria if criterion.metric == metric]
    chart = draw(
        drawn,
        results.chains,
        metric,
        results.cells,
        criteria,
        title=text.unit if small else None,
        legend=not small,
        most_points=points,
        width=_WIDTH,
        height=height,
    )
    sentences = [f"{metric}: {text.definition}" if small and text.definition else "", text.sense]
    if small:
        spec = chart.to_dict()
        return Figure(text.axis, _joined([*sentences, *_exceptions(results, metric, drawn)]), spec)
    sentences += [*_band_sentences(results, metric, drawn, points), *_exceptions(results, metric, drawn)]
    return Figure(f"{text.axis} by generation", _joined(sentences), chart.to_dict())


def _joined(sentences: list[str]) -> str:
    return " ".join(f"{text}." if text[-1] not in ".!?" else text for text in sentences if text)


def _band_sentences(results: StudyResults, metric: str, drawn: Curve, most_points: int) -> list[str]:
    """What the thick line, the band and the thin lines show."""
    sizes = drawn.spread.group_by("cell").agg(pl.col("chains").max())["chains"]
    most, fewest = sizes.max() or 0, sizes.min() or 0
    if most == 1:
        parts = ["One chain per cell: no band"]
    else:
        kinds = ["lowest to highest value over seeds"] if fewest <= MANY_CHAINS else []  # type: ignore[operator]
        if most > MANY_CHAINS:  # type: ignore[operator]
            quantiles = f"{100 * BAND[0]:g} to {100 * BAND[1]:g} % quantiles over seeds"
            kinds.append(f"{quantiles} (cells with more than {MANY_CHAINS} chains)" if kinds else quantiles)
        band = "" if drawn.spread["cell"].n_unique() > MOST_BANDS else f"; band: {' or '.join(kinds)}"
        thin = "; thin: single chains" if 0 < len(drawn.points) <= most_points and fewest <= MANY_CHAINS else ""  # type: ignore[operator]
        parts = [f"Thick: median over seeds{band}, as far as every chain has a value{thin}"]
    if len(drawn.cells) > MOST_IN_LEGEND:
        parts.append(
            "Colours follow the order of the table below; point at a symbol to see its cell, click to highlight it"
        )
    else:
        parts.append("Click a name in the legend to highlight it")
    return parts


def _exceptions(results: StudyResults, metric: str, drawn: Curve) -> list[str]:
    """What the chart leaves out, or draws at its edge."""
    exceptions = []
    if drawn.measured > len(drawn.generations):
        exceptions.append(f"{len(drawn.generations)} of {drawn.measured:,} generations are drawn, evenly spaced")
    values = results.generations.select("chain_id", pl.col(metric).cast(pl.Float64).alias("value")).drop_nulls()
    broken = values.filter(~pl.col("value").is_finite())
    if len(broken):
        share = f"{len(broken):,} of {len(values):,} values, in {broken['chain_id'].n_unique():,} chains"
        exceptions.append(f"Triangles at the edge: no finite value (NaN or ∞), {share}")
    absent = [cell for cell in results.cells.order if cell not in drawn.cells]
    if absent:
        names = ", ".join(absent) if len(absent) <= 4 else f"{len(absent)} cells"
        exceptions.append(f"Not measured in {names}")
    return exceptions


def _onset_caption(results: StudyResults) -> str:
    assert results.chains is not None
    sizes = results.cells.name(results.chains.unique("chain_id")).group_by("cell").len()["len"]
    sentences = []
    if int(str(sizes.min())) <= MANY_CHAINS:
        sentences += ["Filled: collapsed there", "Open triangle: censored, not collapsed by its last generation"]
    if int(str(sizes.max())) > MANY_CHAINS:
        many = "" if not sentences else f"cells with more than {MANY_CHAINS} chains, "
        sentences.append(f"Lines: {many}Kaplan–Meier quantiles, thick from 25 to 75 %, thin from 5 to 95 %")
        sentences.append("A triangle at the end of a line: too many chains are censored for the quantile to be known")
    return _joined([*sentences, "Bar: Kaplan–Meier median"])


def _drawable(table: pl.DataFrame, metric: str) -> bool:
    return metric in table.columns and table[metric].dtype.is_numeric() and table[metric].count() > 0
