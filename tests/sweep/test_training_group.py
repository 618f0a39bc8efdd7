"""A kept group of training workers: what it computes, what it starts, and what is left when something of it dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from faults.studies import processes_named
from ray.util import placement_group_table

from fortifai_ray.families.images.config import DataConfig, DiffusionConfig, TrainingConfig, VaeConfig
from fortifai_ray.families.images.models import create_model
from fortifai_ray.families.images.training import train
from fortifai_ray.losses import TruncatedCrossEntropy
from fortifai_ray.recipe.executor import Workers
from fortifai_ray.sweep.ray_executor import RayExecutor, _Raised, _score_on_first

OURS = ("Trial", "Desk", "TrainController", "RayTrainWorker")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


def wait_until_all_is_free() -> None:
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 2.0 or held():
        assert time.monotonic() < deadline, (ray.available_resources(), held())
        time.sleep(0.2)


def held() -> list[str]:
    """Placement groups that hold room, and processes of trials and of training groups."""
    groups = [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"]
    return groups + [word for word in OURS if processes_named(f"ray::{word}")]


# A driver with a trial whose workers hold nearly every CPU, so that none may be left with a group that is gone.
_SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
import ray
from fortifai_ray.sweep.faults import Fault, fault_of
from fortifai_ray.sweep.ray_executor import RayExecutor

folder = Path(sys.argv[2])

def fit(workers, *, model, output, numbers, dies):
    import torch
    total = int(workers.sum(torch.tensor(numbers).sum()))
    if dies and workers.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if workers.rank == 0:
        (output / "total").write_text(str(total))

@ray.remote(num_cpus=0)
class Trial:
    def __init__(self):
        self.executor = RayExecutor(workers=2, worker_resources={"CPU": 0.9})
    def pid(self):
        return os.getpid()
    def fit(self, name, dies=False):
        self.executor.fit(fit, {"dies": dies}, {"numbers": np.arange(5)}, folder, folder / name)
        return (folder / name / "total").read_text()
    def fault(self, name):
        try:
            self.fit(name, dies=True)
        except Exception as error:
            return fault_of(error)

ray.init(address=sys.argv[1], logging_level="error", log_to_driver=False)
trial = Trial.remote()
assert ray.get(trial.fit.remote("a")) == "20"
os.kill(ray.get(trial.pid.remote()), signal.SIGKILL)
trial = Trial.remote()
assert ray.get(trial.fit.remote("b"), timeout=200) == "20"
assert ray.get(trial.fault.remote("c")) is Fault.PASSING
assert ray.get(trial.fit.remote("d"), timeout=200) == "20"
print("kept", flush=True)
time.sleep(600)
"""


def test_nothing_is_left_of_what_was_killed(ray_instance: str, tmp_path: Path) -> None:
    """A trial, a worker in a fit, and the driver: each time by `kill -9`, with a group that is kept. The next group
    finds its room, a fit that died is tried again, and in the end no process and no room is held."""
    wait_until_all_is_free()
    command = [sys.executable, "-c", _SCRIPT, ray_instance, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        kept = "kept\n" in driver.stdout  # after what Ray says of those that died
        left = held()
        driver.send_signal(signal.SIGKILL)
    assert kept
    assert len(left) == 1 + len(OURS), left
    wait_until_all_is_free()


@pytest.fixture(scope="module")
def group(ray_instance: str) -> Iterator[RayExecutor]:
    """Two workers, kept for this file."""
    executor = RayExecutor(workers=2, worker_resources={"CPU": 0.5})
    yield executor
    executor.close()
    wait_until_all_is_free()


def test_a_used_group_trains_as_a_fresh_one_does(group: RayExecutor, tmp_path: Path) -> None:
    """Bit for bit, whatever a loop before it did to torch; in the same processes, which no other fit started again."""

    def read_state(workers: Workers, *, model: Path, output: Path) -> None:
        import torch
        import torch.distributed as dist

        found = [
            (str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.get_num_threads(), torch.rand(3).tolist()),
            (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
            len(dist.distributed_c10d._world.pg_map),
        ]
        pids: list[Any] = [None, None]
        dist.all_gather_object(pids, os.getpid())
        if workers.rank == 0:
            (output / "state.json").write_text(json.dumps([found, pids]))

    def soil(workers: Workers, *, model: Path, output: Path) -> None:
        import torch

        torch.manual_seed(os.getpid())
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")

    def state_now(name: str) -> str:
        group.fit(read_state, {}, {}, tmp_path, tmp_path / name)
        return (tmp_path / name / "state.json").read_text()

    vae, diffusion = tmp_path / "vae", tmp_path / "diffusion"
    vae.mkdir()
    diffusion.mkdir()
    create_model(VaeConfig(channels=4, latent=4), (8, 8), 0, vae)
    points = DiffusionConfig(data=DataConfig(source="blobs"), width=16, timesteps=20)
    create_model(points, (2,), 0, diffusion)
    settings, samples = TrainingConfig(epochs=2, batch_size=16), np.random.default_rng(0).random((40, 8, 8), np.float32)

    def trained(name: str) -> dict[str, Any]:
        report = train(group, vae, tmp_path / name, samples, TruncatedCrossEntropy(gamma=0.9), settings, 7)
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.suffix != ".json"}
        return {**files, "report": {**vars(report), "train_seconds": 0.0}}

    fresh, first = state_now("fresh"), trained("first")
    group.fit(soil, {}, {}, tmp_path, tmp_path / "soiled")
    used = state_now("used")
    train(group, diffusion, tmp_path / "other", samples[:, 0, :2], TruncatedCrossEntropy(gamma=0.9), settings, 1)
    assert used == fresh
    assert trained("again") == first


def test_one_worker_scores_and_its_error_ends_nothing(group: RayExecutor) -> None:
    """Where the model was trained: the others wait. What it raises reaches the chain as it is."""

    def score(wrong: bool) -> int:
        if wrong:
            raise ValueError("no such text")
        return os.getpid()

    def run(wrong: bool) -> list[Any]:
        return group._group.run(partial(_score_on_first, score, (wrong,), {}))

    (first, other), ((raised, nothing), again) = run(False), (run(True), run(False))
    assert isinstance(first, int)
    assert other is nothing is None
    assert isinstance(raised, _Raised)
    assert isinstance(raised.error, ValueError)
    assert again == [first, None]
