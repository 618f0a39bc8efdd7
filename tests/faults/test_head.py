"""The head of a cluster is killed: the sweep says so and ends, and the same command goes on with another head."""

from pathlib import Path

import pytest

from .clusters import ray_cluster
from .studies import assert_same_tables, at_work, completed, start, sweep, wait_for, write_study

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"  # Ray waits a minute for a head to come back


def test_a_dead_head_costs_the_steps_that_were_being_computed(
    ray_instance: str, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another Ray, from the storage: the same tables, and no finished step is computed twice."""
    study, storage = write_study(tmp_path), tmp_path / "runs"
    monkeypatch.setenv(PATIENCE, "5")
    with ray_cluster(2) as cluster:
        running = start(study, storage, "--address", cluster.address)
        wait_for(lambda: len(completed(storage)) > 3 and at_work(storage), running)
        cluster.kill_head()
        printed, _ = running.communicate(timeout=300)
    assert running.returncode != 0, printed
    assert f"fortifai: --address {cluster.address}: the cluster's head does not answer" in printed
    before = completed(storage)
    sweep(study, storage, "--address", ray_instance)
    assert before.items() <= completed(storage).items()
    assert_same_tables(storage, undisturbed)
