"""What it costs to run a finished study again, by the command line: 20,000 chains, every stage in the store.

    python -m benchmarks.driver --part replay [--scale 0.1] [--s3]

The stages are real ones of Gaussian chains, 50 seeds to a cell, computed here without Ray. The study is then run twice:
once to write its tables, and again, which is measured: CPU and wall seconds of the process, its start included, and
with ``--s3`` the requests to moto's S3 server for each stage. A study of half the size says how both grow: ``growth``
is the CPU time of twice the chains over twice that of the half, ``requests_per_stage`` what each further stage asks.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fortifai_ray.chain.cohort import cohorts, run_cohort
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import load_study

CELLS, SEEDS = 400, 50
STUDY = """
name: replayed
family: {{kind: gaussian, dim: 1}}
generations: 5
vary: {{samples_per_generation: {sizes}, seed: {{start: 0, count: {seeds}}}}}
collapse: {{metric: kl_divergence, relative_to: absolute, threshold: 0.5, direction: above}}
baseline: {{samples_per_generation: 20}}
"""


def replay(scale: float, folder: Path, *, s3: bool) -> dict[str, Any]:
    """A finished study of that share of the chains, run again, and one of half as many."""
    cells = max(4, round(CELLS * scale))
    with _storage(folder, s3=s3) as (address, requests):
        half, whole = (_again(number, folder, f"{address}/{number}", requests) for number in (cells // 2, cells))
    more = whole["requests"] - half["requests"]
    return {
        "replay_chains": cells * SEEDS,
        "replay_cpu_seconds": whole["cpu"],
        "replay_wall_seconds": whole["wall"],
        "replay_growth": round(whole["cpu"] / (2 * half["cpu"]), 2),
        **({"replay_requests": whole["requests"], "requests_per_stage": more / (cells - cells // 2)} if s3 else {}),
    }


def _again(cells: int, folder: Path, storage: str, requests: Any) -> dict[str, Any]:
    """Compute a study's stages, write its tables, and measure one more run."""
    file = folder / f"{cells}.yaml"
    file.write_text(STUDY.format(sizes=[20 + cell for cell in range(cells)], seeds=SEEDS))
    study = load_study(file)
    steps = Steps(StageStore(Storage.of(storage).for_study(study.name)))
    for task in cohorts(study.chains):
        run_cohort(task, steps)
    assert steps.computed == cells
    _sweep(file, storage)
    os.environ["FORTIFAI_CACHE"] = str(folder / f"cache-{cells}")  # of a machine that has seen none of it
    asked, used, started = requests(), _cpu(), time.monotonic()
    _sweep(file, storage)
    return {
        "requests": requests() - asked,
        "cpu": round(_cpu() - used, 2),
        "wall": round(time.monotonic() - started, 1),
    }


def _sweep(file: Path, storage: str) -> None:
    command = [sys.executable, "-m", "fortifai_ray", "sweep", str(file), "--storage", storage]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _storage(folder: Path, *, s3: bool) -> Iterator[tuple[str, Any]]:
    """The address of an empty storage, and what counts the requests to it."""
    if not s3:
        yield str(folder / "storage"), lambda: 0
        return
    from tests.storage.conftest import start_server

    with start_server() as server:
        server.filesystem().create_dir("studies")
        tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "FORTIFAI_CACHE": str(folder / "cache")}
        os.environ.update(server.environment | tracking)
        yield "s3://studies", server.requests
