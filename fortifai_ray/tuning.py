"""Ray Tune's part of a sweep: one trial per chain, and what its reports set off in the driver."""

import logging
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray import tune

from fortifai_ray.families.language.family import Devices
from fortifai_ray.progress import SweepProgress
from fortifai_ray.resources import Plan
from fortifai_ray.trial import ChainTrial, TrialContext

if TYPE_CHECKING:
    from fortifai_ray.engines.pool import EnginePool
    from fortifai_ray.run import SweepRun

_RETRIES = 3  # after a fault: a chain's finished steps are in the store, so it costs the step it died in


def tune_chains(
    run: "SweepRun", chain_ids: Sequence[str], plan: Plan, pool: "EnginePool", board: Any, progress: SweepProgress
) -> None:
    """Run the chains as trials, as many at once as the plan says; each is retried after a fault."""
    devices = Devices(
        threads=plan.threads,
        workers=plan.workers,
        resources_per_worker={"CPU": plan.worker_cpus},
        engines_at_once=plan.engines_at_once,
        pool=pool,
    )
    context = TrialContext(str(run.storage.absolute()), run.tasks, devices, board)
    trainable = tune.with_resources(
        tune.with_parameters(ChainTrial, context=context), tune.PlacementGroupFactory([{"CPU": plan.trial_cpus}])
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what matters of it, the callback says in one line
    with tempfile.TemporaryDirectory(prefix="fortifai-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            param_space={"chain_id": tune.grid_search(list(chain_ids))},
            tune_config=tune.TuneConfig(max_concurrent_trials=plan.chains_at_once, reuse_actors=True),
            run_config=tune.RunConfig(
                name=run.study.name,
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
                callbacks=[_Reports(run, progress)],
                verbose=0,
            ),
        )
        tuner.fit()


class _Reports(tune.Callback):
    """Takes in each generation that a trial reports."""

    def __init__(self, run: "SweepRun", progress: SweepProgress) -> None:
        self._run, self._progress = run, progress
        self._counted: dict[str, tuple[int, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks with an experiment, and these belong to this process alone."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if result["row"] is None:
            return
        self._run.take(result["row"], result["samples"])
        self._run.results.write_generations()
        self._count(trial.trial_id, result)
        metrics = dict.fromkeys(criterion.metric for criterion in self._run.study.settings.collapse)
        self._progress.generation(result["row"]["chain_id"], result["row"], list(metrics))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._run.finished.add(trial.config["chain_id"])
        self._progress.finished(trial.config["chain_id"], "finished")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        chain_id = trial.config["chain_id"]
        error = str(trial.get_error() or "the trial died").strip().splitlines()[-1]
        self._run.results.failed[chain_id] = error
        self._progress.finished(chain_id, "failed")
        self._progress.say(f"chain failed: {self._run.tasks[chain_id].chain.label}: {error}")

    def _count(self, trial_id: str, result: dict[str, Any]) -> None:
        computed, reused = self._counted.get(trial_id, (0, 0))
        self._run.stages["computed"] += max(0, result["stages_computed"] - computed)
        self._run.stages["reused"] += max(0, result["stages_reused"] - reused)
        self._counted[trial_id] = (result["stages_computed"], result["stages_reused"])
