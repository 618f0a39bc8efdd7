"""A chain's training workers and engines on other nodes than its trial, which share nothing but an object store."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from faults.studies import SOAK
from polars.testing import assert_frame_equal

from fortifai_ray.engines.checkpoints import AdapterFiles
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageKey, StageLost, StageStore, folder_here

from .conftest import S3

STUDY = """
name: apart
family: {kind: language, model: {preset: llama-tiny, vocab_size: 512, layers: 1}}
corpus: {source: pydoc, train_tokens: 2048}
regime: {kind: mixed, synthetic_ratio: 0.75}
decoding: {temperature: 0.8, max_new_tokens: 56, context_tokens: 8}
training: {epochs: 1, batch_size: 8, block_size: 64, learning_rate: 2.0e-3}
engine: {kind: huggingface, dtype: float32}
generations: 1
resources: {train: {workers: 2}, engines: {count: 1}}
collapse: {metric: perplexity, threshold: 2.0, direction: above, confirm: 0}
"""

HERE = Path(__file__).parent
NODES = ("trials", "first", "second")


def test_a_stage_is_fetched_on_the_node_that_wants_it(
    s3: S3, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, into that node's own cache; whoever only passes it on (a client of an engine) asks the storage for
    nothing. One that has gone is said to have."""

    def compute(folder: Path) -> Mapping[str, Any]:
        (folder / "model.txt").write_text("weights")
        return {}

    steps = Steps(StageStore(storage))
    files = steps.files(steps.run(StageKey("fit", 1, {}), "fit", compute))
    before = s3.requests()
    sent = pickle.dumps(pickle.loads(pickle.dumps(files)))
    assert files.path.is_relative_to(tmp_path / "cache")
    assert s3.requests() == before

    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "other"))
    found = folder_here(pickle.loads(sent))
    assert found.is_relative_to(tmp_path / "other")
    assert (found / "model.txt").read_text() == "weights"
    before = s3.requests()
    assert folder_here(pickle.loads(sent)) == found
    assert s3.requests() == before

    s3.filesystem().delete_dir_contents(f"{storage.removeprefix('s3://')}/stages")
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "third"))
    with pytest.raises(StageLost, match="not in the storage any more"):
        folder_here(pickle.loads(sent))


def test_an_adapters_model_is_fetched_with_it(
    s3: S3, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to stand beside the adapter on whichever node loads that."""

    def compute(folder: Path) -> Mapping[str, Any]:
        (folder / "weights").touch()
        return {}

    steps = Steps(StageStore(storage))
    base, adapter = (steps.run(StageKey(kind, 1, {}), kind, compute) for kind in ("model", "fit"))
    files = steps.files(adapter)
    sent = pickle.dumps(AdapterFiles(adapter, files.storage, steps.files(base)))
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "other"))
    found = folder_here(pickle.loads(sent))
    assert found.is_relative_to(tmp_path / "other")
    assert (found.parent / base.hash / "weights").is_file()


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    """The folder of the nodes' caches."""
    return tmp_path / "caches"


@pytest.fixture
def address(s3: S3, caches: Path) -> Iterator[str]:
    """A cluster of nodes that share no folder."""
    command = [sys.executable, str(HERE / "separate_nodes.py"), str(caches)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nodes:
        assert nodes.stdin is not None
        assert nodes.stdout is not None
        yield nodes.stdout.readline().strip()
        nodes.stdin.close()


def sweep(program: list[str], study: Path, storage: str, *arguments: str) -> str:
    """Sweep a study to its end; returns what it printed."""
    command = [sys.executable, *program, "sweep", str(study), "--storage", storage, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.end_to_end
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([], id="whole"),
        # the second generation goes on from the first one's adapter, on other nodes than that was trained on
        pytest.param(["training.lora={rank: 4}", "generations=2"], id="soak-adapters", marks=SOAK),
    ],
)
def test_a_chain_spread_over_nodes_that_share_no_folder(
    s3: S3, storage: str, address: str, caches: Path, tmp_path: Path, ray_instance: str, changes: list[str]
) -> None:
    """The trial on one node, two training workers and the engine on others: the tables are those of a run in one
    place, each node fetched what it needed, and what rank 0 wrote elsewhere is whole in the storage."""
    study = tmp_path / "apart.yaml"
    study.write_text(STUDY)
    settings = [part for change in changes for part in ("--set", change)]
    printed = sweep([str(HERE / "placed_sweep.py")], study, storage, "--address", address, *settings)
    sweep(["-m", "fortifai_ray"], study, str(tmp_path / "runs"), "--address", ray_instance, *settings)

    columns = pl.exclude("^.*_seconds$", "reused")
    files = s3.files(f"{storage}/apart")
    apart = pl.read_parquet(BytesIO(files["results/generations.parquet"])).select(columns)
    together = pl.read_parquet(tmp_path / "runs" / "apart" / "results" / "generations.parquet").select(columns)
    assert apart["world_size"].unique().to_list() == [2]
    assert "DDP over 2 workers" in " ".join(printed.split())
    assert json.loads(files["results/summary.json"])["chains"][0]["training_mode"] == "DDP over 2 workers"
    assert_frame_equal(apart, together, check_exact=True)

    fitted = apart["stage"].to_list()
    held = {name: {path.parent.name for path in (caches / name).glob("*/stages/*/manifest.json")} for name in NODES}
    assert set(fitted) <= held["trials"]
    assert fitted[0] in held["first"] | held["second"], "the engine's node fetched the weights that it wrote with"
    assert held["first"] & held["second"], "both training workers fetched the starting model"
    assert not held["first"] - held["trials"], "a stage is put together where its trial is"
    assert not list(caches.glob("*/*/stages/.partial/*"))
