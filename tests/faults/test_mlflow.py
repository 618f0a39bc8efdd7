"""MLflow goes away: the study continues, and everything is sent once it is back, before the study's end or after."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from fortifai_ray.results.schema import read_table

from .mlflow_server import MlflowServer
from .studies import SOAK, completed, ours, start, sweep, wait_for, write_study

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    """A server that has not been started."""
    folder = tmp_path / "mlflow"
    folder.mkdir()
    server = MlflowServer(folder)
    yield server
    server.kill()


def generations(storage: Path) -> pl.DataFrame:
    """The rows that have been written so far."""
    table = read_table(storage / "faults", "generations")
    return pl.DataFrame({"generation": []}) if table is None else table


def assert_runs_are_whole(server: MlflowServer, storage: Path) -> None:
    """Every generation's metric was logged once, and every run has ended properly."""
    rows, runs = generations(storage), server.runs("faults")
    assert runs.keys() == {"", *rows["chain_id"].unique()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for (chain_id,), own in rows.group_by("chain_id"):
        expected = list(zip(own["generation"].to_list(), own["wasserstein"].to_list(), strict=True))
        assert server.steps(runs[str(chain_id)], "wasserstein") == sorted(expected)


def test_what_mlflow_missed_is_sent_when_it_is_back(server: MlflowServer, tmp_path: Path, ray_instance: str) -> None:
    """It is killed during a study and started again before its end: nothing is missing, and nothing is there twice."""
    storage = tmp_path / "runs"
    server.start()
    arguments = ("--address", ray_instance, "--set", "resources.num_cpus=1", "--set", "generations=16")
    arguments += ("--set", "evaluation.samples=500")  # a second for each: the server has gone before the last
    running = start(write_study(tmp_path, "[0]"), storage, *arguments, tracking_uri=server.address)
    wait_for(lambda: generations(storage).height > 0, running)
    server.kill()
    seen, stages = generations(storage).height, len(completed(storage))
    wait_for(lambda: len(completed(storage)) > stages + 3, running)  # a generation more: its row follows in seconds
    trials = ours("Trainable.train")
    for trial in trials:  # until MLflow is back, which takes longer than the rest of the study
        trial.suspend()
    wait_for(lambda: generations(storage).height > seen, running)
    assert generations(storage).height < 16
    server.start()
    for trial in trials:
        trial.resume()
    printed, _ = running.communicate(timeout=300)
    assert running.returncode == 0, printed
    assert "The sweep goes on" in printed
    assert "not sent" not in printed
    assert_runs_are_whole(server, storage)


@SOAK
def test_soak_mlflow_away_to_the_end(server: MlflowServer, tmp_path: Path, ray_instance: str) -> None:
    """The study ends and says where its records are, and which command sends them; that one computes nothing."""
    study, storage, arguments = write_study(tmp_path), tmp_path / "runs", ("--address", ray_instance)
    printed = sweep(study, storage, *arguments, tracking_uri=server.address)
    said = [line for line in printed.splitlines() if line.startswith("MLflow: ")]
    assert f"not sent to MLflow ({server.address})" in said[0]
    assert f"{storage}/faults" in said[-1]
    assert "the same `fortifai sweep` sends what is missing" in said[-1]
    before = completed(storage)
    server.start()
    printed = sweep(study, storage, *arguments, tracking_uri=server.address)
    assert "not sent" not in printed
    assert "stages computed 0" in " ".join(printed.split())
    assert completed(storage) == before
    assert_runs_are_whole(server, storage)
