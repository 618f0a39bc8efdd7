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

What a cell's ratio is estimated by, ``estimator``:

====================================  =============================================================================
geometric mean                        of exact ratios; with Student's t interval of their logarithms, corrected for
                                      skewness, from 3 pairs on
                                      (:func:`~fortifai_ray.statistics.intervals.mean_intervals`)
censored log-normal,                  where a pair is not exact: :mod:`~fortifai_ray.statistics.censored`, from 3 pairs
profile likelihood                    on; it takes a collapsed chain on each side
bound, profile likelihood             where all chains of one side are censored: the ratio is a bound
bound                                 with fewer pairs, or where a chain collapsed at generation 0, which has no
                                      logarithm
====================================  =============================================================================

Beside it stands what the pairs say without any model (``bound``, ``bound_ratio``). The geometric mean of exact ratios
is exact; with lower (or upper) bounds among them it is a lower (upper) bound, since it grows with each of them. With
both kinds, or with any undetermined pair, it is undetermined and null: leaving out just the pairs that cannot be
compared would favour whichever side collapsed.

The means of the pairs' intervals cut at a common horizon, the earliest time at which any of their chains is censored,
are exact whatever lies beyond it: ``mean_difference``, ``mean_ratio``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from fortifai_ray.results.schema import LINEAGE, has
from fortifai_ray.statistics.censored import Pairs, fit
from fortifai_ray.statistics.intervals import mean_intervals, ratio_intervals

Baseline = Mapping[str, object]


class PlainBaseline(dict[str, Any]):
    """A baseline that replaces its own keys alone: a dot in them means nothing, and every other key must be equal."""


MIN_PAIRS = 3  # with fewer there is no interval
RATIOS = ("fi_ratio", "fi_ratio_low", "fi_ratio_high", "fi_ratio_bound", "estimator")
MEANS = (
    *("mean_ratio", "mean_ratio_low", "mean_ratio_high"),
    *("mean_difference", "mean_difference_low", "mean_difference_high", "mean_ratio_horizon"),
)


def cell_keys(varied: Sequence[str]) -> list[str]:
    """The varied keys that make a cell: all but the seed."""
    return [key for key in varied if key != "seed"]


def outside_baseline(varied: Sequence[str], baseline: Baseline) -> list[str]:
    """The cell keys that a chain and its baseline share: those in none of the baseline's sections."""
    if isinstance(baseline, PlainBaseline):
        return [key for key in cell_keys(varied) if key not in baseline]
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
        the one whose other keys there are all null, else none. A lineage is compared with the lineage of its name, or,
        where the baseline is one model alone, with that.
    """
    shared = [*outside_baseline(varied, baseline), "seed"]
    inside = [key for key in cell_keys(varied) if key not in shared and key not in baseline]
    candidates = chains.filter(_is_baseline(chains, baseline))
    others = [key for key in shared if key != LINEAGE]
    paired = chains
    choices = []
    for label, pool, on in (
        ("same", candidates, [*shared, *inside]),
        ("plain", candidates.filter(pl.all_horizontal(pl.col(inside).is_null())) if inside else candidates, shared),
        ("only", candidates, shared),
        ("alone", _of_one_model(candidates, chains, varied) if others != shared else candidates.clear(), others),
    ):
        unique = pool.group_by(on).agg(pl.col("chain_id").first().alias(label), pl.len().alias("_count"))
        unique = unique.filter(pl.col("_count") == 1).drop("_count")
        paired = paired.join(unique, on=on, how="left", nulls_equal=True)
        choices.append(label)
    return paired.select("chain_id", pl.coalesce(choices).alias("baseline_chain_id"))


def _of_one_model(candidates: pl.DataFrame, chains: pl.DataFrame, varied: Sequence[str]) -> pl.DataFrame:
    """The candidates among ``chains`` that have no other lineage beside them."""
    keys = [*(key for key in cell_keys(varied) if key != LINEAGE), "seed"]
    alone = chains.filter(pl.len().over(keys) == 1).select("chain_id")
    return candidates.join(alone, on="chain_id", how="semi")


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
    found = [has(chains.schema, key, value) for key, value in baseline.items()]
    known = [one for one in found if one is not None]
    every = pl.all_horizontal(pl.lit(len(known) == len(baseline)), *known)
    return chains.select(pl.repeat(True, pl.len()) & every).to_series()


def pair_ratios(intervals: pl.DataFrame) -> pl.DataFrame:
    """The pairs in which both chains have an interval: ``ratio`` and ``pair_bound``, by the module's table.

    Args:
        intervals: a row per chain with an interval, criterion and unit: ``fi, decided, censored``, ``chain`` and
            ``base_chain`` (their numbers; null: no baseline), and ``what``, the number of the criterion and unit.
    """
    theirs = intervals.select(
        "what", base_chain="chain", base_fi="fi", base_censored="censored", base_decided="decided"
    )
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


def cell_ratios(pairs: pl.DataFrame, level: float) -> pl.DataFrame:
    """Per ``group`` of pairs: ``n_pairs, seed_ratios, seed_bounds, bound, bound_ratio``, ``RATIOS`` and ``MEANS``."""
    has = {kind: (pl.col("pair_bound") == kind).any() for kind in ("lower", "upper", "undetermined")}
    zero = ((pl.col("fi") == 0) & ~pl.col("censored")) | ((pl.col("base_fi") == 0) & ~pl.col("base_censored"))
    per_cell = pairs.group_by("group", maintain_order=True).agg(
        n_pairs=pl.len(),
        seed_ratios=pl.col("ratio"),
        seed_bounds=pl.col("pair_bound"),
        bound=pl.when(has["undetermined"] | (has["lower"] & has["upper"])).then(pl.lit("undetermined"))
        .when(has["lower"]).then(pl.lit("lower")).when(has["upper"]).then(pl.lit("upper")).otherwise(pl.lit("exact")),
        bound_ratio=pl.col("ratio").log().mean().exp(),
        _exact=(pl.col("pair_bound") == "exact").all(),
        _zero=zero.any(),
    )  # fmt: skip
    per_cell = per_cell.with_columns(bound_ratio=pl.when(pl.col("bound") != "undetermined").then("bound_ratio"))
    enough = pl.col("n_pairs") >= MIN_PAIRS
    exact, fitted = pl.col("_exact"), ~pl.col("_exact") & ~pl.col("_zero") & enough
    parts = [
        _of_exact_pairs(per_cell.filter(exact), level),
        _of_censored_pairs(per_cell.filter(fitted), pairs, level),
        per_cell.filter(~exact & ~fitted).select("group", *_bounds("bound")),
    ]
    table = per_cell.join(pl.concat(parts), on="group", how="left", maintain_order="left").drop("_exact", "_zero")
    return table.join(_restricted_means(pairs, level), on="group", how="left", maintain_order="left")


def _bounds(estimator: str) -> list[pl.Expr]:
    """``RATIOS`` where the geometric mean of the pairs' bounds is all that is known."""
    known = pl.when(pl.col("bound_ratio").is_not_null())
    nothing = pl.lit(None, pl.Float64)
    return [
        pl.col("bound_ratio").alias("fi_ratio"),
        *(nothing.alias(f"fi_ratio_{end}") for end in ("low", "high")),
        pl.col("bound").alias("fi_ratio_bound"),
        known.then(pl.lit(estimator)).alias("estimator"),
    ]


def _of_exact_pairs(cells: pl.DataFrame, level: float) -> pl.DataFrame:
    """``group`` and ``RATIOS``: the geometric mean of exact ratios, with an interval where none of them is 0."""
    parts = [cells.select("group", *_bounds("geometric mean")).clear()]
    for (n,), some in cells.group_by("n_pairs"):
        table = some.select("group", *_bounds("geometric mean"), positive=pl.col("seed_ratios").list.min() > 0)
        if n >= MIN_PAIRS:
            logs = some["seed_ratios"].explode().to_numpy().reshape(some.height, n)
            with np.errstate(divide="ignore", invalid="ignore"):
                ends = [np.exp(end) for end in mean_intervals(np.log(logs), level)]
            positive, with_interval = pl.col("positive"), pl.lit("geometric mean, Student t")
            table = table.with_columns(
                *(
                    pl.when(positive).then(pl.Series(end)).alias(f"fi_ratio_{name}")
                    for name, end in zip(("low", "high"), ends, strict=True)
                ),
                estimator=pl.when(positive).then(with_interval).otherwise("estimator"),
            )
        parts.append(table.drop("positive"))
    return pl.concat(parts)


def _of_censored_pairs(cells: pl.DataFrame, pairs: pl.DataFrame, level: float) -> pl.DataFrame:
    """``group`` and ``RATIOS`` by :mod:`~fortifai_ray.statistics.censored`."""
    if cells.is_empty():
        return cells.select("group", *_bounds("bound"))
    numbered = cells.select("group", "bound_ratio", cell=pl.int_range(pl.len(), dtype=pl.Int64))
    rows = pairs.join(numbered.select("group", "cell"), on="group", maintain_order="left")
    with np.errstate(divide="ignore"):
        base, own = (np.log(rows[name].to_numpy()) for name in ("base_decided", "decided"))
    censored = (rows[name].to_numpy() for name in ("base_censored", "censored"))
    fits = fit(Pairs(rows["cell"].to_numpy(), base, own, *censored), level)
    fields = {"delta": fits.delta, "low": fits.low, "high": fits.high}
    found = numbered.with_columns(pl.Series(name, np.exp(values), nan_to_null=True) for name, values in fields.items())
    lower, upper = pl.col("delta").is_infinite(), pl.col("delta") == 0
    known = pl.col("delta").is_not_null()
    low, high = pl.min_horizontal("low", "bound_ratio"), pl.max_horizontal("high", "bound_ratio")
    return found.select(
        "group",
        pl.when(lower).then(pl.coalesce("bound_ratio", "low"))
        .when(upper).then(pl.coalesce("bound_ratio", "high")).otherwise("delta").alias("fi_ratio"),
        pl.when(lower).then(low).when(known & ~upper).then("low").alias("fi_ratio_low"),
        pl.when(upper).then(high).when(known & ~lower).then("high").alias("fi_ratio_high"),
        pl.when(lower).then(pl.lit("lower")).when(upper).then(pl.lit("upper")).when(known).then(pl.lit("exact"))
        .otherwise(pl.lit("undetermined")).alias("fi_ratio_bound"),
        pl.when(lower | upper).then(pl.lit("bound, profile likelihood"))
        .when(known).then(pl.lit("censored log-normal, profile likelihood")).alias("estimator"),
    )  # fmt: skip


def _restricted_means(pairs: pl.DataFrame, level: float) -> pl.DataFrame:
    """Per ``group``: ``MEANS``, of the pairs' intervals cut at the earliest time at which a chain is censored."""
    end = pl.min_horizontal(pl.col("fi").filter("censored").min(), pl.col("base_fi").filter("base_censored").min())
    own, base = (pl.min_horizontal(pl.col(name), end) for name in ("fi", "base_fi"))
    cut = pairs.group_by("group", maintain_order=True).agg(
        n=pl.len(), own=own, base=base, horizon=end, itself=(pl.col("chain") == pl.col("base_chain")).any()
    )
    cut = cut.filter(pl.col("base").list.sum() > 0)
    empty = dict.fromkeys(MEANS, pl.Float64)
    parts = [pl.DataFrame(schema={"group": cut.schema["group"], **empty})]
    for (n,), some in cut.group_by("n"):
        own_n, base_n = (some[name].explode().to_numpy().reshape(some.height, n) for name in ("own", "base"))
        values = {"mean_ratio": own_n.mean(axis=1) / base_n.mean(axis=1)}
        values["mean_difference"] = (own_n - base_n).mean(axis=1)
        if n >= MIN_PAIRS:
            values["mean_ratio_low"], values["mean_ratio_high"] = ratio_intervals(own_n, base_n, level)
            ends = mean_intervals(own_n - base_n, level)
            values["mean_difference_low"], values["mean_difference_high"] = ends
        columns = {name: pl.Series(values.get(name, np.full(some.height, np.nan)), nan_to_null=True) for name in empty}
        parts.append(some.select("group", **columns | {"mean_ratio_horizon": pl.col("horizon")}))
    return pl.concat(parts)
