"""The same latent vectors, decoded by the model of every generation.

A generation's own samples (``pictures.parquet``) are drawn anew each time: they show what was written, but no one image
becoming another. For that the models are taken from the stage store and all given the same noise. A study whose stages
are not at hand, such as the small one that ships, may carry the decoded pictures in ``results/latents.parquet``
(:mod:`fortifai_ray.notebooks.embed` writes it).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.results.reader import Results

LATENTS = "latents.parquet"
SCHEMA = {"chain_id": pl.String, "generation": pl.Int64, "png": pl.Binary}
_FAMILIES = ("vae", "diffusion")
_POINTS = 512  # that a plot shows of a family of points


def latent_table(results: Results, chain_ids: Sequence[str], count: int, seed: int = 0) -> pl.DataFrame:
    """What ``count`` latent vectors become in each generation of some chains.

    For a diffusion model it is the noise that its sampling starts from and takes on the way.

    Returns:
        ``chain_id, generation, png``: the images side by side, one pixel each pixel; a plot for points of the plane.

    Raises:
        UserError: the study has neither the models' stages nor ``latents.parquet``, or is of another family.
    """
    table = results.generations.filter(pl.col("chain_id").is_in(list(chain_ids))).sort("chain_id", "generation")
    if not set(table["family"].drop_nulls().unique()) & set(_FAMILIES):
        raise UserError("only VAEs and diffusion models have latent vectors to follow: this study is of another family")
    kept = results.directory / "results" / LATENTS
    if kept.is_file():
        return pl.read_parquet(kept, glob=False).filter(pl.col("chain_id").is_in(list(chain_ids))).cast(SCHEMA)  # type: ignore[arg-type]
    stages = results.directory.absolute().parent / "stages"
    if "stage" not in table.columns or not stages.is_dir():
        raise UserError(f"the models are needed, and there is no {stages}: open the study where its sweep left it")
    rows = []
    for chain, generation, stage in table.select("chain_id", "generation", "stage").iter_rows():
        folder = None if stage is None else _model_folder(stages.parent, stage)
        if folder is not None:
            rows.append((chain, generation, _decoded(folder, count, seed)))
    if not rows:
        raise UserError(f"{stages} holds none of this study's models any more: run the sweep again to have them")
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _model_folder(storage: Path, stage: str) -> Path | None:
    from fortifai_ray.storage.store import StageStore

    store = StageStore(storage)
    return None if store.open(stage) is None else Path(store.path(stage))


def _decoded(folder: Path, count: int, seed: int) -> bytes:
    from PIL import Image

    from fortifai_ray.families.images.models import load_model
    from fortifai_ray.families.images.objective import draw_samples
    from fortifai_ray.families.images.pictures import picture

    model = load_model(folder)
    if len(model.shape) == 1:
        return picture(draw_samples(model, _POINTS, seed, "latents")) or b""
    images = draw_samples(model, count, seed, "latents")
    strip = np.concatenate([np.pad(image, 1, constant_values=96) for image in images], axis=1)
    file = io.BytesIO()
    Image.fromarray(strip).save(file, format="PNG", optimize=True)
    return file.getvalue()
