"""Pairing chains with their baseline, and the ratios of their fidelity intervals.

The baseline of a chain is the chain of the same recipe and seed, but for what the baseline replaces. A baseline such as
``{"loss.kind": "cross_entropy"}`` replaces its whole section, ``loss.*``: the baseline of TCE at γ = 0.3 is cross
entropy, which has no γ. Every varied key outside the baseline's sections must be equal.

The fidelity intervals (FI) of two chains of one seed make a ratio, or a bound of one:

=====================  ==================  ==========================================================
chain's FI             baseline's FI       the pair's ratio
=====================  ==================  ==========================================================
collapsed              collapsed           exact (0 where only the chain collapsed at generation 0)
censored               collapsed           a lower bound
collapsed              censored            an upper bound (exactly 0 for a chain collapsed at generation 0)
censored               censored            undetermined: it could be anything
any                    0                   undetermined: nothing is a finite multiple of an empty interval
censored at 0          any                 undetermined: it lasted 0 or longer
the baseline itself                        exactly 1, whatever became of it
=====================  ==================  ==========================================================

The geometric mean of exact ratios is exact; with lower (or upper) bounds among them it is a lower (upper) bound, since
it grows with each of them. With both kinds, or with any undetermined pair, it is undetermined and null: leaving out
just the pairs that cannot be compared would favour whichever side collapsed.
"""

from collections.abc import Mapping, Sequence

import polars as pl

from fortifai_ray.results.schema import equals
from fortifai_ray.statistics.intervals import mean_intervals

Baseline = Mapping[str, object]
MIN_PAIRS = 6  # with fewer uncensored pairs there is no interval


def cell_keys(varied: Sequence[str]) -> list[str]:
    """The varied keys that make a cell: all but the seed."""
    return [key for key in varied if key != "seed"]


def outside_baseline(varied: Sequence[str], baseline: Baseline) -> list[str]:
    """The cell keys that a chain and its baseline share: those in none of the baseline's sections."""
    sections = {key.rpartition(".")[0] or key for key in baseline}
    return [key for key in cell_keys(varied) if not any(key == s or key.startswith(f"{s}.") for s in sections)]


def pair_with_baseline(chains: pl.DataFrame, varied: Sequence[str], baseline: Baseline) -> pl.DataFrame:
    """The baseline chain of each chain.

    Args:
        chains: a row per chain: ``chain_id``, ``seed``, the varied keys, and the baseline's keys. Where a baseline key
            is no column, no chain is known to be the baseline.

    Returns:
        ``chain_id``, ``baseline_chain_id``: null where there is none, or where several match equally well. Of several
        baseline chains with a chain's other keys, it is the one that is also equal inside the baseline's sections, else
        the one whose other keys there are all null, else none.
    """
    shared = [*outside_baseline(varied, baseline), "seed"]
    inside = [key for key in cell_keys(varied) if key not in shared and key not in baseline]
    candidates = chains.filter(_is_baseline(chains, baseline))
    paired = chains
    choices = []
    for label, pool, on in (
        ("same", candidates, [*shared, *inside]),
        ("plain", candidates.filter(pl.all_horizontal(pl.col(inside).is_null())) if inside else candidates, shared),
        ("only", candidates, shared),
    ):
        unique = pool.group_by(on).agg(pl.col("chain_id").first().alias(label), pl.len().alias("_count"))
        unique = unique.filter(pl.col("_count") == 1).drop("_count")
        paired = paired.join(unique, on=on, how="left", nulls_equal=True)
        choices.append(label)
    return paired.select("chain_id", pl.coalesce(choices).alias("baseline_chain_id"))


def baseline_cells(chains: pl.DataFrame, varied: Sequence[str], baseline: Baseline) -> pl.DataFrame:
    """The baseline's cell of each cell, whatever the seeds in them.

    Args:
        chains: as for :func:`pair_with_baseline`; a chain may have several rows.

    Returns:
        A row per cell: its keys, ``cell`` (its number) and ``baseline_cell``, null where :func:`pair_with_baseline`
        gives none.
    """
    keys = cell_keys(varied)
    cells = chains.unique(keys, maintain_order=True) if keys else chains.head(1)
    cells = cells.with_columns(seed=pl.lit(0), chain_id=pl.int_range(pl.len(), dtype=pl.Int64))
    paired = cells.join(pair_with_baseline(cells, varied, baseline), on="chain_id", how="left", maintain_order="left")
    return paired.select(*keys, cell="chain_id", baseline_cell="baseline_chain_id")


def _is_baseline(chains: pl.DataFrame, baseline: Baseline) -> pl.Series:
    """A mask of the chains that have every baseline value."""
    known = [equals(key, chains.schema[key], value) for key, value in baseline.items() if key in chains.columns]
    every = pl.all_horizontal(pl.lit(len(known) == len(baseline)), *known)
    return chains.select(pl.repeat(True, pl.len()) & every).to_series()


def pair_ratios(intervals: pl.DataFrame) -> pl.DataFrame:
    """The pairs in which both chains have an interval: ``ratio`` and ``pair_bound``, by the module's table.

    Args:
        intervals: a row per chain with an interval, criterion and unit: ``fi, censored``, ``chain`` and ``base_chain``
            (their numbers; null: no baseline), and ``what``, the number of the criterion and unit.
    """
    theirs = intervals.select("what", base_chain="chain", base_fi="fi", base_censored="censored")
    both = intervals.join(theirs, on=["base_chain", "what"], how="inner", maintain_order="left")
    itself = pl.col("chain") == pl.col("base_chain")
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


def cell_ratios(pairs: pl.DataFrame, level: float, n_resamples: int, seed: int) -> pl.DataFrame:
    """Per ``group`` of pairs: ``n_pairs, seed_ratios, seed_bounds, fi_ratio, fi_ratio_low, fi_ratio_high, bound``."""
    has = {kind: (pl.col("pair_bound") == kind).any() for kind in ("lower", "upper", "undetermined")}
    uncensored = ~pl.col("censored") & (~pl.col("base_censored"))
    per_cell = pairs.group_by("group", maintain_order=True).agg(
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
    ends = _ratio_intervals(per_cell.filter("_interval"), level, n_resamples, seed)
    return per_cell.join(ends, on="group", how="left")


def _ratio_intervals(cells: pl.DataFrame, level: float, n_resamples: int, seed: int) -> pl.DataFrame:
    """Per group: ``fi_ratio_low`` and ``fi_ratio_high``, of the geometric mean; one-sided for a bound."""
    parts = [
        cells.select("group", fi_ratio_low=pl.lit(None, pl.Float64), fi_ratio_high=pl.lit(None, pl.Float64)).clear()
    ]
    for _, group in cells.group_by("n_pairs"):
        logs = group["seed_ratios"].explode().log().to_numpy().reshape(group.height, -1)
        low, high = mean_intervals(logs, level, n_resamples, seed)
        ends = group.with_columns(fi_ratio_low=pl.Series(low).exp(), fi_ratio_high=pl.Series(high).exp())
        parts.append(
            ends.select(
                "group",
                fi_ratio_low=pl.when(pl.col("bound") != "upper").then("fi_ratio_low"),
                fi_ratio_high=pl.when(pl.col("bound") != "lower").then("fi_ratio_high"),
            )
        )
    return pl.concat(parts)
