"""Measurements against closed forms: means over seeds with intervals, the formula's curve, and their distance."""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from fortifai_ray.metrics import metric
from fortifai_ray.report.charts.curves import generation_axis
from fortifai_ray.report.charts.encodings import GREY, Tooltips, chart_of, colour_of, legend_of, shape_of
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import flatten
from fortifai_ray.statistics.intervals import mean_intervals
from fortifai_ray.theory.registry import Prediction, closed_forms_of

LEVEL = 0.90
_WIDTH = 640
_NORMAL = 1.645  # 90 % of a normal distribution lie within this many standard errors
_SCHEMA: dict[str, Any] = {
    **{"title": pl.String, "metric": pl.String, "cell": pl.String, "form": pl.String, "limit": pl.String},
    "generation": pl.Int64,
    **dict.fromkeys(("measured", "low", "high", "error", "theory"), pl.Float64),
    "chains": pl.Int64,
}


def comparison(results: StudyResults) -> tuple[pl.DataFrame, list[str]]:
    """Measurements beside the values of the closed forms.

    Returns:
        A row per closed form, cell and generation that all of the cell's chains have reached: ``title, metric, cell,
        form, limit, generation, measured, low, high`` (over seeds, level 0.90; null for one seed),
        ``error`` (the standard error), ``theory, chains``; and sentences on what cannot be compared.
    """
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    named = results.cells.name(results.generations)
    known = recipes(results)
    for cell in results.cells.order:
        forms = [form for form in closed_forms_of(known[cell]) if form.metric in named.columns]
        if not forms:
            missing.append(f"{cell}: fortifai_ray.theory has no closed form for this family, regime and loss.")
        for form in forms:
            compared, why = _compare(named.filter(pl.col("cell") == cell), form)
            rows += [row | {"cell": cell} for row in compared]
            missing += [f"{cell}, {form.title}: {why}"] if why else []
    return pl.DataFrame(rows, schema=_SCHEMA), missing


def recipes(results: StudyResults) -> dict[str, dict[str, Any]]:
    """The flat recipe (dotted keys) of each cell.

    A section that varies as a whole comes from the cell alone: the base recipe's keys in it belong to another kind of
    regime or loss.
    """
    beside = ("vary", "collapse", "baseline", "claims", "resources", "search", "name")
    base = flatten({key: value for key, value in results.study.items() if key not in beside})
    varied = results.study.get("vary")
    values_of = varied.items() if isinstance(varied, dict) else ()
    lists = [(key, values) for key, values in values_of if isinstance(values, list)]
    whole = tuple(f"{key}." for key, values in lists if any(isinstance(value, dict) for value in values))
    kept = {key: value for key, value in base.items() if not key.startswith(whole)}
    of_cells: dict[str, dict[str, Any]] = {}
    for identity, cell in results.cells.labels.items():
        values = dict(zip(results.cells.keys, json.loads(identity), strict=True))
        of_cells[cell] = kept | {key: _number(value) for key, value in values.items() if value is not None}
    return of_cells


def _number(value: Any) -> Any:
    """The number that a text spells: a key that varies over numbers and words is a column of text."""
    for kind in (int, float) if isinstance(value, str) else ():
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _compare(table: pl.DataFrame, form: Prediction) -> tuple[list[dict[str, Any]], str]:
    """The rows of one closed form in one cell, and a sentence on what is missing."""
    chains = table["chain_id"].n_unique()
    wide = table.select("generation", "seed", pl.col(form.metric).cast(pl.Float64).alias("value")).drop_nulls()
    complete = wide.group_by("generation").agg(n=pl.len(), finite=pl.col("value").is_finite().all())
    kept = complete.filter(pl.col("n") == chains, "finite")["generation"].sort().to_list()
    if form.summary == "variance" and chains < 2:
        return [], "a single chain has no variance: run more seeds."
    why = ""
    if len(kept) < complete.height:
        lost = complete.height - len(kept)
        why = (
            f"{lost} of {complete.height} generations are left out: not every chain reached them with a finite value, "
            "and a mean over the others would flatter. Run with early_stopping: false."
        )
    if not kept:
        return [], why
    samples = np.stack([wide.filter(pl.col("generation") == g).sort("seed")["value"].to_numpy() for g in kept])
    try:
        expected = [form.at(generation) for generation in kept]
    except ValueError as error:
        return [], f"there is no value here: {error}."
    rows = _moments(samples, form.summary)
    fixed = {"title": form.title, "metric": form.metric, "form": form.name, "limit": form.limit, "chains": chains}
    return [
        {**fixed, "generation": g, "theory": value, **row} for g, value, row in zip(kept, expected, rows, strict=True)
    ], why


def _moments(samples: np.ndarray, summary: str) -> list[dict[str, Any]]:
    """Mean (or variance) of each row of (generations, chains); with several chains, its interval and standard error."""
    count = samples.shape[1]
    if summary == "variance":
        samples = (samples - samples.mean(1, keepdims=True)) ** 2 * count / (count - 1)
    columns = {"measured": samples.mean(1)}
    if count > 1:
        low, high = mean_intervals(samples, LEVEL)
        columns |= {"low": low, "high": high, "error": samples.std(1, ddof=1) / np.sqrt(count)}
    return pl.DataFrame(columns).to_dicts()


def overlays(table: pl.DataFrame, results: StudyResults) -> alt.VConcatChart:
    """A chart of each quantity: the measured values with their closed form and, where there are several seeds, the
    distance between them."""
    charts: list[alt.LayerChart] = []
    for (title,), rows in table.group_by("title", maintain_order=True):
        charts.append(_overlay(rows, results.cells, str(title)))
        sure = rows.filter(pl.col("error") > 0)  # one seed has no standard error
        charts += [] if sure.is_empty() else [_distance(sure, results.cells)]
    independent = {"color": "independent", "shape": "independent", "strokeDash": "independent"}
    return alt.VConcatChart(vconcat=charts, resolve=alt.Resolve(scale=independent))


def _overlay(rows: pl.DataFrame, cells: Cells, title: str) -> alt.LayerChart:
    """Points: measured, with intervals; lines: the closed form (dashed where it holds only in a limit)."""
    text, (summary, *_) = metric(str(rows["metric"][0])), title.split(" ")
    legend = legend_of(cells, set(rows["cell"]))
    x, colour, shape = generation_axis(), colour_of(cells, legend), shape_of(cells, legend)
    y = alt.Y("value:Q", title=f"{summary} over seeds: {text.axis}", scale=alt.Scale(zero=False))
    kind = pl.when(pl.col("limit") == "").then(pl.lit("exact")).otherwise(pl.lit("limit"))
    lines = chart_of(rows.with_columns(value="theory", kind=kind))
    dash = alt.StrokeDash("kind:N", legend=None, scale=alt.Scale(domain=["exact", "limit"], range=[[1, 0], [6, 4]]))
    numbers = [alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("measured", "low", "high", "theory")]
    tooltip: Tooltips = ["cell:N", "generation:Q", *numbers, "form:N", "limit:N", "chains:Q"]
    points = chart_of(rows.with_columns(value="measured"))
    layers = [lines.mark_line(strokeWidth=1.8).encode(x=x, y=y, color=colour, strokeDash=dash)]
    if rows["low"].count():
        bars = points.mark_rule(strokeWidth=1.5, opacity=0.7)
        layers.append(bars.encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour))
    marks = points.mark_point(filled=True, size=36, opacity=1)
    layers.append(marks.encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip))
    heading = f"{summary.capitalize()} over seeds: {text.title}"
    return alt.LayerChart(layer=layers, width=_WIDTH, height=300, title=heading)


def _distance(rows: pl.DataFrame, cells: Cells) -> alt.LayerChart:
    """Measurement minus closed form in standard errors; grey: where 90 % should lie."""
    title = "standard errors away"
    rows = rows.with_columns(away=(pl.col("measured") - pl.col("theory")) / pl.col("error"))
    y = alt.Y("away:Q", title=title)
    band = chart_of([{"from": -_NORMAL, "to": _NORMAL}]).mark_rect(color=GREY, opacity=0.16)
    tooltip: Tooltips = ["cell:N", "generation:Q", alt.Tooltip("away:Q", format=".2f")]
    dots = chart_of(rows).mark_point(filled=True, size=30, opacity=0.9)
    layers = [
        band.encode(y=alt.Y("from:Q", title=title), y2="to:Q"),
        chart_of([{"away": 0}]).mark_rule(color=GREY).encode(y=y),
        dots.encode(x=generation_axis(), y=y, color=colour_of(cells), shape=shape_of(cells), tooltip=tooltip),
    ]
    return alt.LayerChart(layer=layers, width=_WIDTH, height=150)


def agreement(table: pl.DataFrame) -> list[dict[str, str]]:
    """Per closed form and cell: in how many generations the interval contains it, and both values at the last one."""
    rows = []
    for (title, cell), group in table.group_by("title", "cell", maintain_order=True):
        sure = group.filter(pl.col("low").is_not_null())
        inside = sure.filter((pl.col("theory") >= pl.col("low")) & (pl.col("theory") <= pl.col("high"))).height
        last = group.sort("generation").row(-1, named=True)
        rows.append(
            {
                "quantity": str(title),
                "cell": str(cell),
                "closed form": last["form"] + (f" ({last['limit']})" if last["limit"] else ""),
                "chains": f"{last['chains']:,}",
                "inside the 90 % interval": f"{inside} of {sure.height} generations" if sure.height else "no interval",
                "at the last generation": f"measured {last['measured']:.4g}, theory {last['theory']:.4g}",
            }
        )
    return rows
