"""A mistake of the user's that only shows inside a trial: one line, at once, and the other chains go on."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ray.train import WorkerGroupError

from fortifai_ray.errors import UserError
from fortifai_ray.sweep.trials import MISTAKE, _Stored

from .studies import start

_FAMILY = """
from pathlib import Path

import numpy as np

CALLS = Path(CALLS_FILE)


class Halves:
    metrics = ("spread",)

    def __init__(self, wrong: bool = False):
        self.wrong = wrong

    def human(self, n, rng):
        return rng.normal(size=n)

    def fit(self, data):
        with CALLS.open("a") as calls:
            calls.write(f"{self.wrong}\\n")
        if self.wrong:
            raise ZeroDivisionError("of my own making")
        return data.mean(), data.std()

    def evaluate(self, model):
        return {"spread": model[1]}

    def generate(self, model, n, rng):
        return rng.normal(*model, size=n)
"""
_STUDY = """
name: faults
family: {kind: "my_halves:Halves"}
samples_per_generation: 20
generations: 3
vary: {family.wrong: [false, true], regime: [{kind: replace}, {kind: accumulate}], seed: [0, 1]}
collapse: {metric: spread, relative_to: absolute, threshold: 0.5, direction: below}
"""


class _Trial(_Stored):
    """A trial that comes upon the failures of its configuration: as it begins, and in its training group of two."""

    def setup(self, config: dict[str, Any]) -> None:
        super().setup(config, None)

    def begin(self, config: dict[str, Any]) -> None:
        if "begin" in config:
            raise config["begin"]
        self._failure: Exception = config["group"]

    def report(self) -> dict[str, Any]:
        raise WorkerGroupError("rank 1 failed", {1: self._failure})


def test_a_mistake_that_shows_as_a_trial_begins_is_told_as_one() -> None:
    """A worker that cannot reach the storage; a fault is still raised, and another beginning is tried."""
    mistake = _Trial({"begin": UserError("--storage: no credentials")}).train()
    assert (mistake[MISTAKE], mistake["done"]) == ("--storage: no credentials", True)
    trial = _Trial({"begin": OSError("busy")})
    for _ in range(2):
        with pytest.raises(OSError, match="busy"):
            trial.train()


def test_a_mistake_that_a_training_worker_came_upon_is_the_users_too() -> None:
    """Ray Train hides it in its own error; any other failure of a worker is still raised, for Tune to try again."""
    mistake = _Trial({"group": UserError("family.model: no layer to shard")}).train()
    assert (mistake[MISTAKE], mistake["done"]) == ("family.model: no layer to shard", True)
    with pytest.raises(WorkerGroupError):
        _Trial({"group": RuntimeError("the node is gone")}).train()


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_users_own_mistake_is_not_tried_again(tmp_path: Path, ray_instance: str) -> None:
    """A family that fails in half of the cells: a line for each, its code asked once, and the other half whole."""
    calls = tmp_path / "calls"
    (tmp_path / "my_halves.py").write_text(_FAMILY.replace("CALLS_FILE", repr(str(calls))))
    study = tmp_path / "faults.yaml"
    study.write_text(_STUDY)
    running = start(study, tmp_path / "runs", "--address", ray_instance)
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == 1, printed
    said = [line for line in printed.splitlines() if line.startswith("failed: ")]
    assert len(said) == 2, printed
    assert all(line.endswith("my_halves:Halves.fit failed: ZeroDivisionError: of my own making") for line in said)
    assert "Traceback" not in printed
    assert calls.read_text().split().count("True") == 2, "each of the two cells was asked once"
    chains = pl.read_parquet(tmp_path / "runs" / "faults" / "results" / "chains.parquet")
    assert chains.filter(pl.col("status") == "failed")["family.wrong"].to_list() == [True] * 4
    assert chains.filter(pl.col("status") != "failed")["family.wrong"].to_list() == [False] * 4
