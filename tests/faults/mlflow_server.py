"""A real MLflow server on loopback, which can be killed and started again on the same database and port."""

import os
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from ports import unused_port


class MlflowServer:
    """A server on ``folder``'s own database; :meth:`start` it, at the same address each time."""

    def __init__(self, folder: Path) -> None:
        self._port = unused_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 120) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        where = {
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{self._folder}/server.db",
            "MLFLOW_ARTIFACTS_DESTINATION": (self._folder / "artifacts").as_uri(),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--workers", "1"], env=os.environ | where, stdout=log, stderr=log
            )
        deadline = time.monotonic() + seconds
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline, "MLflow did not start"
            time.sleep(0.2)

    def kill(self) -> None:
        """``kill -9`` of the server and its workers."""
        if self._process is None:
            return
        with suppress(psutil.NoSuchProcess):
            whole = psutil.Process(self._process.pid)
            for process in [whole, *whole.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
        self._process = None

    def runs(self, experiment: str) -> dict[str, Run]:
        """The runs of an experiment by their chains' ids, the study's own under ""."""
        client = MlflowClient(self.address)
        known = client.get_experiment_by_name(experiment)
        assert known is not None
        runs = client.search_runs([known.experiment_id])
        by_chain = {run.data.tags.get("fortifai.chain_id", ""): run for run in runs}
        assert len(by_chain) == len(runs), "a chain has two runs"
        return by_chain

    def steps(self, run: Run, metric: str) -> list[tuple[int, float]]:
        """A metric's values by step, as often as they were logged."""
        history = MlflowClient(self.address).get_metric_history(run.info.run_id, metric)
        return sorted((point.step, point.value) for point in history)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                return True
        except OSError:
            return False
