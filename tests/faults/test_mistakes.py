"""A mistake of the user's that only shows inside a trial: one line, at once, and the other chains go on."""

import re
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ray.train import WorkerGroupError

from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.errors import UserError
from fortifai_ray.recipe.executor import Executor
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Storage
from fortifai_ray.sweep.reports import Mistake, Report
from fortifai_ray.sweep.trials import Trial, TrialContext
from fortifai_ray.sweep.work import Grid, Job, Verdict

from .studies import HALVES, start

_FIT = """with Path(CALLS_FILE).open("a") as calls:
            calls.write(f"{self.wrong}\\n")
        if self.wrong:
            raise ZeroDivisionError("of my own making")"""
_STUDY = """
name: faults
family: {kind: "my_halves:Halves"}
samples_per_generation: 20
generations: 3
vary: {family.wrong: [false, true], regime: [{kind: replace}, {kind: accumulate}], seed: [0, 1]}
collapse: {metric: spread, relative_to: absolute, threshold: 0.5, direction: below}
"""


class _Failing(Grid):
    """Work that comes upon the failures of a trial's configuration: as its jobs are made, and as each of them runs."""

    def __init__(self) -> None: ...

    def jobs(self, config: Mapping[str, Any]) -> Generator[list[Job], list[Verdict | None], None]:
        if "begin" in config:
            raise config["begin"]

        def fail(key: int, generations: pl.DataFrame, steps: Steps, executor: Executor) -> Verdict:
            if failure := config["jobs"][key]:
                raise failure
            return Verdict({})

        jobs = [Job(key, str(key), str(key), [], partial(fail, key)) for key in range(len(config["jobs"]))]
        if config.get("together"):
            yield jobs
        else:
            for job in jobs:
                assert (yield [job]) is not None


class _Trial(Trial):
    def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
        super().setup(config, TrialContext(Storage.of(config.pop("storage")), _Failing(), InProcess()))


def reports(folder: Path, config: Mapping[str, Any]) -> list[Report]:
    """What a trial of this configuration reports."""
    result = _Trial({**config, "storage": folder}).train()
    assert result["done"]
    return result["reports"]


def test_a_mistake_that_shows_as_a_trial_begins_is_reported(tmp_path: Path) -> None:
    """The whole trial's, where it comes before any job; a fault is still raised, and another beginning is tried."""
    (report,) = reports(tmp_path, {"begin": UserError("search: no such value")})
    assert (report.key, report.result) == (None, Mistake("search: no such value"))
    trial = _Trial({"begin": OSError("busy"), "storage": tmp_path})
    for _ in range(2):
        with pytest.raises(OSError, match="busy"):
            trial.train()


@pytest.mark.parametrize("together", [False, True])
def test_a_mistake_of_one_job_is_none_of_the_others(tmp_path: Path, together: bool) -> None:
    """The trial goes on with its next job: a cohort that cannot be computed does not cost those of its group."""
    group = [UserError("--storage: no credentials"), None, UserError("family.dim: too many")]
    assert [(report.key, report.result) for report in reports(tmp_path, {"jobs": group, "together": together})] == [
        (0, Mistake("--storage: no credentials")),
        (1, Verdict({})),
        (2, Mistake("family.dim: too many")),
    ]


def test_a_mistake_that_a_training_worker_came_upon_is_the_users_too(tmp_path: Path) -> None:
    """Ray Train hides it in its own error; a worker that died is still raised, for Tune to try again."""
    hidden = WorkerGroupError("rank 1 failed", {1: UserError("family.model: no layer to shard")})
    (report,) = reports(tmp_path, {"jobs": [hidden]})
    assert report.result == Mistake("family.model: no layer to shard")
    with pytest.raises(WorkerGroupError):
        reports(tmp_path, {"jobs": [WorkerGroupError("rank 1 failed", {1: RuntimeError("the node is gone")})]})


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_users_own_mistake_is_not_tried_again(tmp_path: Path, ray_instance: str) -> None:
    """A family that fails in half of the cells: a line for each, its code asked once, and the other half whole."""
    calls = tmp_path / "calls"
    fit = _FIT.replace("CALLS_FILE", repr(str(calls)))
    (tmp_path / "my_halves.py").write_text(HALVES.format(key="wrong", first=fit))
    study = tmp_path / "faults.yaml"
    study.write_text(_STUDY)
    running = start(study, tmp_path / "runs", "--address", ray_instance)
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == 1, printed
    said = [line for line in printed.splitlines() if line.startswith("failed: ")]
    assert len(said) == 2, printed
    told = r".*my_halves:Halves\.fit failed: ZeroDivisionError: of my own making, at my_halves\.py:\d+"
    assert all(re.fullmatch(told, line) for line in said), printed
    assert "Traceback" not in printed
    assert calls.read_text().split().count("True") == 2, "each of the two cells was asked once"
    chains = pl.read_parquet(tmp_path / "runs" / "faults" / "results" / "chains.parquet")
    assert chains.filter(pl.col("status") == "failed")["family.wrong"].to_list() == [True] * 4
    assert chains.filter(pl.col("status") != "failed")["family.wrong"].to_list() == [False] * 4
