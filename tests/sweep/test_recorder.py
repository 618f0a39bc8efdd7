"""The record of a sweep, without Ray: what is on disk while it runs, and what its chains are at the end."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fortifai_ray.chain.chain import Inputs
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.results.schema import part_paths, read_table
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Study, make_study
from fortifai_ray.sweep import recorder as recorder_module
from fortifai_ray.sweep.plan import ResourcesConfig, make_plan
from fortifai_ray.sweep.progress import SweepProgress
from fortifai_ray.sweep.recorder import Recorder
from fortifai_ray.sweep.reports import Finished, Mistake, Report
from fortifai_ray.sweep.trials import _Reports
from fortifai_ray.sweep.work import Grid, Job, Result, run_job

CONTENT = {
    "name": "recorded",
    "family": {"kind": "gaussian", "dim": 1},
    "samples_per_generation": 20,
    "generations": 3,
    "vary": {"regime": [{"kind": "replace"}, {"kind": "accumulate"}], "seed": [0, 1]},
    "collapse": {"metric": "kl_divergence", "relative_to": "absolute", "threshold": 0.5, "direction": "above"},
}


class _Sync:
    """What a recorder needs of the mirror in MLflow."""

    def __init__(self, folder: Path, storage: Path) -> None:
        self.pokes = 0

    def poke(self) -> None:
        self.pokes += 1

    def close(self, status: str) -> Any:
        return SimpleNamespace(problems=[f"it was {status}"])


class Sweep:
    """A study of two cohorts, computed in this process, and the recorder of its sweep."""

    def __init__(self, folder: Path) -> None:
        self.study: Study = make_study(CONTENT, "recorded.yaml")
        self.storage, self.out = Storage.of(folder), io.StringIO()
        self.console = Console(file=self.out, width=200)
        self.recorder = Recorder(self.study, self.storage, self.console)
        self.work = Grid(self.study, Inputs({(type(cell.recipe), None): None for cell in self.study.cells}))
        keys = [key for config in self.work.configs(None) for key in config["jobs"]]  # type: ignore[arg-type]
        self.jobs: list[Job] = [self.work.job(key) for key in keys]

    def results(self, job: Job) -> list[Result]:
        return list(run_job(job, Steps(StageStore(self.storage)), InProcess()))

    def chains(self) -> dict[str, str]:
        """The status of each chain by the table."""
        table = read_table(self.recorder.folder, "chains")
        assert table is not None
        return {row["chain_id"]: row["status"] for row in table.to_dicts()}


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setattr(recorder_module, "StudySync", _Sync)
    return Sweep(tmp_path)


def test_a_driver_that_is_killed_leaves_what_it_flushed(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are on disk within seconds; between two flushes nothing is written; MLflow is poked for new rows only."""
    clock = [100.0]
    monkeypatch.setattr(recorder_module.time, "monotonic", lambda: clock[0])
    recorder, folder = sweep.recorder, sweep.recorder.folder
    seen = []
    for job in sweep.jobs:
        for result in sweep.results(job):
            recorder.take(job, result)
        for seconds in (0.0, recorder_module.FLUSH_SECONDS + 1):
            clock[0] += seconds
            recorder.flush()
            table = read_table(folder, "generations")
            seen.append(0 if table is None else table.height)
    assert seen == [6, 6, 6, 12]
    assert len(part_paths(folder, "generations")) == 1
    assert recorder._sync.pokes == 2  # type: ignore[attr-defined]


def test_a_full_disk_is_said_once(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that it refused are in the tables once there is room."""
    (first, second), recorder = sweep.jobs, sweep.recorder

    def full(*arguments: Any) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fortifai_ray.results.schema.write_table", full)
        for result in sweep.results(first):
            recorder.take(first, result)
        recorder.flush(at_most_every=0.0)
        recorder.flush(at_most_every=0.0)
    assert sweep.out.getvalue().count("the tables could not be written: No space left on device") == 1
    for result in sweep.results(second):
        recorder.take(second, result)
    recorder.flush(at_most_every=0.0)
    table = read_table(recorder.folder, "generations")
    assert table is not None
    assert table["chain_id"].n_unique() == 4


def test_chains_end_as_finished_failed_or_interrupted(sweep: Sweep) -> None:
    """A chain that was cut short did not survive: it counts as failed, and is named as unfinished."""
    job, recorder = sweep.jobs[0], sweep.recorder
    for result in sweep.results(job):
        recorder.take(job, result)
    ids = [chain.chain_id for chain in sweep.study.chains]
    finished = [chain.chain_id for chain in job.chains]
    for chain_id in finished:
        recorder.chain_finished(chain_id)
        recorder.chain_failed(chain_id, "its trial died later on")
    failed, interrupted = (chain_id for chain_id in ids if chain_id not in finished)
    recorder.chain_failed(failed, "of my own making")
    outcome = recorder.close(None)
    assert outcome.failed == {failed: "of my own making", interrupted: "interrupted"}
    assert outcome.unfinished == [interrupted]
    assert {chain_id for chain_id, status in sweep.chains().items() if status == "failed"} == {failed, interrupted}
    assert "MLflow: it was interrupted" in sweep.out.getvalue()
    assert outcome.report.is_file()
    assert part_paths(recorder.folder, "generations") == []


def test_a_trial_that_was_started_again_repeats_itself_in_vain(sweep: Sweep) -> None:
    """A job that has ended is neither recorded nor failed again; one that has not fails with its trial."""
    first, second = sweep.jobs
    callback = _Reports(sweep.work, sweep.recorder, SweepProgress(sweep.console))
    trial = SimpleNamespace(
        trial_id="one",
        config={"jobs": [first.id, second.id]},
        get_pickled_error=lambda: RuntimeError("lost a node"),
        num_failures=1,
    )
    news = [*(Report(first.key, result, 1, 0) for result in sweep.results(first)), Report(first.key, Finished())]
    for _ in range(2):
        callback.on_trial_result(1, [], trial, {"reports": news, "moments": {}})
    callback.on_trial_result(1, [], trial, {"reports": [Report(first.key, Mistake("too late"))], "moments": {}})
    callback.on_trial_error(1, [], trial)
    outcome = sweep.recorder.close(None)
    assert outcome.failed == {chain.chain_id: "RuntimeError: lost a node" for chain in second.chains}
    assert outcome.unfinished == []
    said = sweep.out.getvalue()
    assert said.count(f"{first.label}: done") == 1
    assert f"failed: {second.label}: RuntimeError: lost a node" in said
    assert "too late" not in said


@pytest.mark.parametrize(("at_once", "before"), [(2, [False, False, False, True]), (4, [False, True, True, True])])
def test_a_report_is_prepared_once_a_core_is_free(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, at_once: int, before: list[bool]
) -> None:
    """Where fewer chains are left than run at once, and once; of chains that the store held, never."""
    prepared, seen, recorder = list[str](), list[bool](), sweep.recorder
    monkeypatch.setattr(recorder_module, "prepare_report", lambda: prepared.append("a report"))
    first, *_ = ids = [chain.chain_id for chain in sweep.study.chains]
    recorder.chain_finished(first)
    recorder.planned(make_plan(ResourcesConfig(), 4, float(at_once), at_once, engines=False))
    for chain_id in ids:
        seen.append(recorder._ahead is not None)
        recorder.chain_finished(chain_id)
    assert seen == before
    assert recorder._ahead is not None
    recorder._ahead.join()
    assert prepared == ["a report"]
