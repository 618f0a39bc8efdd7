"""Histograms of the probability of targets, block by block, per model and text: how sure a generation has become of its
own text, and how unsure of human text (ForTIFAI's loss_dist.ipynb)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import altair as alt
import numpy as np
import numpy.typing as npt
import polars as pl

from fortifai_ray.evaluation.signs.model import PROBABILITIES
from fortifai_ray.report.charts.encodings import Width, chart_of
from fortifai_ray.report.points import thin
from fortifai_ray.results.cells import Cells

MOST_GENERATIONS = 8
TEXTS = {
    "human": "held-out human text",
    "synthetic": "its own text",
    "synthetic_generation_0": "its text under generation 0's model",
}
_SCHEMA = {
    **{"cell": pl.String, "generation": pl.Int64, "text": pl.String},
    **{"probability": pl.Float64, "blocks": pl.Int64, "share": pl.Float64},
}


def probability_table(details: Iterable[pl.DataFrame], chains: pl.DataFrame, cells: Cells) -> pl.DataFrame:
    """The histograms of a study.

    Args:
        details: ``details.parquet`` in batches, whose JSON holds them where the study computes the signs of its models.
        chains: ``chain_id`` and the varied keys of each chain.
        cells: the study's cells.

    Returns:
        A row per cell, generation, text (a key of :data:`TEXTS`) and bin: ``probability``, the bin's middle;
        ``blocks``, how many blocks or documents of all seeds have such a mean probability; ``share`` of the cell's.
    """
    known = cells.name(chains.unique("chain_id", keep="any"))
    cell_of = {row["chain_id"]: row["cell"] for row in known.iter_rows(named=True) if row["cell"] is not None}
    rows = pl.DataFrame(list(_counts(details, cell_of)), schema={**_SCHEMA, "share": pl.Null})
    key = ("cell", "generation", "text")
    table = rows.drop("share").group_by(*key, "probability").agg(pl.col("blocks").sum())
    share = pl.col("blocks") / pl.col("blocks").sum().over(key)
    order = pl.col("cell").replace_strict({cell: place for place, cell in enumerate(cells.order)}, default=None)
    return table.with_columns(share=share).sort(order, "text", "generation", "probability").select(*_SCHEMA)


def _counts(details: Iterable[pl.DataFrame], cell_of: dict[str, str]) -> Iterator[dict[str, object]]:
    """The counts of each bin, summed over a cell's chains whose histograms have as many bins."""
    sums: dict[tuple[str, int, str, int], npt.NDArray[np.int64]] = {}
    for row in (row for batch in details for row in batch.iter_rows(named=True) if row["chain_id"] in cell_of):
        histograms = (json.loads(row["details"]).get("signs") or {}).get("histograms") or {}
        for text in TEXTS:
            if counts := histograms.get(f"{PROBABILITIES}_{text}"):
                key = (cell_of[row["chain_id"]], row["generation"], text, len(counts))
                sums[key] = sums.get(key, np.int64(0)) + np.asarray(counts, np.int64)
    for (cell, generation, text, bins), total in sums.items():
        of = {"cell": cell, "generation": generation, "text": text, "share": None}
        for place, blocks in enumerate(total.tolist()):
            yield of | {"probability": (place + 0.5) / bins, "blocks": blocks}


def histogram_chart(table: pl.DataFrame, *, width: Width = 640, height: int = 170) -> alt.Chart:
    """One cell's and one text's histograms, a line per generation; of many generations, some that are evenly spread."""
    shown = table.filter(
        pl.col("generation").is_in(thin(table["generation"].unique().sort().to_list(), MOST_GENERATIONS))
    )
    axis = alt.Axis(format="~g", tickCount=5)
    return (
        chart_of(shown.select("generation", "probability", "share", "blocks"))
        .mark_line(interpolate="step", strokeWidth=1.5)
        .encode(
            x=alt.X("probability:Q", title="mean probability of a block's tokens", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("share:Q", title="share of blocks", axis=axis),
            color=alt.Color("generation:O", scale=alt.Scale(scheme="viridis")),
            tooltip=["generation:Q", alt.Tooltip("probability:Q", format=".3f"), "blocks:Q"],
        )
        .properties(width=width, height=height)
    )
