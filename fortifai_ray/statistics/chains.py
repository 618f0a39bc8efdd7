"""``chains.parquet``: from a row per chain and generation to a row per chain and criterion."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from fortifai_ray.results.schema import FI_UNITS, FiUnit
from fortifai_ray.statistics.criterion import Collapse, CollapseCriterion, criterion_columns
from fortifai_ray.statistics.crossing import Crossings, Floats, Integers, earliest, sure_crossings
from fortifai_ray.statistics.ratios import Baseline, cell_keys, pair_with_baseline

Reference = tuple[str, str, float]  # a chain's id, a metric, and its value at the baseline's generation 0
Given = Callable[[str], Floats]  # (chains,) of a metric: the references of single chains, NaN for none


def chain_table(
    generations: pl.DataFrame | pl.LazyFrame,
    criteria: Sequence[Collapse],
    baseline: Baseline,
    varied: Sequence[str],
    generations_asked: int,
    *,
    failed: Collection[str] = (),
    roster: pl.DataFrame | None = None,
    references: Collection[Reference] = (),
) -> pl.DataFrame:
    """When each chain collapsed under each criterion, and how long it stayed faithful.

    Args:
        generations: a row per chain and generation, in any order (of a scanned table, the columns that are needed are
            in memory alone): ``chain_id, generation, seed``, the varied keys, the
            criteria's metrics, ``synthetic_size_cum``, and optionally ``collapse_reason`` (not null: this generation
            was recorded as collapsed and ended its chain) and ``ended`` (why the chain ends here). A null metric was
            not measured: the chain was observed up to the generation before it. Generations beyond the
            ``generations_asked`` are ignored.
        baseline: the keys and values that make a chain the baseline.
        varied: the varied keys, each a column; the seed may be among them.
        generations_asked: the study's ``generations``, N; the horizon is N − 1.
        failed: ids of chains that failed.
        roster: a row per chain of the study (``chain_id``, ``seed``, the varied keys), so that chains appear that
            failed before their first generation.
        references: the baseline's generation 0 as measured for single chains, where the table has no baseline chain
            that matches them (a search places each cell's chains at values of its own).

    Returns:
        A row per criterion and chain, sorted by cell and seed: ``chain_id``, the varied keys, ``seed``, baseline keys
        that are not varied, the criterion's columns (:data:`~fortifai_ray.results.schema.CRITERION_COLUMNS`), ``limit``
        (in the metric's units; null where there are several), ``limits`` (all of them: the low and the high one of a
        two-sided criterion, and those of each of several criteria), ``onset, status, censored, horizon, fi_generations,
        fi_synthetic, fi_synthetic_now, decided_generations, decided_synthetic, decided_synthetic_now, ended``.
        ``fi_synthetic`` is what all training sets up to the onset held, ``fi_synthetic_now`` what the largest of them
        held: under ``incremental`` the one grows with the square of the generations, the other in proportion to them.

        A chain that is ``unconfirmed`` or ``survived`` is censored: its fidelity intervals end at the last point at
        which it is known to be faithful (:mod:`~fortifai_ray.statistics.crossing`), and are lower bounds. Under any of
        several criteria it is also ``unconfirmed`` where it collapsed by one of them, and may turn out to have done so
        earlier by another. A chain is ``failed``, with null ``onset``, ``censored`` and intervals, where there is no
        verdict: it is in ``failed`` and no collapse had been confirmed before, it has no generation 0, or the
        generation 0 that a limit of it is relative to is missing or broken.

        ``decided_generations`` (and the same in the other units) is the onset, or else up to when any onset would have
        been confirmed: ``confirm`` generations before the last one. Where that is does not depend on what the chain did
        after it, as it does for ``fi_generations``, which ends where an unconfirmed chain seems to collapse: a model of
        onsets censors there.

    Raises:
        ValueError: a column is missing, a chain has a generation twice, or ``generations_asked`` is below 1.
    """
    if generations_asked < 1:
        raise ValueError(f"generations must be at least 1 (got {generations_asked})")
    lazy = generations.lazy()
    if not _collected(lazy.select(pl.len())).item():  # no chain got to generation 0: it may have lost its columns
        lazy = pl.LazyFrame(schema={"chain_id": pl.String, "generation": pl.Int64})
    measured = lazy.filter(pl.col("generation") < generations_asked)
    chains = _chain_roster(measured, roster, varied, baseline)
    metrics = dict.fromkeys(member.metric for criterion in criteria for member in criterion.members)
    history = _History.of(measured, chains["chain_id"], generations_asked, [*metrics, "synthetic_size_cum"])
    pairs = chains.select("chain_id").join(
        pair_with_baseline(chains, varied, baseline), on="chain_id", how="left", maintain_order="left"
    )
    baselines = _positions(pairs["baseline_chain_id"], chains["chain_id"])
    has_failed = chains["chain_id"].is_in(list(failed)).to_numpy()
    ended = history.ended
    measured_apart = {(chain_id, metric): value for chain_id, metric, value in references}

    def given(metric: str) -> Floats:
        return np.array([measured_apart.get((one, metric), np.nan) for one in chains["chain_id"]])

    verdicts = [_judge(history, criterion, baselines, has_failed, given) for criterion in dict.fromkeys(criteria)]
    return pl.concat([chains.hstack(verdict).with_columns(ended) for verdict in verdicts])


def failed_chains(chains: pl.DataFrame) -> list[str]:
    """The ids of the chains in a :func:`chain_table` that have no verdict under any criterion."""
    verdicts = chains.group_by("chain_id", maintain_order=True).agg(
        (pl.col("status") == "failed").all().alias("failed")
    )
    return verdicts.filter("failed")["chain_id"].to_list()


@dataclass(frozen=True)
class _History:
    """The generations as (chains, generations) matrices; ``rows`` and ``columns`` place each row in them."""

    table: pl.DataFrame  # what of it is needed
    names: Sequence[str]  # of all columns
    rows: Integers
    columns: Integers
    shape: tuple[int, int]
    recorded: Integers  # (chains,): the first generation recorded as collapsed; the number of generations for none
    ended: pl.Series  # (chains,) why each chain ended, from its last generation; null where that is unknown
    _seen: dict[str, tuple[Floats, Integers]] = field(default_factory=dict)  # several criteria may share a metric

    @staticmethod
    def of(lazy: pl.LazyFrame, chain_ids: pl.Series, generations: int, needed: Sequence[str]) -> "_History":
        names = lazy.collect_schema().names()
        places = pl.LazyFrame({"chain_id": chain_ids, "_row": pl.int_range(len(chain_ids), eager=True)})
        reason = pl.col("collapse_reason").is_not_null() if "collapse_reason" in names else pl.lit(False)
        why = pl.col("ended").cast(pl.String).cast(pl.Categorical) if "ended" in names else pl.lit(None, pl.String)
        wanted = [name for name in needed if name in names]
        table = _collected(
            lazy.join(places, on="chain_id", how="inner").select(
                "_row", pl.col("generation").cast(pl.Int64).alias("_column"), *wanted, _reason=reason, _why=why
            )
        )
        rows, columns = table["_row"].to_numpy(), table["_column"].to_numpy()
        if (np.bincount(rows * generations + columns) > 1).any():
            raise ValueError("generations: a chain has the same generation twice")
        recorded, last = np.full(len(chain_ids), generations, dtype=np.int64), np.full(len(chain_ids), -1)
        has_reason = table["_reason"].to_numpy()
        np.minimum.at(recorded, rows[has_reason], columns[has_reason])
        np.maximum.at(last, rows, columns)
        ends = np.flatnonzero(columns == last[rows])
        at = np.full(len(chain_ids), -1)
        at[rows[ends]] = ends
        ended = table["_why"].gather(pl.Series(at).replace(-1, None)).cast(pl.String).alias("ended")
        shape = (len(chain_ids), generations)
        return _History(table.select(wanted), names, rows, columns, shape, recorded, ended)

    def of_metric(self, column: str) -> tuple[Floats, Integers]:
        """A column's values, NaN where it has none, and (chains,) the number of generations from 0 on that have a value
        (NaN is one, null is not) or were recorded as collapsed."""
        if column not in self._seen:
            self._seen[column] = self._matrix(column), self._observed(column)
        return self._seen[column]

    def clocks(self) -> dict[FiUnit, Floats]:
        """What each unit of fidelity intervals has come to by each generation: it never falls, so that a longer
        interval is never a smaller number."""
        consumed = self.of_metric("synthetic_size_cum")[0]
        return {
            "generations": np.broadcast_to(np.arange(self.shape[1], dtype=np.float64), self.shape),
            "synthetic": consumed,
            "synthetic_now": np.maximum.accumulate(np.diff(consumed, prepend=0.0), axis=1),
        }

    def _matrix(self, column: str) -> Floats:
        values = np.full(self.shape, np.nan)
        if len(self.rows):
            if column not in self.table.columns:
                raise ValueError(f"generations: no column {column!r}; there are {', '.join(self.names)}")
            values[self.rows, self.columns] = self.table[column].cast(pl.Float64).to_numpy()
        return values

    def _observed(self, column: str) -> Integers:
        seen = np.zeros((self.shape[0], self.shape[1] + 1), dtype=np.bool_)
        if len(self.rows):
            seen[self.rows, self.columns] = self.table[column].is_not_null().to_numpy()
        chains = np.arange(self.shape[0])
        seen[chains, self.recorded] |= self.recorded < self.shape[1]
        return np.minimum(np.argmin(seen, axis=1), self.recorded + 1)


def _chain_roster(
    generations: pl.LazyFrame, roster: pl.DataFrame | None, varied: Sequence[str], baseline: Baseline
) -> pl.DataFrame:
    """A row per chain: ``chain_id``, the cell's keys, ``seed``, and those of the baseline's keys that are columns."""
    keys = cell_keys(varied)
    wanted = ["chain_id", *keys, "seed", *(key for key in baseline if key not in keys and key != "seed")]
    begun = _select_keys(generations, wanted, required=2 + len(keys))
    tables = [_collected(begun.group_by("chain_id").first())]
    tables += [] if roster is None else [_select_keys(roster.lazy(), wanted, required=2 + len(keys)).collect()]
    chains = pl.concat(tables, how="diagonal_relaxed").unique("chain_id", keep="first", maintain_order=True)
    chains = chains.with_columns(pl.lit(None).alias(key) for key in (*keys, "seed") if key not in chains.columns)
    return chains.select(key for key in wanted if key in chains.columns).sort(*keys, "seed", "chain_id")


def _collected(query: pl.LazyFrame) -> pl.DataFrame:
    """Batch by batch, so that no more of a scanned table is in memory than the query needs."""
    return query.collect(engine="streaming")


def _select_keys(table: pl.LazyFrame, wanted: Sequence[str], required: int) -> pl.LazyFrame:
    """Those of the wanted columns that the table has; the first ``required`` must be there."""
    columns = table.collect_schema().names()
    missing = [key for key in wanted[:required] if key not in columns]
    if missing and not _collected(table.select(pl.len() == 0)).item():
        raise ValueError(f"no column {missing[0]!r} in {', '.join(columns)}")
    return table.select(key for key in wanted if key in columns)


def _positions(ids: pl.Series, among: pl.Series) -> Integers:
    """(ids,) The index of each id in ``among``; -1 for null."""
    index = pl.DataFrame({"id": among, "position": pl.int_range(len(among), eager=True)})
    joined = pl.DataFrame({"id": ids}, schema={"id": among.dtype}).join(
        index, on="id", how="left", maintain_order="left"
    )
    return joined["position"].fill_null(-1).cast(pl.Int64).to_numpy()


@dataclass(frozen=True)
class _Verdicts:
    """(chains,) of each chain under one criterion: its crossings, NaN where there is no verdict, and up to when any
    onset would have been confirmed; and (chains, limits) its limits, in the order of the criterion's members."""

    crossings: Crossings
    decided: Floats
    limits: Floats


def _verdicts(history: _History, criterion: CollapseCriterion, baselines: Integers, given: Given) -> _Verdicts:
    values, observed = history.of_metric(criterion.metric)
    limits = _limits(criterion, values[:, 0], baselines, given(criterion.metric))
    crossings = sure_crossings(values, limits, observed=observed, recorded=history.recorded, criterion=criterion)
    decided = np.maximum(observed - 1.0 - criterion.confirm, 0.0)
    return _Verdicts(crossings, decided, limits.reshape(len(observed), len(criterion.thresholds)))


def _judge(
    history: _History, criterion: Collapse, baselines: Integers, has_failed: np.ndarray, given: Given
) -> pl.DataFrame:
    members = [_verdicts(history, member, baselines, given) for member in criterion.members]
    crossings = earliest([member.crossings for member in members])
    onset, confirmed = crossings.onset, ~np.isnan(crossings.onset)
    unknown = np.any([np.isnan(member.crossings.faithful) for member in members], axis=0)
    unjudged = ~confirmed & (has_failed | unknown)
    kinds = {"failed": unjudged, "collapsed": confirmed, "unconfirmed": crossings.pending}
    status = np.select(list(kinds.values()), list(kinds), default="survived")
    interval = np.where(unjudged, np.nan, crossings.faithful)
    decided = np.where(confirmed, onset, np.min([member.decided for member in members], axis=0))
    decided[unjudged] = np.nan
    limits = np.concatenate([member.limits for member in members], axis=1)
    clocks = history.clocks()
    columns: dict[str, pl.Series | pl.Expr] = {
        **criterion_columns(criterion),
        "limit": pl.Series(limits[:, 0] if limits.shape[1] == 1 else np.full(len(onset), np.nan), nan_to_null=True),
        "limits": pl.Series(limits.tolist(), dtype=pl.List(pl.Float64)).list.eval(pl.element().fill_nan(None)),
        "onset": pl.Series(onset, nan_to_null=True),
        "status": pl.Series(status.astype(object), dtype=pl.String),
        "censored": pl.Series(
            [None if u else not c for u, c in zip(unjudged, confirmed, strict=True)], dtype=pl.Boolean
        ),
        "horizon": pl.lit(history.shape[1] - 1, dtype=pl.Int64),
        **{
            f"{name}_{unit}": pl.Series(_at(clocks[unit], at), nan_to_null=True)
            for name, at in (("fi", interval), ("decided", decided))
            for unit in FI_UNITS
        },
    }
    return pl.DataFrame({"_": np.zeros(len(onset))}).with_columns(**columns).drop("_")


def _limits(criterion: CollapseCriterion, own: Floats, baselines: Integers, given: Floats) -> Floats:
    """(chains,) The limit of each chain (:meth:`CollapseCriterion.limit`), NaN where it has none; (chains, 2) where the
    direction is outside. A baseline chain in the table takes precedence over the reference ``given``."""
    if criterion.relative_to == "absolute":
        limits = np.tile(np.array(criterion.thresholds), (len(own), 1))
        return limits if criterion.direction == "outside" else limits[:, 0]
    if criterion.relative_to == "own_generation_0":
        return criterion.limits(own)
    beside = np.append(own, np.nan)[baselines]
    return criterion.limits(np.where(np.isnan(beside), given, beside))


def _at(matrix: Floats, position: Floats) -> Floats:
    """(chains,) Each row of ``matrix`` at a fractional column, linearly interpolated; NaN where either is missing."""
    known = ~np.isnan(position)
    rows = np.arange(len(position))
    place = np.where(known, position, 0.0)
    low, high = np.floor(place).astype(np.int64), np.ceil(place).astype(np.int64)
    start, end = matrix[rows, low], matrix[rows, high]
    return np.where(known, start + (place - low) * (end - start), np.nan)
