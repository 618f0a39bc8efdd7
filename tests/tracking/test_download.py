"""A study read out of MLflow is the study that its sweep left: its folder comes back as it was uploaded."""

import math
import shutil
from pathlib import Path

import polars as pl
import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.results.schema import read_table, write_table
from fortifai_ray.tracking.download import experiment_folder
from fortifai_ray.tracking.sync import StudySync

from .folders import client, generations_table, rows_of, sweep, write_end, write_generations, write_study


def read(folder: Path, name: str) -> pl.DataFrame:
    table = read_table(folder, name)
    assert table is not None
    return table


def test_the_folder_is_the_one_that_the_sweep_left(storage: Path) -> None:
    """Tables to the last bit, NaN and infinity included, texts and pictures too; and it is gone afterwards."""
    folder, study = write_study(storage)
    rows = [row for chain in study.chains for row in rows_of(chain)]
    rows[1] |= {"wasserstein": 1 / 3 * 1e4}
    rows[2] |= {"wasserstein": math.inf}
    rows[5] |= {"wasserstein": math.nan, "collapse_reason": "the loss is NaN"}
    write_generations(folder, rows)
    write_table(folder, "pictures", pl.DataFrame([{"chain_id": "a", "generation": 0, "png": b"\x89PNG"}]))
    write_end(folder, study.chains)
    outcome = StudySync(folder, storage).close("finished")
    assert outcome.problems == []
    with experiment_folder(f"sqlite:///{storage}/mlflow.db", "small") as downloaded:
        assert downloaded.name == "small"
        assert (downloaded / "study.yaml").read_text() == (folder / "study.yaml").read_text()
        assert (downloaded / "report.html").read_text() == (folder / "report.html").read_text()
        for name in ("generations", "samples", "pictures", "chains"):
            assert read(downloaded, name).equals(read(folder, name))
    assert not downloaded.exists()


def test_a_study_that_runs_has_the_generations_so_far(storage: Path) -> None:
    """Those of its part files, too, until it has ended: then the tables are whole, and the part files are left out."""
    folder, study = write_study(storage)
    rows = rows_of(study.chains[0])
    parts = folder / "results" / "parts"
    parts.mkdir()
    write_table(folder, "generations", generations_table(rows[:2]))
    (folder / "results" / "generations.parquet").rename(parts / "generations-000000.parquet")
    write_table(folder, "generations", generations_table(rows[:1]))
    sync = StudySync(folder, storage)
    sync.poke()
    database = str(storage / "mlflow.db")
    while not list(storage.glob("mlartifacts/**/parts/generations-000000.parquet")):
        assert sync._thread.is_alive()
    with experiment_folder(database, "small") as downloaded:
        assert read(downloaded, "generations").sort("generation").equals(generations_table(rows[:2]))
    shutil.rmtree(parts)
    write_generations(folder, rows)
    write_end(folder, study.chains[:1])
    assert sync.close("finished").problems == []
    with experiment_folder(database, "small") as downloaded:
        assert not (downloaded / "results" / "parts").exists()
        assert read(downloaded, "generations").equals(generations_table(rows))


def test_of_several_versions_of_a_study_the_last_is_read(storage: Path) -> None:
    sweep(storage)
    sweep(storage, early_stopping=False)
    with experiment_folder(str(storage / "mlflow.db"), "small") as downloaded:
        assert "early_stopping: false" in (downloaded / "study.yaml").read_text()


def test_what_is_not_there_is_named(storage: Path) -> None:
    """A wrong experiment with those that there are; a wrong database, which MLflow would create; lost artefacts."""
    sweep(storage)
    database = storage / "mlflow.db"
    client(storage).create_experiment("other")
    for experiment, complaint in {
        "": "give the experiment's name",
        "smal": r"no experiment 'smal': there are .*small",
        "other": "holds no study",
    }.items():
        with pytest.raises(UserError, match=complaint), experiment_folder(str(database), experiment):
            pass
    with pytest.raises(UserError, match="does not exist"), experiment_folder(f"{database}2", "small"):
        pass
    assert not (storage / "mlflow.db2").exists()
    for results in storage.glob("mlartifacts/small/*/artifacts/results"):
        shutil.rmtree(results)
    with pytest.raises(UserError, match="has no results yet"), experiment_folder(str(database), "small"):
        pass


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with (
        pytest.raises(UserError, match=r"MLflow at http://\*\*\*@127\.0\.0\.1:1 cannot be read") as raised,
        experiment_folder("http://ada:hunter2@127.0.0.1:1", "small"),
    ):
        pass
    assert "hunter2" not in str(raised.value)
