"""Sample texts by generation: the same prompt through the generations, cells side by side."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import polars as pl

from fortifai_ray.report.points import thin
from fortifai_ray.results.cells import printable
from fortifai_ray.results.reader import PICTURES, Results

PROMPTS = 3
MOST_CELLS = 8
MOST_GENERATIONS = 12
MOST_CHARACTERS = 600


@dataclass(frozen=True)
class SampleTable:
    """One prompt, or one row where prompts change.

    ``lines`` has a generation and, per cell, its (prompt or None, text), or None where the cell has no such sample.
    """

    heading: str
    cells: list[str]
    lines: list[tuple[int, list[tuple[str | None, str] | None]]]


def sample_tables(results: Results) -> tuple[list[SampleTable], str]:
    """Tables of sample texts, and a sentence on which chains and generations they show.

    Each cell is shown by the chain of the lowest seed that has samples, so that cells differ in their recipe and not in
    their noise. Where each generation has prompts of its own, samples are matched by row and carry their prompt.
    """
    if results.samples is None or results.samples.is_empty():
        return [], ""
    seeds = results.cells.name(results.generations.select("chain_id", "seed", *results.cells.keys).unique("chain_id"))
    table = results.samples.join(seeds.select("chain_id", "seed", "cell"), on="chain_id", how="inner")
    if table.is_empty():
        return [], ""
    table = table.filter(pl.col("seed") == pl.col("seed").min().over("cell"))
    table = table.sort("generation", "row").unique(["cell", "generation", "row"], keep="first", maintain_order=True)
    cells = [cell for cell in results.cells.order if cell in set(table["cell"])]
    generations = thin(sorted(table["generation"].unique()), MOST_GENERATIONS)
    shown = table.filter(pl.col("cell").is_in(cells[:MOST_CELLS]), pl.col("generation").is_in(generations))
    tables = [_table(rows, cells[:MOST_CELLS], generations, key) for key, rows in _prompts(shown)]
    left_out = len(cells) - MOST_CELLS
    more = f" {left_out} further cells are in results/samples.parquet." if left_out > 0 else ""
    return tables, f"Each cell's lowest seed; texts are cut at {MOST_CHARACTERS} characters.{more}"


def _prompts(table: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """The prompts to follow, as (key column, rows): those that recur in most generations, else the first rows."""
    seen = table.group_by("prompt_text", maintain_order=True).agg(
        pl.col("generation").n_unique().alias("generations"), pl.col("cell").n_unique().alias("cells")
    )
    recurring = seen.filter(pl.col("generations") > 1)
    if table["generation"].n_unique() > 1 and recurring.is_empty():
        rows = sorted(table["row"].unique())[:PROMPTS]
        return [("row", table.filter(pl.col("row") == row)) for row in rows]
    chosen = seen.sort("cells", "generations", descending=True, maintain_order=True).head(PROMPTS)["prompt_text"]
    return [("prompt_text", table.filter(pl.col("prompt_text").eq_missing(pl.lit(prompt)))) for prompt in chosen]


def _table(rows: pl.DataFrame, cells: list[str], generations: list[int], key: str) -> SampleTable:
    texts: dict[tuple[int, str], tuple[str | None, str]] = {}
    for row in rows.iter_rows(named=True):
        prompt = _cut(row["prompt_text"]) if key == "row" else None
        texts.setdefault((row["generation"], row["cell"]), (prompt, _cut(row["generated_text"])))
    heading = f"Row {rows['row'][0]}" if key == "row" else f"Prompt: “{_cut(rows['prompt_text'][0])}”"
    lines = [(generation, [texts.get((generation, cell)) for cell in cells]) for generation in generations]
    return SampleTable(heading, cells, lines)


def _cut(text: str | None) -> str:
    text = printable(text or "")
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"


MOST_STRIPS = 12
MOST_PICTURES = 8
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
    for cell in cells[:MOST_STRIPS]:
        chain = chosen[cell]["chain_id"]
        generations = thin(
            table.filter(pl.col("chain_id") == chain)["generation"].unique().sort().to_list(), MOST_PICTURES
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
    left_out = len(cells) - MOST_STRIPS
    more = f" {left_out} further cells are in results/{PICTURES}." if left_out > 0 else ""
    return found, f"Samples of each cell's lowest seed, at most {MOST_PICTURES} generations of it.{more}"


def _address(png: bytes | None) -> str | None:
    if png is None or not png.startswith(_PNG) or len(png) > MOST_BYTES:
        return None
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
