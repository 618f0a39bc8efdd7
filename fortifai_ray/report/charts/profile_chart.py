"""The fidelity-interval ratio as a function of the criterion's threshold, as a chart."""

from __future__ import annotations

import altair as alt
import polars as pl

from fortifai_ray.report.charts.encodings import GREY, Tooltips, colour_of, inline, legend_of
from fortifai_ray.report.metrics import describe
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.words import ratio
from fortifai_ray.statistics import CollapseCriterion

_SHAPES = {"exact": "circle", "lower": "triangle-up", "upper": "triangle-down"}


def profile_chart(
    profile: pl.DataFrame, criterion: CollapseCriterion, cells: Cells, *, width: int = 640, height: int = 300
) -> alt.LayerChart | str:
    """Ratio by threshold, in generations, with its interval; the dashed upright is the study's own threshold.

    A triangle that points up is a lower bound, one that points down an upper one; undetermined ratios are left out.

    Args:
        profile: as :func:`~fortifai_ray.statistics.ratio_profile` returns it.
        criterion: whose threshold varies.

    Returns:
        The chart, or why there is none.
    """
    table = cells.name(profile.filter(pl.col("unit") == "generations", ~pl.col("is_baseline")))
    table = table.filter(pl.col("fi_ratio").is_finite() & (pl.col("fi_ratio") > 0) & pl.col("cell").is_not_null())
    if table.is_empty():
        return "At no threshold has any cell a ratio to the baseline: see what can be concluded, below."
    table = table.with_columns(
        said=pl.Series(
            [ratio(row | {"seed_ratios": []}, False) for row in table.iter_rows(named=True)], dtype=pl.String
        ),
        low=pl.coalesce("fi_ratio_low", pl.when(pl.col("fi_ratio_high").is_not_null()).then("fi_ratio")),
        high=pl.coalesce("fi_ratio_high", pl.when(pl.col("fi_ratio_low").is_not_null()).then("fi_ratio")),
    )
    columns = ["cell", "threshold", "fi_ratio", "low", "high", "bound", "said", "n_chains", "n_censored", "n_pairs"]
    rows = table.select(*columns, "logrank_p_holm").to_dicts()
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
        alt.Tooltip("said:N", title="ratio"),
        "n_pairs:Q",
    ]
    tooltip += ["n_censored:Q", "n_chains:Q", alt.Tooltip("logrank_p_holm:Q", title="log-rank p (Holm)", format=".2~g")]
    base = alt.Chart(inline(rows))
    shape = alt.Shape("bound:N", legend=None, scale=alt.Scale(domain=list(_SHAPES), range=list(_SHAPES.values())))
    banded = alt.Chart(inline([row for row in rows if row["low"] is not None]))
    marks = [
        banded.mark_area(opacity=0.14).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        alt.Chart(inline([{"fi_ratio": 1.0}])).mark_rule(color=GREY).encode(y=y),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour),
        base.mark_point(filled=True, size=55, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip),
        alt.Chart(inline([{"threshold": criterion.threshold}])).mark_rule(color=GREY, strokeDash=[6, 4]).encode(x=x),
    ]
    return alt.LayerChart(layer=marks, width=width, height=height)


def _threshold_title(criterion: CollapseCriterion) -> str:
    if criterion.relative_to == "absolute":
        return f"threshold of the criterion: {describe(criterion.metric).axis}"
    whose = "the baseline's" if criterion.relative_to == "baseline_generation_0" else "its own"
    beyond = " over chance" if criterion.chance is not None else ""
    return f"threshold of the criterion: {describe(criterion.metric).title}, times {whose} generation 0{beyond}"
