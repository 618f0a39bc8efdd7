"""Ray Tune's part of a sweep: one kind of trial, which runs jobs, and one callback, which hands on what they report."""

import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.air._internal import usage
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

from fortifai_ray.chain.chain import GenerationResult
from fortifai_ray.process.imports import quick_imports
from fortifai_ray.process.moments import moments
from fortifai_ray.process.signals import check_signals, signals_kept, signals_wait
from fortifai_ray.recipe.executor import Executor
from fortifai_ray.storage.store import StageStore, Storage
from fortifai_ray.sweep.faults import in_words
from fortifai_ray.sweep.plan import Plan
from fortifai_ray.sweep.progress import SweepProgress
from fortifai_ray.sweep.ray_executor import RayExecutor
from fortifai_ray.sweep.recorder import Recorder
from fortifai_ray.sweep.reports import Reception, Report, Runner
from fortifai_ray.sweep.work import Job, Verdict, Work

if TYPE_CHECKING:
    from fortifai_ray.engines.pool import EnginePool

_RETRIES = 3  # after a fault: a chain's finished steps are in the store, so it costs the step it died in
_TOGETHER = 1.0  # seconds in which cohorts are reported together: each takes milliseconds, as a report does

# Tune would write these into each trial's runtime environment, which Ray's logs and the process list show; a node has
# them in its own environment or role.
ENV_VARS_TO_PROPAGATE.difference_update({name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")})

# Ray's usage statistics look whether a callback is one of MLflow's or Weights & Biases', and import both for it: 2 s
# before the first trial starts.
usage.tag_callbacks = lambda callbacks: False


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a sweep share."""

    storage: Storage
    work: Work
    executor: Executor
    board: Any = None


class _TrialRunner(Runner):
    """Runs a trial's jobs, and writes their steps on the board."""

    def __init__(self, work: Work, store: StageStore, context: TrialContext) -> None:
        super().__init__(work, store, context.executor)
        self._board = context.board

    def starts(self, job: Job) -> None:
        quiet_libraries(text=any(chain.recipe.uses_engines for chain in job.chains))

    def announce(self, job: Job, step: str) -> None:
        if self._board is not None:
            self._board.write.remote(job.id, step)

    def met(self, job: Job, words: str) -> int:
        return 0 if self._board is None else int(ray.get(self._board.fault.remote(job.id, words)))


class Trial(tune.Trainable):
    """Runs the jobs of a configuration. Its checkpoint is the stage store: started again, it finds its finished steps.

    Tune reuses the process for the next configuration, which saves the seconds of importing torch and transformers.
    """

    def setup(self, config: dict[str, Any], context: TrialContext) -> None:  # type: ignore[override]
        self._context = context
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        self._reports: Iterator[Report] | None = None
        self._outcome: dict[str, Any] = dict.fromkeys(self._context.work.outcomes)
        return True

    def step(self) -> dict[str, Any]:
        """The next generation, or the cohorts completed within a second; the last says ``done``.

        A searcher wants its metric in every result: it is null until the verdict.
        """
        if self._reports is None:
            context = self._context
            self._reports = _TrialRunner(context.work, StageStore(context.storage), context).run(self._config)
        reports, until = list[Report](), time.monotonic() + _TOGETHER
        try:
            for report in self._reports:
                reports.append(report)
                if isinstance(report.result, Verdict):
                    self._outcome |= report.result.outcome
                if isinstance(report.result, GenerationResult) or time.monotonic() > until:
                    return {**self._outcome, "reports": reports, "moments": moments(), "done": False}
        except BaseException:
            self._reports = None
            raise
        return {**self._outcome, "reports": reports, "moments": moments(), "done": True}

    def cleanup(self) -> None:
        """Give back what the process holds beside its own share."""
        self._context.executor.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the stage store already has it."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the stage store already has it."""


def run_trials(
    work: Work, recorder: Recorder, plan: Plan, pool: "EnginePool | None", board: Any, progress: SweepProgress
) -> None:
    """Run what is left of ``work``: the configurations known beforehand, then what its searcher suggests."""
    context = TrialContext(recorder.storage, work, _executor(plan, pool), board)
    callback = _Reports(work, recorder, progress)
    if configs := work.configs(plan):
        for job in (job for config in configs for job in work.announced(config)):
            progress.add(job.id, job.label, job.steps)
        (key,) = configs[0]
        _tune(context, plan, callback, {key: tune.grid_search([config[key] for config in configs])})
    if not work.done and (searcher := work.searcher()):
        _tune(context, plan, callback, None, search_alg=searcher[0], num_samples=searcher[1])


def _executor(plan: Plan, pool: "EnginePool | None") -> RayExecutor:
    each = _bundle(plan.worker_cpus, plan.worker_gpus)
    return RayExecutor(plan.threads, plan.workers, each, plan.engines_at_once, pool)


def _trial_bundle(plan: Plan) -> dict[str, float]:
    """What a trial holds: its own process, and with a single worker the GPU that it trains on."""
    return _bundle(plan.trial_cpus, plan.trial_gpus)


def _tune(
    context: TrialContext, plan: Plan, callback: tune.Callback, space: dict[str, Any] | None, **config: Any
) -> None:
    """A trial for each point of the ``space`` or of a searcher's, as many at once as the plan says, each retried after
    a fault."""
    trainable = tune.with_parameters(Trial, context=context)
    trainable = tune.with_resources(trainable, tune.PlacementGroupFactory([_trial_bundle(plan)]))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what matters of it, the callback says in one line
    with tempfile.TemporaryDirectory(prefix="fortifai-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(max_concurrent_trials=plan.chains_at_once, reuse_actors=True, **config),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
                callbacks=[callback],
                verbose=0,
            ),
        )
        with signals_kept(), signals_wait():  # the callback lets them through between two steps of Tune
            tuner.fit()


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


class _Reports(tune.Callback):
    """Hands on what trials report."""

    def __init__(self, work: Work, recorder: Recorder, progress: SweepProgress) -> None:
        self._recorder, self._reception = recorder, Reception(work, recorder, progress)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks with an experiment, and these belong to this process alone."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._reception.started(trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._recorder.happened(result["moments"])
        self._reception.take(trial.trial_id, trial.config, result["reports"])
        self._reception.say_news()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._reception.say_news()  # after the searcher has the verdict

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error()
        words = in_words(error) if error else "the trial died"
        times = f" (tried {trial.num_failures} times)" if trial.num_failures > 1 else ""
        self._reception.fail(trial.trial_id, trial.config, words + times)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._recorder.flush()  # also where a chain's next report is minutes away
        check_signals()


def quiet_libraries(*, text: bool) -> None:
    """Keep progress bars and start-up notes of the libraries off the sweep's own view.

    ``text`` is whether language models are trained. Only these need transformers, which takes seconds to import.
    """
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if text:
        with quick_imports():  # all that training needs, not as it is first used
            from ray.train.torch import TorchTrainer  # noqa: F401
            from transformers import AutoModelForCausalLM, PreTrainedModel, utils  # noqa: F401
        utils.logging.disable_progress_bar()
        utils.logging.set_verbosity_error()
