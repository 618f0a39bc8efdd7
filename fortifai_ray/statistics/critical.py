"""Ratios of critical values: how much more synthetic data one loss tolerates than another.

A search gives each cell's critical value r* with an interval but no distribution, so the interval of a ratio is made of
the two intervals: MOVER, the method of variance estimates recovery (Zou and Donner 2008, Statistics in Medicine 27,
1693, eq. 5), on logarithms. With l1, u1 and l2, u2 the ends of the two logarithms' intervals::

    low  = t1 − t2 − √((t1 − l1)² + (u2 − t2)²)
    high = t1 − t2 + √((u1 − t1)² + (t2 − l2)²)

It keeps the intervals' asymmetry, and has their level where the two are independent. Cells whose chains share seeds are
positively correlated, which makes it too wide rather than too narrow. Where an end is missing or not positive, the
ratio's ends that need it are missing too.

A search that ends at the edge of its range gives a bound. A lower bound over an exact or an upper bound is a lower
bound of the ratio; a lower bound over a lower bound is undetermined.
"""

from collections.abc import Sequence

import polars as pl

from fortifai_ray.results.schema import CRITERION_COLUMNS, with_criterion_columns
from fortifai_ray.statistics.ratios import Baseline, baseline_cells, cell_keys

_TURNED = {"exact": "exact", "lower": "upper", "upper": "lower", "undetermined": "undetermined"}


def critical_ratios(points: pl.DataFrame, varied: Sequence[str], baseline: Baseline) -> pl.DataFrame:
    """Each cell's critical value over the baseline's, and the human share that it leaves.

    Args:
        points: ``collapse_points``: a row per cell, criterion and ``over`` (the key searched): the cell's keys, the
            criterion's columns, ``over, critical, low, high, level, bound``. A ``lower`` bound says that the critical
            value is above ``critical`` (``low`` where that is null), an ``upper`` one that it is below (``high``).
        varied: the varied keys; the key searched, which is none of the cell's, is ignored.
        baseline: the keys and values that make a cell the baseline.

    Returns:
        A row per row of ``points``, in its order: the cell's keys, the criterion's columns, ``over``,

        - ``critical, low, high, bound``: as searched; ``level``: of every interval here, the lower of the two cells'.
        - ``is_baseline``, ``ratio, ratio_low, ratio_high, ratio_bound``: of the critical values. The baseline's own
          ratio is exactly 1. Null and ``undetermined`` without a baseline and for values that are not positive.
        - where ``over`` is a synthetic ratio: ``human, human_low, human_high, human_bound``, the human share 1 − r*
          that a cell needs, and ``human_ratio, human_ratio_low, human_ratio_high, human_ratio_bound``, that over the
          baseline's: 0.43 says that it needs 2.3 times less human data. Null for other keys.

    Raises:
        ValueError: a column is missing.
    """
    points = with_criterion_columns(points)
    keys = [key for key in cell_keys(varied) if key in points.columns and not (points["over"] == key).any()]
    what = [*CRITERION_COLUMNS, "over"]
    if missing := [name for name in (*what, "critical", "low", "high", "level", "bound") if name not in points.columns]:
        raise ValueError(f"collapse points: no column {', '.join(missing)}")
    cells = baseline_cells(points, keys, baseline)
    mine = _with_human_share(points).with_row_index("_row")
    mine = mine.join(cells, on=keys, how="left", nulls_equal=True) if keys else mine.join(cells, how="cross")
    sides = [f"{what}_{end}" for what in ("r", "h") for end in ("at", "low", "high", "bound")]
    theirs = mine.select(*what, pl.col("cell").alias("baseline_cell"), pl.col("level", *sides).name.prefix("base_"))
    theirs = theirs.unique([*what, "baseline_cell"], keep="none")  # a cell searched twice is no reference
    both = mine.join(theirs, on=[*what, "baseline_cell"], how="left", nulls_equal=True).sort("_row")
    itself = (pl.col("cell") == pl.col("baseline_cell")).fill_null(False)
    return both.with_columns(*_ratio("r", "ratio", itself), *_ratio("h", "human_ratio", itself)).select(
        *keys,
        *what,
        *("critical", "low", "high", "bound"),
        pl.min_horizontal("level", "base_level").alias("level"),
        itself.alias("is_baseline"),
        *("ratio", "ratio_low", "ratio_high", "ratio_bound"),
        *(pl.col(f"h_{end}").alias(f"human{name}") for end, name in _ENDS.items()),
        *("human_ratio", "human_ratio_low", "human_ratio_high", "human_ratio_bound"),
    )


_ENDS = {"at": "", "low": "_low", "high": "_high", "bound": "_bound"}


def _with_human_share(points: pl.DataFrame) -> pl.DataFrame:
    """Add r* as ``r_at, r_low, r_high, r_bound`` and 1 − r* as ``h_…``; null where a bound has no such end."""
    low = pl.when(~pl.col("bound").is_in(["upper", "undetermined"])).then("low").cast(pl.Float64)
    high = pl.when(~pl.col("bound").is_in(["lower", "undetermined"])).then("high").cast(pl.Float64)
    edge = pl.when(pl.col("bound") == "lower").then("low").when(pl.col("bound") == "upper").then("high")
    at = pl.when(pl.col("bound") != "undetermined").then(pl.coalesce("critical", edge)).cast(pl.Float64)
    known = points.with_columns(r_at=at, r_low=low, r_high=high, r_bound=pl.col("bound"))
    share = pl.col("over").str.split(".").list.last() == "synthetic_ratio"
    return known.with_columns(
        h_at=pl.when(share).then(1 - pl.col("r_at")),
        h_low=pl.when(share).then(1 - pl.col("r_high")),
        h_high=pl.when(share).then(1 - pl.col("r_low")),
        h_bound=pl.when(share).then(pl.col("r_bound").replace_strict(_TURNED, default="undetermined")),
    )


def _ratio(side: str, name: str, itself: pl.Expr) -> list[pl.Expr]:
    """The ratio of ``side`` over the baseline's, its MOVER interval and its bound."""
    at, base = pl.col(f"{side}_at"), pl.col(f"base_{side}_at")
    bound, base_turned = pl.col(f"{side}_bound"), pl.col(f"base_{side}_bound").replace_strict(_TURNED, default=None)
    kind = (
        pl.when(bound.is_null()).then(None)
        .when(itself).then(pl.lit("exact"))
        .when(at.is_null() | base.is_null() | ~((at >= 0) & (base > 0))).then(pl.lit("undetermined"))
        .when(base_turned == "exact").then(bound)
        .when((bound == "exact") | (bound == base_turned)).then(base_turned)
        .otherwise(pl.lit("undetermined"))
    )  # fmt: skip
    known = ~kind.is_in(["undetermined"])
    below = (_log(at) - _log(pl.col(f"{side}_low"))).pow(2) + (_log(pl.col(f"base_{side}_high")) - _log(base)).pow(2)
    above = (_log(pl.col(f"{side}_high")) - _log(at)).pow(2) + (_log(base) - _log(pl.col(f"base_{side}_low"))).pow(2)
    centre = _log(at) - _log(base)
    one = pl.when(itself & known).then(1.0)
    return [
        one.when(known).then(at / base).alias(name),
        one.when(known & (kind != "upper")).then((centre - below.sqrt()).exp()).alias(f"{name}_low"),
        one.when(known & (kind != "lower")).then((centre + above.sqrt()).exp()).alias(f"{name}_high"),
        kind.alias(f"{name}_bound"),
    ]


def _log(value: pl.Expr) -> pl.Expr:
    """The logarithm, null where undefined."""
    return pl.when(value > 0).then(value.log())
