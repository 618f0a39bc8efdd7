"""How long chains stay faithful, and how that depends on the criterion.

The Kaplan–Meier share of each cell's chains that are still faithful, by generation or by synthetic data consumed, the
log-rank tests against the baseline, and the fidelity-interval ratio as a function of the threshold.
"""

from __future__ import annotations

from statistics import NormalDist

import altair as alt
import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.metrics import metric
from fortifai_ray.report.charts.encodings import (
    GREY,
    MOST_BANDS,
    Tooltips,
    bound_shape,
    chart_of,
    colour_of,
    legend_of,
    verdicts_of,
)
from fortifai_ray.report.tables import cell_rows
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import FiUnit
from fortifai_ray.results.words import MARKS, number, ratio, ratio_bound
from fortifai_ray.statistics.criterion import Collapse, CollapseCriterion
from fortifai_ray.statistics.fidelity import ratio_profile
from fortifai_ray.statistics.survival import kaplan_meier

_WIDTH, _HEIGHT = 640, 300


def survival_table(
    chains: pl.DataFrame, criterion: Collapse, cells: Cells, unit: FiUnit = "generations", level: float = 0.90
) -> pl.DataFrame:
    """The Kaplan–Meier curve of each cell.

    Args:
        chains: ``chains.parquet``.
        criterion: the criterion that decides when a chain has collapsed.
        cells: the study's cells.
        unit: the unit of time.
        level: of the pointwise band (Greenwood's variance on the log–log scale: Kalbfleisch and Prentice 2002).

    Returns:
        A row per cell and time, from 0 on: ``cell, at, faithful, low, high, chains, at_risk, collapsed, censored``
        (the last three at that time). The band is null where it is undefined: where chains were censored before the
        first collapse, and once no chain is left.
    """
    judged = verdicts_of(chains, criterion, cells).select(
        "cell", at=pl.col(f"fi_{unit}").cast(pl.Float64), censored=pl.col("censored").cast(pl.Boolean)
    )
    judged = judged.filter(pl.col("at").is_finite())
    curves = kaplan_meier(judged, ["cell"], time="at").group_by("cell", "at")
    censored = pl.col("censored").sum().cast(pl.Int64)
    ends = curves.agg(faithful=pl.col("_survival").last(), collapsed=pl.len() - censored, censored=censored)
    starts = judged.select("cell").unique().with_columns(at=0.0, faithful=1.0, collapsed=0, censored=0)
    table = pl.concat([ends, starts.join(ends, on=["cell", "at"], how="anti")], how="vertical_relaxed")
    table = table.sort(pl.col("cell").cast(pl.Enum(cells.order)), "at")
    left = (pl.col("collapsed") + pl.col("censored")).cum_sum(reverse=True).over("cell")
    table = table.with_columns(at_risk=left, chains=left.max().over("cell"))
    variance = (pl.col("collapsed") / (pl.col("at_risk") * (pl.col("at_risk") - pl.col("collapsed")))).cum_sum()
    width = NormalDist().inv_cdf((1 + level) / 2) * variance.over("cell").sqrt() / pl.col("faithful").log().abs()
    known, start = pl.col("faithful").is_between(1e-12, 1 - 1e-12), pl.col("collapsed") + pl.col("censored") == 0
    return table.with_columns(
        low=pl.when(known).then(pl.col("faithful").pow(width.exp())).when(start).then(1.0),
        high=pl.when(known).then(pl.col("faithful").pow((-width).exp())).when(start).then(1.0),
    ).select("cell", "at", "faithful", "low", "high", "chains", "at_risk", "collapsed", "censored")


def survival_chart(survival: pl.DataFrame, cells: Cells, *, time: str = "generations") -> alt.LayerChart | None:
    """Steps of :func:`survival_table`, with its band (up to a dozen cells) and a vertical stroke where chains are
    censored; None where no chain has a verdict."""
    if survival.is_empty():
        return None
    x = alt.X("at:Q", title=f"fidelity interval ({time})", scale=alt.Scale(zero=True, nice=False))
    y = alt.Y(
        "faithful:Q", title="share of chains still faithful", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")
    )
    present = set(survival["cell"])
    colour = colour_of(cells, legend_of(cells, present))
    layers: list[alt.Chart] = []
    if len(present) <= MOST_BANDS:
        band = chart_of(survival.filter(pl.col("low").is_not_null()))
        area = band.mark_area(interpolate="step-after", opacity=0.13)
        layers.append(area.encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour))
    tooltip: Tooltips = ["cell:N", alt.Tooltip("at:Q", format=",.4~g"), alt.Tooltip("faithful:Q", format=".1%")]
    tooltip += ["at_risk:Q", "collapsed:Q", "censored:Q", "chains:Q"]
    marks = [chart_of(survival).mark_line(interpolate="step-after", strokeWidth=2.2)]
    if ends := survival.filter(pl.col("censored") > 0).to_dicts():
        marks.append(chart_of(ends).mark_point(shape="stroke", angle=90, size=140, strokeWidth=2, opacity=1))
    layers += [mark.encode(x=x, y=y, color=colour, tooltip=tooltip) for mark in marks]
    return alt.LayerChart(layer=layers, width=_WIDTH, height=_HEIGHT)


_SHAPES = {"exact": "circle", "lower": "triangle-up", "upper": "triangle-down"}


def logrank_rows(results: StudyResults, criterion: Collapse) -> list[dict[str, str]]:
    """The log-rank tests against the baseline's cell, in generations; empty where there is nothing to test."""
    return [
        {
            "cell": row["cell"],
            "chains": f"{row['n_chains']:,}",
            "lasts": "longer" if row["logrank_z"] < 0 else "less long",
            "log-rank z": f"{row['logrank_z']:.2f}",
            "p": f"{row['logrank_p']:.2g}",
            "p, adjusted (Holm)": f"{row['logrank_p_holm']:.2g}",
            "FI ratio": f"{MARKS.get(ratio_bound(row), '')}{number(row['fi_ratio'])}",
        }
        for row in cell_rows(results, criterion)
        if row["unit"] == "generations" and row["logrank_p"] is not None
    ]


def profile(results: StudyResults, criterion: Collapse) -> alt.LayerChart | str:
    """The FI ratio at thresholds from just beyond generation 0 to full collapse; or why there is none."""
    if not isinstance(criterion, CollapseCriterion) or criterion.direction == "outside":
        return "This criterion has several thresholds: there is no ratio as a function of one."
    if not results.cells.baselines:
        return "This study has no baseline cell: there is no ratio at any threshold."
    try:
        keys, asked = [*results.varied, "seed"], results.generations_asked
        table = ratio_profile(
            results.generations, criterion, None, results.baseline, keys, asked, failed=results.failed
        )
    except (ValueError, UserError) as error:
        return f"{error}."
    return profile_chart(table, criterion, results.cells)


def profile_chart(profile: pl.DataFrame, criterion: CollapseCriterion, cells: Cells) -> alt.LayerChart | str:
    """Ratio by threshold, in generations, with its interval; the dashed vertical line is the study's own threshold.

    A triangle pointing up is a lower bound, one pointing down an upper bound; undetermined ratios are left out.

    Args:
        profile: as :func:`~fortifai_ray.statistics.fidelity.ratio_profile` returns it.
        criterion: the criterion whose threshold varies.
        cells: the study's cells.

    Returns:
        The chart, or why there is none.
    """
    table = cells.name(profile.filter(pl.col("unit") == "generations", ~pl.col("is_baseline")))
    table = table.filter(pl.col("fi_ratio").is_finite() & (pl.col("fi_ratio") > 0) & pl.col("cell").is_not_null())
    if table.is_empty():
        return "No cell has a ratio to the baseline at any threshold: the conclusions below say why."
    found = table.to_dicts()
    texts = [ratio(row | {"seed_ratios": []}, False) for row in found]
    rows = table.select(
        *("cell", "threshold", "fi_ratio", "n_chains", "n_censored", "n_pairs", "logrank_p_holm"),
        bound=pl.Series([ratio_bound(row) for row in found], dtype=pl.String),
        ratio_text=pl.Series(texts, dtype=pl.String),
        low=pl.coalesce("fi_ratio_low", pl.when(pl.col("fi_ratio_high").is_not_null()).then("fi_ratio")),
        high=pl.coalesce("fi_ratio_high", pl.when(pl.col("fi_ratio_low").is_not_null()).then("fi_ratio")),
    )
    log = criterion.log_scale and float(str(table["threshold"].min())) > 0
    x = alt.X(
        "threshold:Q",
        title=_threshold_title(criterion),
        scale=alt.Scale(type="log" if log else "linear", nice=False, zero=False, padding=12),
    )
    y = alt.Y(
        "fi_ratio:Q",
        title="FI ratio to the baseline, log scale",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(format="~g", tickCount=6),
    )
    colour = colour_of(cells, legend_of(cells, set(table["cell"])))
    tooltip: Tooltips = [
        "cell:N",
        alt.Tooltip("threshold:Q", format=",.4~g"),
        alt.Tooltip("ratio_text:N", title="ratio"),
    ]
    tooltip += ["n_pairs:Q", "n_censored:Q", "n_chains:Q"]
    tooltip += [alt.Tooltip("logrank_p_holm:Q", title="log-rank p (Holm)", format=".2~g")]
    base, banded = chart_of(rows), chart_of(rows.filter(pl.col("low").is_not_null()))
    points = base.mark_point(filled=True, size=55, opacity=1)
    marks = [
        banded.mark_area(opacity=0.14).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        chart_of([{"fi_ratio": 1.0}]).mark_rule(color=GREY).encode(y=y),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour),
        points.encode(x=x, y=y, color=colour, shape=bound_shape(_SHAPES), tooltip=tooltip),
        chart_of([{"threshold": criterion.thresholds[0]}]).mark_rule(color=GREY, strokeDash=[6, 4]).encode(x=x),
    ]
    return alt.LayerChart(layer=marks, width=_WIDTH, height=_HEIGHT)


def _threshold_title(criterion: CollapseCriterion) -> str:
    if criterion.relative_to == "absolute":
        return f"threshold of the criterion: {metric(criterion.metric).axis}"
    whose = "the baseline's" if criterion.relative_to == "baseline_generation_0" else "its own"
    beyond = " over chance" if criterion.chance is not None else ""
    return f"threshold of the criterion: {metric(criterion.metric).title}, times {whose} generation 0{beyond}"
