"""Measurements against closed forms: means over seeds with intervals, the formula's curve, and their distance."""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from fortifai_ray.metrics import metric
from fortifai_ray.report.charts.curves import generation_axis
from fortifai_ray.report.charts.encodings import GREY, Tooltips, colour_of, inline, legend_of, shape_of
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import flatten
from fortifai_ray.statistics.intervals import mean_intervals
from fortifai_ray.theory.registry import Prediction, closed_forms_of

LEVEL = 0.90
_RESAMPLES = 2_000
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
        form, limit, generation, measured, low, high`` (BCa interval over seeds, level 0.90; null for one seed),
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
    study = results.study
    beside = ("vary", "collapse", "baseline", "claims", "resources", "search", "name")
    base = flatten({key: value for key, value in study.items() if key not in beside})
    vary = study.get("vary")
    whole = [key for key, values in vary.items() if _has_sections(values)] if isinstance(vary, dict) else []
    kept = {key: value for key, value in base.items() if not any(key.startswith(f"{section}.") for section in whole)}
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


def _has_sections(values: Any) -> bool:
    return isinstance(values, list) and any(isinstance(value, dict) for value in values)


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
    """Mean (or variance) of each row of (generations, chains), its interval and standard error."""
    count = samples.shape[1]
    if summary == "variance":
        samples = (samples - samples.mean(1, keepdims=True)) ** 2 * count / (count - 1)
    measured = samples.mean(1)
    if count < 2:
        return [{"measured": float(value), "low": None, "high": None, "error": None} for value in measured]
    low, high = mean_intervals(samples, LEVEL, _RESAMPLES, seed=0)
    error = samples.std(1, ddof=1) / np.sqrt(count)
    columns = (measured.tolist(), low.tolist(), high.tolist(), error.tolist())
    return [dict(zip(("measured", "low", "high", "error"), row, strict=True)) for row in zip(*columns, strict=True)]


def overlays(table: pl.DataFrame, results: StudyResults) -> alt.VConcatChart:
    """A chart of each quantity: the measured values with their closed form and, where there are several seeds, the
    distance between them."""
    charts: list[alt.LayerChart] = []
    for title in table["title"].unique(maintain_order=True).to_list():
        charts.append(_overlay(table, results, title))
        away = _distance(table, results, title)
        charts += [] if away is None else [away]
    independent = {"color": "independent", "shape": "independent", "strokeDash": "independent"}
    return alt.VConcatChart(vconcat=charts, resolve=alt.Resolve(scale=independent))


def _heading(table: pl.DataFrame, title: str) -> str:
    """``Mean over seeds: trace ratio``."""
    name = str(table.filter(pl.col("title") == title)["metric"][0])
    return f"{title.split(' ', 1)[0].capitalize()} over seeds: {metric(name).title}"


def _overlay(
    table: pl.DataFrame, results: StudyResults, title: str, *, width: int = 640, height: int = 300
) -> alt.LayerChart:
    """Points: measured, with intervals; lines: the closed form (dashed where it holds only in a limit)."""
    rows = table.filter(pl.col("title") == title)
    cells = results.cells
    text = metric(str(rows["metric"][0]))
    summary = title.split(" ", 1)[0]
    legend = legend_of(cells, set(rows["cell"]))
    colour, shape = colour_of(cells, legend), shape_of(cells, legend)
    y = alt.Y("value:Q", title=f"{summary} over seeds: {text.axis}", scale=alt.Scale(zero=False))
    lines = rows.with_columns(
        value=pl.col("theory"), kind=pl.when(pl.col("limit") == "").then(pl.lit("exact")).otherwise(pl.lit("limit"))
    )
    dash = alt.StrokeDash("kind:N", legend=None, scale=alt.Scale(domain=["exact", "limit"], range=[[1, 0], [6, 4]]))
    numbers = [alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("measured", "low", "high", "theory")]
    tooltip: Tooltips = ["cell:N", "generation:Q", *numbers, "form:N", "limit:N", "chains:Q"]
    points = alt.Chart(inline(rows.with_columns(value=pl.col("measured")).to_dicts()))
    layers = [
        alt.Chart(inline(lines.to_dicts()))
        .mark_line(strokeWidth=1.8)
        .encode(x=generation_axis(), y=y, color=colour, strokeDash=dash)
    ]
    if rows["low"].count():
        layers.append(
            points.mark_rule(strokeWidth=1.5, opacity=0.7).encode(
                x=generation_axis(), y=alt.Y("low:Q"), y2="high:Q", color=colour
            )
        )
    layers.append(
        points.mark_point(filled=True, size=36, opacity=1).encode(
            x=generation_axis(), y=y, color=colour, shape=shape, tooltip=tooltip
        )
    )
    return alt.LayerChart(layer=layers, width=width, height=height, title=_heading(table, title))


def _distance(
    table: pl.DataFrame, results: StudyResults, title: str, *, width: int = 640, height: int = 150
) -> alt.LayerChart | None:
    """Measurement minus closed form in standard errors; grey: where 90 % should lie. None for one seed, which has no
    standard error."""
    rows = table.filter(pl.col("title") == title, pl.col("error") > 0)
    if rows.is_empty():
        return None
    rows = rows.with_columns(away=(pl.col("measured") - pl.col("theory")) / pl.col("error"))
    cells = results.cells
    y = alt.Y("away:Q", title="standard errors away")
    band = alt.Chart(inline([{"from": -_NORMAL, "to": _NORMAL}])).mark_rect(color=GREY, opacity=0.16)
    tooltip: Tooltips = ["cell:N", "generation:Q", alt.Tooltip("away:Q", format=".2f")]
    dots = alt.Chart(inline(rows.to_dicts())).mark_point(filled=True, size=30, opacity=0.9)
    layers = [
        band.encode(y=alt.Y("from:Q", title="standard errors away"), y2="to:Q"),
        alt.Chart(inline([{"away": 0}])).mark_rule(color=GREY).encode(y=y),
        dots.encode(x=generation_axis(), y=y, color=colour_of(cells), shape=shape_of(cells), tooltip=tooltip),
    ]
    return alt.LayerChart(layer=layers, width=width, height=height)


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
