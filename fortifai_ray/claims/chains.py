"""Which rows a claim is about, and from ``generations.parquet`` a number per chain or per pair of chains."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import flatten, has, lacks, same, varied_keys
from fortifai_ray.statistics.criterion import Collapse, one_metric
from fortifai_ray.statistics.crossing import Floats
from fortifai_ray.study.claim_statistics import (
    MEANS,
    ExtremeStatistic,
    MetricStatistic,
    PerChain,
    SlopeStatistic,
    TrendStatistic,
    Where,
)


class Undecided(Exception):
    """A claim cannot be decided; the message says why."""


def matches(results: StudyResults, columns: Mapping[str, pl.DataType], where: Where) -> pl.Expr:
    """An expression: the rows of a table with these ``columns`` that have every value of ``where``.

    Raises:
        Undecided: neither the table nor the recipe has one of the keys.
    """
    condition, fixed = pl.lit(True), flatten(results.study)
    for key, wanted in where.items():
        items = wanted if isinstance(wanted, list) else [wanted]
        found = [has(columns, key, item) for item in items]
        if any(one is not None for one in found):
            condition &= pl.any_horizontal(pl.lit(False) if one is None else one for one in found)
        elif any(one == key or one.startswith(f"{key}.") for one in fixed):
            condition &= pl.lit(
                any(lacks(fixed, key) if item is None else same(fixed.get(key), item) for item in items)
            )
        else:
            raise Undecided(f"neither the table nor the recipe has a key {key}")
    return condition


def criterion(results: StudyResults, name: int | str) -> Collapse:
    """One of the study's collapse criteria, by its place or its metric.

    Raises:
        Undecided: there is none, or several have that metric.
    """
    criteria = results.criteria_asked
    chosen = (
        criteria[name : name + 1] if isinstance(name, int) else [one for one in criteria if one_metric(one) == name]
    )
    if len(chosen) != 1:
        many = "several criteria: give its place instead" if chosen else "no criterion"
        raise Undecided(f"collapse has {many} for {name!r}")
    return chosen[0]


@dataclass(frozen=True)
class Sample:
    """One number per seed: ``values`` (n,) of ``seeds`` (n,); ``tops`` and ``bottoms`` (n,) for a ratio of means."""

    seeds: list[int]
    values: Floats
    tops: Floats
    bottoms: Floats
    note: str = ""


def sample(results: StudyResults, statistic: PerChain, where: Where) -> Sample:
    """The statistic of each seed.

    Raises:
        Undecided: no chain matches, the metric was not measured, a chain lacks a generation that the statistic needs
            (leaving that chain out would favour those that lasted), or several chains of one seed cannot be averaged.
    """
    chains = _values(results, statistic, where)
    note = ""
    if statistic.against is not None:
        others = _values(results, statistic, statistic.compared(where))
        chains, note = _pairs(results, statistic, chains, others)
    seeds, pooled = _per_seed(chains, statistic)
    values, tops, bottoms = (seeds[name].to_numpy() for name in ("value", "top", "bottom"))
    return Sample(seeds["seed"].to_list(), values, tops, bottoms, "; ".join(part for part in (note, pooled) if part))


def _values(results: StudyResults, statistic: PerChain, where: Where) -> pl.DataFrame:
    """A row per chain: ``chain_id, seed``, the varied keys, ``value``, and the ``top`` and ``bottom`` of a ratio to
    generation 0; without such a ratio they are the value and 1."""
    metric, columns = statistic.metric, results.columns
    keys = [key for key in _varied(results) if key != metric]
    of_these, measured = matches(results, columns, where), metric in columns and columns[metric].is_numeric()
    numbers = [pl.col(metric).cast(pl.Float64).alias("_metric")] if measured else []
    rows = results.ask(
        lambda table: table.filter(of_these).select(
            "chain_id", "seed", *keys, pl.col("generation").alias("_g"), *numbers
        )
    ).sort("_g", maintain_order=True)
    if rows.is_empty():
        raise Undecided("no chain matches")
    if not measured:
        raise Undecided(f"{metric} was not measured")
    _refuse_gaps(rows, statistic)
    values = rows.group_by("chain_id", maintain_order=True).agg(
        pl.col("seed").first(), pl.col(keys).first(), *_number(statistic)
    )
    return values.sort("seed", "chain_id")


def _varied(results: StudyResults) -> list[str]:
    """The varied keys except the seed, including those that a search sets."""
    return [key for key in varied_keys(results.study) if key != "seed" and key in results.columns]


def _number(statistic: PerChain) -> list[pl.Expr]:
    """The aggregations that turn a chain's rows, sorted by generation, into its number."""
    metric, g = pl.col("_metric"), pl.col("_g")
    if isinstance(statistic, MetricStatistic):
        at = metric.drop_nulls().last() if statistic.at == "last" else metric.filter(g == statistic.at).first()
        first = metric.filter(g == 0).first()
        change = {"ratio": at / first, "difference": at - first, None: at}[statistic.over_generation_0]
        bottom = first if statistic.over_generation_0 == "ratio" else pl.lit(1.0).first()
        top = at if statistic.over_generation_0 == "ratio" else change
        return [change.alias("value"), top.alias("top"), bottom.alias("bottom")]
    start, end = _span(statistic)
    inside = (g >= start) & (g <= end) & metric.is_not_null()
    y, x = metric.filter(inside), g.filter(inside).cast(pl.Float64)
    if isinstance(statistic, SlopeStatistic):
        y = y.log() if statistic.scale == "log" else y
        value = ((x - x.mean()) * y).sum() / ((x - x.mean()) ** 2).sum()
    elif isinstance(statistic, ExtremeStatistic):
        value = (
            pl.when(y.is_nan().any()).then(float("nan")).otherwise(y.max() if statistic.kind == "maximum" else y.min())
        )
    else:
        assert isinstance(statistic, TrendStatistic), statistic
        # Ranks count NaN as the largest number: a chain that broke has no trend. A constant one has trend 0.
        value = (
            pl.when(y.is_nan().any()).then(float("nan"))
            .when(y.min() == y.max()).then(0.0)
            .otherwise(pl.corr(y.rank(), x.rank()))
        )  # fmt: skip
    return [value.alias("value"), value.alias("top"), pl.lit(1.0).first().alias("bottom")]


def _span(statistic: PerChain) -> tuple[int, int]:
    generations = statistic.generations
    return generations[0], generations[1] if len(generations) > 1 else np.iinfo(np.int64).max


def _refuse_gaps(rows: pl.DataFrame, statistic: PerChain) -> None:
    """Raise :class:`Undecided` where a chain lacks a generation that the statistic needs: of a span, all."""
    g = pl.col("_g")
    measured = pl.col("_metric").is_not_null()
    if isinstance(statistic, MetricStatistic):
        needed = [] if statistic.at == "last" else [statistic.at]
        needed += [0] if statistic.over_generation_0 else []
        lacks = ~measured.any()
        for generation in needed:
            lacks |= ~(measured & (g == generation)).any()
        what = " or ".join(map(str, needed)) or "any"
    else:
        start, end = _span(statistic)
        inside = (measured & (g >= start) & (g <= end)).sum()
        bounded = end - start + 1 if len(statistic.generations) > 1 else 2
        lacks = inside < bounded
        what = f"{start} to {end}" if len(statistic.generations) > 1 else f"{start} and one later"
    chains = rows.group_by("chain_id").agg(lacks=lacks)
    missing = int(chains["lacks"].sum())
    if missing:
        raise Undecided(
            f"{missing} of {chains.height} chains have no {statistic.metric} at generation {what} "
            "(ended early or failed); leaving them out would favour those that lasted"
        )


def _pairs(
    results: StudyResults, statistic: PerChain, ours: pl.DataFrame, theirs: pl.DataFrame
) -> tuple[pl.DataFrame, str]:
    """A row per pair, and a note on chains without a partner."""
    on = ["seed", *(key for key in _varied(results) if key in ours.columns and not statistic.replaces(key))]
    if theirs.select(pl.struct(on).is_duplicated().any()).item():
        raise Undecided("against matches several chains for one: narrow it")
    right = theirs.select(*on, other=pl.col("value"), other_top=pl.col("top"), other_id=pl.col("chain_id"))
    pairs = ours.join(right, on=on, how="inner", nulls_equal=True, maintain_order="left")
    if (pairs["chain_id"] == pairs["other_id"]).any():
        raise Undecided("where and against match the same chains: there is nothing to compare")
    if pairs.is_empty():
        raise Undecided("no chain has a partner of its seed in against")
    alone = ours.height - pairs.height
    if statistic.compare == "ratio":
        # a ratio of means is then that of the two sides' values
        pairs = pairs.with_columns(top=pl.col("value"), bottom=pl.col("other"))
        pairs = pairs.with_columns(value=pl.col("top") / pl.col("bottom"))
    else:
        pairs = pairs.with_columns(value=pl.col("value") - pl.col("other"))
    return pairs, f"{alone} of {ours.height} chains have no partner" if alone else ""


def _per_seed(chains: pl.DataFrame, statistic: PerChain) -> tuple[pl.DataFrame, str]:
    """A row per seed, and a note where chains were averaged."""
    name = statistic.summary.name
    counts = chains.group_by("seed").len()["len"].unique().to_list()
    if counts == [1]:
        return chains, ""
    if name not in MEANS:
        raise Undecided(
            f"where matches {max(counts)} chains of one seed, and a {name.replace('_', ' ')} over seeds needs one: "
            "narrow it"
        )
    if len(counts) > 1:
        raise Undecided(f"some seeds have {min(counts)} chains and some {max(counts)}: their averages do not compare")
    value = pl.col("value").log().mean().exp() if name == "geometric_mean" else pl.col("value").mean()
    seeds = chains.group_by("seed").agg(value, pl.col("top", "bottom").mean()).sort("seed")
    return seeds, f"{counts[0]} chains of each seed are averaged first"
