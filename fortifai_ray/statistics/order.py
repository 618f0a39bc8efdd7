"""What collapses first: the order in which a chain meets several criteria (tails, facts, grammar, repetition).

One rule, for every table, claim and notebook. A chain's onset under a criterion lies between two bounds:

===========  =================================================  ========
status       earliest                                           latest
===========  =================================================  ========
collapsed    the onset                                          the onset
survived     the last generation observed                       infinity
unconfirmed  the first crossing of those that the chain         infinity
             ends in, which may turn out to be the collapse
failed       0                                                  infinity
===========  =================================================  ========

The earliest onset of a censored chain is the end of its fidelity interval (:mod:`~fortifai_ray.statistics.crossing`).

Criterion A precedes B where A's latest onset is before B's earliest one. Equal bounds decide for A only where B's chain
survived: a chain that was seen not to cross at a generation collapses after it. Two known onsets that are equal are a
tie. Everything else is open.
"""

from collections.abc import Sequence
from typing import Literal

import polars as pl

from fortifai_ray.results.schema import CRITERION_COLUMNS, with_criterion_columns
from fortifai_ray.statistics.criterion import Collapse, criterion_rows
from fortifai_ray.statistics.intervals import clopper_pearson
from fortifai_ray.statistics.ratios import cell_keys

Order = Literal["first", "second", "tie", "open"]

_A, _B = list(CRITERION_COLUMNS), [f"other_{name}" for name in CRITERION_COLUMNS]
_COUNTS = ("n_chains", "n_before", "n_after", "n_tied", "n_open")


def onset_bounds(chains: pl.DataFrame) -> pl.DataFrame:
    """Add ``earliest`` and ``latest``, the bounds of each row's onset in generations, as the module's table says.

    Args:
        chains: as :func:`~fortifai_ray.statistics.chains.chain_table` returns it, or these columns of it: ``status,
            onset, fi_generations``.
    """
    onset = pl.when(pl.col("status") == "collapsed").then(pl.col("onset").cast(pl.Float64))
    return chains.with_columns(
        earliest=pl.coalesce(onset, pl.col("fi_generations").cast(pl.Float64), 0.0),
        latest=onset.fill_null(float("inf")),
    )


def surely_before(time: pl.Expr, earliest: str = "earliest", status: str = "status") -> pl.Expr:
    """Whether ``time`` precedes the onset in the columns ``earliest`` and ``status``, whatever that turns out to be."""
    return (time < pl.col(earliest)) | ((time == pl.col(earliest)) & (pl.col(status) == "survived"))


def collapsed_by(generation: float) -> pl.Expr:
    """Whether a row of :func:`onset_bounds` had collapsed by a generation; null where that is open."""
    by = pl.lit(float(generation))
    return pl.when(pl.col("latest") <= by).then(True).when(surely_before(by)).then(False)


def onset_orders(chains: pl.DataFrame, first: Collapse, second: Collapse) -> pl.DataFrame:
    """The order of two onsets in each chain that has a row under both criteria.

    Args:
        chains: as :func:`~fortifai_ray.statistics.chains.chain_table` returns it.

    Returns:
        ``chain_id, seed, order, precedes``. ``order`` is ``first``, ``second``, ``tie`` or ``open``. ``precedes``:
        whether the first onset lies strictly before the second; null where that is open. It is known more often than
        the order: an onset no earlier than the other's latest one does not precede it.
    """
    bounded = onset_bounds(chains)
    bounds = ["status", "earliest", "latest"]
    mine = bounded.filter(criterion_rows(first)).select("chain_id", "seed", *bounds)
    theirs = bounded.filter(criterion_rows(second)).select("chain_id", *bounds)
    both = mine.join(theirs, on="chain_id", suffix="_2", maintain_order="left")
    return both.select("chain_id", "seed", order=_order("_2"), precedes=_precedes("_2"))


def first_crossings(chains: pl.DataFrame, varied: Sequence[str]) -> pl.DataFrame:
    """The criterion that each chain meets first.

    Args:
        chains: as :func:`~fortifai_ray.statistics.chains.chain_table` returns it.
        varied: the varied keys.

    Returns:
        A row per chain, in the order of ``chains``: ``chain_id``, the cell's keys, ``seed, n_criteria`` (with a
        verdict), ``n_collapsed``, the columns of the criterion met first, its ``onset``, and ``order``: ``first`` (it
        precedes all others), ``tie`` (others have the same onset; the first of them in the table's order is named),
        ``open`` (a censored criterion may have been met before: none is named) or ``none`` (no criterion was met, or
        none could be judged).
    """
    keys = ["chain_id", *cell_keys(varied), "seed"]
    judged, onset = pl.col("status") != "failed", pl.col("latest").min()
    at_onset = judged & (pl.col("latest") == onset)
    unsure = (judged & pl.col("latest").is_infinite() & ~surely_before(onset)).any()
    firsts = (
        onset_bounds(with_criterion_columns(chains))
        .group_by(keys, maintain_order=True)
        .agg(
            n_criteria=judged.sum().cast(pl.Int64),
            n_collapsed=pl.col("latest").is_finite().sum().cast(pl.Int64),
            _first=pl.struct(*_A).filter(at_onset).first(),
            onset=onset,
            order=pl.when(onset.is_infinite()).then(pl.lit("none"))
            .when(unsure).then(pl.lit("open"))
            .when(at_onset.sum() > 1).then(pl.lit("tie"))
            .otherwise(pl.lit("first")),
        )
    )  # fmt: skip
    known = pl.col("order").is_in(["first", "tie"])
    named = [pl.when(known).then(pl.col("_first").struct.field(name)).alias(name) for name in _A]
    return firsts.select(*keys, "n_criteria", "n_collapsed", *named, pl.when(known).then("onset"), "order")


def crossing_order(chains: pl.DataFrame, varied: Sequence[str], *, level: float = 0.90) -> pl.DataFrame:
    """Per cell and ordered pair of criteria: the share of the chains in which the first of the two is met first.

    A chain that failed under either criterion is left out.

    Returns:
        A row per cell, criterion and other criterion (``other_metric``, ``other_threshold``, …), sorted: ``level``,
        ``n_chains`` (judged under both), ``n_before, n_after, n_tied, n_open``, ``share`` (of the chains whose order is
        known, those in which the criterion precedes the other; null where there are none) and ``share_low,
        share_high``: Clopper and Pearson's (1934) interval with every open chain counted against the share at its low
        end and for it at its high end, so that censoring widens it and never decides it.

    Raises:
        ValueError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 (got {level})")
    keys = cell_keys(varied)
    judged = with_criterion_columns(chains).filter(pl.col("status") != "failed")
    counts = _counts(_pairs(onset_bounds(judged), keys), keys)
    n, n_open, before = (counts[name].to_numpy() for name in ("n_chains", "n_open", "n_before"))
    low, _ = clopper_pearson(before, n, level)
    _, high = clopper_pearson(before + n_open, n, level)
    decided = pl.col("n_chains") - pl.col("n_open")
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


def _order(other: str) -> pl.Expr:
    """The :data:`Order` of the onset in a row's bounds and the one in its bounds with the suffix ``other``."""
    known = pl.col("latest").is_finite()
    return (
        pl.when(surely_before(pl.col("latest"), f"earliest{other}", f"status{other}")).then(pl.lit("first"))
        .when(surely_before(pl.col(f"latest{other}"))).then(pl.lit("second"))
        .when(known & (pl.col("latest") == pl.col(f"latest{other}"))).then(pl.lit("tie"))
        .otherwise(pl.lit("open"))
    )  # fmt: skip


def _precedes(other: str) -> pl.Expr:
    not_before = pl.col("earliest") >= pl.col(f"latest{other}")
    return pl.when(_order(other) == "first").then(True).when(not_before).then(False)


def _pairs(judged: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """A row per chain and ordered pair of criteria, and the ``order`` of their onsets."""
    bounds = ["status", "earliest", "latest"]
    mine = judged.select("chain_id", *keys, *_A, *bounds)
    renamed = (pl.col(a).alias(b) for a, b in zip(_A, _B, strict=True))
    pairs = mine.join(judged.select("chain_id", *renamed, *bounds), on="chain_id", suffix="_2")
    pairs = pairs.filter(~pl.all_horizontal(pl.col(a).eq_missing(pl.col(b)) for a, b in zip(_A, _B, strict=True)))
    return pairs.select(*keys, *_A, *_B, order=_order("_2"))


def _counts(pairs: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Per cell and ordered pair: ``_COUNTS``."""
    kinds = {"n_before": "first", "n_after": "second", "n_tied": "tie", "n_open": "open"}
    counts = {name: (pl.col("order") == kind).sum().cast(pl.Int64) for name, kind in kinds.items()}
    return pairs.group_by(*keys, *_A, *_B).agg(n_chains=pl.len().cast(pl.Int64), **counts)
