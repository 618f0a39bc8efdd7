"""The report as one HTML page: every script, style and number inside it, and nothing loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import polars as pl

from fortifai_ray.fidelity import CollapseCriterion
from fortifai_ray.report.criteria import criterion_rows, criterion_text, metric_title
from fortifai_ray.report.results import Results
from fortifai_ray.report.samples import sample_tables
from fortifai_ray.report.tables import HEADINGS, FidelityRow, facts, fidelity_rows, legend, outcomes

# Columns of the generations table that are no measurement of the model.
_NOT_METRICS = {
    *(
        "chain_id",
        "generation",
        "family",
        "loss",
        "gamma",
        "regime",
        "seed",
        "synthetic_ratio",
        "unit",
        "reused",
        "stage",
    ),
    *("synthetic_ratio_realised", "human_size", "synthetic_size", "synthetic_size_cum", "kept_fraction"),
    *("collapse_reason", "world_size"),
}


@dataclass(frozen=True)
class Figure:
    """A chart and what its marks mean."""

    title: str
    caption: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class CriterionSection:
    """All that depends on one collapse criterion, which ``title`` spells out."""

    title: str
    rows: list[FidelityRow]
    figures: list[Figure]


def render_page(results: Results) -> str:
    """The whole page. Texts are escaped, and the policy in its head lets only its own script run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("fortifai_ray.report"),
        autoescape=select_autoescape(["html", "j2"], default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _script()
    samples, samples_note = sample_tables(results)
    return environment.get_template("report.html.j2").render(
        results=results,
        headings=HEADINGS,
        sections=[_section(results, criterion) for criterion in results.criteria],
        curves=_curves(results),
        others=_other_curves(results),
        legend=legend(results) if results.fidelity is not None else [],
        counts=_counts(results),
        facts=facts(results),
        outcomes=outcomes(results),
        samples=samples,
        samples_note=samples_note,
        versions=_versions(results),
        style=_resource("report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _section(results: Results, criterion: CollapseCriterion) -> CriterionSection:
    from fortifai_ray.report.interval_charts import onset_chart, ratio_chart

    figures: list[Figure] = []
    if results.chains is not None:
        medians = _medians(results, criterion)
        chart = onset_chart(results.chains, criterion, results.cells, medians=medians, width="container")
        caption = "Filled: collapsed there. Open triangle: censored, still uncollapsed at its last generation. "
        if chart is not None:
            figures.append(Figure("Onset per chain", f"{caption}Bar: Kaplan–Meier median.", chart.to_dict()))
    for unit, name in (("generations", "generations"), ("synthetic", f"synthetic {results.unit}")):
        if results.fidelity is None:
            break
        chart = ratio_chart(results.fidelity, criterion, results.cells, unit, width="container")
        caption = "Large: all seeds, with the interval where there is one; small: single seeds. ▷ at least, ◁ at most."
        if chart is not None:
            figures.append(Figure(f"Ratio to the baseline, in {name}", caption, chart.to_dict()))
    return CriterionSection(criterion_text(criterion), fidelity_rows(results, criterion), figures)


def _curves(results: Results) -> list[Figure]:
    """A chart for each metric that a criterion is about."""
    metrics = list(dict.fromkeys(criterion.metric for criterion in results.criteria))
    return [_curve(results, metric) for metric in metrics if _drawable(results.generations, metric)]


def _other_curves(results: Results) -> list[Figure]:
    """Kept fraction, where a loss truncates, and every further measurement."""
    table = results.generations
    judged = {criterion.metric for criterion in results.criteria} | _NOT_METRICS | set(results.cells.keys)
    names = [name for name in table.columns if name not in judged and not name.endswith("_seconds")]
    if _drawable(table, "kept_fraction") and (table["kept_fraction"].drop_nulls() < 1).any():
        names.insert(0, "kept_fraction")
    return [_curve(results, name, height=240) for name in names if _drawable(table, name)]


def _curve(results: Results, metric: str, height: int = 360) -> Figure:
    from fortifai_ray.report.charts import band_text, collapse_curves

    chart = collapse_curves(
        results.generations,
        results.chains,
        metric,
        cells=results.cells,
        criteria=[criterion for criterion in results.criteria if criterion.metric == metric],
        width="container",
        height=height,
    )
    caption = f"{band_text(results.generations, results.cells)} Click a name in the legend to single it out."
    values = results.generations[metric].drop_nulls().cast(pl.Float64)
    if not values.is_finite().all():
        caption += " Triangles at the top edge: no finite value (NaN or ∞)."
    return Figure(f"{metric_title(metric)} by generation", caption, chart.to_dict())


def _drawable(table: pl.DataFrame, metric: str) -> bool:
    return metric in table.columns and table[metric].dtype.is_numeric() and table[metric].count() > 0


def _medians(results: Results, criterion: CollapseCriterion) -> dict[str, float | None]:
    if results.fidelity is None:
        return {}
    table = results.cells.name(results.fidelity.filter(criterion_rows(criterion), pl.col("unit") == "generations"))
    return dict(table.filter(pl.col("cell").is_not_null()).select("cell", "fi_median").iter_rows())


def _counts(results: Results) -> str:
    """``4 chains in 2 cells, 5 generations: 2 collapsed, 2 survived`` (by the first criterion)."""
    chains = results.generations["chain_id"].n_unique()
    generations = results.generations["generation"].n_unique()
    cells = len(results.cells.order)
    text = f"{_plural(chains, 'chain')} in {_plural(cells, 'cell')}, {_plural(generations, 'generation')}"
    if results.chains is None or not results.criteria:
        return text
    status = results.chains.filter(criterion_rows(results.criteria[0]))["status"].value_counts(sort=True)
    return f"{text}: " + ", ".join(f"{number} {name}" for name, number in status.iter_rows())


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _versions(results: Results) -> list[tuple[str, str]]:
    versions = results.summary.get("versions")
    return [(str(name), str(version)) for name, version in versions.items()] if isinstance(versions, dict) else []


def _script() -> str:
    """Vega, Vega-Lite and Vega-Embed with the page's own few lines, in a scope of their own."""
    return f"(() => {{\n{_vega()}\n{_resource('report.js')}}})();"


@cache
def _vega() -> str:
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")  # nothing inside a script element may look like its end


def _resource(name: str) -> str:
    return files("fortifai_ray.report").joinpath("templates", name).read_text(encoding="utf-8")
