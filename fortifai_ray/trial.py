"""Chains, cohorts and a search's probes as Ray Tune trials: a step of a trial is a generation, or a cohort."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ray import tune

from fortifai_ray.chain import ChainTask, GenerationResult, run_chain
from fortifai_ray.cohort import CohortTask, run_cohort
from fortifai_ray.devices import Devices
from fortifai_ray.probes import BoundaryProber, CohortResult, Prober, Verdict, probe_reports
from fortifai_ray.steps import Steps
from fortifai_ray.store import StageStore, Storage


class _Stored(tune.Trainable):
    """A trial whose checkpoint is the stage store."""

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
    """Runs one chain. The stage store is its checkpoint: a trial that is started again finds its finished steps there.

    Tune reuses the process for the next chain, which saves the seconds of importing torch and transformers again.
    """

    def setup(self, config: dict[str, Any], context: TrialContext) -> None:  # type: ignore[override]
        quiet_libraries()
        self._context = context
        self._begin(config["chain_id"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config["chain_id"])
        return True

    def _begin(self, chain_id: str) -> None:
        context = self._context
        self._steps = Steps(StageStore(context.storage), announce=self._announce)
        self._chain_id = chain_id
        task = context.tasks[chain_id]
        self._results: Iterator[GenerationResult] = run_chain(task, self._steps, context.devices)
        self._announce("starting")

    def _announce(self, step: str) -> None:
        if self._context.board is not None:
            self._context.board.write.remote(self._chain_id, step)

    def step(self) -> dict[str, Any]:
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

    def setup(self, config: dict[str, Any], context: CohortContext) -> None:  # type: ignore[override]
        self._context = context
        self._begin(config["group"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config["group"])
        return True

    def _begin(self, group: int) -> None:
        self._left = list(self._context.groups[group])

    def step(self) -> dict[str, Any]:
        if not self._left:
            return {"done": True, "cohort": None}
        task = self._left.pop(0)
        steps = Steps(StageStore(self._context.storage), announce=lambda step: self._announce(task, step))
        stage = run_cohort(task, steps)
        return {"cohort": task.id, "stage": stage.hash, "reused": stage.reused, "done": False}

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

    def setup(self, config: dict[str, Any], context: ProbeContext) -> None:  # type: ignore[override]
        quiet_libraries()
        self._context = context
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        context = self._context
        self._steps = Steps(StageStore(context.storage), announce=self._announce)
        self._reports = probe_reports(context.prober, config, self._steps, context.devices)
        self._announce("starting")

    def _announce(self, step: str) -> None:
        if self._context.board is not None:
            self._context.board.write.remote(self.trial_id, step)

    def step(self) -> dict[str, Any]:
        report = next(self._reports)
        # A searcher wants its metric in every report: it is null until the verdict.
        common = {**dict.fromkeys(self._context.prober.outcomes), **_counts(self._steps), "row": None, "done": False}
        if isinstance(report, Verdict):
            return {**common, **report.outcome, "references": list(report.references), "done": True}
        if isinstance(report, CohortResult):
            return {**common, "cohort": report.task.id, "stage": report.stage.hash, "reused": report.stage.reused}
        return {**common, **_generation_report(report)}


class CellTrial(_Stored):
    """Searches the cells of a family whose chains cost milliseconds, a round of all of them a step.

    A trial for each chain would spend most of its time in being one. The driver answers its own search from the store.
    """

    def setup(self, config: dict[str, Any], context: ProbeContext) -> None:  # type: ignore[override]
        self._context = context
        self._begin(config["cells"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config["cells"])
        return True

    def _begin(self, cells: list[str]) -> None:
        prober = self._context.prober
        assert isinstance(prober, BoundaryProber)
        self._prober, self._finders = prober, {name: prober.finder(name) for name in cells}
        self._steps = Steps(StageStore(self._context.storage))

    def step(self) -> dict[str, Any]:
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
