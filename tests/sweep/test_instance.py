"""A Ray instance that a sweep starts: the processes that it needs, and no others."""

import subprocess
import sys

import pytest

PROGRAM = """
import psutil
from fortifai_ray.sweep.instance import ray_instance

with ray_instance(None, 1):
    import ray

    print(ray.get(ray.remote(num_cpus=0)(lambda: "it works").remote()))
    for process in psutil.Process().children():
        print(" ".join(process.cmdline()))
print([process.name() for process in psutil.Process().children()])
"""


@pytest.mark.ray
def test_no_process_starts_that_nobody_asks() -> None:
    """Each would take half a second of CPU to start, and the sweep waits for the first of them."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    first, *processes, last = done.stdout.splitlines()
    assert first == "it works"
    assert [name for name in ("gcs_server", "raylet") if not any(f"/{name} " in line for line in processes)] == []
    assert len(processes) == 2
    assert last == "[]", "and none stays"
