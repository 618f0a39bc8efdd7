"""Kaplan–Meier statistics of many groups at once, as Polars expressions over sorted rows.

The estimator is Kaplan and Meier (1958): a chain censored at *t* is at risk up to *t* and never counts as collapsed.
"""

from collections.abc import Sequence

import polars as pl

_HALF = 0.5 + 1e-12  # a product of fractions that is one half may round to just above it


def kaplan_meier(
    table: pl.DataFrame, groups: Sequence[str], *, time: str = "fi", censored: str = "censored"
) -> pl.DataFrame:
    """The survival curve of each group: a row per observation, sorted by time, censored last among equals.

    Adds ``_survival``, the share still faithful just after that time, and ``_survival_before`` just before it.
    """
    at_risk = pl.len().over(groups) - pl.int_range(pl.len()).over(groups)
    ordered = table.sort(*groups, time, censored)
    ordered = ordered.with_columns(_factor=pl.when(censored).then(1.0).otherwise(1 - 1 / at_risk))
    ordered = ordered.with_columns(_survival=pl.col("_factor").cum_prod().over(groups)).drop("_factor")
    return ordered.with_columns(_survival_before=pl.col("_survival").shift(1, fill_value=1.0).over(groups))


def median(time: str = "fi") -> pl.Expr:
    """Aggregates a curve: the first time at which half or less is faithful; null where it never falls that far."""
    return pl.col(time).filter(pl.col("_survival") <= _HALF).min()


def known_until(time: str = "fi") -> pl.Expr:
    """Aggregates a curve: up to which time it is known; infinite where it reaches zero."""
    return pl.when(pl.col("_survival").min() > 1e-12).then(pl.col(time).max()).otherwise(float("inf"))


def restricted_mean(horizon: str, time: str = "fi") -> pl.Expr:
    """Aggregates a curve: the area under it up to ``horizon``, a column that is constant in the group and no later
    than :func:`known_until`. Where nothing is censored before the horizon this is the mean of min(time, horizon)."""
    end = pl.min_horizontal(time, horizon)
    steps = (pl.col("_survival_before") * end.diff().fill_null(end)).sum()
    rest = pl.col(horizon).first() - end.max()
    return steps + pl.when(rest > 0, rest.is_finite()).then(rest * pl.col("_survival").last()).otherwise(0.0)
