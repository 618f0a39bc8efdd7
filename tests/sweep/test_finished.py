"""A finished study of very many chains is recognised without the replay of each; anything else is replayed."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from rich.console import Console

from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.results.schema import read_json, read_table, table_path
from fortifai_ray.storage.local import LocalStages
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Study, make_study
from fortifai_ray.sweep import finished
from fortifai_ray.sweep import recorder as recorder_module
from fortifai_ray.sweep.preflight import check_study
from fortifai_ray.sweep.sweep import run_sweep
from fortifai_ray.sweep.work import Grid, run_job

STUDY: dict[str, Any] = {
    "name": "many",
    "family": {"kind": "vae", "data": {"source": "digits"}, "channels": 4, "latent": 4},
    "samples_per_generation": 32,
    "generations": 3,
    "training": {"epochs": 1, "batch_size": 32},
    "vary": {"seed": [0, 1, 2]},
    "collapse": {"metric": "wasserstein", "threshold": 1e9, "direction": "above", "relative_to": "own_generation_0"},
}


class _Sync:
    def __init__(self, folder: Path, storage: Path) -> None: ...

    def poke(self) -> None: ...

    def close(self, status: str) -> Any:
        return SimpleNamespace(problems=[])


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A storage with all stages of a study of three chains, and the tables of a run that found them."""
    folder, study = tmp_path_factory.mktemp("many"), make_study(STUDY, "many.yaml")
    store = StageStore(Storage.of(folder).for_study(study.name))
    work = Grid(study, check_study(study, store))
    for chain in study.chains:
        for _ in run_job(work.job(chain.chain_id), Steps(store), InProcess()):
            pass
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recorder_module, "StudySync", _Sync)
        run_sweep(study, folder, Console(file=io.StringIO()))
    return study, folder


def again(study: Study, folder: Path, monkeypatch: pytest.MonkeyPatch, many: int = 1) -> set[str]:
    """Run it again; returns the stages that were opened."""
    opened, whole = set[str](), LocalStages.open

    def noted(stages: LocalStages, stage_hash: str) -> Any:
        opened.add(stage_hash)
        return whole(stages, stage_hash)

    monkeypatch.setattr(recorder_module, "StudySync", _Sync)
    monkeypatch.setattr(LocalStages, "open", noted)
    monkeypatch.setattr(finished, "MANY", many)
    outcome = run_sweep(study, folder, Console(file=io.StringIO()))
    assert (outcome.failed, outcome.unfinished) == ({}, [])
    return opened


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    names = ("generations", "samples", "pictures", "details", "chains", "fidelity")
    read = {name: read_table(folder / "many", name) for name in names}
    return {name: table for name, table in read.items() if table is not None}


def test_one_chain_of_a_cell_stands_for_its_seeds(swept: tuple[Study, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the stages is opened, and the tables and the summary are those of a replay of all."""
    study, folder = swept
    every = again(study, folder, monkeypatch, many=1000)
    before, said = tables(folder), read_json(folder / "many", "summary")
    opened = again(study, folder, monkeypatch)
    assert len(opened) < len(every) / 2
    after = tables(folder)
    assert after.keys() == before.keys() >= {"generations", "pictures", "chains"}
    for name, table in before.items():
        assert_frame_equal(after[name], table)
    summary = read_json(folder / "many", "summary")
    assert {name: summary[name] for name in ("stages_computed", "chains", "whole")} == {
        name: said[name] for name in ("stages_computed", "chains", "whole")
    }
    assert summary["stages_reused"] == said["stages_reused"]


@pytest.mark.parametrize("change", ["other values", "a chain less", "no samples", "part files", "interrupted"])
def test_a_run_that_did_not_end_whole_is_replayed(
    swept: tuple[Study, Path], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one whose table says something else; every table is then made again."""
    study, folder = swept
    every, before = again(study, folder, monkeypatch, many=1000), tables(folder)
    path = table_path(folder / "many", "generations")
    metadata = {key: value for key, value in pl.read_parquet_metadata(path).items() if key.startswith("fortifai")}
    table = before["generations"]
    if change == "other values":
        table.with_columns(wasserstein=pl.lit(0.5)).write_parquet(path, metadata=metadata)
    elif change == "a chain less":
        table[2:].write_parquet(path, metadata=metadata)
    elif change == "no samples":
        table_path(folder / "many", "samples").unlink()
    elif change == "part files":
        (path.parent / "parts").mkdir(exist_ok=True)
        table.write_parquet(path.parent / "parts" / "generations-000000.parquet", metadata=metadata)
    else:
        summary = path.with_name("summary.json")
        summary.write_text(summary.read_text().replace('"whole": "', '"whole": "x'))
    assert again(study, folder, monkeypatch) == every
    for name, whole in before.items():
        assert_frame_equal(tables(folder)[name], whole)


def test_a_stage_that_has_gone_is_missed(swept: tuple[Study, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whichever chain: it is then computed again, as ever."""
    study, folder = swept
    again(study, folder, monkeypatch, many=1000)
    last = tables(folder)["generations"].row(-1, named=True)
    store = StageStore(Storage.of(folder).for_study(study.name))
    assert store.has_all([last["stage"]])
    stage = folder / "stages" / last["stage"]
    use = folder / "stages" / ".uses" / "many" / last["stage"]
    use.unlink()
    assert not store.has_all([last["stage"]]), "gc would remove it"
    use.touch()
    stage.rename(aside := folder / "aside")
    assert not store.has_all([last["stage"]])
    monkeypatch.setattr(finished, "MANY", 1)
    work = Grid(study, check_study(study, store))
    recorder = recorder_module.Recorder(study, store.storage, Console(file=io.StringIO()))
    assert not finished.recognised(study, work, store, recorder)
    aside.rename(stage)
    assert finished.recognised(study, work, store, recorder)
    assert work.done
