"""``cluster/mlflow_server.py`` over PostgreSQL and an S3 server: whole studies log to it, two of them at once."""

import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.server.auth.client import AuthServiceClient
from ports import unused_port
from storage.conftest import S3, start_server

from cluster.files import CLUSTER
from cluster.shared_mlflow import DATABASE_PASSWORD, postgres, write_certificate

SERVER = CLUSTER / "mlflow_server.py"
ADMIN_PASSWORD, PASSWORD = "password-of-the-admin", "password-of-a-researcher"
STUDY = """
name: shared
family: {kind: gaussian}
samples_per_generation: 50
generations: 5
vary: {seed: [0, 1]}
collapse: {metric: trace_ratio, threshold: 0.5, direction: below}
resources: {num_cpus: 1}
"""

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]


class TestWhatItRefuses:
    """Each mistake gets one line, before anything starts."""

    @staticmethod
    def refusal(*arguments: str, **environment: str) -> str:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PG", "AWS_", "MLFLOW_"))
        }
        command = [sys.executable, str(SERVER), "--port", str(unused_port()), *arguments]
        done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        return done.stderr

    def test_passwords_in_the_clear(self, tmp_path: Path) -> None:
        assert "--host 0.0.0.0: others can reach it" in self.refusal("--host", "0.0.0.0")
        certificate, _ = write_certificate(tmp_path)
        assert "--key: missing" in self.refusal("--host", "0.0.0.0", "--certificate", str(certificate))

    def test_a_database_that_does_not_answer(self) -> None:
        """The line does not contain its password."""
        nowhere = {"PGHOST": "127.0.0.1", "PGPORT": str(unused_port()), "PGPASSWORD": DATABASE_PASSWORD}
        message = self.refusal(**nowhere)
        assert "PostgreSQL: " in message
        assert "PGHOST" in message
        assert DATABASE_PASSWORD not in message


@dataclass(frozen=True)
class Service:
    """The server, where its artefacts are, and the environment of its clients."""

    url: str
    s3: S3
    client: dict[str, str]
    log: Path

    def get(self, path: str) -> None:
        """Send a request without a password. Raises OSError where it is refused or not answered."""
        trusted = ssl.create_default_context(cafile=self.client["MLFLOW_TRACKING_SERVER_CERT_PATH"])
        urllib.request.urlopen(self.url + path, context=trusted, timeout=30).close()

    def sweep(self, folder: Path, user: str, seeds: list[int]) -> "subprocess.Popen[str]":
        """Start a study from the command line, with the user's password in the address."""
        folder.mkdir()
        study = yaml.safe_load(STUDY) | {"vary": {"seed": seeds}}
        (folder / "shared.yaml").write_text(yaml.safe_dump(study))
        address = self.url.replace("://", f"://{user}:{PASSWORD}@")
        command = [sys.executable, "-m", "fortifai_ray", "sweep", "shared.yaml", "--storage", "runs"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        environment |= self.client | {"MLFLOW_TRACKING_URI": address}
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The server, started as cluster/README.md says, but on loopback; it has two researchers."""
    folder = tmp_path_factory.mktemp("mlflow")
    certificate, key = write_certificate(folder)
    port = unused_port()
    with postgres() as database, start_server() as s3:
        s3.filesystem().create_dir("group")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment |= database | s3.environment | {"AWS_DEFAULT_REGION": "us-east-1"}
        environment |= {
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://group/mlflow",
            "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
        }
        command = [sys.executable, str(SERVER), "--port", str(port), "--workers", "1"]
        command += ["--certificate", str(certificate), "--key", str(key)]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            client = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(certificate)}
            ready = Service(f"https://127.0.0.1:{port}", s3, client, folder / "log")
            _wait(ready, server)
            yield ready
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait(service: Service, server: "subprocess.Popen[bytes]") -> None:
    while True:  # bounded by pytest's own limit
        assert server.poll() is None, service.log.read_text()
        try:
            service.get("/health")
        except OSError:
            time.sleep(0.5)
        else:
            return


@pytest.fixture
def researcher(service: Service, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client with a researcher's password; the admin has given it to ada and to grace."""
    for name, value in service.client.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN_PASSWORD)
    for user in ("ada", "grace"):
        AuthServiceClient(service.url).create_user(user, PASSWORD)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    return MlflowClient(service.url)


def test_two_studies_at_once_lose_no_run_and_artefacts_reach_s3_through_the_server(
    service: Service, researcher: MlflowClient, tmp_path: Path
) -> None:
    """Two people run studies of one name; neither has a key of the object store, or a way around the passwords."""
    seeds = {"ada": [0, 1], "grace": [2, 3, 4]}
    running = {user: service.sweep(tmp_path / user, user, chosen) for user, chosen in seeds.items()}
    for process in running.values():
        printed, _ = process.communicate(timeout=500)
        assert process.returncode == 0, printed
        assert "MLflow" not in printed, printed  # it would be there if anything had not been sent
        assert PASSWORD not in printed
    experiment = researcher.get_experiment_by_name("shared")
    runs = researcher.search_runs([experiment.experiment_id])
    studies = {run.info.run_id: run for run in runs if run.data.tags["fortifai.kind"] == "study"}
    assert len(studies) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    counts = [series_length(researcher, run) for run in runs if run.info.run_id not in studies]
    assert counts == [5, 5]
    for run_id in studies:
        assert b"trace ratio" in Path(researcher.download_artifacts(run_id, "report.html", str(tmp_path))).read_bytes()
        assert f"{experiment.experiment_id}/{run_id}/artifacts/report.html" in service.s3.files("s3://group/mlflow")
    with pytest.raises(urllib.error.HTTPError) as refused:
        service.get("/api/2.0/mlflow/experiments/search?max_results=1")
    assert refused.value.code == 401
    for secret in (PASSWORD, ADMIN_PASSWORD, DATABASE_PASSWORD, service.s3.environment["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in service.log.read_text()


def series_length(client: MlflowClient, run: Run) -> int:
    """How many generations a run holds."""
    key = next(key for key in run.data.metrics if key.startswith("trace_ratio"))
    return len(client.get_metric_history(run.info.run_id, key))
