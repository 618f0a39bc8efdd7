"""The values that a curve draws: the generations table, aggregated and thinned before anything enters a page.

A study of 3,000 chains has 300,000 rows, more than a page or a notebook can use: a cell with many chains is drawn as
its median and a band, over at most a few hundred generations.

Values that are not finite do not vanish. In a cell with many chains they rank beyond every number: ∞ above, −∞ below,
and NaN on the side to which collapse moves the metric (where the collapse criterion counts it). A median that falls
among them is left out, and the end of a band is drawn up to the edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from fortifai_ray import metrics
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.scan import collected
from fortifai_ray.results.words import number
from fortifai_ray.statistics.chains import failed_chains

MANY_CHAINS = 12  # up to this many, each chain of a cell is drawn; above, the median and a band
BAND = (0.05, 0.95)  # the quantiles over chains that the band of many chains spans
MOST_GENERATIONS = 200
MOST_POINTS = 4_000  # for a chart's medians, and for its thin lines: more only blacken it and swell the page
FEWEST_GENERATIONS = 12  # drawn however many cells there are
DECADES = 2  # a positive metric that spans at least this many is drawn on a log axis

_CELL = ["cell", "generation"]
_BROKEN = ["NaN", "∞", "−∞"]


@dataclass(frozen=True)
class Curve:
    """The values drawn for ``metric``.

    Attributes:
        points: ``cell, chain, seed, generation, value, shown, part`` for the cells with few chains. A value that is
            not finite is null, and ``shown`` names it. ``part`` numbers a chain's unbroken stretches.
        spread: ``cell, generation, value, low, high, band, chains, part``: the median over chains, the ends of the
            band, and the band in words, where every chain of the cell has a value. An end that is off the axis is moved
            to its edge.
        broken: ``cell, generation, shown``: counts of values that are not finite, for the cells with many chains.
        generations: the generations drawn, out of ``measured``.
        log_scale: whether the values need a log axis and allow one.
    """

    metric: str
    points: pl.DataFrame
    spread: pl.DataFrame
    broken: pl.DataFrame
    generations: list[int]
    measured: int
    log_scale: bool

    @property
    def cells(self) -> set[str]:
        """The cells in which the metric was measured."""
        return {cell for table in (self.points, self.spread, self.broken) for cell in table["cell"]}


def curve(
    generations: pl.DataFrame | pl.LazyFrame,
    metric: str,
    cells: Cells,
    chains: pl.DataFrame | None = None,
    *,
    log_scale: bool | None = None,
    most_points: int = MOST_POINTS,
) -> Curve:
    """Aggregate and thin ``metric`` for drawing.

    Args:
        generations: ``generations.parquet``; of a scanned one, a few numbers of each row are in memory.
        metric: the column; its direction, where known, decides on which side a NaN ranks.
        cells: the study's cells.
        chains: ``chains.parquet``: medians and bands exclude the failed ones; None excludes none.
        log_scale: None lets the values decide.
        most_points: the most medians over all cells together; generations are thinned to meet it.
    """
    measured = generations.lazy().drop("cell", strict=False).filter(pl.col(metric).is_not_null())
    named = _named(measured, cells, [] if chains is None else failed_chains(chains))
    of_cells = measured.join(named.lazy(), on="chain_id", how="inner")
    every_generation = collected(of_cells.select("generation").unique())["generation"].sort().to_list()
    most = max(FEWEST_GENERATIONS, most_points // max(1, named["cell"].n_unique()))
    shown = thin(every_generation, min(most, MOST_GENERATIONS))
    raw = pl.col(metric).cast(pl.Float64)
    broken = -math.inf if metrics.metric(metric).direction == "below" else math.inf
    infinity = pl.when(raw > 0).then(pl.lit("∞")).otherwise(pl.lit("−∞"))
    kind = pl.when(raw.is_nan()).then(pl.lit("NaN")).when(raw.is_infinite()).then(infinity).cast(pl.Enum(_BROKEN))
    rows = of_cells.filter(pl.col("generation").is_in(shown)).select(
        "cell", "chain_id", "chain", "seed", "generation", "many", "sound", shown=kind,
        raw=pl.when(raw.is_nan()).then(broken).otherwise(raw),
    )  # fmt: skip
    value = pl.when(pl.col("raw").is_finite()).then(pl.col("raw").round_sig_figs(6))
    few = collected(rows.filter(~pl.col("many"))).with_columns(pl.col("cell", "shown").cast(pl.String), value=value)
    few = few.with_columns(chain="chain_id")
    many = rows.filter(pl.col("many"))
    of_kinds = [(pl.col("shown") == what).sum().alias(what) for what in _BROKEN]
    counts = collected(many.group_by(_CELL).agg(*of_kinds, of=pl.len()))
    counts = counts.with_columns(pl.col("cell").cast(pl.String))
    there = pl.concat([table.select(_CELL).unique() for table in (few, counts)])
    spread = pl.concat(
        [
            _few(few.filter("sound")),
            *_many(collected(many.filter("sound").select("cell", "chain", "generation", "raw"))),
        ]
    )
    spread = spread.with_columns(pl.col("value", "low", "high").round_sig_figs(5))
    points = _parts(few, "chain", there).sort("cell", "seed", "generation")
    points = points.select("cell", "chain", "seed", "generation", "value", "shown", "part")
    log = _fits_log(metric, points, spread) if log_scale is None else log_scale
    spread = _placed(_parts(spread, "cell", there), points, log).sort(_CELL)
    return Curve(metric, points, spread, _broken(counts), shown, len(every_generation), log)


def _named(measured: pl.LazyFrame, cells: Cells, failed: Sequence[str]) -> pl.DataFrame:
    """A row for each measured chain of a known cell: ``chain_id``; ``chain``, its number; its ``cell``; ``many``,
    whether that has many; ``sound``, whether it has not failed."""
    chains = collected(measured.group_by("chain_id").agg(pl.col(cells.keys).first())).sort("chain_id")
    named = cells.name(chains).filter(pl.col("cell").is_not_null())
    return named.select(
        "chain_id",
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("chain"),
        pl.col("cell").cast(pl.Enum(cells.order)),
        (pl.len().over("cell") > MANY_CHAINS).alias("many"),
        (~pl.col("chain_id").is_in(failed)).alias("sound"),
    )


def thin(values: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the values, evenly spaced, including the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


def complete(table: pl.DataFrame, by: str, **values: pl.Expr) -> pl.DataFrame:
    """Aggregate by ``by`` and generation, where each ``chain`` of ``by`` has a value: ``chains`` counts those that do.

    Chains stop once they have collapsed, and a median over the survivors would flatter the cell.
    """
    every = table.group_by(by).agg(every=pl.col("chain").n_unique())
    spread = table.group_by(by, "generation").agg(**values).join(every, on=by)
    return spread.filter(pl.col("chains") == pl.col("every")).drop("every")


def _few(table: pl.DataFrame) -> pl.DataFrame:
    """Median and range, at the generations where every chain of the cell has a finite value."""
    value = pl.col("value")
    return complete(table, "cell", value=value.median(), low=value.min(), high=value.max(), chains=value.count())


def _many(table: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Of each cell, one in memory at a time: median and the quantiles in ``BAND``, at the generations that every chain
    of the cell has reached."""
    raw = pl.col("raw")

    def quantile(share: float) -> pl.Expr:  # a number and ∞ cannot be interpolated
        finite = raw.is_finite().all()
        return pl.when(finite).then(raw.quantile(share, "linear")).otherwise(raw.quantile(share, "nearest"))

    low, middle, high = map(quantile, (BAND[0], 0.5, BAND[1]))
    for _, own in table.group_by("cell"):
        spread = complete(own, "cell", value=middle, low=low, high=high, chains=raw.count())
        yield spread.filter(pl.col("value").is_finite()).with_columns(pl.col("cell").cast(pl.String))


def _parts(table: pl.DataFrame, by: str, measured: pl.DataFrame) -> pl.DataFrame:
    """Add ``part``: a line breaks at a generation that its cell has (``measured``) and it lacks; it does not bridge the
    gap."""
    place = pl.col("generation").rank("dense").over("cell").cast(pl.Int64)
    places = measured.with_columns(place.alias("__place"))
    ordered = table.join(places, on=_CELL, how="left").sort(by, "generation")
    rank = pl.col("value").is_not_null().cast(pl.Int64).cum_sum().over(by)
    return ordered.with_columns(part=pl.col("__place") - rank).drop("__place")


def _fits_log(metric: str, points: pl.DataFrame, spread: pl.DataFrame) -> bool:
    """Whether values are all positive, and multiply from generation to generation or spread over decades.

    A band may reach down to zero; it is then drawn to the edge.
    """
    drawn = pl.concat([points["value"], spread["value"], spread["high"].replace(math.inf, None)]).drop_nulls()
    lows = spread["low"].replace(-math.inf, None).drop_nulls()
    if drawn.is_empty() or not (drawn > 0).all() or not (lows >= 0).all():
        return False
    values = pl.concat([drawn, lows.filter(lows > 0)])
    return metrics.metric(metric).log or float(values.max()) / float(values.min()) >= 10**DECADES  # type: ignore[arg-type]


def _placed(spread: pl.DataFrame, points: pl.DataFrame, log_scale: bool) -> pl.DataFrame:
    """Add ``band`` in words, and move ends that are off the axis to the outermost value on it."""
    texts = [f"{number(low, 4)} to {number(high, 4)}" for low, high in spread.select("low", "high").iter_rows()]
    drawn = pl.concat([spread["value"], spread["low"], spread["high"], points["value"]]).drop_nulls()
    drawn = drawn.filter(drawn.is_finite() & ((drawn > 0) | (not log_scale)))
    band = spread.with_columns(pl.Series("band", texts, dtype=pl.String))
    if drawn.is_empty():
        return band
    least, most = (pl.lit(end, pl.Float64) for end in (drawn.min(), drawn.max()))
    return band.with_columns(pl.col("low", "high").clip(least, most))


def _broken(counts: pl.DataFrame) -> pl.DataFrame:
    """``∞ in 3 of 1,000 chains``, by cell and generation."""
    rows = []
    for row in counts.filter(pl.any_horizontal(pl.col(_BROKEN) > 0)).sort(_CELL).iter_rows(named=True):
        values = " and ".join(f"{what} in {row[what]:,}" for what in _BROKEN if row[what])
        rows.append((row["cell"], row["generation"], f"{values} of {row['of']:,} chains"))
    return pl.DataFrame(rows, schema={"cell": pl.String, "generation": pl.Int64, "shown": pl.String}, orient="row")
