"""A small study of chains that are trained, run by the command line, and what its storage holds."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import psutil
import pytest
from polars.testing import assert_frame_equal

STUDY = """
name: faults
family: {kind: diffusion, data: {source: blobs}}
training: {epochs: 2}
samples_per_generation: 128
generations: 4
regime: {kind: accumulate}
vary: {seed: SEEDS}
evaluation: {samples: 50}
early_stopping: false
collapse: {metric: wasserstein, threshold: 5.0, direction: above}
"""

# A user's family, with a key of its own and what its fit does before it returns.
HALVES = """
import time
from pathlib import Path

import numpy as np


class Halves:
    metrics = ("spread",)

    def __init__(self, {key}: bool = False):
        self.{key} = {key}

    def human(self, n, rng):
        return rng.normal(size=n)

    def fit(self, data):
        {first}
        return data.mean(), data.std()

    def evaluate(self, model):
        return {{"spread": model[1]}}

    def generate(self, model, n, rng):
        return rng.normal(*model, size=n)
"""


SOAK = pytest.mark.skipif("FORTIFAI_SOAK" not in os.environ, reason="takes minutes: make soak runs it")


def write_study(folder: Path, seeds: str = "[0, 1]") -> Path:
    file = folder / "faults.yaml"
    file.write_text(STUDY.replace("SEEDS", seeds))
    return file


def start(study: Path, storage: Path | str, *arguments: str, tracking_uri: str = "") -> subprocess.Popen[str]:
    """A sweep in a process of its own, run beside its study file; MLflow's database is in its storage unless a server
    is given."""
    command = [sys.executable, "-m", "fortifai_ray", "sweep", str(study), "--storage", str(storage), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": tracking_uri}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=study.parent
    )


def sweep(study: Path, storage: Path | str, *arguments: str, tracking_uri: str = "", seconds: float = 600) -> str:
    """A sweep to its end, which must come within ``seconds``; returns what it printed."""
    running = start(study, storage, *arguments, tracking_uri=tracking_uri)
    printed, _ = running.communicate(timeout=seconds)
    assert running.returncode == 0, printed
    return printed


def completed(storage: Path) -> dict[str, int]:
    """Every completed stage, and the inode of its manifest: a stage that is computed again gets another."""
    return {path.parent.name: path.stat().st_ino for path in (storage / "stages").glob("*/manifest.json")}


def at_work(storage: Path) -> bool:
    """Whether a step is being computed."""
    return any((storage / "stages" / ".partial").glob("*"))


def wait_for(condition: Callable[[], object], running: subprocess.Popen[str], seconds: float = 400) -> None:
    """Until ``condition`` holds; fails where the sweep ends before, and ends a sweep in which it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert running.poll() is None, running.stdout and running.stdout.read()
        if time.monotonic() > deadline:
            running.kill()
            raise AssertionError("what was waited for did not happen")
        time.sleep(0.05)


def processes_named(word: str) -> list[psutil.Process]:
    """This machine's processes with ``word`` in their command line."""
    return [process for process in psutil.process_iter() if names(process, word)]


def ours(word: str) -> list[psutil.Process]:
    """Those of them that this program's own Ray has started."""
    return [each for each in processes_named(word) if any(parent.pid == os.getpid() for parent in each.parents())]


def names(process: psutil.Process, word: str) -> bool:
    """Whether ``word`` is in a process's command line: Ray writes an actor's class and method there."""
    try:
        return any(word in part for part in process.cmdline())
    except psutil.Error:
        return False


def clocks_left_out(table: pl.DataFrame) -> pl.DataFrame:
    """A table without seconds and where its rows came from: what is left must not differ from run to run."""
    return table.select(pl.exclude("^.*_seconds$", "reused", "world_size"))


def assert_same_tables(one: Path, other: Path) -> None:
    """The generations of two storages are equal but for seconds and where they came from."""
    first, second = (
        clocks_left_out(pl.read_parquet(storage / "faults" / "results" / "generations.parquet"))
        for storage in (one, other)
    )
    assert_frame_equal(first, second, check_exact=True)
