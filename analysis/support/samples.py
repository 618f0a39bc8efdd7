"""Texts and pictures by generation, as HTML: texts are escaped, and pictures lie inside the page.

A generation's own samples (``pictures.parquet``) are drawn anew each time: they show what was generated, but not how
one image becomes another. For that, the models are taken from the stage store and all given the same latent vectors. A
study without its stages, such as the small ones that ship, may carry the decoded pictures in
``results/latents.parquet`` (written by ``scripts/embed.py``).
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.report.points import thin
from fortifai_ray.report.samples import Sample, SampleTable, address, pictures_of, sample_tables, texts_of
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import read_table

MOST_GENERATIONS = 10
LATENTS = "latents"
SCHEMA = {"chain_id": pl.String, "generation": pl.Int64, "png": pl.Binary}
_MOST_PROMPTS = 200
_MOST_CHARACTERS = 90  # of a prompt in the list to pick from
_FAMILIES = ("vae", "diffusion")
_POINTS = 512  # plotted for a model of points in the plane
_CELL = "padding: 0.4em 0.8em 0.4em 0; vertical-align: top; text-align: left"
_TEXT = f"{_CELL}; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; min-width: 14rem"
_RULE = "border-top: 1px solid rgba(128, 128, 128, 0.4)"


def prompts(results: StudyResults) -> dict[str, pl.Expr]:
    """The prompts that can be followed through the generations, or the rows where each generation has its own.

    Returns:
        By its name in a list to pick from: an expression that selects its rows of the samples.

    Raises:
        UserError: the study keeps no sample texts.
    """
    if results.samples is None or results.samples.is_empty():
        raise UserError("this study keeps no sample texts: only language models write them (results/samples.parquet)")
    samples = texts_of(results, columns=["row", "prompt_text"])
    seen = samples.group_by("prompt_text", maintain_order=True).agg(
        pl.col("generation").n_unique().alias("generations")
    )
    recurring = seen.filter(pl.col("generations") > 1)["prompt_text"].to_list()
    if samples["generation"].n_unique() > 1 and not recurring:
        rows = samples["row"].unique().sort().to_list()[:_MOST_PROMPTS]
        return {f"row {row} (each generation has a prompt of its own)": pl.col("row") == row for row in rows}
    named: dict[str, pl.Expr] = {}
    for place, text in enumerate((recurring or seen["prompt_text"].to_list())[:_MOST_PROMPTS]):
        words = " ".join((text or "(no prompt)").split())
        named[f"{place + 1}. {words[:_MOST_CHARACTERS]}"] = pl.col("prompt_text").eq_missing(pl.lit(text))
    return named


def seeds(results: StudyResults, table: pl.DataFrame) -> list[int]:
    """The seeds of the chains that have rows in ``table`` (samples or pictures)."""
    known = results.generations.select("chain_id", "seed").unique()
    return known.join(table.select("chain_id").unique(), on="chain_id")["seed"].unique().sort().to_list()


def passage(results: StudyResults, prompt: pl.Expr, seed: int) -> SampleTable:
    """One prompt's continuations by generation and cell, in the chains of one seed.

    Raises:
        UserError: that seed has no sample of the prompt.
    """
    chains = results.generations.filter(pl.col("seed") == seed)["chain_id"].unique().to_list()
    tables, _ = sample_tables(results, prompt & pl.col("chain_id").is_in(chains))
    if not tables:
        raise UserError(f"seed {seed} has no sample of this prompt")
    return tables[0]


def text_page(table: SampleTable) -> str:
    """A prompt's continuations: a row per generation, a column per cell."""
    head = "".join(f"<th style='{_CELL}'>{escape(name)}</th>" for name in ("generation", *table.cells))
    lines = []
    for generation, texts in table.lines:
        cells = "".join(f"<td style='{_TEXT}'>{_text(text)}</td>" for text in texts)
        lines.append(f"<tr style='{_RULE}'><td style='{_CELL}'>{generation}</td>{cells}</tr>")
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    whole = f"<div style='overflow-x: auto'><table style='border-collapse: collapse'>{body}</table></div>"
    return f"<p><b>{escape(_on_one_line(table.heading))}</b></p>{whole}"


def _text(sample: Sample | None) -> str:
    if sample is None:
        return "–"
    prompt, same, changed, rest = (escape(_on_one_line(part or "")) for part in sample)
    return (f"<i>{prompt}</i>\n" if prompt else "") + same + (f"<mark>{changed}</mark>" if changed else "") + rest


def _on_one_line(text: str) -> str:
    """The text with its line breaks as signs, ``↵`` or ``↵×12``: a collapsed model may write little else."""

    def sign(match: re.Match[str]) -> str:
        breaks = match[0].count("\n")
        return " ↵ " if breaks == 1 else f" ↵×{breaks} "

    return re.sub(r"[ \t]*\n\s*", sign, text)


def sample_page(results: StudyResults, seed: int) -> str:
    """The pictures of each generation's own samples, a row per cell.

    Raises:
        UserError: the study keeps no pictures, or none with that seed.
    """
    if results.pictures is None or results.pictures.is_empty():
        raise UserError("this study keeps no pictures of samples (pictures.parquet): only image models have them")
    chains = _chains(results, seed)
    table = pictures_of(results, list(chains))
    if table.is_empty():
        raise UserError(f"seed {seed} has no pictures")
    return _rows(table, chains, wide=False)


def latent_page(results: StudyResults, seed: int) -> str:
    """The same latent vectors decoded by each generation's model: a row per generation, one cell below another.

    Raises:
        UserError: as :func:`latent_table`.
    """
    chains = _chains(results, seed)
    table = latent_table(results, list(chains))
    if table.is_empty():
        raise UserError(f"seed {seed} has no decoded latent vectors here")
    return _rows(table, chains, wide=True)


def latent_table(results: StudyResults, chain_ids: Sequence[str], count: int = 12) -> pl.DataFrame:
    """Decode the same ``count`` latent vectors with the model of each generation of some chains.

    A diffusion model's latent vectors are the noise that its sampling starts from and adds on the way.

    Returns:
        ``chain_id, generation, png``: the images side by side, pixel for pixel; a plot for points in the plane.

    Raises:
        UserError: the study has neither the models' stages nor ``latents.parquet``, or is of another family.
    """
    from fortifai_ray.storage.store import StageStore

    own = pl.col("chain_id").is_in(list(chain_ids))
    table = results.generations.filter(own).sort("chain_id", "generation")
    if not set(table["family.kind"].drop_nulls().unique()) & set(_FAMILIES):
        raise UserError("only VAEs and diffusion models have latent vectors to follow: this study is of another family")
    kept = read_table(results.folder, LATENTS, rows=own)
    if kept is not None:
        return kept.cast(SCHEMA)  # type: ignore[arg-type]
    stages = results.folder.absolute().parent / "stages"
    if "stage" not in table.columns or not stages.is_dir():
        raise UserError(f"the models are needed, and there is no {stages}: open the study where its sweep left it")
    store = StageStore(stages.parent)
    rows = [
        (chain, generation, _decoded(Path(store.path(stage)), count))
        for chain, generation, stage in table.select("chain_id", "generation", "stage").iter_rows()
        if stage is not None and store.open(stage) is not None
    ]
    if not rows:
        raise UserError(f"{stages} no longer holds any of this study's models: run the sweep again to restore them")
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _decoded(folder: Path, count: int) -> bytes:
    from PIL import Image

    from fortifai_ray.families.images.family import picture
    from fortifai_ray.families.images.models import load_model
    from fortifai_ray.families.images.objective import draw_samples

    model = load_model(folder)
    if len(model.shape) == 1:
        return picture(draw_samples(model, _POINTS, 0, "latents")) or b""
    images = draw_samples(model, count, 0, "latents")
    strip = np.concatenate([np.pad(image, 1, constant_values=96) for image in images], axis=1)
    file = io.BytesIO()
    Image.fromarray(strip).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _chains(results: StudyResults, seed: int) -> dict[str, str]:
    """The cell of each chain with one seed, by the chain's id, in the cells' order."""
    table = results.cells.name(results.generations.filter(pl.col("seed") == seed).unique("chain_id", keep="any"))
    of_cell = dict(table.select("cell", "chain_id").iter_rows())
    return {of_cell[cell]: cell for cell in results.cells.order if cell in of_cell}


def _rows(table: pl.DataFrame, chains: dict[str, str], *, wide: bool) -> str:
    """One cell below another; within a cell, ``wide`` pictures below each other and narrow ones side by side."""
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
    label_style = "flex: 0 0 6.5rem; font-size: 0.85rem" if wide else "font-size: 0.85rem"
    items = []
    for generation, png in pictures:
        label, source = f"generation {generation}", address(png, most_bytes=None)
        image = f"<img alt='{label}' style='{size}; image-rendering: pixelated; display: block' src='{source}'>"
        item = f"<div style='{label_style}'>{label}</div>{image if source else '(no picture)'}"
        items.append(f"<div style='display: {'flex' if wide else 'block'}; align-items: center'>{item}</div>")
    flow = "flex-flow: column wrap; gap: 3px" if wide else "flex-flow: row wrap; gap: 10px"
    return f"<div style='display: flex; {flow}'>{''.join(items)}</div>"
