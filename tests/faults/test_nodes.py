"""A node of a cluster, or a training worker, is killed: Tune starts the chain again, and it goes on from its store."""

import json
from collections import Counter
from pathlib import Path

import pytest
from ray._private import state
from ray.util import placement_group_table

from .clusters import RayCluster
from .studies import assert_same_tables, at_work, completed, ours, start, sweep, wait_for, write_study

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]


def test_a_node_that_dies_costs_the_steps_it_was_at(cluster: RayCluster, tmp_path: Path, undisturbed: Path) -> None:
    """The node that a trial runs on, with all of its processes: the study ends on the other with the same tables."""
    storage = tmp_path / "runs"
    running = start(write_study(tmp_path), storage, "--address", cluster.address)

    def is_at_work() -> bool:
        return len(completed(storage)) > 3 and at_work(storage) and bool(cluster.processes("Trainable.train"))

    wait_for(is_at_work, running)
    before = completed(storage)
    cluster.kill_node_of(cluster.processes("Trainable.train")[0])
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == 0, printed
    assert before.items() <= completed(storage).items()
    assert_same_tables(storage, undisturbed)


def test_a_training_worker_that_dies_is_replaced(tmp_path: Path, ray_instance: str) -> None:
    """One of two workers of a process group, once it has trained. Left alone, two chains of two generations start one
    group, and leave no room held."""
    study, storage = write_study(tmp_path), tmp_path / "runs"
    arguments = ("--set", "resources.train.workers=2", "--set", "generations=2")
    running = start(study, storage, "--address", ray_instance, *arguments)
    wait_for(lambda: fitted(storage) and ours("RayTrainWorker"), running)
    ours("RayTrainWorker")[0].kill()
    before = completed(storage)
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == 0, printed
    assert before.items() <= completed(storage).items()
    earlier = actors()
    sweep(study, tmp_path / "whole", "--address", ray_instance, *arguments)
    assert len(fitted(tmp_path / "whole")) == 4
    assert (actors() - earlier)["RayTrainWorker"] == 2
    assert (actors() - earlier)["TrainController"] == 1
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}
    assert_same_tables(storage, tmp_path / "whole")


def fitted(storage: Path) -> list[str]:
    """The models that have been trained."""
    manifests = [json.loads((storage / "stages" / name / "manifest.json").read_text()) for name in completed(storage)]
    return [manifest["kind"] for manifest in manifests if manifest["kind"] == "fit"]


def actors() -> "Counter[str]":
    """The actors that this process's Ray has started, by class, with those that have ended."""
    return Counter(actor["ActorClassName"] for actor in state.actors().values())
