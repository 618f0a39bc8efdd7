"""A study as a Ray job on three nodes of this machine, behind a token: its tables equal those of a run here."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cluster.files import CLUSTER

BIN = Path(sys.executable).parent
MULTI_NODE = Path(__file__).with_name("multi_node.py")
STUDY = """
name: launched
family: {kind: "my_families:Spread"}
samples_per_generation: 20
generations: 8
vary:
  regime: [{kind: replace}, {kind: accumulate}]
  seed: {count: 3}
collapse: {metric: spread, relative_to: absolute, threshold: 0.5, direction: below}
baseline: {regime.kind: accumulate}
"""
FAMILIES = """
import numpy as np


class Spread:
    metrics = ("spread",)

    def human(self, n, rng):
        return rng.normal(size=n)

    def fit(self, data):
        return data.mean(), data.std()

    def evaluate(self, model):
        return {"spread": model[1]}

    def generate(self, model, n, rng):
        return rng.normal(*model, size=n)
"""

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@dataclass(frozen=True)
class Cluster:
    address: str
    dashboard: str
    environment: dict[str, str]

    def ray(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Ray's own command line, with the cluster's token unless ``changes`` replace it."""
        command = [str(BIN / "ray"), *arguments]
        return subprocess.run(command, env=self.environment | changes, capture_output=True, text=True, timeout=300)

    def get(self, path: str, token: str) -> Any:
        """What the dashboard answers, as JSON."""
        request = urllib.request.Request(self.dashboard + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a token, as `ray get-auth-token --generate` writes one."""
    file = tmp_path_factory.mktemp("token") / "auth_token"
    file.write_text("5" * 64)
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def cluster(token: Path) -> Iterator[Cluster]:
    """A head without CPUs and two workers: processes of their own, behind the token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(MULTI_NODE), "2", "dashboard"]
    with subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        yield Cluster(started["address"], started["dashboard"], environment)
        process.stdin.close()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "my_families.py").write_text(FAMILIES)
    (folder / "launched.yaml").write_text(STUDY)
    return folder


def test_a_study_submitted_as_a_job_gives_the_tables_of_one_run_here(
    cluster: Cluster, token: Path, study: Path, tmp_path: Path
) -> None:
    """It ran in the right places: the driver on the head, and every trial on a worker, with the user's own module."""
    local = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    here = [str(BIN / "fortifai"), "sweep", "launched.yaml", "--storage", str(tmp_path / "here")]
    with subprocess.Popen(here, cwd=study, env=local, stdout=subprocess.DEVNULL) as running:
        # Not --address auto, which takes any Ray on this machine, perhaps another test's.
        command = ["sweep", "launched.yaml", "--storage", str(tmp_path / "job"), "--address", cluster.address]
        submitted = submit(cluster, study, str(BIN / "fortifai"), *command)
        assert running.wait(300) == 0
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "launched collapse" in submitted.stdout
    assert "on the way" not in submitted.stdout, "no autoscaler is waited for where there is none"
    nodes = {node["node_id"]: node["is_head_node"] for node in listed(cluster, token, "nodes")}
    actors = [
        actor for actor in listed(cluster, token, "actors") if actor["node_id"] in nodes
    ]  # not those that never started
    ran = {(actor["class_name"].rpartition(".")[2], nodes[actor["node_id"]]) for actor in actors}
    assert ("JobSupervisor", True) in ran
    assert ("ResourceTrainable", False) in ran
    assert ("ResourceTrainable", True) not in ran
    for table in ("generations", "chains", "fidelity"):
        assert_frame_equal(read(tmp_path / "job", table), read(tmp_path / "here", table))


def test_who_has_no_token_gets_nothing(cluster: Cluster, study: Path, tmp_path: Path) -> None:
    """Neither the dashboard nor the head answers without a token, or with a wrong one."""
    for stranger in ("", "6" * 64):
        with pytest.raises(urllib.error.HTTPError) as refused:
            cluster.get("/api/jobs/", stranger)
        assert refused.value.code in (401, 403)
    wrong = tmp_path / "wrong"
    wrong.write_text("6" * 64)
    sweep = [str(BIN / "fortifai"), "sweep", "launched.yaml", "--storage", str(tmp_path), "--address", cluster.address]
    environment = cluster.environment | {"RAY_AUTH_TOKEN_PATH": str(wrong), "RAY_NUM_REDIS_GET_RETRIES": "2"}
    refusal = subprocess.run(sweep, cwd=study, env=environment, capture_output=True, text=True, timeout=300)
    assert refusal.returncode != 0
    assert not (tmp_path / "launched" / "results" / "chains.parquet").exists()


def test_nodes_are_waited_for(cluster: Cluster) -> None:
    """`cluster/nodes.py` waits until the cluster has so many nodes, and gives up after its time limit."""
    script = [sys.executable, str(CLUSTER / "nodes.py"), "--address", cluster.address]
    run = {"env": cluster.environment, "capture_output": True, "text": True, "timeout": 120}
    there = subprocess.run([*script, "3"], **run)  # type: ignore[call-overload]
    assert (there.returncode, there.stdout) == (0, "3 of 3 nodes are there\n")
    missing = subprocess.run([*script, "4", "--timeout", "1"], **run)  # type: ignore[call-overload]
    assert missing.returncode == 1
    assert missing.stdout.endswith("3 of 4 nodes are there: gave up waiting\n")
    tokenless = {**run, "env": cluster.environment | {"RAY_AUTH_TOKEN_PATH": str(CLUSTER / "no-such-file")}}
    refused = subprocess.run([*script, "3"], **tokenless)  # type: ignore[call-overload]
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "RAY_AUTH_TOKEN_PATH is set but file cannot be opened" in refused.stderr


def submit(cluster: Cluster, folder: Path, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    """Submit a job and follow it to its end; a head that has just started may not have its agent yet."""
    deadline = time.monotonic() + 60
    while True:
        where = ["--address", cluster.dashboard, "--working-dir", str(folder)]
        done = cluster.ray("job", "submit", *where, "--", *entrypoint)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done


def listed(cluster: Cluster, token: Path, what: str) -> list[dict[str, Any]]:
    """The nodes or actors in the state API, including those that have ended."""
    answer = cluster.get(f"/api/v0/{what}?detail=1&limit=1000", token.read_text())
    rows: list[dict[str, Any]] = answer["data"]["result"]["result"]
    return rows


def read(storage: Path, table: str) -> pl.DataFrame:
    """A result table in a fixed order, without the columns that are measured by the clock."""
    frame = pl.read_parquet(storage / "launched" / "results" / f"{table}.parquet")
    frame = frame.drop([name for name in frame.columns if name.endswith("_seconds")])
    return frame.sort([name for name in frame.columns if not frame.schema[name].is_nested()])
