"""What a study's chains generate, by generation and with cells side by side: sample texts and strips of pictures.

Each cell is represented by its chain with the lowest seed, so that cells differ in their recipe and not in their noise.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from fortifai_ray.report.points import thin
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import read_table
from fortifai_ray.results.words import printable

PROMPTS = 3
MOST_CELLS = 8
MOST_GENERATIONS = 12
MOST_CHARACTERS = 600

MOST_STRIPS = 12
MOST_PICTURES = 8
MOST_BYTES = 500_000  # per picture; a strip of larger ones would make the page slow to open
_PNG = b"\x89PNG\r\n\x1a\n"


class Sample(NamedTuple):
    """A text in three parts, which are the whole of it when joined, and its prompt where that is its own.

    ``changed`` is the first word in which it differs from the text above it, of the same cell and prompt.
    """

    prompt: str | None
    same: str
    changed: str
    rest: str


@dataclass(frozen=True)
class SampleTable:
    """The continuations of one prompt, or of one row where each generation has its own prompts.

    Each of ``lines`` holds a generation and, per cell, its sample, or None where the cell has none.
    """

    heading: str
    cells: list[str]
    lines: list[tuple[int, list[Sample | None]]]


@dataclass(frozen=True)
class Strip:
    """A cell's pictures in order: (generation, ``data:`` address; None for a picture that cannot be shown)."""

    cell: str
    seed: int
    pictures: list[tuple[int, str | None]]


def sample_tables(results: StudyResults, wanted: pl.Expr | None = None) -> tuple[list[SampleTable], str]:
    """Tables of sample texts, and a sentence that says which they show.

    Where each generation has its own prompts, samples are matched by row and shown with their prompt. Only the texts
    shown are read.

    Args:
        wanted: which rows of ``samples.parquet``, by default all.
    """
    if results.samples is None or results.samples.is_empty():
        return [], ""
    there = results.samples if wanted is None else texts_of(results, wanted, columns=["row"])
    table = _named(results, there)
    if table.is_empty():
        return [], ""
    table = table.filter(pl.col("seed") == pl.col("seed").min().over("cell"))
    table = table.sort("generation", "row").unique(["cell", "generation", "row"], keep="first", maintain_order=True)
    cells = [cell for cell in results.cells.order if cell in set(table["cell"])]
    generations = thin(sorted(table["generation"].unique()), MOST_GENERATIONS)
    shown = table.filter(pl.col("cell").is_in(cells[:MOST_CELLS]), pl.col("generation").is_in(generations))
    own = pl.col("chain_id").is_in(shown["chain_id"].unique().implode()) & pl.col("generation").is_in(generations)
    texts = texts_of(results, own if wanted is None else own & wanted)
    shown = shown.join(texts, on=["chain_id", "generation", "row"], how="left", maintain_order="left")
    tables = [_table(rows, cells[:MOST_CELLS], generations, key) for key, rows in _prompts(shown)]
    more = _left_out(len(cells) - MOST_CELLS, "samples.parquet")
    marks = any(sample and sample.changed for table in tables for _, line in table.lines for sample in line)
    marked = "Marked: the first word that differs from the text above it." if marks else ""
    return tables, f"Each cell's lowest seed; texts are cut at {MOST_CHARACTERS} characters. {marked}{more}"


def texts_of(results: StudyResults, rows: pl.Expr | None = None, columns: list[str] | None = None) -> pl.DataFrame:
    """The sample texts of some rows, by default of all; with ``columns``, only these and what names a row's chain and
    generation."""
    names = ["row", "prompt_text", "generated_text"] if columns is None else columns
    table = read_table(results.folder, "samples", columns=["chain_id", "generation", *names], rows=rows)
    assert table is not None, "called only where there are samples"
    return table


def strips(results: StudyResults) -> tuple[list[Strip], str]:
    """A strip of pictures per cell, and a sentence that says which chains and generations they show.

    Only the pictures shown are read.
    """
    if results.pictures is None or results.pictures.is_empty():
        return [], ""
    table = _named(results, results.pictures)
    first = table.sort("seed", "chain_id").group_by("cell", maintain_order=True).agg(pl.col("chain_id", "seed").first())
    chosen = {row["cell"]: row for row in first.iter_rows(named=True)}
    cells = [cell for cell in results.cells.order if cell in chosen]
    shown = []
    for cell in cells[:MOST_STRIPS]:
        chain = chosen[cell]["chain_id"]
        measured = table.filter(pl.col("chain_id") == chain)["generation"].unique().sort().to_list()
        rows = pictures_of(results, [chain], thin(measured, MOST_PICTURES)).select("generation", "png").iter_rows()
        shown.append(Strip(cell, chosen[cell]["seed"], [(generation, address(png)) for generation, png in rows]))
    more = _left_out(len(cells) - MOST_STRIPS, "pictures.parquet")
    return shown, f"Samples of each cell's lowest seed, at most {MOST_PICTURES} generations of it.{more}"


def pictures_of(results: StudyResults, chain_ids: list[str], generations: list[int] | None = None) -> pl.DataFrame:
    """The pictures of some chains, by default of all generations, one per chain and generation, sorted."""
    rows = pl.col("chain_id").is_in(chain_ids)
    if generations is not None:
        rows &= pl.col("generation").is_in(generations)
    keys = ["chain_id", "generation"]
    table = read_table(results.folder, "pictures", columns=[*keys, "png"], rows=rows)
    assert table is not None, "called only where there are pictures"
    return table.unique(keys, keep="first").sort(keys)


def address(png: bytes | None, most_bytes: int | None = MOST_BYTES) -> str | None:
    """A picture as a ``data:`` address; None for what is no PNG, or larger than ``most_bytes``."""
    if png is None or not png.startswith(_PNG) or (most_bytes is not None and len(png) > most_bytes):
        return None
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _named(results: StudyResults, table: pl.DataFrame) -> pl.DataFrame:
    """``table`` with the seed and the cell of each row's chain; chains without a cell are left out."""
    chains = results.cells.name(results.roster)
    named = table.join(chains.select("chain_id", "seed", "cell"), on="chain_id", how="inner")
    return named.filter(pl.col("cell").is_not_null())


def _left_out(cells: int, table: str) -> str:
    return f" {cells} further cells are in results/{table}." if cells > 0 else ""


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
    before: dict[str, tuple[str | None, str]] = {}
    lines: list[tuple[int, list[Sample | None]]] = []
    for generation in generations:
        line: list[Sample | None] = []
        for cell in cells:
            text = texts.get((generation, cell))
            line.append(None if text is None else _marked(*text, before.get(cell)))
            before |= {} if text is None else {cell: text}
        lines.append((generation, line))
    return SampleTable(heading, cells, lines)


def _marked(prompt: str | None, text: str, before: tuple[str | None, str] | None) -> Sample:
    """A text with the first word marked in which it differs from an earlier one after the same prompt."""
    if before is None or before[0] != prompt or before[1] == text:
        return Sample(prompt, text, "", "")
    words, earlier = (re.split(r"(\s+)", one) for one in (text, before[1]))  # words and the spaces between them
    at = next((i for i, pair in enumerate(zip(words, earlier, strict=False)) if len({*pair}) > 1), len(earlier))
    at += not words[at:] or not words[at].strip()  # a space is no word: the next is
    return Sample(prompt, "".join(words[:at]), "".join(words[at : at + 1]), "".join(words[at + 1 :]))


def _cut(text: str | None) -> str:
    text = printable(text or "")
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"
