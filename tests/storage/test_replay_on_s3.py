"""A finished study of single chains, run again on a machine that has seen none of it: its requests to S3."""

from pathlib import Path
from typing import Any

import pytest

from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import make_study
from fortifai_ray.sweep.preflight import check_study
from fortifai_ray.sweep.work import Grid, run_job

from .conftest import S3

POINTS: dict[str, Any] = {
    "name": "points",
    "family": {"kind": "diffusion", "data": {"source": "blobs", "samples": 500}, "width": 8, "timesteps": 10},
    "samples_per_generation": 64,
    "generations": 3,
    "curation": {"kind": "verifier", "keep": 0.5},
    "training": {"epochs": 1, "batch_size": 32},
    "vary": {"seed": [0, 1]},
    "collapse": {"metric": "wasserstein", "threshold": 1e9, "direction": "above", "relative_to": "own_generation_0"},
}


def test_at_most_three_requests_for_each_stage(
    s3: S3, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pools of samples and their pictures, which the replay reads, come with their manifests."""
    study = make_study(POINTS, "study.yaml")
    at = Storage.of(storage).for_study(study.name)
    store = StageStore(at)
    work, steps = Grid(study, check_study(study, store)), Steps(store)
    for chain in study.chains:
        assert len(list(run_job(work.job(chain.chain_id), steps, InProcess()))) == POINTS["generations"]
    stages = {name.split("/")[0] for name in s3.files(f"{storage}/stages") if not name.startswith(".")}
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "another machine"))
    there = StageStore(Storage.of(storage).for_study(study.name))
    before = s3.requests()
    there.recall(study.name)
    again = Grid(study, check_study(study, there))
    assert len(list(again.replay(there))) == len(study.chains)
    assert again.done
    assert s3.requests() - before <= 3 * len(stages)
