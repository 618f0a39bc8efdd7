"""The same latent vectors through the models, and the small copies that ship."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from fortifai_ray.errors import UserError
from fortifai_ray.families.images.config import VaeConfig
from fortifai_ray.families.images.models import create_model, load_model
from fortifai_ray.families.images.objective import draw_samples
from fortifai_ray.results.schema import write_table
from fortifai_ray.storage.store import StageKey, StageStore
from support.opening import open_folder
from support.phase import numeric_keys
from support.samples import latent_table

from .studies import ANALYSIS, PROJECT, compute_study

SHIPPED = sorted(path.parent.name for path in (ANALYSIS / "data").glob("*/study.yaml"))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study whose two generations' models are in its storage: VAEs with random weights. Its folder, and a model's."""
    root = tmp_path_factory.mktemp("vae")
    store, stages = StageStore(root), []
    for seed in (1, 2):
        key = StageKey("model", 1, {"seed": seed})

        def create(folder: Path, seed: int = seed) -> dict[str, int]:
            create_model(VaeConfig(), (8, 8), seed, folder)
            return {"seed": seed}

        stages.append(store.step(key, create))
    folder = root / "faces"
    folder.mkdir(parents=True)
    criterion = "{metric: elbo, threshold: 0.5, direction: below, relative_to: absolute}"
    (folder / "study.yaml").write_text(f"name: faces\ngenerations: 2\ncollapse: {criterion}\n")
    rows = {"chain_id": ["a", "a"], "generation": [0, 1], "seed": [0, 0], "family.kind": ["vae", "vae"]}
    rows |= {"elbo": [1.0, 0.9], "synthetic_size_cum": [0, 9], "stage": [stage.hash for stage in stages]}
    write_table(folder, "generations", pl.DataFrame(rows))
    return folder, Path(store.path(stages[0].hash))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_each_generations_model_decodes_the_same_noise(storage: tuple[Path, Path]) -> None:
    """A strip of four images; generation 0's are the model's own for that seed, and generation 1's model differs."""
    table = latent_table(open_folder(storage[0]), ["a"], 4)
    assert table["generation"].to_list() == [0, 1]
    first, second = (pixels(png) for png in table["png"])
    assert first.shape == (10, 40)
    expected = draw_samples(load_model(storage[1]), 4, 0, "latents")
    assert (first[1:9, 1:9] == expected[0]).all()
    assert (first[1:9, 31:39] == expected[3]).all()
    assert (first != second).any()


def test_without_stages_it_says_what_is_needed(storage: tuple[Path, Path], tmp_path: Path) -> None:
    """A study that was copied away from its storage."""
    moved = tmp_path / "faces"
    (moved / "results").mkdir(parents=True)
    for name in ("study.yaml", "results/generations.parquet"):
        (moved / name).write_bytes((storage[0] / name).read_bytes())
    with pytest.raises(UserError, match="open the study where its sweep left it"):
        latent_table(open_folder(moved), ["a"], 4)


def test_other_families_have_no_latents(discrete_study: Path) -> None:
    with pytest.raises(UserError, match="only VAEs and diffusion models"):
        latent_table(open_folder(discrete_study), ["x"], 4)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_can_be_opened_and_names_how_it_was_made(name: str) -> None:
    """Each small result has its study file beside it, and a line in the README there."""
    results = open_folder(ANALYSIS / "data" / name)
    assert results.notes == []
    assert results.name == name
    assert (ANALYSIS / "data" / f"{name}.yaml").is_file()
    assert f"analysis/data/{name}" in (ANALYSIS / "data" / "README.md").read_text(encoding="utf-8")


def test_what_ships_is_small() -> None:
    """A few hundred kilobytes in all."""
    files = [path for path in (ANALYSIS / "data").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 900_000


def test_a_small_copy_keeps_the_verdicts(tmp_path: Path) -> None:
    """``scripts/embed.py``: chains as they were, generations rounded, other columns gone."""
    recipe = {"family": {"kind": "gaussian"}, "samples_per_generation": 30, "generations": 5}
    criterion = {"metric": "kl_divergence", "relative_to": "absolute", "threshold": 0.1, "direction": "above"}
    vary = {"regime.synthetic_ratio": [0.5, 1.0], "seed": {"count": 3}}
    regime = {"kind": "mixed", "synthetic_ratio": 1.0}
    study = compute_study(tmp_path, **recipe, regime=regime, vary=vary, collapse=criterion)
    command = [sys.executable, str(PROJECT / "scripts" / "embed.py"), str(study), str(tmp_path / "small"), "--metrics"]
    done = subprocess.run([*command, "kl_divergence"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, small = open_folder(study), open_folder(tmp_path / "small")
    assert whole.chains is not None
    assert whole.chains.equals(small.chains)  # type: ignore[arg-type]
    assert "wasserstein" not in small.generations.columns
    gap = (whole.generations["kl_divergence"] / small.generations["kl_divergence"] - 1).abs().max()
    assert gap < 1e-4  # type: ignore[operator]
    assert numeric_keys(small) == ["regime.synthetic_ratio"]
    done = subprocess.run([*command, "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no metric nonsense was measured" in done.stderr
