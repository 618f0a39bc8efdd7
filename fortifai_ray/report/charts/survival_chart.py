"""Kaplan–Meier survival curves: the share of each cell's chains that are still faithful, by generation or by data."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import altair as alt
import numpy as np
import polars as pl

from fortifai_ray.report.charts.encodings import MOST_BANDS, Tooltips, colour_of, inline, legend_of
from fortifai_ray.report.criteria import criterion_rows
from fortifai_ray.results.cells import Cells
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
