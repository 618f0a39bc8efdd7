"""What it costs to run a finished study again, by the command line: 20,000 chains, every stage in the store.

    python -m benchmarks.driver --part replay [--scale 0.1] [--s3]
    python -m benchmarks.driver --part replay_single [--scale 0.1]

The stages are real ones of Gaussian chains, 50 seeds to a cell, computed here without Ray; for ``replay_single`` they
are those of single chains of a small VAE: the first is computed, and the others have its rows, and empty stages that
the store wrote, since nobody opens these; without MLflow. The study is then run twice:
once to write its tables, and again, which is measured: CPU and wall seconds of the process, its start included, and
with ``--s3`` the requests to moto's S3 server for each stage. A study of half the size says how both grow: ``growth``
is the CPU time of twice the chains over twice that of the half, ``requests_per_stage`` what each further stage asks.
"""

import io
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from fortifai_ray.chain.chain import GenerationResult
from fortifai_ray.chain.cohort import cohorts, run_cohort
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageKey, StageStore
from fortifai_ray.study.study import load_study
from fortifai_ray.sweep import recorder as recorder_module
from fortifai_ray.sweep.finished import MANY
from fortifai_ray.sweep.preflight import check_study
from fortifai_ray.sweep.recorder import Recorder
from fortifai_ray.sweep.work import Grid, run_job

CELLS, SEEDS = 400, 50
STUDY = """
name: replayed
family: {{kind: gaussian, dim: 1}}
generations: 5
vary: {{samples_per_generation: {sizes}, seed: {{start: 0, count: {seeds}}}}}
collapse: {{metric: kl_divergence, relative_to: absolute, threshold: 0.5, direction: above}}
baseline: {{samples_per_generation: 20}}
"""
SINGLE = """
name: single
family: {{kind: vae, data: {{source: digits}}, channels: 4, latent: 4}}
samples_per_generation: 32
generations: 5
training: {{epochs: 1, batch_size: 32}}
vary: {{seed: {{start: 0, count: {seeds}}}}}
collapse: {{metric: wasserstein, threshold: 1.0e+9, direction: above, relative_to: own_generation_0}}
"""

# Twenty thousand runs take MLflow most of an hour, and one that holds them all is asked for a fingerprint alone.
_WITHOUT_MLFLOW = (
    "-c",
    "import benchmarks.replay, fortifai_ray.sweep.recorder as recorder; from fortifai_ray.cli import main; "
    "recorder.StudySync = benchmarks.replay.NoSync; main()",
)


class NoSync:
    """In the place of the mirror in MLflow, which has a part of its own."""

    def __init__(self, folder: Path, storage: Path) -> None: ...

    def poke(self) -> None: ...

    def close(self, status: str) -> Any:
        return SimpleNamespace(problems=[])


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


def replay_single(scale: float, folder: Path) -> dict[str, Any]:
    """The same of single chains: a study of that share of 20,000, and one of half as many."""
    seeds = max(2 * MANY, round(CELLS * SEEDS * scale))
    half, whole = (_single_again(number, folder, f"{folder}/single-{number}") for number in (seeds // 2, seeds))
    return {
        "single_chains": seeds,
        "single_cpu_seconds": whole["cpu"],
        "single_wall_seconds": whole["wall"],
        "single_growth": round(whole["cpu"] / (2 * half["cpu"]), 2),
    }


def _single_again(seeds: int, folder: Path, storage: str) -> dict[str, Any]:
    """Write the stages of a study of single chains and its tables, and measure one more run."""
    file = folder / f"single-{seeds}.yaml"
    file.write_text(SINGLE.format(seeds=seeds))
    study, at = load_study(file), Storage.of(storage)
    store = StageStore(at.for_study(study.name))
    work = Grid(study, check_study(study, store))
    results = [one for one in run_job(work.job(study.chains[0].chain_id), Steps(store), InProcess())]
    recorder_module.StudySync = NoSync  # type: ignore[misc,assignment]
    recorder = Recorder(study, at, Console(file=io.StringIO()))
    for chain in study.chains:
        job, first = work.job(chain.chain_id), chain is study.chains[0]
        for one in results:
            assert isinstance(one, GenerationResult)
            stages = {name: one.row[name] for name in ("stage", "synthetic_stage") if one.row[name]}
            if not first:
                keys = {name: StageKey(name, 1, {"of": [old, chain.recipe.seed]}) for name, old in stages.items()}
                stages = {name: store.step(replace(key, cheap=True), _nothing).hash for name, key in keys.items()}
            own = {"chain_id": chain.chain_id, "seed": chain.recipe.seed, **stages}
            recorder.take(job, replace(one, row={**one.row, **own}))
        recorder.chain_finished(chain.chain_id)
        recorder.flush()
    recorder.stages(len(study.chains) * len(results), 0)
    recorder.close(None)
    return _measured(file, storage, lambda: 0, _WITHOUT_MLFLOW)


def _nothing(folder: Path) -> dict[str, Any]:
    return {}


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
    return _measured(file, storage, requests)


def _measured(
    file: Path, storage: str, requests: Callable[[], int], program: Sequence[str] = ("-m", "fortifai_ray")
) -> dict[str, Any]:
    """One more run of a study."""
    asked, used, started = requests(), _cpu(), time.monotonic()
    _sweep(file, storage, program)
    return {
        "requests": requests() - asked,
        "cpu": round(_cpu() - used, 2),
        "wall": round(time.monotonic() - started, 1),
    }


def _sweep(file: Path, storage: str, program: Sequence[str] = ("-m", "fortifai_ray")) -> None:
    command = [sys.executable, *program, "sweep", str(file), "--storage", storage]
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
