"""A Ray cluster of several nodes on this machine, in a process of its own, and what can be killed of it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from .studies import processes_named

NODES = Path(__file__).parent.parent / "cluster" / "multi_node.py"


@dataclass(frozen=True)
class RayCluster:
    """A running cluster: its ``address`` (HOST:PORT), and the process below which all of its own are."""

    address: str
    process: psutil.Process

    def processes(self, word: str) -> list[psutil.Process]:
        """The cluster's processes with ``word`` in their command line."""
        ours = {process.pid for process in self.process.children(recursive=True)}
        return [process for process in processes_named(word) if process.pid in ours]

    def kill_node_of(self, process: psutil.Process) -> None:
        """``kill -9`` of the raylet that a process belongs to, and of all of the raylet's processes."""
        kill_with_children(next(parent for parent in process.parents() if "raylet" in parent.name()))

    def kill_head(self) -> None:
        """``kill -9`` of the cluster's directory (its GCS) and of the head's raylet, with all of its processes."""
        for process in self.processes("gcs_server"):
            process.kill()
        for raylet in self.process.children():
            if "raylet" in raylet.name() and "--head" in raylet.cmdline():
                kill_with_children(raylet)


@contextmanager
def ray_cluster(workers: int, **environment: str) -> Iterator[RayCluster]:
    """A head without CPUs and ``workers`` nodes of one CPU each, for as long as they are needed."""
    nodes = subprocess.Popen(
        [sys.executable, str(NODES), str(workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert nodes.stdin is not None
    assert nodes.stdout is not None
    try:
        yield RayCluster(json.loads(nodes.stdout.readline())["address"], psutil.Process(nodes.pid))
    finally:
        below = psutil.Process(nodes.pid).children(recursive=True)
        nodes.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            nodes.wait(timeout=60)
        nodes.kill()
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def kill_with_children(process: psutil.Process) -> None:
    """``kill -9`` of a process, and of everything below it."""
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            each.kill()
