"""Texts and pictures by generation, as HTML: what was written is escaped, and pictures are inside the page."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.notebooks.latents import latent_table
from fortifai_ray.report.points import thin
from fortifai_ray.report.samples import SampleTable
from fortifai_ray.results.reader import PICTURES, Results

MOST_GENERATIONS = 10
_PNG = b"\x89PNG\r\n\x1a\n"
_CELL = "padding: 0.4em 0.8em 0.4em 0; vertical-align: top; text-align: left"
_TEXT = f"{_CELL}; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; min-width: 14rem"
_RULE = "border-top: 1px solid rgba(128, 128, 128, 0.4)"


def text_page(table: SampleTable) -> str:
    """A prompt's continuations: a row for each generation, a column for each cell."""
    head = "".join(f"<th style='{_CELL}'>{escape(name)}</th>" for name in ("generation", *table.cells))
    lines = []
    for generation, texts in table.lines:
        cells = "".join(f"<td style='{_TEXT}'>{_text(text)}</td>" for text in texts)
        lines.append(f"<tr style='{_RULE}'><td style='{_CELL}'>{generation}</td>{cells}</tr>")
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    whole = f"<div style='overflow-x: auto'><table style='border-collapse: collapse'>{body}</table></div>"
    return f"<p><b>{escape(_on_one_line(table.heading))}</b></p>{whole}"


def _text(found: tuple[str | None, str] | None) -> str:
    if found is None:
        return "–"
    prompt, text = found
    return (f"<i>{escape(_on_one_line(prompt))}</i>\n" if prompt else "") + escape(_on_one_line(text))


def _on_one_line(text: str) -> str:
    """The text with its line breaks as signs, ``↵`` or ``↵×12``: a collapsed model may write little else."""

    def sign(found: re.Match[str]) -> str:
        breaks = found[0].count("\n")
        return " ↵ " if breaks == 1 else f" ↵×{breaks} "

    return re.sub(r"[ \t]*\n\s*", sign, text)


def sample_page(results: Results, seed: int) -> str:
    """The pictures of each generation's own samples, a row for each cell.

    Raises:
        UserError: the study keeps no pictures, or none of that seed.
    """
    if results.pictures is None or results.pictures.is_empty():
        raise UserError(f"this study keeps no pictures of samples (results/{PICTURES}): only image models have them")
    chains = _chains(results, seed)
    path = results.directory / "results" / PICTURES
    table = pl.scan_parquet(path, glob=False).filter(pl.col("chain_id").is_in(list(chains))).collect()
    if table.is_empty():
        raise UserError(f"seed {seed} has no pictures")
    return _rows(table, chains, wide=False)


def latent_page(results: Results, seed: int, count: int = 12) -> str:
    """The same latent vectors decoded by each generation's model: a row for each generation, cells below each other.

    Raises:
        UserError: as :func:`~fortifai_ray.notebooks.latents.latent_table`.
    """
    chains = _chains(results, seed)
    table = latent_table(results, list(chains), count)
    if table.is_empty():
        raise UserError(f"seed {seed} has no decoded latent vectors here")
    return _rows(table, chains, wide=True)


def _chains(results: Results, seed: int) -> dict[str, str]:
    """The chain of each cell under one seed, by its id, in the cells' order."""
    table = results.cells.name(results.generations.filter(pl.col("seed") == seed).unique("chain_id", keep="any"))
    of_cell = dict(table.select("cell", "chain_id").iter_rows())
    return {of_cell[cell]: cell for cell in results.cells.order if cell in of_cell}


def _rows(table: pl.DataFrame, chains: dict[str, str], *, wide: bool) -> str:
    """Cells below each other; ``wide`` pictures stand below each other, too, small ones side by side."""
    parts = []
    for chain, cell in chains.items():
        rows = table.filter(pl.col("chain_id") == chain).unique("generation", keep="first").sort("generation")
        shown = thin(rows["generation"].to_list(), MOST_GENERATIONS)
        pictures = [(row["generation"], row["png"]) for row in rows.iter_rows(named=True) if row["generation"] in shown]
        if pictures:
            parts.append(f"<p style='margin: 1em 0 0.3em'><b>{escape(cell)}</b></p>{_strip(pictures, wide=wide)}")
    return "".join(parts)


def _strip(pictures: Sequence[tuple[int, bytes]], *, wide: bool) -> str:
    size = "height: 44px" if wide else "width: 180px"
    items = []
    for generation, png in pictures:
        label = f"generation {generation}"
        image = f"<img alt='{label}' style='{size}; image-rendering: pixelated; display: block' src='{_address(png)}'>"
        label_style = "flex: 0 0 6.5rem; font-size: 0.85rem" if wide else "font-size: 0.85rem"
        item = f"<div style='{label_style}'>{label}</div>{image if _is_png(png) else '(no picture)'}"
        items.append(f"<div style='display: {'flex' if wide else 'block'}; align-items: center'>{item}</div>")
    flow = "column" if wide else "row"
    return (
        f"<div style='display: flex; flex-flow: {flow} wrap; gap: {'3px' if wide else '10px'}'>{''.join(items)}</div>"
    )


def _is_png(png: bytes | None) -> bool:
    return png is not None and png.startswith(_PNG)


def _address(png: bytes | None) -> str:
    return f"data:image/png;base64,{base64.b64encode(png or b'').decode()}"
