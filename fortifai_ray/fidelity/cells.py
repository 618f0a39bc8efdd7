"""``fidelity.parquet``: fidelity intervals and their ratios to the baseline, per cell, criterion and unit.

What a pair of chains of one seed says about the ratio of their fidelity intervals (FI):

=====================  ==================  ==========================================================
chain's FI             baseline's FI       the pair's ratio
=====================  ==================  ==========================================================
collapsed              collapsed           exact (0 where only the chain collapsed at generation 0)
censored               collapsed           a lower bound
collapsed              censored            an upper bound (exactly 0 for a chain collapsed at generation 0)
censored               censored            undetermined: it could be anything
any                    0                   undetermined: nothing is a finite multiple of no interval at all
censored at 0          any                 undetermined: that it lasted 0 or longer says nothing
the baseline itself                        exactly 1, whatever became of it
=====================  ==================  ==========================================================

A geometric mean of exact ratios is exact; with lower (or upper) bounds among them it is a lower (upper) bound, since
it grows with each of them. With both kinds, or with any undetermined pair, the mean is undetermined and is null:
leaving out just the pairs that cannot be compared would favour whichever side collapsed.
"""

from collections.abc import Sequence

import polars as pl

from fortifai_ray.fidelity.bootstrap import mean_intervals
from fortifai_ray.fidelity.pairing import Baseline, cell_keys, outside_baseline, pair_with_baseline
from fortifai_ray.fidelity.survival import kaplan_meier, known_until, median, restricted_mean

MIN_PAIRS = 6  # fewer uncensored pairs give no interval
_CRITERION = ["metric", "threshold", "relative_to", "direction", "confirm"]
_UNITS = ("generations", "synthetic")


def fidelity_table(
    chains: pl.DataFrame,
    varied: Sequence[str],
    baseline: Baseline,
    *,
    level: float = 0.90,
    n_resamples: int = 9_999,
    seed: int = 0,
) -> pl.DataFrame:
    """Fidelity intervals per cell, and their ratios to the baseline's, paired by seed.

    Args:
        chains: as :func:`~fortifai_ray.fidelity.chains.chain_table` returns it, in any order.
        varied: the varied keys; those but the seed make a cell.
        baseline: the keys and values that make a chain the baseline.
        level: confidence level of the ratio's interval.
        n_resamples: bootstrap resamples, over seeds.
        seed: of the bootstrap.

    Returns:
        A row per cell, criterion and unit, sorted: the cell's keys, ``metric, threshold, relative_to, direction,
        confirm, unit, level`` and

        - ``n_chains``: chains with an interval; ``n_censored`` of them censored; ``n_failed``: chains without one.
        - ``fi_median``: Kaplan–Meier; null where the curve never falls to one half.
        - ``fi_mean``: mean restricted to ``fi_mean_horizon``, the longest time up to which the curves of all cells are
          known that differ only inside the baseline's sections (null: every such chain collapsed, no restriction). The
          mean is null where that is 0.
        - ``n_pairs``, ``seed_ratios`` and ``seed_bounds`` by ascending seed, ``fi_ratio`` (geometric mean) and
          ``bound``, as the module says. ``seed_ratios`` has nulls where ``seed_bounds`` is undetermined.
        - ``fi_ratio_low``, ``fi_ratio_high``: BCa bootstrap over seeds; null under 6 uncensored pairs or where a ratio
          is 0. A lower bound has no upper end and an upper bound no lower one.

    Raises:
        ValueError: a level outside (0, 1) or no resamples.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 (got {level})")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1 (got {n_resamples})")
    cell = [*cell_keys(varied), *_CRITERION, "unit"]
    intervals = _intervals(chains)
    block = [*outside_baseline(varied, baseline), *_CRITERION, "unit"]
    pairs = _pair_ratios(intervals, chains, varied, baseline)
    table = intervals.group_by(cell).agg(
        n_chains=pl.col("fi").count(),
        n_censored=(pl.col("censored") & pl.col("fi").is_not_null()).sum(),
        n_failed=pl.col("fi").null_count(),
    )
    for part in (_survival(intervals, cell, block), _ratios(pairs, cell, level, n_resamples, seed)):
        table = table.join(part, on=cell, how="left", nulls_equal=True)
    counts = ("n_chains", "n_censored", "n_failed", "n_pairs")
    summary = ("fi_median", "fi_mean", "fi_mean_horizon", "fi_ratio", "fi_ratio_low", "fi_ratio_high")
    return table.sort(cell).select(
        *cell,
        pl.lit(level).alias("level"),
        *(pl.col(name).fill_null(0).cast(pl.Int64) for name in counts),
        *summary,
        *(pl.col(name).fill_null([]) for name in ("seed_ratios", "seed_bounds")),
        pl.col("bound").fill_null("undetermined"),
    )


def _intervals(chains: pl.DataFrame) -> pl.DataFrame:
    """A row per chain, criterion and unit, sorted by seed: its interval ``fi`` and whether it is ``censored``."""
    units = [chains.with_columns(fi=pl.col(f"fi_{unit}").cast(pl.Float64), unit=pl.lit(unit)) for unit in _UNITS]
    usable = pl.col("status") != "failed"
    return (
        pl.concat(units)
        .with_columns(fi=pl.when(usable).then("fi"), censored=pl.when(usable).then(pl.col("censored").cast(pl.Boolean)))
        .sort("seed", "chain_id")
    )


def _survival(intervals: pl.DataFrame, cell: list[str], block: list[str]) -> pl.DataFrame:
    """Per cell: ``fi_median``, ``fi_mean``, ``fi_mean_horizon``."""
    curves = kaplan_meier(intervals.filter(pl.col("fi").is_not_null()), cell)
    asked = pl.when(pl.col("unit").first() == "generations").then(pl.col("horizon").first()).otherwise(float("inf"))
    ends = curves.group_by(cell).agg(_end=pl.min_horizontal(known_until(), asked.cast(pl.Float64)))
    ends = ends.with_columns(fi_mean_horizon=pl.col("_end").min().over(block)).drop("_end")
    summary = curves.join(ends, on=cell, nulls_equal=True, maintain_order="left").group_by(cell, maintain_order=True)
    return summary.agg(
        fi_median=median(),
        fi_mean=restricted_mean("fi_mean_horizon"),
        fi_mean_horizon=pl.col("fi_mean_horizon").first(),
    ).with_columns(
        fi_mean=pl.when(pl.col("fi_mean_horizon") > 0).then("fi_mean"),
        fi_mean_horizon=pl.when(pl.col("fi_mean_horizon").is_finite()).then("fi_mean_horizon"),
    )


def _pair_ratios(
    intervals: pl.DataFrame, chains: pl.DataFrame, varied: Sequence[str], baseline: Baseline
) -> pl.DataFrame:
    """The pairs in which both chains have an interval: ``ratio`` and ``pair_bound``, as the module's table says."""
    paired = pair_with_baseline(chains.unique("chain_id"), varied, baseline)
    mine = intervals.filter(pl.col("fi").is_not_null()).join(paired, on="chain_id", how="left", maintain_order="left")
    theirs = mine.select(
        "chain_id", *_CRITERION, "unit", base_fi=pl.col("fi"), base_censored=pl.col("censored")
    ).rename({"chain_id": "baseline_chain_id"})
    both = mine.join(theirs, on=["baseline_chain_id", *_CRITERION, "unit"], how="inner", maintain_order="left")
    itself = pl.col("chain_id") == pl.col("baseline_chain_id")
    censored, base_censored = pl.col("censored"), pl.col("base_censored")
    bound = (
        pl.when(itself).then(pl.lit("exact"))
        .when(pl.col("base_fi") == 0).then(pl.lit("undetermined"))
        .when(pl.col("fi") == 0).then(pl.when(censored).then(pl.lit("undetermined")).otherwise(pl.lit("exact")))
        .when(censored & base_censored).then(pl.lit("undetermined"))
        .when(censored).then(pl.lit("lower"))
        .when(base_censored).then(pl.lit("upper"))
        .otherwise(pl.lit("exact"))
    )  # fmt: skip
    ratio = (
        pl.when(itself).then(1.0).when(pl.col("pair_bound") != "undetermined").then(pl.col("fi") / pl.col("base_fi"))
    )
    return both.with_columns(pair_bound=bound).with_columns(ratio=ratio)


def _ratios(pairs: pl.DataFrame, cell: list[str], level: float, n_resamples: int, seed: int) -> pl.DataFrame:
    """Per cell: ``n_pairs, seed_ratios, seed_bounds, fi_ratio, fi_ratio_low, fi_ratio_high, bound``."""
    has = {kind: (pl.col("pair_bound") == kind).any() for kind in ("lower", "upper", "undetermined")}
    uncensored = ~pl.col("censored") & (~pl.col("base_censored"))
    per_cell = pairs.group_by(cell, maintain_order=True).agg(
        n_pairs=pl.len(),
        seed_ratios=pl.col("ratio"),
        seed_bounds=pl.col("pair_bound"),
        bound=pl.when(has["undetermined"] | (has["lower"] & has["upper"])).then(pl.lit("undetermined"))
        .when(has["lower"]).then(pl.lit("lower")).when(has["upper"]).then(pl.lit("upper")).otherwise(pl.lit("exact")),
        _mean=pl.col("ratio").log().mean().exp(),
        _interval=(uncensored.sum() >= MIN_PAIRS) & (pl.col("ratio") > 0).all(),
    )  # fmt: skip
    known = pl.col("bound") != "undetermined"
    per_cell = per_cell.with_columns(fi_ratio=pl.when(known).then("_mean"), _interval=pl.col("_interval") & known)
    ends = _ratio_intervals(per_cell.filter("_interval"), cell, level, n_resamples, seed)
    return per_cell.join(ends, on=cell, how="left", nulls_equal=True)


def _ratio_intervals(cells: pl.DataFrame, cell: list[str], level: float, n_resamples: int, seed: int) -> pl.DataFrame:
    """Per cell: ``fi_ratio_low`` and ``fi_ratio_high``, of the geometric mean; one-sided for a bound."""
    parts = [cells.select(*cell, fi_ratio_low=pl.lit(None, pl.Float64), fi_ratio_high=pl.lit(None, pl.Float64)).clear()]
    for _, group in cells.group_by("n_pairs"):
        logs = group["seed_ratios"].explode().log().to_numpy().reshape(group.height, -1)
        low, high = mean_intervals(logs, level, n_resamples, seed)
        ends = group.with_columns(fi_ratio_low=pl.Series(low).exp(), fi_ratio_high=pl.Series(high).exp())
        parts.append(
            ends.select(
                *cell,
                fi_ratio_low=pl.when(pl.col("bound") != "upper").then("fi_ratio_low"),
                fi_ratio_high=pl.when(pl.col("bound") != "lower").then("fi_ratio_high"),
            )
        )
    return pl.concat(parts)
