"""Strips of sample grids: what a cell's samples look like, from generation 0 to the last, as PNG inside the page."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import polars as pl

from fortifai_ray.report.points import thin
from fortifai_ray.results.reader import PICTURES, Results

MOST_CELLS = 12
MOST_GENERATIONS = 8
MOST_BYTES = 500_000  # of one picture; a strip of larger ones would make the page hard to open
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Strip:
    """A cell's pictures in order: (generation, ``data:`` address; None for a picture that cannot be shown)."""

    cell: str
    seed: int
    pictures: list[tuple[int, str | None]]


def strips(results: Results) -> tuple[list[Strip], str]:
    """A strip per cell, and a sentence on which chains and generations they show.

    Each cell is shown by the chain of the lowest seed that has pictures, so that cells differ in their recipe and not
    in their noise. Only the pictures that are shown are read.
    """
    path = results.directory / "results" / "pictures.parquet"
    if results.pictures is None or results.pictures.is_empty():
        return [], ""
    seeds = results.cells.name(results.generations.select("chain_id", "seed", *results.cells.keys).unique("chain_id"))
    table = results.pictures.join(seeds.select("chain_id", "seed", "cell"), on="chain_id", how="inner")
    table = table.filter(pl.col("cell").is_not_null())
    first = table.sort("seed", "chain_id").group_by("cell", maintain_order=True).agg(pl.col("chain_id", "seed").first())
    chosen = {row["cell"]: row for row in first.iter_rows(named=True)}
    cells = [cell for cell in results.cells.order if cell in chosen]
    found = []
    for cell in cells[:MOST_CELLS]:
        chain = chosen[cell]["chain_id"]
        generations = thin(
            table.filter(pl.col("chain_id") == chain)["generation"].unique().sort().to_list(), MOST_GENERATIONS
        )
        rows = (
            pl.scan_parquet(path, glob=False)
            .filter(pl.col("chain_id") == chain, pl.col("generation").is_in(generations))
            .select("generation", "png")
            .unique("generation", keep="first")
            .sort("generation")
            .collect()
        )
        found.append(Strip(cell, chosen[cell]["seed"], [(number, _address(png)) for number, png in rows.iter_rows()]))
    left_out = len(cells) - MOST_CELLS
    more = f" {left_out} further cells are in results/{PICTURES}." if left_out > 0 else ""
    return found, f"Samples of each cell's lowest seed, at most {MOST_GENERATIONS} generations of it.{more}"


def _address(png: bytes | None) -> str | None:
    if png is None or not png.startswith(_PNG) or len(png) > MOST_BYTES:
        return None
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
