"""What MLflow holds of a study's folder, that nothing is logged twice, and that MLflow can never break a sweep."""

import json
import logging
import math
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from mlflow import MlflowClient
from ports import unused_port

from fortifai_ray.results.schema import write_table
from fortifai_ray.tracking.machine_load import is_due
from fortifai_ray.tracking.sync import StudySync

from .folders import (
    artefact,
    client,
    generations_table,
    rows_of,
    runs,
    steps,
    sweep,
    write_end,
    write_generations,
    write_study,
)

CE, TCE = "cross entropy · seed 0", "TCE γ=0.3 · seed 0"


class TestWhatIsLogged:
    def test_a_study_run_with_a_nested_run_per_chain(self, storage: Path) -> None:
        """The layout people open in MLflow: names, nesting, parameters, ends and results."""
        outcome = sweep(storage)
        assert outcome.problems == []
        logged = runs(storage)
        assert {key: len(value) for key, value in logged.items()} == {"": 1, CE: 1, TCE: 1}
        parent, tce = logged[""][0], logged[TCE][0]
        assert (parent.info.run_id, parent.info.run_name) == (outcome.study_run_id, "small")
        experiment = client(storage).get_experiment(str(outcome.experiment_id))
        assert experiment.name == "small"
        assert experiment.tags["mlflow.experimentKind"] == "custom_model_development", "else it opens as GenAI"
        assert tce.data.tags["mlflow.parentRunId"] == parent.info.run_id
        expected = {"loss.kind": "tce", "loss.gamma": "0.3", "seed": "0", "family.data.path": "null"}
        assert expected.items() <= tce.data.params.items()
        assert {run.info.status for run in (parent, tce)} == {"FINISHED"}
        assert tce.data.tags["fortifai.status"] == "collapsed"
        assert parent.data.tags["fortifai.status"] == "finished"
        assert tce.data.tags["fortifai.result.metric"] == "wasserstein"
        assert tce.data.metrics["result/onset"] == 1.0

    def test_metrics_have_the_generation_as_their_step(self, storage: Path) -> None:
        """What was not measured is left out, not logged as a zero."""
        sweep(storage)
        run = runs(storage)[CE][0]
        assert steps(storage, run, "wasserstein") == [(0, 300.0), (1, 600.0), (2, 1200.0)]
        assert steps(storage, run, "synthetic_size_cum") == [(0, 0.0), (1, 100.0), (2, 200.0)]
        assert "kept_fraction" not in run.data.metrics

    def test_artefacts_are_the_study_each_recipe_the_samples_and_the_results(self, storage: Path) -> None:
        """The study's own lie as in its folder."""
        sweep(storage)
        logged, folder = runs(storage), storage / "small"
        parent, tce = logged[""][0].info.run_id, logged[TCE][0].info.run_id
        for name in ("study.yaml", "report.html", "results/summary.json"):
            assert artefact(storage, parent, name) == (folder / name).read_text()
        tables = [file.path for file in client(storage).list_artifacts(parent, "results")]
        assert tables == [
            f"results/{n}" for n in ("chains.parquet", "generations.parquet", "samples.parquet", "summary.json")
        ]
        recipe = yaml.safe_load(artefact(storage, tce, "recipe.yaml"))
        assert recipe == write_study(storage)[1].chains[1].recipe.model_dump(mode="json")
        assert artefact(storage, tce, "samples/generation_002.txt") == "[7] once ▸ 2 times"
        assert (storage / "mlartifacts" / "small" / parent).is_dir()

    def test_pictures_are_artefacts(self, storage: Path) -> None:
        folder, study = write_study(storage)
        chain = study.chains[0]
        write_table(folder, "generations", generations_table(rows_of(chain, 1)))
        pictures = pl.DataFrame([{"chain_id": chain.chain_id, "generation": 0, "png": b"\x89PNG"}])
        write_table(folder, "pictures", pictures)
        write_end(folder, [chain])
        assert StudySync(folder, storage).close("finished").problems == []
        path = client(storage).download_artifacts(runs(storage)[CE][0].info.run_id, "samples/generation_000.png")
        assert Path(path).read_bytes() == b"\x89PNG"

    def test_a_failed_chain_says_why_and_a_recorded_collapse_is_seen(self, storage: Path) -> None:
        folder, study = write_study(storage)
        rows = rows_of(study.chains[0], 2)
        rows[1] |= {"wasserstein": math.nan, "collapse_reason": "the loss is NaN"}
        write_generations(folder, rows)
        write_end(folder, study.chains[:1], "failed", "out of memory at http://ada:hunter2@host")
        for _ in range(2):  # it fails again
            assert StudySync(folder, storage).close("failed").problems == []
            (run,) = runs(storage)[CE]
            assert run.info.status == "FAILED"
        assert run.data.tags["fortifai.reason"] == "out of memory at http://***@host"
        assert math.isnan(run.data.metrics["wasserstein"])
        assert steps(storage, run, "recorded_collapse") == [(1, 1.0)]

    def test_generations_arrive_while_the_study_runs(self, storage: Path) -> None:
        """Each once, part files of the tables among them, and the tables so far."""
        folder, study = write_study(storage)
        rows = rows_of(study.chains[0])
        sync = StudySync(folder, storage)
        write_generations(folder, rows[:1])
        sync.poke()
        until(lambda: "results" in paths(storage, runs(storage).get("", [])))
        part = folder / "results" / "parts" / "generations-000001.parquet"
        part.parent.mkdir()
        write_table(folder, "whole", generations_table(rows[1:2]))
        (folder / "results" / "whole.parquet").rename(part)
        sync.poke()
        until(lambda: runs(storage)[CE][0].data.metrics["wasserstein"] == 600.0)
        assert runs(storage)[CE][0].info.status == "RUNNING"
        write_generations(folder, rows)
        write_end(folder, study.chains[:1])
        assert sync.close("finished").problems == []
        assert steps(storage, runs(storage)[CE][0], "wasserstein") == [(0, 300.0), (1, 600.0), (2, 1200.0)]


def paths(storage: Path, logged: list[Any]) -> list[str]:
    return [file.path for run in logged for file in client(storage).list_artifacts(run.info.run_id)]


def until(condition: Any) -> None:
    """Wait; pytest's own limit bounds it."""
    while not condition():
        time.sleep(0.1)


def contents(storage: Path) -> dict[str, Any]:
    """All that is in the runs and could change, for comparing before and after."""
    mlflow = client(storage)
    state: dict[str, Any] = {}
    for run in (run for some in runs(storage).values() for run in some):
        points = {key: mlflow.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        history = {key: [(m.step, m.value, m.timestamp) for m in metrics] for key, metrics in points.items()}
        state[run.info.run_id] = (run.info.status, run.info.end_time, run.data.params, run.data.tags, history)
    return state


class TestRunAgain:
    def test_a_second_run_of_a_finished_study_changes_nothing(
        self, storage: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No run, step or parameter twice, the runs keep their end; and it takes no request per metric to see that."""
        first = sweep(storage)
        before = contents(storage)
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "get_metric_history", None)
            assert sweep(storage) == first
        assert contents(storage) == before

    def test_a_killed_study_continues_in_its_runs(self, storage: Path) -> None:
        """kill -9 leaves runs RUNNING: the next sweep takes them up, adds what is missing and ends them."""
        code = (
            "import os, signal, sys, time; from pathlib import Path; from tests.tracking.folders import *\n"
            "storage = Path(sys.argv[1]); folder, study = write_study(storage)\n"
            "write_generations(folder, rows_of(study.chains[0], 2))\n"
            "StudySync(folder, storage).poke()\n"
            "while not list(storage.glob('mlartifacts/**/generation_001.txt')): time.sleep(0.1)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        root = Path(__file__).resolve().parents[2]
        killed = subprocess.run([sys.executable, "-c", code, str(storage)], cwd=root, timeout=300, check=False)
        assert killed.returncode == -signal.SIGKILL
        left = runs(storage)
        assert {key: [run.info.status for run in some] for key, some in left.items()} == {
            "": ["RUNNING"],
            CE: ["RUNNING"],
        }
        assert sweep(storage).problems == []
        logged = runs(storage)
        assert logged[CE][0].info.run_id == left[CE][0].info.run_id
        assert {key: [run.info.status for run in some] for key, some in logged.items()} == {
            "": ["FINISHED"],
            CE: ["FINISHED"],
            TCE: ["FINISHED"],
        }
        assert steps(storage, logged[CE][0], "wasserstein") == [(0, 300.0), (1, 600.0), (2, 1200.0)]

    def test_an_interrupted_study_closes_its_chains_and_can_continue(self, storage: Path) -> None:
        folder, study = write_study(storage)
        write_generations(folder, rows_of(study.chains[0], 1))
        sync = StudySync(folder, storage)
        sync.poke()
        until(lambda: CE in runs(storage))
        write_end(folder, [])
        assert sync.close("interrupted").problems == []
        assert {run.info.status for some in runs(storage).values() for run in some} == {"KILLED"}
        assert sweep(storage).problems == []
        logged = runs(storage)
        assert {run.info.status for some in logged.values() for run in some} == {"FINISHED"}
        assert [len(some) for some in logged.values()] == [1, 1, 1]
        assert steps(storage, logged[CE][0], "wasserstein") == [(0, 300.0), (1, 600.0), (2, 1200.0)]

    def test_a_changed_study_gets_a_run_of_its_own(self, storage: Path) -> None:
        """Runs of different versions of a study never mix, though they share a name and a storage."""
        first, second = sweep(storage), sweep(storage, early_stopping=False)
        assert first.experiment_id == second.experiment_id
        assert first.study_run_id != second.study_run_id
        parents = [run.data.tags["mlflow.parentRunId"] for run in runs(storage)[CE]]
        assert sorted(parents) == sorted([str(first.study_run_id), str(second.study_run_id)])

    def test_other_values_for_logged_generations_are_reported(self, storage: Path) -> None:
        """MLflow cannot replace a value, so a run that measured another one says so instead of staying silent."""
        sweep(storage)
        folder, study = write_study(storage)
        rows = [row for chain in study.chains for row in rows_of(chain)]
        rows[1]["wasserstein"] = 601.0
        write_generations(folder, rows)
        outcome = StudySync(folder, storage).close("finished")
        assert len(outcome.problems) == 1
        assert f"wasserstein in {CE}" in outcome.problems[0]

    def test_a_storage_that_moved_never_writes_to_its_old_place(self, storage: Path) -> None:
        """MLflow fixes an experiment's artefact folder as an absolute path; a copied storage needs another one."""
        sweep(storage)
        copy = storage / "elsewhere"
        copy.mkdir()
        shutil.copy(storage / "mlflow.db", copy / "mlflow.db")
        old = sorted((storage / "mlartifacts").rglob("*"))
        assert sweep(copy).problems == []
        assert sorted((storage / "mlartifacts").rglob("*")) == old
        assert list((copy / "mlartifacts").rglob("generation_002.txt"))

    def test_a_deleted_experiment_is_brought_back(self, storage: Path) -> None:
        outcome = sweep(storage)
        client(storage).delete_experiment(str(outcome.experiment_id))
        assert sweep(storage).problems == []
        assert client(storage).get_experiment(str(outcome.experiment_id)).lifecycle_stage == "active"


class TestTrouble:
    def test_an_unreachable_server_costs_the_sweep_nothing_and_is_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Said once while the sweep runs, and at its end what was not sent; no password in either."""
        port = unused_port()
        uri = f"http://ada:hunter2@127.0.0.1:{port}"
        folder, study = write_study(tmp_path)
        write_generations(folder, [row for chain in study.chains for row in rows_of(chain)])
        with caplog.at_level(logging.WARNING):
            sync = StudySync(folder, tmp_path, uri)
            for _ in range(50):
                sync.poke()
            until(lambda: caplog.records)
            write_end(folder, study.chains)
            outcome = sync.close("finished", patience=30.0)
        assert (outcome.experiment_id, outcome.study_run_id) == (None, None)
        assert [record.name for record in caplog.records] == ["fortifai_ray.tracking"]
        assert "The sweep goes on" in caplog.text
        text = caplog.text + json.dumps(outcome.problems)
        assert "hunter2" not in text
        assert f"http://***@127.0.0.1:{port}" in text
        # two chains; the study file, the report, three tables, the summary, the overview, and the end of the study
        *unsent, remedy = outcome.problems
        assert sum(int(problem.split()[0]) for problem in unsent) == 10
        assert str(folder) in remedy
        assert "the same `fortifai sweep` sends" in remedy

    def test_a_server_that_never_answers_does_not_hold_the_sweep(self, tmp_path: Path) -> None:
        """A socket that accepts and says nothing: close() gives up after its patience."""
        folder, _ = write_study(tmp_path)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            sync = StudySync(folder, tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
            outcome = sync.close("finished", patience=1.0)
        assert any("no answer in time" in problem for problem in outcome.problems)

    def test_what_could_not_be_sent_at_first_is_sent_later(
        self, storage: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A file is in the artefact folder's place, then it is gone: nothing is missing, and metrics never waited."""
        (storage / "mlartifacts").write_text("in the way")
        folder, study = write_study(storage)
        write_generations(folder, rows_of(study.chains[0], 1))
        sync = StudySync(folder, storage)
        sync.poke()
        until(lambda: caplog.records and any(run.data.metrics for run in runs(storage).get(CE, [])))
        (storage / "mlartifacts").unlink()
        write_end(folder, study.chains[:1])
        assert sync.close("finished").problems == []
        run = runs(storage)[CE][0]
        assert artefact(storage, run.info.run_id, "samples/generation_000.txt") == "[7] once ▸ 0 times"
        assert steps(storage, run, "wasserstein") == [(0, 300.0)]

    def test_samples_that_were_not_sent_in_the_end_are_sent_by_the_next_sweep(
        self, storage: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The chain's run has ended; that does not hide what it lacks."""
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_artifacts", None)
            problems = sweep(storage, chains=1).problems
        assert problems[0].startswith("1 record not sent")
        assert CE in problems[0]
        assert runs(storage)[CE][0].info.status == "FINISHED"
        assert sweep(storage, chains=1).problems == []
        assert artefact(storage, runs(storage)[CE][0].info.run_id, "samples/generation_002.txt") == "[7] once ▸ 2 times"

    def test_an_experiment_that_another_sweep_makes_at_the_same_moment_is_shared(
        self, storage: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It appears between the look for it and its creation: no warning, and nothing is missing."""
        make = MlflowClient.create_experiment

        def slower(self: MlflowClient, *args: Any, **settings: Any) -> str:
            make(self, *args, **settings)
            return make(self, *args, **settings)

        monkeypatch.setattr(MlflowClient, "create_experiment", slower)
        assert sweep(storage).problems == []
        assert not caplog.records
        assert len(runs(storage)) == 3

    def test_one_bad_record_holds_back_nothing_else(self, storage: Path) -> None:
        """A report that was never written is the only thing missing in the end, and is named; so are damaged tables."""
        folder, study = write_study(storage)
        write_generations(folder, rows_of(study.chains[0], 1))
        write_end(folder, study.chains[:1])
        (folder / "report.html").unlink()
        outcome = StudySync(folder, storage).close("finished")
        assert len(outcome.problems) == 2, "what is missing, and how it is sent later"
        assert outcome.problems[0].startswith("1 record not sent")
        assert "report.html" in outcome.problems[0]
        assert runs(storage)[""][0].info.status == "FINISHED"
        assert runs(storage)[CE][0].data.metrics["wasserstein"] == 300.0
        (folder / "results" / "chains.parquet").write_bytes(b"PAR1")
        (folder / "report.html").write_text("<p>curves</p>")
        outcome = StudySync(folder, storage).close("finished")
        assert len(outcome.problems) == 2
        assert "2 records not sent" in outcome.problems[0], "the chains, and the overview that counts them"
        assert "chains.parquet cannot be read" in outcome.problems[0]

    def test_a_refusal_is_for_good_and_no_promise_is_made(
        self, storage: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What MLflow will never take is not sent again and again, nor announced for later; the rest is there."""
        asked: list[str] = []
        make = MlflowClient.create_run

        def refuse_one(self: MlflowClient, *args: Any, run_name: str, **settings: Any) -> Any:
            asked.append(run_name)
            return make(self, *args, run_name=run_name, **{**settings, "tags": {**settings["tags"], **bad(run_name)}})

        def bad(name: str) -> dict[str, str]:
            return {"mlflow.runName": "another"} if name == TCE else {}  # which MLflow itself refuses

        monkeypatch.setattr(MlflowClient, "create_run", refuse_one)
        folder, study = write_study(storage)
        sync = StudySync(folder, storage)
        for generations in (1, 2, 3):
            write_generations(folder, [row for chain in study.chains for row in rows_of(chain, generations)])
            sync.poke()
            until(
                lambda n=generations: (
                    runs(storage).get(CE) and len(steps(storage, runs(storage)[CE][0], "wasserstein")) == n
                )
            )
        assert asked.count(TCE) == 1
        write_end(folder, study.chains)
        outcome = sync.close("finished")
        assert asked.count(TCE) == 2, "once more in the end, and not for each generation"
        (problem,) = outcome.problems
        assert f"refuses {TCE}: " in problem
        assert problem.endswith(f"{folder} has all of it")
        assert "sent again later" not in caplog.text
        assert runs(storage)[CE][0].info.status == "FINISHED"

    def test_it_is_closed_once(self, storage: Path) -> None:
        folder, _ = write_study(storage)
        sync = StudySync(folder, storage)
        outcome = sync.close("finished")
        sync.poke()
        assert sync.close("failed") is outcome


def _delete_a_chain(storage: Path) -> None:
    client(storage).delete_run(runs(storage)[CE][0].info.run_id)


def _delete_the_experiment(storage: Path) -> None:
    client(storage).delete_experiment(runs(storage)[""][0].info.experiment_id)


def _leave_a_chain_open(storage: Path) -> None:
    client(storage).update_run(runs(storage)[TCE][0].info.run_id, status="RUNNING")


def _another_generation(storage: Path) -> None:
    folder, study = write_study(storage)
    write_generations(folder, [row for chain in study.chains for row in rows_of(chain, 4)])


class TestWhatIsHeldAlready:
    """A study that ended as it did before: MLflow, whose import takes seconds, is asked only where a part may lack."""

    @pytest.mark.parametrize(
        ("change", "asked"),
        [
            (lambda storage: None, False),
            (_delete_a_chain, True),
            (_delete_the_experiment, True),
            (_leave_a_chain_open, True),
            (_another_generation, True),
            (lambda storage: shutil.rmtree(storage / "mlartifacts"), True),
            (lambda storage: (storage / "mlflow.db").unlink(), True),
            (lambda storage: (storage / "small" / "report.html").write_text("<p>other curves</p>"), True),
        ],
    )
    def test_it_is_asked_where_a_part_is_gone_or_new(
        self, change: Any, asked: bool, storage: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, folder = sweep(storage), storage / "small"
        change(storage)
        connections = list[str]()
        made = MlflowClient.__init__

        def counted(self: MlflowClient, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
            connections.append(str(tracking_uri))
            made(self, tracking_uri, registry_uri)

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "__init__", counted)
            outcome = StudySync(folder, storage).close("finished")
        assert bool(connections) == asked
        assert outcome.problems == []
        if not asked:
            assert outcome == first
        assert {name: len(found) for name, found in runs(storage).items()} == {"": 1, CE: 1, TCE: 1}

    def test_a_study_that_lacked_something_is_looked_at_again(
        self, storage: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What MLflow did not take, or what failed, is tried again by every later sweep."""
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_artifacts", None)
            assert sweep(storage).problems
        assert StudySync(storage / "small", storage).close("finished").problems == []
        assert artefact(storage, runs(storage)[CE][0].info.run_id, "recipe.yaml")


@pytest.mark.parametrize(
    ("switch", "seconds", "due"),
    [(None, 0, False), (None, 700, True), ("true", 0, True), ("1", 0, True), ("false", 700, False), ("", 10, False)],
)
def test_a_long_sweep_is_watched(
    monkeypatch: pytest.MonkeyPatch, switch: str | None, seconds: float, due: bool
) -> None:
    """Or any, or none, as MLflow's own switch says."""
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    if switch is not None:
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", switch)
    assert is_due(seconds) == due


def test_what_the_machine_does_is_on_the_studys_run(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the sweep runs; and the study's run ends with it as any does."""
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    folder, study = write_study(storage)
    write_generations(folder, rows_of(study.chains[0], 1))
    sync = StudySync(folder, storage)
    sync.poke()
    seen = "system/cpu_utilization_percentage"
    while not any(seen in run.data.metrics for run in runs(storage).get("", ())):
        assert sync._thread.is_alive()
        write_generations(folder, rows_of(study.chains[0], 2))
        sync.poke()
    write_generations(folder, [row for chain in study.chains for row in rows_of(chain)])
    write_end(folder, study.chains)
    assert sync.close("finished").problems == []
    (run,) = runs(storage)[""]
    assert run.info.status == "FINISHED"
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]
