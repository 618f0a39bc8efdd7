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
censored log-normal,                  of 3 to 29 pairs of which some are not exact, where at least half of the chains of
profile likelihood                    each side collapsed, not most of them at one time:
                                      :mod:`~fortifai_ray.statistics.censored`
median pair, order statistics         of 30 pairs or more of which some are not exact, and of 5 or more where a chain
                                      collapsed at generation 0 or all ratios are one number: no assumption on the law
                                      (:func:`~fortifai_ray.statistics.intervals.median_ends`)
bound, Student t                      where that leaves an end open and each pair is exact or a bound of one kind: the
                                      same side's end of the interval of the pairs' bounds, a bound without a model
bound, order statistics               where a pair is undetermined: the end that order statistics have
bound                                 under three pairs
====================================  =============================================================================

Otherwise there is no ratio: too little of the curves was seen, and a law's tail says nothing of its body.

Beside it stands what the pairs say without any model (``bound``, ``bound_ratio``). The geometric mean of exact ratios
is exact; with lower (or upper) bounds among them it is a lower (upper) bound, since it grows with each of them. With
both kinds, or with any undetermined pair, it is undetermined and null: leaving out just the pairs that cannot be
compared would favour whichever side collapsed.

The means of the pairs' intervals cut at a common horizon, the earliest time at which any of their chains is censored,
are exact whatever lies beyond it: ``mean_difference``, ``mean_ratio``. They have intervals where as many chains as
there are pairs, or 10, collapsed before it, and where not all pairs are alike.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from fortifai_ray.results.schema import LINEAGE, has
from fortifai_ray.statistics.censored import Pairs, fit
from fortifai_ray.statistics.crossing import Floats
from fortifai_ray.statistics.intervals import mean_intervals, median_ends, ratio_intervals

Baseline = Mapping[str, object]


class PlainBaseline(dict[str, Any]):
    """A baseline that replaces its own keys alone: a dot in them means nothing, and every other key must be equal."""


MIN_PAIRS = 3  # with fewer there is no interval
MANY_PAIRS = 30  # from here on the log-normal model's bias under other laws counts beside its interval: it is not used
_FOR_ORDER = 5  # pairs; fewer have no order statistics around the median at 90 %
_SAME = 1e-9  # logarithms of ratios that differ by less are one number: onsets are interpolated in floats
_SIDES = {"fi": "censored", "base_fi": "base_censored"}
_ENDED = 10  # chains of both sides that collapsed before a cut, or as many as there are pairs: with fewer, intervals of
# the means up to it cover 75 to 87 %
_NONE = -1e3  # the logarithm of a ratio that is exactly 0: a number, and exp of it is 0
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
    log = pl.when(pl.col("ratio") == 0).then(_NONE).otherwise(pl.col("ratio").log())
    collapsed = [pl.col(side).filter(~pl.col(hides)) for side, hides in _SIDES.items()]
    seen = [2 * one.len() >= pl.len() for one in collapsed]
    tied = [one.n_unique() * 2 <= one.len() for one in collapsed]  # as no continuous law has them
    per_cell = pairs.group_by("group", maintain_order=True).agg(
        n_pairs=pl.len(),
        seed_ratios=pl.col("ratio"),
        seed_bounds=pl.col("pair_bound"),
        bound=pl.when(has["undetermined"] | (has["lower"] & has["upper"])).then(pl.lit("undetermined"))
        .when(has["lower"]).then(pl.lit("lower")).when(has["upper"]).then(pl.lit("upper")).otherwise(pl.lit("exact")),
        bound_ratio=pl.col("ratio").log().mean().exp(),
        _lows=pl.when(pl.col("pair_bound").is_in(["exact", "lower"])).then(log).otherwise(-math.inf),
        _highs=pl.when(pl.col("pair_bound").is_in(["exact", "upper"])).then(log).otherwise(math.inf),
        _exact=(pl.col("pair_bound") == "exact").all(),
        _zero=zero.any(),
        _seen=pl.all_horizontal(seen) & ~pl.any_horizontal(tied),
        _itself=(pl.col("chain") == pl.col("base_chain")).all(),
    )  # fmt: skip
    per_cell = per_cell.with_columns(bound_ratio=pl.when(pl.col("bound") != "undetermined").then("bound_ratio"))
    n, same = pl.col("n_pairs"), pl.col("_lows").list.max() - pl.col("_lows").list.min() < _SAME
    mean = pl.col("_exact") & (pl.col("_itself") | (~pl.col("_zero") & ~(same & (n >= _FOR_ORDER))))
    model = ~pl.col("_exact") & ~pl.col("_zero") & pl.col("_seen") & n.is_between(MIN_PAIRS, MANY_PAIRS - 1)
    parts = [
        _of_exact_pairs(per_cell.filter(mean), level),
        _of_censored_pairs(per_cell.filter(~mean & model), pairs, level),
        _without_a_model(per_cell.filter(~mean & ~model), level),
    ]
    table = per_cell.join(pl.concat(parts), on="group", how="left", maintain_order="left")
    table = table.drop("_lows", "_highs", "_exact", "_zero", "_seen", "_itself")
    return table.join(_restricted_means(pairs, level), on="group", how="left", maintain_order="left")


def _rows(cells: pl.DataFrame, name: str, n: int) -> Floats:
    """(cells, n) A column of lists of n numbers."""
    return cells[name].explode().to_numpy().reshape(cells.height, n)


def _ratios(cells: pl.DataFrame, **columns: Any) -> pl.DataFrame:
    """``group`` and ``RATIOS``; columns that are not given are null, and so is a number that is not finite."""
    empty = dict.fromkeys(RATIOS[:3], pl.lit(None, pl.Float64))
    table = cells.select(
        "group", **empty | {"fi_ratio_bound": pl.lit("undetermined"), "estimator": pl.lit(None, pl.String)}
    )
    table = table.with_columns(**columns)
    return table.with_columns(pl.when(pl.col(name).is_finite()).then(name) for name in RATIOS[:3])


def _of_exact_pairs(cells: pl.DataFrame, level: float) -> pl.DataFrame:
    """The geometric mean of exact ratios, with an interval unless all of them are one number: then others might not be,
    except a baseline's to itself."""
    parts = [_ratios(cells.clear())]
    for (n,), some in cells.group_by("n_pairs"):
        logs = _rows(some, "_lows", n)
        low, high = mean_intervals(logs, level) if n >= MIN_PAIRS else (np.full(some.height, np.nan),) * 2
        known = (np.ptp(logs, axis=1) > _SAME) | some["_itself"].to_numpy()
        low, high = (np.where(known, end, np.nan) for end in (low, high))
        parts.append(
            _ratios(
                some,
                fi_ratio=some["bound_ratio"],
                fi_ratio_low=pl.Series(np.exp(low)),
                fi_ratio_high=pl.Series(np.exp(high)),
                fi_ratio_bound=pl.lit("exact"),
                estimator=pl.Series(np.where(np.isfinite(low), "geometric mean, Student t", "geometric mean")),
            )
        )
    return pl.concat(parts)


def _of_censored_pairs(cells: pl.DataFrame, pairs: pl.DataFrame, level: float) -> pl.DataFrame:
    """Estimates by :mod:`~fortifai_ray.statistics.censored`."""
    if cells.is_empty():
        return _ratios(cells)
    numbered = cells.select("group", cell=pl.int_range(pl.len(), dtype=pl.Int64))
    rows = pairs.join(numbered, on="group", maintain_order="left")
    with np.errstate(divide="ignore"):
        base, own = (np.log(rows[name].to_numpy()) for name in ("base_decided", "decided"))
    censored = (rows[name].to_numpy() for name in ("base_censored", "censored"))
    fits = fit(Pairs(rows["cell"].to_numpy(), base, own, *censored), level)
    numbers = zip(RATIOS[:3], (fits.delta, fits.low, fits.high), strict=True)
    return _ratios(
        cells,
        **{name: pl.Series(np.exp(values)) for name, values in numbers},
        fi_ratio_bound=pl.lit("exact"),
        estimator=pl.lit("censored log-normal, profile likelihood"),
    )


def _without_a_model(cells: pl.DataFrame, level: float) -> pl.DataFrame:
    """The median of the pairs' ratios, or a bound, by what each pair says; nothing where the pairs say too little.

    A bound has one end, which misses with the whole probability that an interval's two ends share.
    """
    parts = [_ratios(cells.clear())]
    for (n,), some in cells.group_by("n_pairs"):
        lows, highs = _rows(some, "_lows", n), _rows(some, "_highs", n)
        low, high = median_ends(lows, highs, (1 - level) / 2)
        with np.errstate(invalid="ignore"):
            middle = (np.median(lows, axis=1) + np.median(highs, axis=1)) / 2
        estimate, zero, names = np.isfinite(low) & np.isfinite(high), some["_zero"].to_numpy(), some["bound"].to_numpy()
        found, ends = {"exact": (estimate, middle, "median pair, order statistics")}, {}
        sides = zip(("lower", "upper"), (lows, highs), (low, high), median_ends(lows, highs, 1 - level), strict=True)
        for place, (side, logs, two_sided, one_sided) in enumerate(sides):
            mean = (names == side) & ~zero
            with_t = mean & (np.ptp(np.where(mean[:, None], logs, 0.0), axis=1) > _SAME) & (n >= MIN_PAIRS)
            end = np.where(estimate, two_sided, one_sided)
            if with_t.any():
                end[with_t & ~estimate] = mean_intervals(logs[with_t & ~estimate], max(2 * level - 1, 0.0))[place]
            ends[side], point = end, logs.mean(axis=1)
            found[f"{side} t"] = (with_t, point, "bound, Student t")
            says = np.isfinite(end) & (names != "exact") & ((side == "upper") | (end > _NONE))  # at least 0: nothing
            found[f"{side} order"] = (says, np.median(logs, axis=1), "bound, order statistics")
            found[side] = (mean, point, "bound")
        found["exact mean"] = ((names == "exact") & ~zero, lows.mean(axis=1), "geometric mean")
        ends = {side: np.where(np.isfinite(end), end, np.nan) for side, end in ends.items()}
        conditions, values, estimators = zip(*found.values(), strict=True)
        bounds = np.select(conditions, [name.split()[0] for name in found], "undetermined")
        parts.append(
            _ratios(
                some,
                fi_ratio=pl.Series(np.exp(np.select(conditions, values, np.nan))),
                fi_ratio_low=pl.Series(np.exp(np.where(bounds == "upper", np.nan, ends["lower"]))),
                fi_ratio_high=pl.Series(np.exp(np.where(bounds == "lower", np.nan, ends["upper"]))),
                fi_ratio_bound=pl.Series(bounds),
                estimator=pl.Series(np.select(conditions, estimators, "")).replace("", None),
            )
        )
    return pl.concat(parts)


def _restricted_means(pairs: pl.DataFrame, level: float) -> pl.DataFrame:
    """Per ``group``: ``MEANS``, of the pairs' intervals cut at the earliest time at which a chain is censored."""
    end = pl.min_horizontal(pl.col("fi").filter("censored").min(), pl.col("base_fi").filter("base_censored").min())
    own, base = (pl.min_horizontal(pl.col(name), end) for name in _SIDES)
    ended = pl.sum_horizontal((pl.col(name) < end).fill_null(True).sum() for name in _SIDES)
    cut = pairs.group_by("group", maintain_order=True).agg(
        n=pl.len(),
        own=own,
        base=base,
        horizon=end,
        enough=ended >= pl.min_horizontal(pl.len(), _ENDED),
        itself=(pl.col("chain") == pl.col("base_chain")).all(),
    )
    cut = cut.filter(pl.col("base").list.sum() > 0)
    empty = dict.fromkeys(MEANS, pl.Float64)
    parts = [pl.DataFrame(schema={"group": cut.schema["group"], **empty})]
    for (n,), some in cut.group_by("n"):
        own_n, base_n = _rows(some, "own", n), _rows(some, "base", n)
        ratio = own_n.mean(axis=1) / base_n.mean(axis=1)
        values = {"mean_ratio": ratio, "mean_difference": (own_n - base_n).mean(axis=1)}
        if n >= MIN_PAIRS:
            ends = {"mean_ratio": ratio_intervals(own_n, base_n, level)}
            ends["mean_difference"] = mean_intervals(own_n - base_n, level)
            for name, slope in (("mean_ratio", ratio), ("mean_difference", np.ones_like(ratio))):
                differ = np.ptp(own_n - slope[:, None] * base_n, axis=1) > _SAME * base_n.max(axis=1)
                known = (some["enough"].to_numpy() & differ) | some["itself"].to_numpy()
                for side, end_n in zip(("low", "high"), ends[name], strict=True):
                    values[f"{name}_{side}"] = np.where(known, end_n, np.nan)
        columns = {name: pl.Series(values.get(name, np.full(some.height, np.nan)), nan_to_null=True) for name in empty}
        parts.append(some.select("group", **columns | {"mean_ratio_horizon": pl.col("horizon")}))
    return pl.concat(parts)
