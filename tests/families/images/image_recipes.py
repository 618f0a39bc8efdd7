"""Recipes small enough for a test, and IDX files to read."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fortifai_ray.families.images.recipe import ImageRecipe
from fortifai_ray.storage.store import StageStore

VAE: dict[str, Any] = {
    "family": {"kind": "vae", "channels": 4, "latent": 4},
    "samples_per_generation": 200,
    "training": {"epochs": 3, "batch_size": 50},
    "evaluation": {"samples": 100},
    "generations": 2,
}
DIFFUSION: dict[str, Any] = {
    "family": {"kind": "diffusion", "data": {"source": "blobs", "samples": 2000}, "width": 32, "timesteps": 20},
    "samples_per_generation": 200,
    "training": {"epochs": 3, "batch_size": 50},
    "evaluation": {"samples": 100},
    "generations": 2,
}


def make_recipe(content: dict[str, Any], **changes: Any) -> ImageRecipe:
    """A recipe with some of its top-level keys put otherwise."""
    return ImageRecipe.model_validate({**content, **changes})


def prepared(recipe: ImageRecipe, folder: Path) -> tuple[StageStore, str]:
    """A store with the recipe's samples, and their hash."""
    store = StageStore(folder)
    return store, recipe.prepare(store, "study.yaml")


def idx(array: np.ndarray) -> bytes:
    """An array of unsigned bytes in the format that the reader has to understand."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_pair(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Images, and their labels gzipped."""
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
