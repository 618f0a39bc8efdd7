"""A node of a cluster, or a training worker, is killed: Tune starts the chain again, and it goes on from its store."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from .studies import (
    assert_same_tables,
    at_work,
    completed,
    processes_named,
    start,
    sweep,
    wait_for,
    write_study,
)

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]
NODES = Path(__file__).parent.parent / "cluster" / "multi_node.py"


@pytest.fixture
def cluster() -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of a Ray cluster on this machine: a head without CPUs and two workers."""
    nodes = subprocess.Popen(
        [sys.executable, str(NODES), "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert nodes.stdin is not None
    assert nodes.stdout is not None
    yield json.loads(nodes.stdout.readline())["address"], psutil.Process(nodes.pid)
    nodes.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        nodes.wait(timeout=60)
    nodes.kill()


def trials_of(cluster: psutil.Process) -> list[psutil.Process]:
    ours = {process.pid for process in cluster.children(recursive=True)}
    return [process for process in processes_named("Trainable.train") if process.pid in ours]


def test_a_node_that_dies_costs_the_steps_it_was_at(cluster: tuple[str, psutil.Process], tmp_path: Path) -> None:
    """The node that a trial runs on, with all of its processes: the study ends on the other with the same tables."""
    address, nodes = cluster
    study, storage = write_study(tmp_path), tmp_path / "runs"
    running = start(study, storage, "--address", address)
    wait_for(lambda: len(completed(storage)) > 3 and at_work(storage) and trials_of(nodes), running)
    before = completed(storage)
    raylet = next(parent for parent in trials_of(nodes)[0].parents() if "raylet" in parent.name())
    for process in [raylet, *raylet.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == 0, printed
    assert before.items() <= completed(storage).items()
    sweep(study, tmp_path / "whole")
    assert_same_tables(storage, tmp_path / "whole")


def test_a_training_worker_that_dies_is_replaced(cluster: tuple[str, psutil.Process], tmp_path: Path) -> None:
    """One of two workers of a process group, in the middle of a fit."""
    address, nodes = cluster
    study, storage = write_study(tmp_path, "[0]"), tmp_path / "runs"
    arguments = ("--set", "resources.train.workers=2", "--set", "generations=2")  # each fit starts a group anew
    running = start(study, storage, "--address", address, *arguments)
    wait_for(lambda: completed(storage) and processes_named("RayTrainWorker"), running)
    ours = {process.pid for process in nodes.children(recursive=True)}
    next(process for process in processes_named("RayTrainWorker") if process.pid in ours).kill()
    before = completed(storage)
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == 0, printed
    assert before.items() <= completed(storage).items()
    sweep(study, tmp_path / "whole", *arguments)
    assert_same_tables(storage, tmp_path / "whole")
