"""``fidelity.parquet``: fidelity intervals and their ratios to the baseline, per cell, criterion and unit.

Cells, criteria and units are numbered first and named again at the end: joins and groups of a million rows by one whole
number take a tenth of the time that they take by a dozen columns of text.
"""

from collections.abc import Sequence

import polars as pl

from fortifai_ray.statistics.criterion import CRITERION_COLUMNS, with_chance
from fortifai_ray.statistics.ratios import (
    MIN_PAIRS,
    Baseline,
    baseline_cells,
    cell_keys,
    cell_ratios,
    outside_baseline,
    pair_ratios,
    pair_with_baseline,
)
from fortifai_ray.statistics.survival import kaplan_meier, known_until, logrank_table, median, restricted_mean

__all__ = ["MIN_PAIRS", "fidelity_table"]

_UNITS = ("generations", "synthetic")
_COUNTS = ("n_chains", "n_censored", "n_failed", "n_pairs")
_SUMMARY = ("fi_median", "fi_mean", "fi_mean_horizon", "fi_ratio", "fi_ratio_low", "fi_ratio_high")


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
        chains: as :func:`~fortifai_ray.statistics.chains.chain_table` returns it, in any order.
        varied: the varied keys; those but the seed make a cell.
        baseline: the keys and values that make a chain the baseline.
        level: confidence level of the ratio's interval.
        n_resamples: bootstrap resamples, over seeds.
        seed: of the bootstrap.

    Returns:
        A row per cell, criterion and unit, sorted: the cell's keys, ``metric, threshold, relative_to, direction,
        confirm, chance, unit, level`` and

        - ``is_baseline``: whether this is a cell that others are compared with.
        - ``n_chains``: chains with an interval; ``n_censored`` of them censored; ``n_failed``: chains without one.
        - ``fi_median``: Kaplan–Meier; null where the curve never falls to one half.
        - ``fi_mean``: mean restricted to ``fi_mean_horizon``, the longest time up to which the curves of all cells are
          known that differ only inside the baseline's sections (null: every such chain collapsed, no restriction). The
          mean is null where that is 0.
        - ``n_pairs``, ``seed_ratios`` and ``seed_bounds`` by ascending seed, ``fi_ratio`` (geometric mean) and
          ``bound``, as :mod:`~fortifai_ray.statistics.ratios` says. ``seed_ratios`` has nulls where ``seed_bounds`` is
          undetermined.
        - ``fi_ratio_low``, ``fi_ratio_high``: BCa bootstrap over seeds; null under 6 uncensored pairs or where a ratio
          is 0. A lower bound has no upper end and an upper bound no lower one.
        - ``logrank_z``, ``logrank_p``: the log-rank test against the baseline's cell
          (:mod:`~fortifai_ray.statistics.survival`): two-sided, not paired, every chain with an interval; z is below 0
          where the cell lasts longer. ``logrank_p_holm``: the p value adjusted by Holm's method for the number of cells
          tested under the same criterion in the same unit (not for the number of criteria, nor for both units, which
          say nearly the same). Null for baseline cells and where nothing can be tested.

    Raises:
        ValueError: a level outside (0, 1) or no resamples.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 (got {level})")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1 (got {n_resamples})")
    chains = with_chance(chains)
    groups = _groups(chains, varied, baseline)
    intervals = _intervals(chains, groups, varied, baseline)
    known = intervals.filter(pl.col("fi").is_not_null())
    table = intervals.group_by("group").agg(
        n_chains=pl.col("fi").count(),
        n_censored=(pl.col("censored") & pl.col("fi").is_not_null()).sum(),
        n_failed=pl.col("fi").null_count(),
    )
    for part in (
        _survival(known, groups),
        cell_ratios(pair_ratios(known), level, n_resamples, seed),
        logrank_table(known, groups),
        groups,
    ):
        table = table.join(part, on="group", how="left")
    return table.sort("group").select(
        *(*cell_keys(varied), *CRITERION_COLUMNS, "unit"),
        pl.lit(level).alias("level"),
        (pl.col("group") == pl.col("base_group")).fill_null(False).alias("is_baseline"),
        *(pl.col(name).fill_null(0).cast(pl.Int64) for name in _COUNTS),
        *_SUMMARY,
        *(pl.col(name).fill_null([]) for name in ("seed_ratios", "seed_bounds")),
        pl.col("bound").fill_null("undetermined"),
        *("logrank_z", "logrank_p", "logrank_p_holm"),
    )


def _groups(chains: pl.DataFrame, varied: Sequence[str], baseline: Baseline) -> pl.DataFrame:
    """A row per cell, criterion and unit, in the order of the table: their columns and, all of them numbers,

    ``group``; ``base_group``, that of the baseline's cell; ``what``, equal for one criterion and unit; ``block``, equal
    for cells that differ only inside the baseline's sections, besides.
    """
    keys, what = cell_keys(varied), [*CRITERION_COLUMNS, "unit"]
    rows = chains.select(*keys, *CRITERION_COLUMNS).unique().sort(*keys, *CRITERION_COLUMNS)
    cells = baseline_cells(chains, varied, baseline)
    rows = rows.join(cells, on=keys, how="left", nulls_equal=True) if keys else rows.join(cells, how="cross")
    groups = rows.join(pl.DataFrame({"unit": _UNITS}), how="cross", maintain_order="left_right").select(
        *keys, *what, "cell", "baseline_cell", pl.int_range(pl.len(), dtype=pl.Int64).alias("group")
    )
    groups = groups.with_columns(
        what=pl.col("group").min().over(what),
        block=pl.col("group").min().over(*outside_baseline(varied, baseline), *what),
    )
    theirs = groups.select("what", baseline_cell="cell", base_group="group")
    return groups.join(theirs, on=["baseline_cell", "what"], how="left", maintain_order="left")


def _intervals(chains: pl.DataFrame, groups: pl.DataFrame, varied: Sequence[str], baseline: Baseline) -> pl.DataFrame:
    """A row per chain, criterion and unit, sorted by seed: its interval ``fi`` and whether it is ``censored``, both
    null where it failed; ``horizon``; ``group`` and ``what``; ``chain`` and ``base_chain``, the chains' numbers."""
    paired = pair_with_baseline(chains.unique("chain_id"), varied, baseline).with_row_index("chain")
    numbers = paired.select(baseline_chain_id="chain_id", base_chain="chain")
    partners = paired.join(numbers, on="baseline_chain_id", how="left").drop("baseline_chain_id")
    names = [*cell_keys(varied), *CRITERION_COLUMNS]
    usable = pl.col("status") != "failed"
    judged = chains.with_columns(censored=pl.when(usable).then(pl.col("censored").cast(pl.Boolean)))
    judged = judged.join(partners, on="chain_id", how="left").sort("seed", "chain_id")
    parts = [
        judged.join(
            groups.filter(pl.col("unit") == unit), on=names, how="left", nulls_equal=True, maintain_order="left"
        ).select(
            *("group", "what", "chain", "base_chain", "censored", "horizon"),
            fi=pl.when(usable).then(pl.col(f"fi_{unit}").cast(pl.Float64)),
        )
        for unit in _UNITS
    ]
    return pl.concat(parts)


def _survival(intervals: pl.DataFrame, groups: pl.DataFrame) -> pl.DataFrame:
    """Per group: ``fi_median``, ``fi_mean``, ``fi_mean_horizon``."""
    curves = kaplan_meier(intervals, ["group"])
    ends = curves.group_by("group").agg(_known=known_until(), _asked=pl.col("horizon").max().cast(pl.Float64))
    ends = ends.join(groups.select("group", "block", "unit"), on="group")
    end = pl.when(pl.col("unit") == "generations").then(pl.min_horizontal("_known", "_asked")).otherwise("_known")
    ends = ends.select("group", fi_mean_horizon=end.min().over("block"))
    summary = curves.join(ends, on="group", maintain_order="left").group_by("group", maintain_order=True)
    return summary.agg(
        fi_median=median(),
        fi_mean=restricted_mean("fi_mean_horizon"),
        fi_mean_horizon=pl.col("fi_mean_horizon").first(),
    ).with_columns(
        fi_mean=pl.when(pl.col("fi_mean_horizon") > 0).then("fi_mean"),
        fi_mean_horizon=pl.when(pl.col("fi_mean_horizon").is_finite()).then("fi_mean_horizon"),
    )
