"""A Ray cluster of several raylets on this machine, which can be killed as machines are, and joined by new ones."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from faults.clusters import kill_with_children
from faults.studies import names
from ray.cluster_utils import Cluster


class Machines:
    """A head without CPUs, as in the files of ``cluster/``, and workers of one CPU each."""

    def __init__(self, workers: int) -> None:
        self._folders: list[TemporaryDirectory[str]] = []
        self._cluster = Cluster(initialize_head=True, head_node_args=self._node(num_cpus=0, include_dashboard=False))
        for _ in range(workers):
            self.join()
        self._cluster.wait_for_nodes(timeout=120)

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return str(self._cluster.address)

    @property
    def workers(self) -> list[Any]:
        """The worker nodes that live, in the order in which they joined."""
        alive = [node for node in self._cluster.worker_nodes if raylet_process(node).poll() is None]
        return sorted(alive, key=lambda node: raylet_process(node).pid)

    def join(self) -> None:
        """Another worker joins, in its own time."""
        self._cluster.add_node(wait=False, **self._node(num_cpus=1))

    def replace_the_dead(self) -> int:
        """A new worker for each that ended without being killed here: a raylet whose machine is too busy to answer the
        head ends itself. Returns how many there were."""
        dead = [node for node in self._cluster.worker_nodes if raylet_process(node).poll() is not None]
        for node in dead:
            self._cluster.remove_node(node, allow_graceful=False)
            self.join()
        return len(dead)

    def kill(self, node: Any) -> None:
        """``kill -9`` of a node: its raylet and every process below it, at once."""
        kill_with_children(psutil.Process(raylet_process(node).pid))
        self._cluster.remove_node(node, allow_graceful=False)

    def processes(self, word: str) -> list[psutil.Process]:
        """The workers' processes with ``word`` in their command line, oldest first."""
        raylets = [psutil.Process(raylet_process(node).pid) for node in self.workers]
        children = [process for raylet in raylets for process in raylet.children() if names(process, word)]
        return sorted(children, key=lambda process: process.pid)

    def shutdown(self) -> None:
        """End every process of the cluster."""
        self._cluster.shutdown()
        for folder in self._folders:
            folder.cleanup()

    def _node(self, **resources: Any) -> dict[str, Any]:
        """Arguments of a node, with a folder of its own, as on a machine of its own."""
        folder = TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
        self._folders.append(folder)
        return {"temp_dir": folder.name, "dashboard_agent_listen_port": 0, **resources}


@contextmanager
def machines(workers: int) -> Iterator[Machines]:
    """A cluster for as long as it is needed."""
    cluster = Machines(workers)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def raylet_process(node: Any) -> "subprocess.Popen[bytes]":
    """The raylet of a node that was started here."""
    process: subprocess.Popen[bytes] = node.all_processes["raylet"][0].process
    return process
