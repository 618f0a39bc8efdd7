"""Trials and their callback as Ray Tune runs them, in this process: a search inside trials, and chain by chain; and the
same search in processes without Ray."""

import io
import itertools
import pickle
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from rich.console import Console

from fortifai_ray.chain.chain import Inputs
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.results.schema import read_table
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Study, make_study
from fortifai_ray.sweep import here as here_module
from fortifai_ray.sweep import recorder as recorder_module
from fortifai_ray.sweep.here import run_here
from fortifai_ray.sweep.plan import ResourcesConfig, make_plan
from fortifai_ray.sweep.progress import SweepProgress
from fortifai_ray.sweep.recorder import Recorder
from fortifai_ray.sweep.reports import Runner
from fortifai_ray.sweep.search import BoundaryWork
from fortifai_ray.sweep.trials import Trial, TrialContext, _Reports
from fortifai_ray.sweep.work import Work

CONTENT = {
    "name": "searched",
    "family": {"kind": "gaussian", "dim": 1},
    "regime": {"kind": "mixed", "synthetic_ratio": 0.5},
    "samples_per_generation": 20,
    "generations": 8,
    "vary": {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.9}]},
    "collapse": {"metric": "wasserstein", "threshold": 3.0, "direction": "above"},
    "search": {
        "kind": "boundary",
        "over": "regime.synthetic_ratio",
        "low": 0.0,
        "high": 1.0,
        "tolerance": 0.2,
        "budget": 24,  # chains of either cell: it ends by that, long before it would settle
    },
}
PLAN = make_plan(ResourcesConfig(), 2, 2.0, 2)


class Tune:
    """Ray Tune's loop, with one trial at a time."""

    def __init__(self, study: Study, folder: Path, work: Work) -> None:
        self.work, self.storage, self.out = work, Storage.of(folder), io.StringIO()
        console = Console(file=self.out, width=200)
        self.recorder = Recorder(study, self.storage, console)
        self.callback = _Reports(work, self.recorder, SweepProgress(console))
        self._ids = itertools.count()
        for held in work.replay(StageStore(self.storage)):
            for result in held.results:
                self.recorder.take(held.job, result)

    def run(self, configs: list[dict[str, Any]]) -> None:
        for config in configs:
            trial = SimpleNamespace(trial_id=f"trial{next(self._ids)}", config=config)
            for _ in self.results(trial):
                pass
            self.callback.on_trial_complete(0, [], trial)

    def search(self, most: int = 10_000) -> None:
        suggested = self.work.searcher()
        assert suggested is not None
        searcher, _ = suggested
        for _ in range(most):
            trial = SimpleNamespace(trial_id=f"trial{next(self._ids)}")
            trial.config = searcher.suggest(trial.trial_id)
            if trial.config == "FINISHED":
                return
            *_, last = self.results(trial)
            searcher.on_trial_complete(trial.trial_id, last)
            self.callback.on_trial_complete(0, [], trial)

    def here(self) -> None:
        """In processes of this machine, without Ray."""
        run_here(self.work, self.recorder, SweepProgress(self.recorder._console), PLAN)

    def results(self, trial: Any) -> Iterator[dict[str, Any]]:
        context = TrialContext(self.storage, self.work, InProcess())
        running = type("_Trial", (Trial,), {"setup": lambda self, config: Trial.setup(self, config, context)})
        self.callback.on_trial_start(0, [], trial)
        done, one = False, running(dict(trial.config))
        while not done:
            result = one.train()
            self.callback.on_trial_result(0, [], trial, result)
            yield result
            done = result["done"]

    def table(self, name: str) -> pl.DataFrame:
        table = read_table(self.recorder.folder, name)
        assert table is not None
        return table.drop(pl.selectors.contains("seconds"), "reused", strict=False)


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Study:
    sync = SimpleNamespace(poke=lambda: None, close=lambda status: SimpleNamespace(problems=[]))
    monkeypatch.setattr(recorder_module, "StudySync", lambda *arguments: sync)
    return make_study(CONTENT, "searched.yaml")


def begin(study: Study, folder: Path) -> Tune:
    return Tune(study, folder, BoundaryWork(study, Inputs({(type(cell.recipe), None): None for cell in study.cells})))


def test_a_search_inside_trials_is_the_search_of_single_chains(study: Study, tmp_path: Path) -> None:
    """Same probes, same tables and points, also without Ray, where chains alike are computed together; cut short and
    resumed from the store it asks nothing twice."""
    inside, single, here = (begin(study, tmp_path / name) for name in ("inside", "single", "here"))
    here.here()
    assert here.work.done, here.out.getvalue()
    stages = [path for path in (tmp_path / "here" / "stages").iterdir() if not path.name.startswith(".")]
    assert len(stages) == 2 * 24 + 2, "one for each chain, and of the baselines' generation 0 one for 16 seeds"
    configs = inside.work.configs(PLAN)
    assert [len(config["cells"]) for config in configs] == [1, 1]
    inside.run(configs)
    assert inside.work.done
    single.search(most=9)
    assert not single.work.done
    single.search()
    assert single.work.done
    resumed = begin(study, tmp_path / "single")
    assert resumed.work.done, "the store answers every probe"
    course = single.work.course
    assert course.keys() == single.work.names.keys()
    assert all(one[0] == n for rounds in course.values() for n, one in enumerate(rounds, start=rounds[0][0]))
    assert not any(resumed.work.course.values())
    known = BoundaryWork(study, resumed.work.inputs, single.work.result().state)
    assert sum(held.missing is None for held in known.replay(StageStore(resumed.storage)))
    assert known.course == course, "the rounds of the last run are told again"
    for tune in (inside, single, here, resumed):
        searched = tune.work.result()
        assert searched is not None
        tune.recorder.close(searched)
    for name in ("generations", "chains", "collapse_points", "fidelity"):
        order = [column for column in ("chain_id", "loss.kind", "generation", "unit") if column in inside.table(name)]
        for other in (single, here, resumed):
            assert_frame_equal(inside.table(name).sort(order), other.table(name).sort(order))
    printed = inside.out.getvalue()
    assert "TCE γ=0.9: regime.synthetic_ratio" in printed, "a cell's interval after each round"
    assert "did not collapse" not in printed
    assert "did not collapse" in single.out.getvalue(), "a line for each chain"


def test_what_a_process_leaves_behind_goes_to_ray(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that dies ends the search here in one line; its trials go on where it was, to the same tables and points."""
    broken, whole = begin(study, tmp_path / "broken"), begin(study, tmp_path / "whole")
    starts = itertools.count()
    command = ["-c", "import sys; sys.exit()"]  # the second process ends at once
    popen = here_module.subprocess.Popen

    def start(arguments: list[str], **options: Any) -> Any:
        return popen([arguments[0], *command] if next(starts) else arguments, **options)

    monkeypatch.setattr(here_module.subprocess, "Popen", start)
    broken.here()
    assert not broken.work.done
    assert "what is left is tried on Ray" in broken.out.getvalue()
    broken.run(broken.work.configs(PLAN))
    whole.run(whole.work.configs(PLAN))
    for tune in (broken, whole):
        searched = tune.work.result()
        assert searched is not None
        assert searched.done
        tune.recorder.close(searched)
    for name in ("generations", "collapse_points"):
        order = [column for column in ("chain_id", "loss.kind", "generation") if column in broken.table(name)]
        assert_frame_equal(broken.table(name).sort(order), whole.table(name).sort(order))


def test_a_process_has_its_next_round_before_it_answers(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would wait, idle, for the driver to take each answer in. Answers come in the order of the rounds."""
    tune, (ours, theirs), ahead = begin(study, tmp_path), Pipe(), list[bool]()
    runner = Runner(pickle.loads(pickle.dumps(tune.work)), StageStore(tune.storage), InProcess())

    def serve() -> None:
        keys = theirs.recv()
        ahead.append(theirs.poll(10))
        with suppress(EOFError, ConnectionError):
            while True:
                theirs.send(list(runner.run_batch([runner.work.job(key) for key in keys])))
                keys = theirs.recv()

    thread = threading.Thread(target=serve)
    monkeypatch.setattr(here_module, "_processes", lambda *of: nullcontext([ours]))
    thread.start()
    tune.here()
    ours.close()
    thread.join()
    assert tune.work.done, tune.out.getvalue()
    assert ahead == [True]
