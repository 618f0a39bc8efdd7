"""MLflow: what a study's runs hold, that nothing is logged twice, and that MLflow can never break a sweep."""

import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from fortifai_ray.doctor import check_tracking
from fortifai_ray.errors import UserError
from fortifai_ray.tracking import ChainInfo, StudyTracker, TrackingOutcome, open_ui, redact, tracking_uri_for

STUDY: dict[str, Any] = {"name": "small", "loss": {"kind": "tce", "gamma": 0.3}, "generations": 3}
CHAINS = [
    ChainInfo("aaa", "cross_entropy · seed 0", {"loss.kind": "cross_entropy", "seed": 0, "corpus.path": None}),
    ChainInfo("bbb", "tce γ=0.3 · seed 0", {"loss.kind": "tce", "loss.gamma": 0.3, "seed": 0, "stop": ["a", "b"]}),
]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing else, made once: making it takes seconds."""
    folder = tmp_path_factory.mktemp("schema")
    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def storage(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


def client(storage: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{storage}/mlflow.db")


def runs(storage: Path) -> dict[str, list[Run]]:
    """Every run of every experiment in the storage, by chain id; the study's own under ""."""
    mlflow = client(storage)
    found: dict[str, list[Run]] = {}
    for run in mlflow.search_runs([experiment.experiment_id for experiment in mlflow.search_experiments()]):
        found.setdefault(run.data.tags.get("fortifai.chain_id", ""), []).append(run)
    return found


def artefact(storage: Path, run_id: str, path: str) -> str:
    return Path(client(storage).download_artifacts(run_id, path)).read_text()


def sweep(
    storage: Path, chains: int = 2, generations: int = 3, finish: bool = True, study: dict[str, Any] | None = None
) -> TrackingOutcome:
    """What a sweep says: ``generations`` generations of the first ``chains`` chains, then their ends and its own."""
    tracker = StudyTracker("small", storage, study or STUDY, CHAINS)
    for chain in CHAINS[:chains]:
        for g in range(generations):
            metrics = {"perplexity": 300.0 * 2**g, "kept_fraction": None, "train_seconds": time.perf_counter()}
            tracker.log_generation(chain.chain_id, g, metrics, f"sample of {chain.chain_id} {g}")
        if finish:
            tracker.finish_chain(chain.chain_id, "collapsed", None, {"onset": 1.0, "censored": False, "unit": "tokens"})
    report = storage / "report.html"
    report.write_text("<p>curves</p>")
    return tracker.finish("finished" if finish else "interrupted", [report], {"overhead": 0.3})


class TestWhatIsLogged:
    def test_a_parent_run_with_a_nested_run_per_chain(self, storage: Path) -> None:
        """The layout people open in MLflow: names, nesting, parameters, steps, ends and artefacts."""
        outcome = sweep(storage)
        assert (outcome.sent, outcome.problems) == (True, [])
        found = runs(storage)
        assert {key: len(value) for key, value in found.items()} == {"": 1, "aaa": 1, "bbb": 1}
        parent, tce = found[""][0], found["bbb"][0]
        assert (parent.info.run_id, parent.info.run_name) == (outcome.parent_run_id, "small")
        assert client(storage).get_experiment(str(outcome.experiment_id)).name == "small"
        assert tce.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert tce.info.run_name == "tce γ=0.3 · seed 0"
        assert tce.data.params == {"loss.kind": "tce", "loss.gamma": "0.3", "seed": "0", "stop": '["a", "b"]'}
        assert found["aaa"][0].data.params["corpus.path"] == "null"
        assert {run.info.status for run in (parent, tce)} == {"FINISHED"}
        assert tce.data.tags["fortifai.status"] == "collapsed"
        assert tce.data.tags["fortifai.result.unit"] == "tokens"
        assert tce.data.metrics["result/onset"] == 1.0
        assert parent.data.metrics == {"overhead": 0.3}

    def test_metrics_have_the_generation_as_their_step(self, storage: Path) -> None:
        """A None is left out, not logged as a zero."""
        sweep(storage)
        run = runs(storage)["aaa"][0]
        history = client(storage).get_metric_history(run.info.run_id, "perplexity")
        assert [(metric.step, metric.value) for metric in history] == [(0, 300.0), (1, 600.0), (2, 1200.0)]
        assert "kept_fraction" not in run.data.metrics

    def test_artefacts_are_the_study_each_recipe_the_samples_and_the_report(self, storage: Path) -> None:
        sweep(storage)
        found = runs(storage)
        parent, tce = found[""][0].info.run_id, found["bbb"][0].info.run_id
        assert yaml.safe_load(artefact(storage, parent, "study.yaml")) == STUDY
        assert artefact(storage, parent, "report.html") == "<p>curves</p>"
        recipe = {"loss": {"kind": "tce", "gamma": 0.3}, "seed": 0, "stop": ["a", "b"]}
        assert yaml.safe_load(artefact(storage, tce, "recipe.yaml")) == recipe
        assert artefact(storage, tce, "samples/generation_002.txt") == "sample of bbb 2"
        assert (storage / "mlartifacts" / "small" / parent).is_dir()

    def test_infinite_and_undefined_values_are_not_lost(self, storage: Path) -> None:
        """MLflow would store an infinity as 1.8e308, a plausible number: it becomes a tag; NaN stays NaN."""
        tracker = StudyTracker("small", storage, STUDY, CHAINS)
        tracker.log_generation("aaa", 1, {"perplexity": math.inf, "loss": math.nan, "accuracy@1": 0.5}, None)
        tracker.finish_chain("aaa", "failed", "the loss is NaN", {"onset": math.inf})
        assert tracker.finish("failed").problems == []
        run = runs(storage)["aaa"][0]
        assert run.data.tags["fortifai.infinite.perplexity.001"] == "inf"
        assert "perplexity" not in run.data.metrics
        assert math.isnan(run.data.metrics["loss"])
        assert run.data.metrics["accuracy_1"] == 0.5
        assert run.info.status == "FAILED"
        assert run.data.tags["fortifai.reason"] == "the loss is NaN"
        assert run.data.tags["fortifai.result.onset"] == "Infinity"

    def test_long_and_many_parameters_and_metrics_fit_mlflows_limits(self, storage: Path) -> None:
        """6,000 characters a value, 100 parameters and 1,000 metrics a request; the recipe has the whole value."""
        chain = ChainInfo("long", "long", {f"key{i}": i for i in range(250)} | {"prompt": "x" * 7000})
        tracker = StudyTracker("small", storage, STUDY, [chain])
        tracker.log_generation("long", 0, {f"metric{i}": float(i) for i in range(1500)}, None)
        assert tracker.finish("finished").problems == []
        run = runs(storage)["long"][0]
        assert len(run.data.params) == 251
        assert len(run.data.params["prompt"]) == 6000
        assert run.data.params["prompt"].endswith("(cut: whole in recipe.yaml)")
        assert yaml.safe_load(artefact(storage, run.info.run_id, "recipe.yaml"))["prompt"] == "x" * 7000
        assert run.data.metrics == {f"metric{i}": float(i) for i in range(1500)}


def contents(storage: Path) -> dict[str, Any]:
    """All that is in the runs and could change, for comparing before and after."""
    mlflow = client(storage)
    state: dict[str, Any] = {}
    for run in (run for some in runs(storage).values() for run in some):
        steps = {key: mlflow.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        history = {key: [(m.step, m.value, m.timestamp) for m in metrics] for key, metrics in steps.items()}
        state[run.info.run_id] = (run.info.status, run.info.end_time, run.data.params, run.data.tags, history)
    return state


class TestRunAgain:
    def test_a_second_run_of_a_finished_study_changes_nothing(self, storage: Path) -> None:
        """No run, step or parameter twice, and the runs keep their end, though timings differ."""
        first = sweep(storage)
        before = contents(storage)
        second = sweep(storage)
        assert contents(storage) == before
        assert second == first

    def test_a_killed_study_goes_on_in_its_runs(self, storage: Path) -> None:
        """kill -9 leaves runs RUNNING: the next sweep takes them up, adds what is missing and ends them."""
        code = (
            "import os, signal, sys, time; from pathlib import Path; from tests.tracking.test_tracking import *\n"
            "storage = Path(sys.argv[1]); tracker = StudyTracker('small', storage, STUDY, CHAINS)\n"
            "for g in range(2): tracker.log_generation('aaa', g, {'perplexity': 300.0 * 2**g}, f'sample of aaa {g}')\n"
            "while not list(storage.glob('mlartifacts/**/generation_001.txt')): time.sleep(0.1)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        root = Path(__file__).resolve().parents[2]
        killed = subprocess.run([sys.executable, "-c", code, str(storage)], cwd=root, timeout=120, check=False)
        assert killed.returncode == -signal.SIGKILL
        left = runs(storage)
        assert {key: [run.info.status for run in some] for key, some in left.items()} == {
            "": ["RUNNING"],
            "aaa": ["RUNNING"],
        }
        assert sweep(storage).problems == []
        found = runs(storage)
        assert found["aaa"][0].info.run_id == left["aaa"][0].info.run_id
        assert {key: [run.info.status for run in some] for key, some in found.items()} == {
            "": ["FINISHED"],
            "aaa": ["FINISHED"],
            "bbb": ["FINISHED"],
        }
        history = client(storage).get_metric_history(found["aaa"][0].info.run_id, "perplexity")
        assert [metric.step for metric in history] == [0, 1, 2]

    def test_an_interrupted_study_closes_its_chains_and_can_go_on(self, storage: Path) -> None:
        sweep(storage, chains=1, generations=1, finish=False)
        assert {run.info.status for some in runs(storage).values() for run in some} == {"KILLED"}
        assert sweep(storage).problems == []
        found = runs(storage)
        assert {run.info.status for some in found.values() for run in some} == {"FINISHED"}
        assert [len(some) for some in found.values()] == [1, 1, 1]
        history = client(storage).get_metric_history(found[""][0].info.run_id, "overhead")
        assert [metric.step for metric in history] == [0, 1]

    def test_a_changed_study_gets_a_parent_of_its_own(self, storage: Path) -> None:
        """Runs of different studies never mix, though they share a name and a storage."""
        first, second = sweep(storage), sweep(storage, study=STUDY | {"generations": 4})
        assert first.experiment_id == second.experiment_id
        assert first.parent_run_id != second.parent_run_id
        parents = [run.data.tags["mlflow.parentRunId"] for run in runs(storage)["aaa"]]
        assert sorted(parents) == sorted([str(first.parent_run_id), str(second.parent_run_id)])

    def test_other_values_for_logged_generations_are_reported(self, storage: Path) -> None:
        """MLflow cannot replace a value, so a run that measured another one says so instead of staying silent."""
        sweep(storage)
        tracker = StudyTracker("small", storage, STUDY, CHAINS)
        tracker.log_generation("aaa", 1, {"perplexity": 601.0}, None)
        outcome = tracker.finish("finished")
        assert not outcome.sent
        assert len(outcome.problems) == 1
        assert "perplexity in cross_entropy · seed 0" in outcome.problems[0]

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


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TestTrouble:
    def test_an_unreachable_server_costs_the_sweep_nothing_and_is_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Said once while the sweep runs, and at its end what was not sent; no password in either."""
        port = unused_port()
        uri = f"http://ada:hunter2@127.0.0.1:{port}"
        with caplog.at_level(logging.WARNING):
            tracker = StudyTracker("small", tmp_path, STUDY, CHAINS, tracking_uri=uri)
            for g in range(50):
                tracker.log_generation("aaa", g, {"perplexity": 1.0}, "text")
            while not caplog.records:  # until the first attempt has failed (pytest's own limit bounds it)
                time.sleep(0.05)
            outcome = tracker.finish("finished", metrics={"overhead": 0.1}, patience=30.0)
        assert not outcome.sent
        assert (outcome.experiment_id, outcome.parent_run_id) == (None, None)
        assert [record.name for record in caplog.records] == ["fortifai_ray.tracking"]
        text = caplog.text + json.dumps(outcome.problems) + outcome.uri
        assert "hunter2" not in text
        assert f"http://***@127.0.0.1:{port}" in text
        # the study file, the recipe, 50 × (metrics, samples), the study's metrics and its end
        *unsent, remedy = outcome.problems
        assert sum(int(problem.split()[0]) for problem in unsent) == 104
        assert f"{tmp_path}/small" in remedy
        assert "the same `fortifai sweep` sends" in remedy

    def test_a_server_that_never_answers_does_not_hold_the_sweep(self, tmp_path: Path) -> None:
        """A socket that accepts and says nothing: finish() gives up after its patience."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
            tracker = StudyTracker("small", tmp_path, STUDY, CHAINS, tracking_uri=uri)
            outcome = tracker.finish("finished", patience=1.0)
        assert not outcome.sent
        assert any("no answer in time" in problem for problem in outcome.problems)

    def test_what_could_not_be_sent_at_first_is_sent_later(
        self, storage: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A file is in the artefact folder's place, then it is gone: nothing is missing, and metrics never waited."""
        (storage / "mlartifacts").write_text("in the way")
        tracker = StudyTracker("small", storage, STUDY, CHAINS)
        tracker.log_generation("aaa", 0, {"perplexity": 300.0}, "text")
        while not caplog.records:
            time.sleep(0.05)
        (storage / "mlartifacts").unlink()
        assert tracker.finish("finished").problems == []
        run = runs(storage)["aaa"][0]
        assert run.data.metrics == {"perplexity": 300.0}
        assert artefact(storage, run.info.run_id, "samples/generation_000.txt") == "text"
        assert len(client(storage).get_metric_history(run.info.run_id, "perplexity")) == 1

    def test_an_experiment_that_another_sweep_makes_at_the_same_moment_is_shared(
        self, storage: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It comes to be between the look for it and its making: nothing is told, nothing is missing."""
        make = MlflowClient.create_experiment

        def slower(self: MlflowClient, *args: Any, **settings: Any) -> str:
            make(self, *args, **settings)
            return make(self, *args, **settings)

        monkeypatch.setattr(MlflowClient, "create_experiment", slower)
        assert sweep(storage).problems == []
        assert not caplog.records
        assert len(runs(storage)) == 3

    def test_one_bad_record_holds_back_nothing_else(self, storage: Path) -> None:
        """A report that was never written is the only thing missing in the end, and is named."""
        tracker = StudyTracker("small", storage, STUDY, CHAINS)
        tracker.log_generation("aaa", 0, {"perplexity": 300.0}, "text")
        outcome = tracker.finish("finished", [storage / "no-report.html"], {"overhead": 0.1})
        assert len(outcome.problems) == 2, "what is missing, and how it is sent later"
        assert "no-report.html does not exist" in outcome.problems[0]
        assert runs(storage)[""][0].info.status == "FINISHED"
        assert runs(storage)["aaa"][0].data.metrics == {"perplexity": 300.0}

    def test_a_late_or_unknown_record_is_a_programming_error(self, storage: Path) -> None:
        tracker = StudyTracker("small", storage, STUDY, CHAINS)
        with pytest.raises(KeyError):
            tracker.log_generation("zzz", 0, {}, None)
        assert tracker.finish("finished") is tracker.finish("finished")
        with pytest.raises(RuntimeError, match="too late"):
            tracker.log_generation("aaa", 0, {}, None)


class TestWhere:
    def test_the_variable_is_honoured_and_an_empty_one_is_not_set(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        assert tracking_uri_for(tmp_path) == "http://127.0.0.1:1"
        assert tracking_uri_for(tmp_path, "sqlite:///x.db") == "sqlite:///x.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", " ")
        assert tracking_uri_for(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"

    def test_the_variables_database_gets_the_runs(
        self, storage: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{storage}/mlflow.db")
        assert sweep(elsewhere).problems == []
        assert not (elsewhere / "mlflow.db").exists()
        assert len(runs(storage)) == 3

    @pytest.mark.parametrize(
        ("text", "secret"),
        [
            ("http://ada:hunter2@host:5000/x", "hunter2"),
            ("cannot open postgresql+psycopg2://ada:hun@ter2@host/db (refused)", "ter2"),
            ("https://hunter2@host", "hunter2"),
            ("http://host/?token=hunter2&x=1", "hunter2"),
            ("401 for bearer hunter2", "hunter2"),
        ],
    )
    def test_credentials_are_never_shown(self, text: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
        assert secret not in redact(text)
        assert redact("http://host:5000/a@b") == "http://host:5000/a@b"


@pytest.fixture(scope="class")
def served(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[tuple[Path, str]]:
    """A storage after a sweep and the address of `open_ui` on it, in a process of its own; Ctrl-C must end that."""
    storage, port = tmp_path_factory.mktemp("served"), unused_port()
    code = "import sys; from pathlib import Path; from fortifai_ray.tracking import open_ui; "
    code += "open_ui(Path(sys.argv[1]), port=int(sys.argv[2]))"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        shutil.copy(empty_database, storage / "mlflow.db")
        sweep(storage)
        with (storage / "server.log").open("wb") as output:
            arguments = [sys.executable, "-c", code, str(storage), str(port)]
            server = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        answer(f"{address}/health")
        yield storage, address
        os.killpg(server.pid, signal.SIGINT)
        server.wait(60)
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"{address}/health", timeout=5)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answer(url: str, seconds: float = 90.0) -> bytes:
    """What the server says, once it answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return bytes(response.read())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


class TestUserInterface:
    def test_it_serves_the_storages_runs(self, served: tuple[Path, str]) -> None:
        """The server people get, at the loopback address that was printed, with the runs of the sweep."""
        storage, address = served
        remote = MlflowClient(address)
        experiment = remote.get_experiment_by_name("small")
        assert experiment is not None
        assert len(remote.search_runs([experiment.experiment_id])) == 3
        assert address in (storage / "server.log").read_text()

    def test_a_sweep_can_send_to_a_server(
        self, served: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """The same records over HTTP, twice, NaN included: the server places the artefacts, nothing is doubled."""
        storage, address = served
        for _ in range(2):
            folder = tmp_path_factory.mktemp("remote")
            tracker = StudyTracker("remote", Path("/nowhere"), STUDY, CHAINS, tracking_uri=address)
            tracker.log_generation("aaa", 0, {"perplexity": 300.0, "loss": math.nan}, "text")
            tracker.finish_chain("aaa", "survived", None, {"onset": None})
            (folder / "report.html").write_text("x")
            outcome = tracker.finish("finished", [folder / "report.html"], {"overhead": 0.1})
            assert outcome.problems == []
        remote = MlflowClient(address)
        found = remote.search_runs([str(outcome.experiment_id)])
        assert len(found) == 2
        chain = next(run for run in found if "fortifai.chain_id" in run.data.tags)
        assert len(remote.get_metric_history(chain.info.run_id, "perplexity")) == 1
        assert math.isnan(remote.get_metric_history(chain.info.run_id, "loss")[0].value)
        assert [file.path for file in remote.list_artifacts(chain.info.run_id, "samples")] == [
            "samples/generation_000.txt"
        ]
        assert list((storage / "mlartifacts").glob(f"*/{chain.info.run_id}/**/generation_000.txt"))

    def test_the_doctor_finds_the_server(self, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Asked as a sweep would ask (here because a real server is at hand)."""
        monkeypatch.setenv("MLFLOW_TRACKING_URI", served[1].replace("//", "//ada:hunter2@"))
        finding = check_tracking()
        assert finding.ok is True
        assert "answers" in finding.detail
        assert "hunter2" not in finding.detail

    def test_a_storage_without_runs_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(UserError, match=r"mlflow\.db does not exist"):
            open_ui(tmp_path)

    def test_a_port_in_use_is_named(self, storage: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
                open_ui(storage, port=port)

    def test_a_server_elsewhere_is_pointed_to_without_its_password(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:hunter2@mlflow.example:8443")
        open_ui(tmp_path)
        printed = capsys.readouterr().out
        assert "https://***@mlflow.example:8443" in printed
        assert "hunter2" not in printed
