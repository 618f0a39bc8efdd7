"""Ray Tune's part of a sweep: a trial per chain or probe, and what its reports set off in the driver."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.search import Searcher

from fortifai_ray.chain.chain import GenerationResult
from fortifai_ray.chain.cohort import CohortTask
from fortifai_ray.recipe.devices import Devices
from fortifai_ray.storage.store import StageStore
from fortifai_ray.sweep.plan import Plan
from fortifai_ray.sweep.progress import SweepProgress
from fortifai_ray.sweep.trials import (
    MISTAKE,
    CellTrial,
    ChainTrial,
    CohortContext,
    CohortTrial,
    ProbeContext,
    ProbeTrial,
    TrialContext,
)

if TYPE_CHECKING:
    from fortifai_ray.engines.pool import EnginePool
    from fortifai_ray.sweep.run import SweepRun
    from fortifai_ray.sweep.search import RunningBoundary, RunningSearch

_GROUPS = 16  # trials that cohorts are spread over: enough for the workers of a small cluster, few to start
_RETRIES = 3  # after a fault: a chain's finished steps are in the store, so it costs the step it died in

# Tune would write these into each trial's runtime environment, which stands in Ray's logs and in the process list; a
# node's own environment or role has them.
ENV_VARS_TO_PROPAGATE.difference_update({name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")})


def tune_chains(
    run: "SweepRun",
    chain_ids: Sequence[str],
    plan: Plan,
    pool: "EnginePool | None",
    board: Any,
    progress: SweepProgress,
) -> None:
    """Run the chains as trials, as many at once as the plan says; each is retried after a fault."""
    context = TrialContext(run.storage, run.tasks, _devices(plan, pool), board)
    trainable = tune.with_parameters(ChainTrial, context=context)
    space = {"chain_id": tune.grid_search(list(chain_ids))}
    _tune(run.study.name, trainable, plan, _Reports(run, progress), space=space)


def tune_cohorts(run: "SweepRun", tasks: Sequence[CohortTask], plan: Plan, board: Any, progress: SweepProgress) -> None:
    """Run cohorts as a few trials, each of which goes through its share of them."""
    groups = [list(tasks[start::_GROUPS]) for start in range(min(_GROUPS, len(tasks)))]
    context = CohortContext(run.storage, groups, board)
    trainable = tune.with_parameters(CohortTrial, context=context)
    space = {"group": tune.grid_search(list(range(len(groups))))}
    _tune(run.study.name, trainable, plan, _CohortReports(run, groups, progress), space=space)


def tune_search(
    search: "RunningSearch",
    searcher: Searcher,
    samples: int,
    plan: Plan,
    pool: "EnginePool | None",
    board: Any,
    progress: SweepProgress,
) -> None:
    """Run what ``searcher`` suggests: ``samples`` configurations, or with −1 until it has no more."""
    run = search.run
    context = ProbeContext(run.storage, search.prober, _devices(plan, pool), board)
    trainable = tune.with_parameters(ProbeTrial, context=context)
    _tune(run.study.name, trainable, plan, _ProbeReports(search, progress), search_alg=searcher, num_samples=samples)


def tune_cells(search: "RunningBoundary", plan: Plan, board: Any, progress: SweepProgress) -> None:
    """Search the cells of batched families, each trial its share of them."""
    run, names = search.run, search.batched
    groups = [names[start :: plan.chains_at_once] for start in range(min(plan.chains_at_once, len(names)))]
    context = ProbeContext(run.storage, search.prober, _devices(plan, None), board)
    trainable = tune.with_parameters(CellTrial, context=context)
    space = {"cells": tune.grid_search(groups)}
    _tune(run.study.name, trainable, plan, _CellReports(search, progress), space=space)


def _devices(plan: Plan, pool: "EnginePool | None") -> Devices:
    return Devices(
        threads=plan.threads,
        workers=plan.workers,
        resources_per_worker={"CPU": plan.worker_cpus, **({"GPU": plan.worker_gpus} if plan.worker_gpus else {})},
        engines_at_once=plan.engines_at_once,
        pool=pool,
    )


def _tune(
    name: str,
    trainable: Any,
    plan: Plan,
    callback: tune.Callback,
    *,
    space: dict[str, Any] | None = None,
    **config: Any,
) -> None:
    """A trial for each point of the ``space`` or of a searcher's, as many at once as the plan says, each retried after
    a fault."""
    trainable = tune.with_resources(trainable, tune.PlacementGroupFactory([_trial_bundle(plan)]))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what matters of it, the callback says in one line
    with tempfile.TemporaryDirectory(prefix="fortifai-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(max_concurrent_trials=plan.chains_at_once, reuse_actors=True, **config),
            run_config=tune.RunConfig(
                name=name,
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
                callbacks=[callback],
                verbose=0,
            ),
        )
        tuner.fit()


def _trial_bundle(plan: Plan) -> dict[str, float]:
    """What a trial holds: its own process, and with a single worker the GPU that it trains on."""
    return {"CPU": plan.trial_cpus, **({"GPU": plan.trial_gpus} if plan.trial_gpus else {})}


class _Callback(tune.Callback):
    """What a trial's reports set off in this process."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks with an experiment, and these belong to this process alone."""
        return {}

    def take(self, trial: Any, result: dict[str, Any]) -> None:
        """Take in a report."""
        raise NotImplementedError

    def fail(self, trial: Any, error: str) -> None:
        """Take in that a trial has failed for good."""
        raise NotImplementedError

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get(MISTAKE) is None:
            self.take(trial, result)
        else:
            self.mistaken(trial, result)

    def mistaken(self, trial: Any, result: dict[str, Any]) -> None:
        """Take in a mistake of the user's that a trial came upon."""
        self.fail(trial, result[MISTAKE])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.fail(trial, str(trial.get_error() or "the trial died").strip().splitlines()[-1])


class _Reports(_Callback):
    """Takes in each generation that a trial reports."""

    def __init__(self, run: "SweepRun", progress: SweepProgress) -> None:
        self._run, self._progress = run, progress

    def take(self, trial: Any, result: dict[str, Any]) -> None:
        if result["row"] is None:
            return
        self._run.take(GenerationResult(result["row"], result["details"], result["samples"], result["picture"]))
        self._run.save()
        self._run.count(trial.trial_id, result)
        metrics = dict.fromkeys(criterion.metric for criterion in self._run.study.settings.collapse)
        self._progress.generation(result["row"]["chain_id"], result["row"], list(metrics))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        chain_id = trial.config["chain_id"]
        if chain_id not in self._run.results.failed:
            self._run.finished.add(chain_id)
            self._progress.finished(chain_id, "finished")

    def fail(self, trial: Any, error: str) -> None:
        chain_id = trial.config["chain_id"]
        self._run.results.failed[chain_id] = error
        self._progress.finished(chain_id, "failed")
        self._progress.say(f"chain failed: {self._run.tasks[chain_id].chain.label}: {error}")


class _CohortReports(_Callback):
    """Takes in each cohort that a trial reports."""

    def __init__(self, run: "SweepRun", groups: list[list[CohortTask]], progress: SweepProgress) -> None:
        self._run, self._groups, self._progress = run, groups, progress

    def take(self, trial: Any, result: dict[str, Any]) -> None:
        if result["cohort"] is None:
            return
        task, stage = self._run.cohorts[result["cohort"]], StageStore(self._run.storage).open(result["stage"])
        assert stage is not None, "a trial reports what it has stored"
        self._run.take_cohort(task, replace(stage, reused=result["reused"]))
        self._run.stages["reused" if result["reused"] else "computed"] += 1
        self._progress.cohort(task.id, task.label, len(task.chains))

    def fail(self, trial: Any, error: str) -> None:
        for task in self._groups[trial.config["group"]]:
            self._fail(task, error)

    def mistaken(self, trial: Any, result: dict[str, Any]) -> None:
        self._fail(self._run.cohorts[result["cohort"]], result[MISTAKE])

    def _fail(self, task: CohortTask, error: str) -> None:
        ended = self._run.finished | self._run.results.failed.keys()
        unfinished = [chain.chain_id for chain in task.chains if chain.chain_id not in ended]
        self._run.results.failed |= dict.fromkeys(unfinished, error)
        if unfinished:
            self._progress.finished(task.id, "failed")
            self._progress.say(f"failed: {task.label}: {error}")


class _ProbeReports(_Callback):
    """Takes in what a search's trials report, and says what each of them came to."""

    def __init__(self, search: "RunningSearch", progress: SweepProgress) -> None:
        self._search, self._progress = search, progress

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        label, generations = self._search.started(trial.config)
        self._progress.add(trial.trial_id, label, generations)

    def take(self, trial: Any, result: dict[str, Any]) -> None:
        run = self._search.run
        run.count(trial.trial_id, result)
        if result["row"] is not None:
            run.take(GenerationResult(result["row"], result["details"], result["samples"], result["picture"]))
            self._search.write_generations()
            self._progress.completed(trial.trial_id)
        elif "cohort" in result:
            self._search.take_cohort(trial.config, result)
        else:
            self._progress.say(self._search.told(trial.config, result))
            self._progress.finished(trial.trial_id, "finished")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if line := self._search.progress(trial.config):
            self._progress.say(line)

    def fail(self, trial: Any, error: str) -> None:
        label = self._search.failed(trial.config, error)
        self._progress.finished(trial.trial_id, "failed")
        self._progress.say(f"failed: {label}: {error}")


class _CellReports(_Callback):
    """Takes in the rounds of searches that run inside trials: what they stored answers the driver's own search."""

    def __init__(self, search: "RunningBoundary", progress: SweepProgress) -> None:
        self._search, self._progress = search, progress

    def take(self, trial: Any, result: dict[str, Any]) -> None:
        run, cells = self._search.run, trial.config["cells"]
        run.count(trial.trial_id, result)
        self._search.catch_up(cells, StageStore(run.storage), frozenset(result["computed"]))
        for name in cells:
            if line := self._search.news(name):
                self._progress.say(line)

    def fail(self, trial: Any, error: str) -> None:
        self._progress.say(f"failed: the search of {len(trial.config['cells'])} cell(s): {error}")
