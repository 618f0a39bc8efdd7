"""Kaplan–Meier survival curves: the share of each cell's chains that are still faithful, by generation or by data."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import altair as alt
import numpy as np
import polars as pl

from fortifai_ray.report.charts.encodings import GREY, MOST_BANDS, Tooltips, colour_of, inline, legend_of
from fortifai_ray.report.criteria import criterion_rows
from fortifai_ray.report.metrics import describe
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.words import ratio
from fortifai_ray.statistics import CollapseCriterion

Unit = Literal["generations", "synthetic"]


def survival_table(
    chains: pl.DataFrame, criterion: CollapseCriterion, cells: Cells, unit: Unit = "generations", level: float = 0.90
) -> pl.DataFrame:
    """The survival curve of each cell, by SciPy's Kaplan–Meier estimator.

    Args:
        chains: ``chains.parquet``.
        criterion: the criterion to judge by.
        cells: the study's cells.
        unit: what time counts: generations, or synthetic tokens (samples) consumed.
        level: of the pointwise band (Greenwood's variance on the log–log scale: Kalbfleisch and Prentice 2002).

    Returns:
        A row per cell and time, from 0 on: ``cell, at, faithful, low, high, chains, at_risk, collapsed, censored``
        (the last three at that time). The band is null where it is not defined: no chain has collapsed so far, or none
        is left.
    """
    judged = cells.name(chains.filter(criterion_rows(criterion), pl.col("status") != "failed"))
    judged = judged.select(
        "cell", pl.col(f"fi_{unit}").cast(pl.Float64).alias("at"), pl.col("censored").cast(pl.Boolean)
    )
    judged = judged.filter(pl.col("cell").is_not_null(), pl.col("at").is_finite())
    curves = [
        _curve(cell, group, level)
        for cell in cells.order
        if not (group := judged.filter(pl.col("cell") == cell)).is_empty()
    ]
    return pl.concat(curves) if curves else pl.DataFrame(schema=_SCHEMA)


_SCHEMA: dict[str, Any] = {
    **{"cell": pl.String, "at": pl.Float64, "faithful": pl.Float64, "low": pl.Float64, "high": pl.Float64},
    **dict.fromkeys(("chains", "at_risk", "collapsed", "censored"), pl.Int64),
}


def _curve(cell: str, group: pl.DataFrame, level: float) -> pl.DataFrame:
    from scipy.stats import CensoredData, ecdf  # 0.7 s to import

    at, censored = group["at"].to_numpy(), group["censored"].to_numpy()
    times = np.union1d(0.0, at)
    survival = ecdf(CensoredData.right_censored(at, censored)).sf
    with warnings.catch_warnings():  # before the first collapse and after the last one there is no variance
        warnings.simplefilter("ignore", RuntimeWarning)
        band = survival.confidence_interval(confidence_level=level, method="log-log")
    return pl.DataFrame(
        {
            "cell": [cell] * times.size,
            "at": times,
            "faithful": survival.evaluate(times),
            "low": band.low.evaluate(times),
            "high": band.high.evaluate(times),
            "chains": [at.size] * times.size,
            "at_risk": [int((at >= time).sum()) for time in times],
            "collapsed": [int(((at == time) & ~censored).sum()) for time in times],
            "censored": [int(((at == time) & censored).sum()) for time in times],
        },
        schema=_SCHEMA,
    ).with_columns(pl.col("low", "high").fill_nan(None))


def survival_chart(
    survival: pl.DataFrame, cells: Cells, *, time: str = "generations", width: int = 640, height: int = 300
) -> alt.LayerChart | None:
    """Steps of :func:`survival_table`, with its band (up to a dozen cells) and an upright stroke where chains are
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
        band = alt.Chart(inline(survival.filter(pl.col("low").is_not_null()).to_dicts()))
        area = band.mark_area(interpolate="step-after", opacity=0.13)
        layers.append(area.encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour))
    steps = alt.Chart(inline(survival.to_dicts()))
    tooltip: Tooltips = ["cell:N", alt.Tooltip("at:Q", format=",.4~g"), alt.Tooltip("faithful:Q", format=".1%")]
    tooltip += ["at_risk:Q", "collapsed:Q", "censored:Q", "chains:Q"]
    layers.append(
        steps.mark_line(interpolate="step-after", strokeWidth=2.2).encode(x=x, y=y, color=colour, tooltip=tooltip)
    )
    if ends := survival.filter(pl.col("censored") > 0).to_dicts():
        mark = alt.Chart(inline(ends)).mark_point(shape="stroke", angle=90, size=140, strokeWidth=2, opacity=1)
        layers.append(mark.encode(x=x, y=y, color=colour, tooltip=tooltip))
    return alt.LayerChart(layer=layers, width=width, height=height)


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
