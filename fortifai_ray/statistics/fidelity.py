"""``fidelity.parquet``: fidelity intervals and their ratios to the baseline, per cell, criterion and unit; and the
ratio as a function of the criterion's threshold.

Cells, criteria and units are numbered first and named again at the end: joining and grouping a million rows by one
integer takes a tenth of the time that a dozen columns of text take.
"""

from collections.abc import Collection, Sequence

import numpy as np
import polars as pl

from fortifai_ray.results.schema import CRITERION_COLUMNS, FI_UNITS, FiUnit, with_criterion_columns
from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import AnyOf, Collapse, CollapseCriterion
from fortifai_ray.statistics.crossing import Floats
from fortifai_ray.statistics.ratios import (
    MEANS,
    RATIOS,
    Baseline,
    baseline_cells,
    cell_keys,
    cell_ratios,
    outside_baseline,
    pair_ratios,
    pair_with_baseline,
)
from fortifai_ray.statistics.survival import kaplan_meier, known_until, logrank_table, median, restricted_mean

_COUNTS = ("n_chains", "n_censored", "n_failed", "n_pairs")
_SURVIVAL = ("fi_median", "fi_mean", "fi_mean_horizon")
_NOT_IN_A_PROFILE = ("n_failed", "fi_mean", "fi_mean_horizon", "seed_ratios", "seed_bounds", "logrank_z", *MEANS)
_POINTS = 24
_GROWTH = 1.05  # sets that double reach 1.125 halfway through generation 2; rows of any length keep constant ones below


def fidelity_table(
    chains: pl.DataFrame,
    varied: Sequence[str],
    baseline: Baseline,
    *,
    level: float = 0.90,
) -> pl.DataFrame:
    """Fidelity intervals per cell, and their ratios to the baseline's, paired by seed.

    Args:
        chains: as :func:`~fortifai_ray.statistics.chains.chain_table` returns it, in any order.
        varied: the varied keys; those but the seed make a cell.
        baseline: the keys and values that make a chain the baseline.
        level: confidence level of the intervals of ratios and of differences.

    Returns:
        A row per cell, criterion and unit (:data:`~fortifai_ray.results.schema.FI_UNITS`; ``synthetic_now`` only where
        training sets grow from generation to generation: elsewhere their size tells no generations apart), sorted: the
        cell's keys, the criterion's columns, ``unit, level`` and

        - ``is_baseline``: whether other cells are compared with this one.
        - ``n_chains``: chains with an interval; ``n_censored``: those of them that are censored; ``n_failed``: chains
          without an interval.
        - ``fi_median``: Kaplan–Meier; the middle of the times at which exactly half is faithful (of an even number of
          uncensored chains); null where the curve never falls to one half.
        - ``fi_mean``: mean restricted to ``fi_mean_horizon``, the longest time up to which the curves of all cells that
          differ only inside the baseline's sections are known: before any unconfirmed crossing (null: every such chain
          collapsed, no restriction). The mean is null where that time is 0.
        - ``n_pairs``; ``fi_ratio`` with its interval ``fi_ratio_low, fi_ratio_high``, ``estimator`` (what gave the
          three) and ``fi_ratio_bound``: whether it is an estimate (``exact``) or a ``lower`` or ``upper`` bound, which
          has no upper or no lower end. Null, and ``undetermined``, where there is none. There is no interval under 3
          pairs.
        - ``seed_ratios`` and ``seed_bounds`` by ascending seed (a ratio is null where its bound is undetermined), and
          what they say without any model: ``bound_ratio``, their geometric mean, and ``bound``.
        - ``mean_ratio, mean_ratio_low, mean_ratio_high`` and ``mean_difference, mean_difference_low,
          mean_difference_high``: of the pairs' intervals cut at ``mean_ratio_horizon`` (null: nothing is censored).
          All by the rules of :mod:`~fortifai_ray.statistics.ratios`.
        - ``logrank_z``, ``logrank_p``: the log-rank test against the baseline's cell
          (:mod:`~fortifai_ray.statistics.survival`): two-sided, unpaired, of all chains with an interval; z is negative
          where the cell lasts longer. ``logrank_p_holm``: the p value adjusted by Holm's method for the number of cells
          tested under the same criterion in the same unit (not for the number of criteria, nor for that of units, whose
          tests are nearly the same). Null for baseline cells and where there is no test.

    Raises:
        ValueError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 (got {level})")
    chains = with_criterion_columns(chains)
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
        cell_ratios(pair_ratios(known), level),
        logrank_table(known, groups),
        groups,
    ):
        table = table.join(part, on="group", how="left")
    return table.sort("group").select(
        *(*cell_keys(varied), *CRITERION_COLUMNS, "unit"),
        pl.lit(level).alias("level"),
        (pl.col("group") == pl.col("base_group")).fill_null(False).alias("is_baseline"),
        *(pl.col(name).fill_null(0).cast(pl.Int64) for name in _COUNTS),
        *_SURVIVAL,
        *(pl.col(name).fill_null("undetermined") if name.endswith("bound") else pl.col(name) for name in RATIOS),
        *(pl.col(name).fill_null([]) for name in ("seed_ratios", "seed_bounds")),
        "bound_ratio",
        pl.col("bound").fill_null("undetermined"),
        *MEANS,
        *("logrank_z", "logrank_p", "logrank_p_holm"),
    )


def _groups(chains: pl.DataFrame, varied: Sequence[str], baseline: Baseline) -> pl.DataFrame:
    """A row per cell, criterion and unit, in the order of the table: their columns, and the numbers ``group``;
    ``base_group``, the group of the baseline's cell; ``what``, the same for one criterion and unit; ``block``, the same
    for one criterion, unit and cells that differ only inside the baseline's sections.
    """
    keys, what = cell_keys(varied), [*CRITERION_COLUMNS, "unit"]
    rows = chains.select(*keys, *CRITERION_COLUMNS).unique().sort(*keys, *CRITERION_COLUMNS)
    cells = baseline_cells(chains, varied, baseline)
    rows = rows.join(cells, on=keys, how="left", nulls_equal=True) if keys else rows.join(cells, how="cross")
    groups = rows.join(pl.DataFrame({"unit": fi_units(chains)}), how="cross", maintain_order="left_right").select(
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
    null where it failed; ``decided``, up to when any onset would have been confirmed; ``pending``, whether it ends in a
    crossing that is not confirmed; ``horizon``; ``group`` and ``what``; ``chain`` and ``base_chain``, the chains'
    numbers."""
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
            (pl.col("status") == "unconfirmed").alias("pending"),
            fi=pl.when(usable).then(pl.col(f"fi_{unit}").cast(pl.Float64)),
            decided=pl.when(usable).then(pl.col(f"{_decided(chains)}_{unit}").cast(pl.Float64)),
        )
        for unit in fi_units(chains)
    ]
    return pl.concat(parts)


def fi_units(chains: pl.DataFrame) -> list[FiUnit]:
    """The units in which the chains can be compared. ``synthetic_now`` is one where in some chain the training set at
    the onset held more than the mean of those up to it: the sets grow."""
    counted = chains["fi_generations"].count() > 0  # of no chain that was judged, no unit is known
    columns = {unit: f"fi_{unit}" for unit in FI_UNITS if f"fi_{unit}" in chains.columns}
    known = [unit for unit, column in columns.items() if not counted or chains[column].count()]
    if "synthetic_now" in known:
        now, consumed, generations = (pl.col(f"fi_{unit}") for unit in ("synthetic_now", "synthetic", "generations"))
        if not chains.select((now * generations > _GROWTH * consumed).any()).item():
            known.remove("synthetic_now")
    return known


def _decided(chains: pl.DataFrame) -> str:
    """Where a model censors the chains: as they were judged; at the end of their intervals in a table without that."""
    return "decided" if "decided_generations" in chains.columns else "fi"


def _survival(intervals: pl.DataFrame, groups: pl.DataFrame) -> pl.DataFrame:
    """Per group: ``fi_median``, ``fi_mean``, ``fi_mean_horizon``."""
    curves = kaplan_meier(intervals, ["group"])
    pending = pl.col("fi").filter("pending").min()  # beyond it, that chain may have collapsed
    known = pl.min_horizontal(known_until(), pending)
    ends = curves.group_by("group").agg(_known=known, _asked=pl.col("horizon").max().cast(pl.Float64))
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


def ratio_profile(
    generations: pl.DataFrame,
    criterion: Collapse,
    thresholds: Sequence[float] | None,
    baseline: Baseline,
    varied: Sequence[str],
    generations_asked: int,
    *,
    failed: Collection[str] = (),
    level: float = 0.90,
) -> pl.DataFrame:
    """FI ratios under ``criterion`` at each of many thresholds.

    The ratio depends on what one calls collapse: a loss may gain little at twice generation 0's perplexity and a fifth
    at ten times. The profile shows it from just above generation 0 to full collapse.

    Chains that stop early were not observed beyond the collapse that ended them: further thresholds are then censored
    (``bound``, ``n_censored``). Run the study with ``early_stopping: false`` for the whole profile.

    Args:
        generations, baseline, varied, generations_asked, failed: as for
            :func:`~fortifai_ray.statistics.chains.chain_table`.
        criterion: its threshold, which must be one number, is ignored, unless it is among ``thresholds``.
        thresholds: as a criterion gives them; None for :func:`spanning_thresholds`.
        level: as for :func:`fidelity_table`.

    Returns:
        A row per cell, unit and threshold, sorted, the mildest threshold first: the cell's keys, the criterion's
        columns (``threshold`` varies), ``unit, level, is_baseline, n_chains, n_censored, n_pairs, fi_median, fi_ratio,
        fi_ratio_low, fi_ratio_high, fi_ratio_bound, estimator, bound_ratio, bound, logrank_p, logrank_p_holm``, all as
        :func:`fidelity_table` has them: the p values are adjusted for the cells at one threshold, not for the number of
        thresholds, which judge the same chains.

    Raises:
        ValueError: a criterion with several limits, no threshold, or one that the criterion refuses; see also the two
            tables.
    """
    if isinstance(criterion, AnyOf) or criterion.direction == "outside":
        raise ValueError(f"a profile varies one threshold, and this criterion has several: {criterion.words}")
    if thresholds is None:
        thresholds = spanning_thresholds(generations, criterion, baseline, varied, generations_asked)
    if len(thresholds) == 0:
        raise ValueError("thresholds: none given, and no chain got worse than generation 0: there is no profile")
    criteria = [
        CollapseCriterion.model_validate(criterion.model_dump() | {"threshold": float(threshold)})
        for threshold in thresholds
    ]
    chains = chain_table(generations, criteria, baseline, varied, generations_asked, failed=failed)
    fidelity = fidelity_table(chains, varied, baseline, level=level)
    by_severity = pl.col("threshold") * (1 if _grows(criterion) else -1)
    return fidelity.sort(*cell_keys(varied), "unit", by_severity).drop(_NOT_IN_A_PROFILE)


def spanning_thresholds(
    generations: pl.DataFrame,
    criterion: CollapseCriterion,
    baseline: Baseline,
    varied: Sequence[str],
    generations_asked: int,
    points: int = _POINTS,
) -> list[float]:
    """Thresholds from just beyond generation 0 to full collapse, evenly spaced on the criterion's scale.

    Just beyond generation 0: one step from the worst generation 0 of any chain. Full collapse: the median of the worst
    finite value of each chain. Empty where no chain got worse than that generation 0.
    """
    probe = chain_table(generations, [criterion], baseline, varied, generations_asked).select("chain_id", "limit")
    measured = generations.filter(pl.col("generation") < generations_asked).join(probe, on="chain_id")
    values = _in_thresholds(measured[criterion.metric].cast(pl.Float64).to_numpy(), measured["limit"], criterion)
    possible = pl.col("value").is_finite() & ((pl.col("value") > 0) | (criterion.relative_to == "absolute"))
    thresholds = measured.select("chain_id", "generation").with_columns(value=pl.Series(values)).filter(possible)
    grows = _grows(criterion)
    worst = pl.col("value").max() if grows else pl.col("value").min()
    start = thresholds.filter(pl.col("generation") == 0).select(worst).item()
    end = thresholds.group_by("chain_id").agg(worst).select(pl.col("value").median()).item()
    if start is None or end is None or (end <= start if grows else end >= start):
        return []
    space = np.geomspace if criterion.log_scale and min(start, end) > 0 else np.linspace
    return [float(value) for value in space(start, end, points + 1)[1:]]


def _in_thresholds(values: Floats, limits: pl.Series, criterion: CollapseCriterion) -> Floats:
    """The threshold at which each value lies: itself, or its ratio to generation 0 (beyond chance, if given)."""
    if criterion.relative_to == "absolute":
        return values
    chance = criterion.chance or 0.0
    with np.errstate(all="ignore"):
        return (values - chance) / ((limits.to_numpy() - chance) / criterion.thresholds[0])


def _grows(criterion: CollapseCriterion) -> bool:
    """Whether a later collapse has a larger threshold. With chance, fidelity falls from 1 in either direction, unless
    the threshold is above 1."""
    return criterion.direction == "above" if criterion.chance is None else criterion.thresholds[0] > 1
