"""The statistics of one collapse criterion, as the tables and charts of a notebook; or why there are none."""

from __future__ import annotations

import altair as alt
import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.report.charts.curves import collapse_curves
from fortifai_ray.report.charts.onset import onset_chart, ratio_chart
from fortifai_ray.report.tables import HEADINGS, cell_rows, fidelity_rows, median_intervals
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.words import MARKS, number
from fortifai_ray.statistics.conclusions import conclusions
from fortifai_ray.statistics.criterion import CollapseCriterion, criterion_rows
from fortifai_ray.statistics.fidelity import ratio_profile
from support.survival import Unit, profile_chart, survival_chart, survival_table

WIDTH = 640


def curves(results: StudyResults, criterion: CollapseCriterion) -> alt.LayerChart | str:
    """The criterion's metric by generation, with its limit; or why it cannot be drawn."""
    metric = criterion.metric
    if metric not in results.generations.columns or results.generations[metric].count() == 0:
        return f"{metric} was not measured in this study."
    return collapse_curves(
        results.generations, results.chains, metric, results.cells, criteria=[criterion], width=WIDTH
    )


def onsets(results: StudyResults, criterion: CollapseCriterion) -> alt.LayerChart | str:
    """Each chain's onset; or why there is none."""
    medians = median_intervals(results, criterion)
    chart = onset_chart(_chains(results), criterion, results.cells, medians=medians, width=WIDTH)
    return chart or "No chain has a verdict under this criterion: there are no onsets."


def survival(results: StudyResults, criterion: CollapseCriterion, unit: Unit) -> alt.LayerChart | str:
    """Kaplan–Meier curves; or why there are none."""
    table = survival_table(_chains(results), criterion, results.cells, unit)
    time = "generations" if unit == "generations" else f"synthetic {results.unit} consumed"
    chart = survival_chart(table, results.cells, time=time, width=WIDTH)
    return chart or "No chain has a verdict under this criterion: there is no survival curve."


def ratios(results: StudyResults, criterion: CollapseCriterion, unit: Unit) -> alt.LayerChart | str:
    """FI ratios to the baseline; or why there are none."""
    assert results.fidelity is not None
    chart = ratio_chart(results.fidelity, criterion, results.cells, unit, width=WIDTH)
    return chart or "No cell has a ratio to the baseline under this criterion: the conclusions below say why."


def profile(results: StudyResults, criterion: CollapseCriterion) -> alt.LayerChart | str:
    """The FI ratio at thresholds from just beyond generation 0 to full collapse; or why there is none."""
    if not results.cells.baselines:
        return "This study has no baseline cell: there is no ratio at any threshold."
    try:
        keys, generations, failed = [*results.varied, "seed"], results.generations_asked, results.failed
        table = ratio_profile(results.generations, criterion, None, results.baseline, keys, generations, failed=failed)
    except (ValueError, UserError) as error:
        return f"{error}."
    return profile_chart(table, criterion, results.cells, width=WIDTH)


def fidelity(results: StudyResults, criterion: CollapseCriterion) -> list[dict[str, str]]:
    """The fidelity table in words, as in the report."""
    return [dict(zip(HEADINGS, row.texts, strict=True)) for row in fidelity_rows(results, criterion)]


def tests(results: StudyResults, criterion: CollapseCriterion) -> list[dict[str, str]]:
    """The log-rank tests against the baseline's cell, in generations; empty where there is nothing to test."""
    rows = [row for row in cell_rows(results, criterion) if row["unit"] == "generations"]
    return [
        {
            "cell": row["cell"],
            "chains": f"{row['n_chains']:,}",
            "lasts": "longer" if row["logrank_z"] < 0 else "less long",
            "log-rank z": f"{row['logrank_z']:.2f}",
            "p": f"{row['logrank_p']:.2g}",
            "p, adjusted (Holm)": f"{row['logrank_p_holm']:.2g}",
            "FI ratio": f"{MARKS.get(row['bound'], '')}{number(row['fi_ratio'])}",
        }
        for row in rows
        if row["logrank_p"] is not None
    ]


def words(results: StudyResults, criterion: CollapseCriterion) -> list[str]:
    """What can and what cannot be concluded under one criterion."""
    assert results.fidelity is not None
    rows = criterion_rows(criterion)
    return conclusions(results.fidelity.filter(rows), _chains(results).filter(rows))


def _chains(results: StudyResults) -> pl.DataFrame:
    assert results.chains is not None  # `opening` sees to it
    return results.chains
