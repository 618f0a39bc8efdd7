"""The executor on Ray: a model is scored on the GPU that trained it."""

import os
import subprocess
import sys
from pathlib import Path

from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.storage.store import StageFiles, StageKey, StageStore

PROJECT = Path(__file__).resolve().parents[2]

# Ray counts GPUs that it is told of. A trial that holds a CPU of its own, and training workers that have gone.
_SCRIPT = """
import os
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from fortifai_ray.errors import UserError
from fortifai_ray.sweep.ray_executor import RayExecutor

def process(wrong=False):
    if wrong:
        raise UserError("a line")
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")

@ray.remote(num_cpus=1)
class Trial:
    def measure(self):
        of_workers = {"CPU": 0.5, "GPU": 1.0}
        try:
            RayExecutor(workers=2, worker_resources=of_workers).score(process, wrong=True)
        except UserError as error:
            assert "a line" in str(error)
        return (
            process(),
            RayExecutor(workers=1, worker_resources=of_workers).score(process),
            RayExecutor(workers=2, worker_resources={"CPU": 0.5}).score(process),
            RayExecutor(workers=2, worker_resources=of_workers).score(process),
        )

ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="error")
room = placement_group([{"CPU": 1}])
strategy = PlacementGroupSchedulingStrategy(room, placement_group_capture_child_tasks=True)
trial = Trial.options(scheduling_strategy=strategy).remote()
own, alone, on_cpus, several = ray.get(trial.measure.remote(), timeout=100)
assert own[0] == alone[0] == on_cpus[0] != several[0], (own, alone, on_cpus, several)
assert (own[1] or "") == "", own
assert several[1] == "0", several
print("placed")
ray.shutdown()
"""


def test_several_workers_gpu_measures_too() -> None:
    """A trial whose workers train on GPUs holds none itself: the measuring runs on one of theirs, outside of what Tune
    set aside for the trial; with one worker, or without GPUs, in its own process. A user's mistake stays one."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("placed")


def test_files_of_stages_become_folders(tmp_path: Path) -> None:
    """Wherever the function runs, it is given paths that are there."""
    store = StageStore(tmp_path / "runs")
    stage = store.step(StageKey("model", 1, {}), lambda folder: {})
    files = StageFiles(stage, store.storage)
    scored = InProcess().score(lambda *folders, other: (*folders, other), files, 3, other=files)
    assert scored == (stage.path.absolute(), 3, stage.path.absolute())
