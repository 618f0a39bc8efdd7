"""A sweep: every chain of a study, on Ray Tune, from whatever the store already holds to the finished tables."""

import os
import secrets
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from fortifai_ray.chain import ChainTask, run_chain
from fortifai_ray.engines.config import resolve_kind
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.family import METRICS, Devices, LanguageFamily
from fortifai_ray.families.language.models import context_length
from fortifai_ray.progress import Board, SweepProgress
from fortifai_ray.resources import Plan, cores_here, make_plan
from fortifai_ray.results import StudyResults
from fortifai_ray.steps import NotStored, Steps
from fortifai_ray.store import StageStore
from fortifai_ray.study import Chain, Study
from fortifai_ray.tracking import ChainInfo, StudyTracker

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the metrics: no TensorBoard, CSV and JSON beside it
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers run in this environment, not in a copy of it
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a worker group that is ready is seen at once, not seconds later
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own view, which would write over this one
    "RAY_idle_worker_killing_time_threshold_ms": "600000",  # a new worker would import for seconds, every generation
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep left behind. ``failed`` maps the chains that could not be computed to their last error."""

    folder: Path
    report: Path
    failed: dict[str, str]


def run_sweep(study: Study, storage: Path, console: Console, address: str | None = None) -> SweepOutcome:
    """Run or resume ``study``: what the store holds is taken from there, the rest is computed.

    Raises :class:`UserError` for what is the user's to mend, before anything is started.
    """
    store = StageStore(storage)
    check(study, store)
    _check_address(address)
    results = StudyResults(study, storage / study.name)
    tracker = StudyTracker(study.name, storage, study.resolved(), [_chain_info(chain) for chain in study.chains])
    run = SweepRun(study, storage, results, tracker, console)
    missing = run.replay(store)
    if missing:
        _compute(run, missing, address)
    return run.finish()


def check(study: Study, store: StageStore) -> None:
    """Everything about a study that its files alone do not tell: corpora that are long enough, metrics that exist."""
    for criterion in study.settings.collapse:
        if criterion.metric not in METRICS:
            raise UserError(
                f"{study.source}: collapse.metric: {criterion.metric} is not measured ({', '.join(METRICS)})"
            )
    seen = set()
    for chain in study.chains:
        recipe = chain.recipe
        kind = (recipe.corpus, recipe.family, recipe.training, recipe.decoding)
        if kind not in seen:
            seen.add(kind)
            _check_corpus(study, chain, store)


def _check_corpus(study: Study, chain: Chain, store: StageStore) -> None:
    recipe = chain.recipe
    family = LanguageFamily(recipe, Steps(store), Devices())
    blocks, size, batch = len(family.human().items), recipe.training.block_size, recipe.training.batch_size
    if blocks < batch:
        raise UserError(
            f"{study.source}: corpus: {blocks * size} training tokens are too few for one batch of "
            f"{batch} blocks of {size}; a longer text or a smaller training.batch_size is needed"
        )
    if len(family.corpus.held_out) < size:
        raise UserError(
            f"{study.source}: corpus.held_out: {len(family.corpus.held_out)} held-out tokens are less than one block "
            f"of {size}; hold out more or make training.block_size smaller"
        )
    _check_lengths(study, chain)


def _check_lengths(study: Study, chain: Chain) -> None:
    recipe, size = chain.recipe, chain.recipe.training.block_size
    longest = context_length(recipe.family.model)
    row = recipe.decoding.context_tokens + recipe.decoding.max_new_tokens
    if longest is not None and max(row, size) > longest:
        key = "decoding.max_new_tokens" if row > longest else "training.block_size"
        raise UserError(
            f"{study.source}: {key}: rows of {max(row, size)} tokens do not fit the model's context of {longest}; "
            "context_tokens + max_new_tokens, and block_size, may be as much"
        )
    if recipe.decoding.context_tokens > size:
        raise UserError(
            f"{study.source}: decoding.context_tokens: {recipe.decoding.context_tokens} is more than a block of "
            f"{size} tokens; at most training.block_size is right"
        )


def _check_address(address: str | None) -> None:
    """Whether anything listens there: Ray itself would try for minutes before it says that nothing does."""
    host, separator, port = (address or "").rpartition(":")
    if not separator or not port.isdigit() or "/" in host:  # started here, or a form that Ray resolves ("auto", ray://)
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address {address}: nothing answers there ({error}); give a Ray cluster's HOST:PORT"
        ) from error


class SweepRun:
    """One run of a sweep: where its rows go, and how it went."""

    def __init__(
        self, study: Study, storage: Path, results: StudyResults, tracker: StudyTracker, console: Console
    ) -> None:
        self.study, self.storage, self.results, self.tracker, self.console = study, storage, results, tracker, console
        self.tasks = {chain.chain_id: _task(study, chain) for chain in study.chains}
        self.plan: Plan | None = None
        self.stages = {"computed": 0, "reused": 0}
        self.engines: dict[str, Any] = {"engine_starts": 0, "engine_kind": None}
        self._useful = 0.0

    def replay(self, store: StageStore) -> list[Chain]:
        """Take in every chain that the store holds whole; returns those it does not."""
        missing = []
        for chain in self.study.chains:
            steps = Steps(store, replay=True)
            try:
                finished = list(run_chain(self.tasks[chain.chain_id], steps, Devices()))
            except NotStored:
                missing.append(chain)
                continue
            for result in finished:
                self.take(result.row, result.samples)
            self.stages["reused"] += steps.reused
        self.results.write_generations()
        return missing

    def take(self, row: Any, samples: Any) -> None:
        """A completed generation."""
        self.results.add(row, samples)
        self._useful += row["computed_seconds"]
        metrics = {name: row[name] for name in (*METRICS, "synthetic_ratio_realised", "synthetic_size_cum")}
        text = "\n\n".join(f"[{s['row']}] {s['prompt_text']} ▸ {s['generated_text']}" for s in samples)
        self.tracker.log_generation(row["chain_id"], row["generation"], metrics, text or None)

    def finish(self) -> SweepOutcome:
        """Write every table, the report and the summary; close the runs in MLflow."""
        from fortifai_ray.report import write_report

        chains, _ = self.results.write()
        self.results.write_summary(self._summary())
        report = write_report(self.results.folder)
        for row in chains.unique("chain_id", maintain_order=True).to_dicts():
            reason = self.results.failed.get(row["chain_id"])
            found = {key: row[key] for key in ("metric", "onset", "censored", "fi_generations", "fi_synthetic")}
            self.tracker.finish_chain(row["chain_id"], row["status"], reason, found)
        tables = sorted((self.results.folder / "results").glob("*.parquet"))
        outcome = self.tracker.finish("failed" if self.results.failed else "finished", [report, *tables])
        for problem in outcome.problems:
            self.console.print(f"MLflow: {problem}", highlight=False, markup=False)
        self.results.write_summary(self._summary())
        return SweepOutcome(self.results.folder, report, self.results.failed)

    def _summary(self) -> dict[str, Any]:
        wall = time.time() - psutil.Process().create_time()
        at_once = self.plan.chains_at_once if self.plan else 1
        useful = self._useful
        return {
            "name": self.study.name,
            "wall_seconds": wall,
            "chains_at_once": at_once,
            "useful_seconds": useful,
            "overhead": (wall * at_once - useful) / useful if useful else None,
            **self.engines,
            "stages_computed": self.stages["computed"],
            "stages_reused": self.stages["reused"],
            "plan": self.plan.model_dump(mode="json") if self.plan else None,
            "chains": [self._chain_summary(chain) for chain in self.study.chains],
            "versions": {name: version(name) for name in ("ray", "torch", "transformers", "mlflow", "polars")},
        }

    def _chain_summary(self, chain: Chain) -> dict[str, Any]:
        rows = self.results.generations().filter(chain_id=chain.chain_id)
        worlds = rows["world_size"].drop_nulls().unique().sort().to_list()
        mode = ", ".join("one process" if world == 1 else f"DDP over {world} workers" for world in worlds)
        reasons = rows["collapse_reason"].drop_nulls().to_list()
        return {
            "chain_id": chain.chain_id,
            "label": chain.label,
            "training_mode": mode or None,
            "status": "failed" if chain.chain_id in self.results.failed else "finished",
            "reason": self.results.failed.get(chain.chain_id) or (reasons[0] if reasons else None),
        }


def _task(study: Study, chain: Chain) -> ChainTask:
    return ChainTask(chain, study.settings.collapse, study.baseline_of(chain))


def _chain_info(chain: Chain) -> ChainInfo:
    return ChainInfo(chain.chain_id, chain.label, chain.recipe.flat())


def _compute(run: SweepRun, missing: Sequence[Chain], address: str | None) -> None:
    """Compute the chains that the store lacks, on Ray."""
    _prepare_environment(address)
    import ray

    with _ray(address, run.study.settings.resources.num_cpus):
        cpus = float(ray.cluster_resources().get("CPU", 1.0))
        cores = cores_here() if address is None else int(cpus)
        plan = run.plan = make_plan(run.study.settings.resources, len(missing), cpus, cores)
        for line in (plan.describe(), *plan.shrunk):
            run.console.print(line, highlight=False, markup=False)
        pool = _start_engines(run, missing[0], plan)
        board = ray.remote(Board).options(num_cpus=0).remote()
        chains = {chain.chain_id: (chain.label, chain.recipe.generations) for chain in missing}
        with SweepProgress(chains, run.console, board) as progress:
            from fortifai_ray.tuning import tune_chains

            tune_chains(run, list(chains), plan, pool, board, progress)
        run.engines = {
            "engine_starts": pool.starts(),
            "engine_kind": resolve_kind(missing[0].recipe.engine.kind),
            "engine_start_seconds": pool.start_seconds(),
        }
        pool.shutdown()


@contextmanager
def _ray(address: str | None, num_cpus: int | None) -> Iterator[None]:
    """A Ray instance: one started here, or the one at ``address``; never whichever happens to be running."""
    import ray

    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning", "namespace": "fortifai"}
    if address is None:
        arguments |= {"address": "local", "num_cpus": num_cpus or cores_here(), "include_dashboard": False}
    else:
        arguments |= {"address": address}
    try:
        ray.init(**arguments)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--address {address}: no Ray cluster answers there: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _prepare_environment(address: str | None) -> None:
    """What Ray reads when it is imported. Its workers inherit it.

    An instance started here answers only this run's own processes, by a token that is never written down.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _start_engines(run: SweepRun, first: Chain, plan: Plan) -> Any:
    """The warm engines, started at once with weights to come, so that their start hides behind generation 0."""
    from fortifai_ray.engines.pool import EnginePool

    recipe = first.recipe
    pool = EnginePool.create(
        plan.engines,
        name=f"{run.study.name}-{uuid.uuid4().hex[:8]}",
        namespace="fortifai",
        num_cpus=plan.engine_cpus,
        threads=plan.threads,
    )
    folder = run.results.folder / ".engine"
    LanguageFamily(recipe, Steps(StageStore(run.storage)), Devices()).write_engine_config(folder)
    pool.prestart(folder.absolute(), recipe.engine)
    return pool


def print_plan(study: Study, storage: Path, console: Console) -> None:
    """What a sweep of ``study`` would do, without doing any of it."""
    store = StageStore(storage)
    check(study, store)
    stored = 0
    for chain in study.chains:
        steps = Steps(store, replay=True)
        try:
            generations = len(list(run_chain(_task(study, chain), steps, Devices())))
            state = f"whole in the store ({generations} generations)"
            stored += 1
        except NotStored as missing:
            state = f"{steps.reused} steps in the store; next: {missing}"
        console.print(f"{chain.label}: {state}", highlight=False, markup=False)
    cpus = float(study.settings.resources.num_cpus or cores_here())
    plan = make_plan(study.settings.resources, max(1, len(study.chains) - stored), cpus, cores_here())
    console.print(
        f"{len(study.chains)} chains of {study.generations_asked} generations, {stored} of them in the store. "
        f"Here: {plan.describe()}",
        highlight=False,
    )
    for line in plan.shrunk:
        console.print(line, highlight=False, markup=False)
