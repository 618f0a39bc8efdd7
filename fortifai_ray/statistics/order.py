"""What collapses first: the order in which a chain crosses several criteria (tails, facts, grammar, repetition).

What a pair of criteria, A and B, says of one chain:

==================  ==================  ==============================================================================
A                   B                   order
==================  ==================  ==============================================================================
collapsed           collapsed           by their onsets; equal onsets (both at generation 0) are a tie
collapsed           censored            A first, where A's onset is no later than the generation up to which B had
                                        surely not collapsed; else open
censored            censored            open
failed              any                 the chain is left out: no verdict under A
==================  ==================  ==============================================================================

A chain that survived had surely not collapsed up to the last generation observed. One that ended in an unconfirmed
crossing had not ``confirm`` generations before that: the crossing may turn out to be the collapse.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from fortifai_ray.statistics.criterion import CRITERION_COLUMNS, with_chance
from fortifai_ray.statistics.crossing import Floats, Integers
from fortifai_ray.statistics.ratios import cell_keys

_A, _B = list(CRITERION_COLUMNS), [f"other_{name}" for name in CRITERION_COLUMNS]


def first_crossings(chains: pl.DataFrame, varied: Sequence[str]) -> pl.DataFrame:
    """The criterion that each chain crosses first.

    Args:
        chains: as :func:`~fortifai_ray.statistics.chains.chain_table` returns it.
        varied: the varied keys.

    Returns:
        A row per chain, in the order of ``chains``: ``chain_id``, the cell's keys, ``seed, n_criteria`` (with a
        verdict), ``n_collapsed``, the columns of the criterion crossed first, its ``onset``, and ``order``: ``first``
        (it precedes all others), ``tie`` (others were crossed at the same time; the first of them in the table's order
        is named), ``open`` (a censored criterion may have been crossed before: none is named) or ``none`` (nothing was
        crossed, or nothing could be judged).
    """
    table = _with_certainty(chains)
    keys = ["chain_id", *cell_keys(varied), "seed"]
    verdict, onset = pl.col("status") != "failed", pl.col("onset").min()
    first = pl.struct(*_A).filter(pl.col("onset") == onset).first()
    tied = (pl.col("onset") == onset).sum() > 1
    unsure = (pl.col("censored") & (pl.col("_not_before") < onset)).any()
    found = table.group_by(keys, maintain_order=True).agg(
        n_criteria=verdict.sum().cast(pl.Int64),
        n_collapsed=pl.col("onset").count().cast(pl.Int64),
        _first=first,
        onset=onset,
        order=pl.when(onset.is_null()).then(pl.lit("none"))
        .when(unsure).then(pl.lit("open"))
        .when(tied).then(pl.lit("tie"))
        .otherwise(pl.lit("first")),
    )  # fmt: skip
    known = pl.col("order").is_in(["first", "tie"])
    named = [pl.when(known).then(pl.col("_first").struct.field(name)).alias(name) for name in _A]
    return found.select(*keys, "n_criteria", "n_collapsed", *named, pl.when(known).then("onset"), "order")


def crossing_order(chains: pl.DataFrame, varied: Sequence[str], *, level: float = 0.90) -> pl.DataFrame:
    """Per cell and ordered pair of criteria: in which share of the chains the first of the two is crossed first.

    Returns:
        A row per cell, criterion and other criterion (``other_metric``, ``other_threshold``, …), sorted: ``level``,
        ``n_chains`` (judged under both), ``n_before, n_after, n_tied, n_open`` (as the module says), ``share`` (of the
        chains whose order is known, those in which it precedes the other; null where none is) and ``share_low,
        share_high``: Clopper and Pearson's (1934) interval with every open chain counted against the share at its low
        end and for it at its high end, so that censoring widens it and never decides it.

    Raises:
        ValueError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 (got {level})")
    keys = cell_keys(varied)
    counts = _counts(_pairs(_with_certainty(chains), keys), keys)
    n, n_open = counts["n_chains"].to_numpy(), counts["n_open"].to_numpy()
    before, decided = counts["n_before"].to_numpy(), pl.col("n_chains") - pl.col("n_open")
    low, _ = clopper_pearson(before, n, level)
    _, high = clopper_pearson(before + n_open, n, level)
    return (
        counts.with_columns(
            level=pl.lit(level),
            share=pl.when(decided > 0).then(pl.col("n_before") / decided),
            share_low=pl.Series(low, dtype=pl.Float64),
            share_high=pl.Series(high, dtype=pl.Float64),
        )
        .sort(*keys, *_A, *_B)
        .select(*keys, *_A, *_B, "level", *_COUNTS, "share", "share_low", "share_high")
    )


def clopper_pearson(successes: Integers, trials: Integers, level: float) -> tuple[Floats, Floats]:
    """(n,) two-sided intervals of binomial shares (Clopper and Pearson 1934): they never cover less than they say."""
    from scipy.special import betaincinv  # 0.7 s to import: only where an interval is asked for

    tail, k, n = (1 - level) / 2, successes.astype(np.float64), trials.astype(np.float64)
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), n - np.maximum(k, 1) + 1, tail), 0.0)
    high = np.where(k < n, betaincinv(np.minimum(k, n - 1) + 1, n - np.minimum(k, n - 1), 1 - tail), 1.0)
    return low, high


def _pairs(chains: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """A row per chain and ordered pair of criteria that both have a verdict: onsets ``a`` and ``b``, null where
    censored, and up to when each was surely not crossed, ``a_sure`` and ``b_sure``."""
    judged = chains.filter(pl.col("status") != "failed")
    mine = judged.select("chain_id", *keys, *_A, a="onset", a_sure="_not_before")
    renamed = (pl.col(a).alias(b) for a, b in zip(_A, _B, strict=True))
    pairs = mine.join(judged.select("chain_id", *renamed, b="onset", b_sure="_not_before"), on="chain_id")
    return pairs.filter(~pl.all_horizontal(pl.col(a).eq_missing(pl.col(b)) for a, b in zip(_A, _B, strict=True)))


def _counts(pairs: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Per cell and ordered pair: ``_COUNTS``."""
    a, b = pl.col("a"), pl.col("b")
    before = (a < b) | (b.is_null() & (a <= pl.col("b_sure")))
    after = (b < a) | (a.is_null() & (b <= pl.col("a_sure")))
    counts = pairs.group_by(*keys, *_A, *_B).agg(
        pl.len().alias("n_chains"),
        before.fill_null(False).sum().alias("n_before"),
        after.fill_null(False).sum().alias("n_after"),
        (a == b).sum().alias("n_tied"),
    )
    counts = counts.with_columns(pl.col("n_chains", "n_before", "n_after", "n_tied").cast(pl.Int64))
    return counts.with_columns(n_open=pl.col("n_chains") - pl.sum_horizontal("n_before", "n_after", "n_tied"))


_COUNTS = ("n_chains", "n_before", "n_after", "n_tied", "n_open")


def _with_certainty(chains: pl.DataFrame) -> pl.DataFrame:
    """Adds ``_not_before``: for a censored chain, up to when it had surely not collapsed; null for the others."""
    typed = with_chance(chains).with_columns(
        pl.col("onset", "fi_generations").cast(pl.Float64), pl.col("censored").cast(pl.Boolean)
    )
    observed = pl.col("fi_generations")
    unconfirmed = pl.max_horizontal(observed - pl.col("confirm"), pl.lit(0.0))
    sure = pl.when(pl.col("status") == "unconfirmed").then(unconfirmed).when("censored").then(observed)
    return typed.with_columns(_not_before=sure)
