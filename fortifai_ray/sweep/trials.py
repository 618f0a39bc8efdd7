"""Chains, cohorts and a search's probes as Ray Tune trials: a step of a trial is a generation, or a cohort."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ray import tune

from fortifai_ray.chain.chain import ChainTask, GenerationResult, run_chain
from fortifai_ray.chain.cohort import CohortTask, run_cohort
from fortifai_ray.errors import UserError
from fortifai_ray.recipe.devices import Devices
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore, Storage
from fortifai_ray.sweep.probes import BoundaryProber, CohortResult, Prober, Verdict, probe_reports

MISTAKE = "mistake"  # the key of a last report: what the user can put right


class _Stored(tune.Trainable):
    """A trial whose checkpoint is the stage store; each step is a report, the last of which says ``done``.

    Tune reuses the process for the next configuration, which saves the seconds of importing torch and transformers.
    """

    def setup(self, config: dict[str, Any], context: Any) -> None:  # type: ignore[override]
        self._context = context
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._to_begin: dict[str, Any] | None = new_config  # with the first step, where a mistake is told as one
        return True

    def begin(self, config: dict[str, Any]) -> None:
        """Make ready for the reports of a configuration."""
        raise NotImplementedError

    def report(self) -> dict[str, Any]:
        """The next report."""
        raise NotImplementedError

    def step(self) -> dict[str, Any]:
        """The next report, or the user's mistake: raised, Tune would try again what no trying mends."""
        try:
            if self._to_begin is not None:
                self.begin(self._to_begin)
                self._to_begin = None
            return self.report()
        except Exception as error:
            mistake = _mistake(error)
            if mistake is None:
                raise
            return {"done": True, **self.nothing(), MISTAKE: str(mistake)}

    def nothing(self) -> dict[str, Any]:
        """What a report must hold where nothing was found."""
        return {}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the stage store already has it."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the stage store already has it."""


@dataclass(frozen=True)
class TrialContext:
    """What every trial of a sweep shares."""

    storage: Storage
    tasks: dict[str, ChainTask]
    devices: Devices
    board: Any = field(default=None)


class ChainTrial(_Stored):
    """Runs one chain. The stage store is its checkpoint: a trial started again finds its finished steps there."""

    _context: TrialContext

    def begin(self, config: dict[str, Any]) -> None:
        quiet_libraries()
        context = self._context
        self._chain_id = config["chain_id"]
        self._steps = Steps(StageStore(context.storage), announce=self._announce)
        task = context.tasks[self._chain_id]
        self._results: Iterator[GenerationResult] = run_chain(task, self._steps, context.devices)
        self._announce("starting")

    def _announce(self, step: str) -> None:
        if self._context.board is not None:
            self._context.board.write.remote(self._chain_id, step)

    def report(self) -> dict[str, Any]:
        result = next(self._results, None)
        if result is None:  # the last generation was already reported
            return {"done": True, "row": None}
        return {**_generation_report(result), **_counts(self._steps), "done": False}


@dataclass(frozen=True)
class CohortContext:
    """What every trial of cohorts shares: ``groups`` are lists of cohorts, one list per trial."""

    storage: Storage
    groups: list[list[CohortTask]]
    board: Any = field(default=None)


class CohortTrial(_Stored):
    """Computes a group of cohorts, one a step. The store is its checkpoint, as it is a chain's."""

    _context: CohortContext

    def begin(self, config: dict[str, Any]) -> None:
        self._left = list(self._context.groups[config["group"]])

    def report(self) -> dict[str, Any]:
        if not self._left:
            return {"done": True, "cohort": None}
        task = self._at = self._left.pop(0)
        steps = Steps(StageStore(self._context.storage), announce=lambda step: self._announce(task, step))
        stage = run_cohort(task, steps)
        return {"cohort": task.id, "stage": stage.hash, "reused": stage.reused, "done": False}

    def nothing(self) -> dict[str, Any]:
        """A mistake in one cohort is none in the others of the group."""
        return {"cohort": self._at.id, "done": False}

    def _announce(self, task: CohortTask, step: str) -> None:
        if self._context.board is not None:
            self._context.board.write.remote(task.id, step)


@dataclass(frozen=True)
class ProbeContext:
    """What every trial of a search shares."""

    storage: Storage
    prober: Prober
    devices: Devices
    board: Any = field(default=None)


class ProbeTrial(_Stored):
    """Runs the chains of one configuration that a searcher suggested; its last report is the verdict."""

    _context: ProbeContext

    def begin(self, config: dict[str, Any]) -> None:
        quiet_libraries()
        context = self._context
        self._steps = Steps(StageStore(context.storage), announce=self._announce)
        self._reports = probe_reports(context.prober, config, self._steps, context.devices)
        self._announce("starting")

    def _announce(self, step: str) -> None:
        if self._context.board is not None:
            self._context.board.write.remote(self.trial_id, step)

    def report(self) -> dict[str, Any]:
        report = next(self._reports)
        common = {**self.nothing(), **_counts(self._steps), "row": None, "done": False}
        if isinstance(report, Verdict):
            return {**common, **report.outcome, "references": list(report.references), "done": True}
        if isinstance(report, CohortResult):
            return {**common, "cohort": report.task.id, "stage": report.stage.hash, "reused": report.stage.reused}
        return {**common, **_generation_report(report)}

    def nothing(self) -> dict[str, Any]:
        """A searcher wants its metric in every report: it is null until the verdict."""
        return dict.fromkeys(self._context.prober.outcomes)


class CellTrial(_Stored):
    """Searches the cells of a family whose chains cost milliseconds, a round of all of them a step.

    A trial for each chain would spend most of its time in being one. The driver answers its own search from the store.
    """

    _context: ProbeContext

    def begin(self, config: dict[str, Any]) -> None:
        prober = self._context.prober
        assert isinstance(prober, BoundaryProber)
        self._prober, self._finders = prober, {name: prober.finder(name) for name in config["cells"]}
        self._steps = Steps(StageStore(self._context.storage))

    def report(self) -> dict[str, Any]:
        """A round of each cell that is not done."""
        computed: list[str] = []
        for name, finder in self._finders.items():
            for probe in finder.ask():
                config = probe.config(name)
                *results, verdict = probe_reports(self._prober, config, self._steps, self._context.devices)
                assert isinstance(verdict, Verdict)
                finder.tell(probe, verdict.outcome["collapsed"], verdict.outcome["generations"])
                computed += [r.stage.hash for r in results if isinstance(r, CohortResult) and not r.stage.reused]
        done = all(finder.done for finder in self._finders.values())
        return {"computed": computed, **_counts(self._steps), "done": done}


def _mistake(error: BaseException) -> UserError | None:
    """The user's mistake that an error is, or that a worker of Ray Train's group made of it."""
    if isinstance(error, UserError):
        return error
    failures = getattr(error, "worker_failures", {}).values()
    return next((failure for failure in failures if isinstance(failure, UserError)), None)


def _generation_report(result: GenerationResult) -> dict[str, Any]:
    return {
        "row": dict(result.row),
        "samples": [dict(sample) for sample in result.samples],
        "picture": result.picture,
        "details": dict(result.details),
    }


def _counts(steps: Steps) -> dict[str, int]:
    return {"stages_computed": steps.computed, "stages_reused": steps.reused}


def quiet_libraries() -> None:
    """Keep progress bars and start-up notes of the libraries off the sweep's own view."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
