"""Where the runs are, without credentials; and MLflow's own server and page on them."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from analysis.browser import Browser, started
from mlflow import MlflowClient
from ports import unused_port

from fortifai_ray.doctor import check_tracking
from fortifai_ray.errors import UserError
from fortifai_ray.tracking.address import list_view, open_ui, redact, tracking_uri_for
from fortifai_ray.tracking.sync import StudySync

from .folders import rows_of, runs, sweep, write_end, write_generations, write_study


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


def test_a_list_of_runs_has_the_studys_columns() -> None:
    """Each varied key, a section's too, what an experiment's tag has room for, and the results."""
    view = json.loads(list_view({"vary": {"loss": [{"kind": "ce"}, {"kind": "tce", "gamma": 0.3}], "seed": [0]}}))
    keys = [column for column in view["selectedColumns"] if column.startswith("params.")]
    assert keys == ["params.`loss.kind`", "params.`loss.gamma`", "params.`seed`"]
    assert view["selectedColumns"][len(keys) :] == ["metrics.`result/onset`", "tags.`fortifai.status`"]
    assert len(list_view({"vary": {"x" * 200 + f".{number}": [0] for number in range(50)}})) < 5000


@pytest.fixture(scope="class")
def served(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[tuple[Path, str]]:
    """A storage after a sweep and the address of `open_ui` on it, in a process of its own; Ctrl-C must end that."""
    storage, port = tmp_path_factory.mktemp("served"), unused_port()
    code = "import sys; from pathlib import Path; from fortifai_ray.tracking.address import open_ui; "
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


def drawn(browser: Browser, condition: str) -> None:
    """Wait until a page's condition holds, for a minute."""
    deadline = time.monotonic() + 60
    while not browser.call("Runtime.evaluate", expression=condition)["result"].get("value"):
        assert time.monotonic() < deadline, condition
        time.sleep(0.3)


class TestUserInterface:
    def test_it_serves_the_storages_runs(self, served: tuple[Path, str]) -> None:
        """The server people get, at the loopback address that was printed, with the runs of the sweep."""
        storage, address = served
        remote = MlflowClient(address)
        experiment = remote.get_experiment_by_name("small")
        assert experiment is not None
        assert len(remote.search_runs([experiment.experiment_id])) == 3
        printed = (storage / "server.log").read_text()
        assert (
            f"small: {address}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning" in printed
        )

    def test_the_page_shows_the_runs_and_the_studys_curves(self, served: tuple[Path, str], tmp_path: Path) -> None:
        """In a browser: the printed address opens the list of runs with a column for each varied key, the onset and the
        status, in the order of the grid; and the study's run has a curve on its charts."""
        if (chromium := shutil.which("chromium")) is None:
            pytest.skip("chromium is not installed (apt-get install chromium)")
        storage, address = served
        (study,) = runs(storage)[""]
        runs_page = f"{address}/#/experiments/{study.info.experiment_id}/runs"
        charts = f"{runs_page}/{study.info.run_id}/model-metrics?workflowType=machine_learning"
        with started(chromium, tmp_path) as browser:
            (printed,) = re.findall(r"small: (\S+)", (storage / "server.log").read_text())
            browser.call("Page.navigate", url=printed)
            drawn(browser, "document.body.innerText.includes('matching runs')")
            heads = "[...document.querySelectorAll('[role=columnheader]')].map(one => one.innerText.trim()).join('|')"
            for column in ("loss.kind", "loss.gamma", "seed", "result/onset", "fortifai.status"):
                drawn(browser, f"{heads}.includes('{column}')")
            drawn(browser, "document.body.innerText.includes('collapsed')")
            assert (
                "Judges"
                not in browser.call("Runtime.evaluate", expression="document.body.innerText")["result"]["value"]
            )
            browser.call("Page.navigate", url=charts)
            drawn(browser, "document.querySelectorAll('.js-plotly-plot .scatterlayer path.js-line').length > 0")

    def test_a_sweep_can_send_to_a_server(
        self, served: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """The same records over HTTP, twice, NaN included: the server places the artefacts, nothing is doubled."""
        storage, address = served
        for _ in range(2):
            folder, study = write_study(tmp_path_factory.mktemp("remote"), name="remote")
            chain = study.chains[0]
            rows = [*rows_of(chain, 1), {**rows_of(chain, 2)[1], "wasserstein": math.nan}]
            write_generations(folder, rows)
            write_end(folder, [chain], "survived")
            outcome = StudySync(folder, Path("/nowhere"), address).close("finished")
            assert outcome.problems == []
        remote = MlflowClient(address)
        logged = remote.search_runs([str(outcome.experiment_id)])
        assert len(logged) == 2
        chain_run = next(run.info.run_id for run in logged if "fortifai.chain_id" in run.data.tags)
        first, second = (point.value for point in remote.get_metric_history(chain_run, "wasserstein"))
        assert first == 300.0
        assert math.isnan(second)
        assert [file.path for file in remote.list_artifacts(chain_run, "samples")] == [
            "samples/generation_000.txt",
            "samples/generation_001.txt",
        ]
        assert list((storage / "mlartifacts").glob(f"*/{chain_run}/**/generation_000.txt"))

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
