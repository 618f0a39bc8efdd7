"""When the first and the last lineage of an ecosystem collapse, as rows of ``chains.parquet`` beside the lineages'."""

from collections.abc import Collection, Sequence
from functools import partial

import polars as pl

from fortifai_ray.results.schema import CRITERION_COLUMNS, FI_UNITS, FIRST, LAST, LINEAGE
from fortifai_ray.statistics.ratios import cell_keys
from fortifai_ray.storage.store import canonical_hash

_OF_CENSORED = ("onset", "censored", "status", "ended")
_DECIDED = [f"decided_{unit}" for unit in FI_UNITS]


def of_human_data(generations: pl.DataFrame | pl.LazyFrame) -> list[str]:
    """The ids of the lineages that train on no synthetic data, as generation 1 shows: outside models, which are frozen,
    and human-only ones. ``generations`` is ``generations.parquet``."""
    # A lineage that found nothing to read has neither kind of data in the generation that ended it.
    apart = (pl.col("generation") == 1) & (pl.col("human_size") > 0) & (pl.col("synthetic_size_cum") == 0)
    found = generations.lazy().filter(apart, pl.col(LINEAGE).is_not_null()).select("chain_id").collect()
    return found["chain_id"].to_list()


def with_wholes(chains: pl.DataFrame, varied: Sequence[str], apart: Collection[str] = ()) -> pl.DataFrame:
    """The rows of lineages, and two for each ecosystem of several and each criterion, whose ``lineage`` says which.

    ``first to collapse`` is the row of the lineage that collapsed first. Where one is censored before that, or none
    collapsed, it is the earliest censored one's: all are known to be faithful up to there. ``last to collapse`` is the
    row of the lineage that collapsed last; where one is censored, it is censored at the latest point at which some
    lineage is known to be faithful. One failed lineage leaves both without a verdict. ``chain_id`` is a hash of the
    lineages' that count.

    Args:
        chains: as :func:`~fortifai_ray.statistics.chains.chain_table` returns it.
        varied: the varied keys, the lineage among them where there are ecosystems.
        apart: ids of the lineages that cannot collapse (:func:`of_human_data`): they count only where all are such.
    """
    if LINEAGE not in varied or chains.is_empty():
        return chains
    keys = [*(key for key in cell_keys(varied) if key != LINEAGE), "seed", *CRITERION_COLUMNS]
    lineages = chains.filter(pl.col(LINEAGE).is_not_null())
    counts = ~pl.col("chain_id").is_in(list(apart))
    lineages = lineages.filter(pl.len().over(keys) > 1).filter(counts | ~counts.any().over(keys))
    lineages = lineages.sort("fi_generations", "censored", "fi_synthetic", maintain_order=True)
    if lineages.is_empty():
        return chains
    failed, censored = pl.col("censored").is_null().any(), pl.col("censored").any()
    of = pl.col("chain_id").sort().str.join(" ")
    first = lineages.group_by(keys, maintain_order=True).agg(  # a failed one comes first: its interval is null
        pl.exclude(*keys, *_DECIDED, "chain_id").first(),
        of,
        *(pl.when(pl.col("censored").first()).then(pl.col(name).min()).otherwise(pl.first(name)) for name in _DECIDED),
    )
    last = lineages.group_by(keys, maintain_order=True).agg(
        pl.exclude(*keys, *_DECIDED, *_OF_CENSORED, "chain_id").last(),
        of,
        pl.when(~censored).then(pl.col("onset").last()).alias("onset"),
        censored.alias("censored"),
        *(
            pl.when(censored).then(pl.col(name).filter(pl.col("censored")).last()).otherwise(pl.last(name)).alias(name)
            for name in ("status", "ended")
        ),
        *(pl.when(censored).then(pl.col(name).max()).otherwise(pl.last(name)) for name in _DECIDED),
    )
    unknown = lineages.group_by(keys, maintain_order=True).agg(_=failed)["_"]
    last = pl.concat([last.filter(~unknown), first.filter(unknown).select(last.columns)])
    wholes = [
        table.with_columns(
            pl.lit(name).alias(LINEAGE),
            pl.col("chain_id").map_elements(partial(_identity, name), return_dtype=pl.String),
        ).select(chains.columns)
        for name, table in ((FIRST, first), (LAST, last))
    ]
    return pl.concat([chains, *wholes])


def _identity(whole: str, chain_ids: str) -> str:
    return canonical_hash([whole, chain_ids])[:16]
