"""A sweep: every chain of a study, on Ray Tune, from whatever the store already holds to the finished tables."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fortifai_ray.chain import ChainTask, run_chain
from fortifai_ray.engines.config import resolve_kind
from fortifai_ray.families.language.corpus import open_corpus
from fortifai_ray.families.language.family import Devices
from fortifai_ray.families.language.models import write_config
from fortifai_ray.instance import ray_instance
from fortifai_ray.preflight import check_address, check_study
from fortifai_ray.progress import Board, SweepProgress
from fortifai_ray.resources import Plan, cores_here, make_plan
from fortifai_ray.run import SweepOutcome, SweepRun
from fortifai_ray.steps import NotStored, Steps
from fortifai_ray.store import StageStore
from fortifai_ray.study import Chain, Study


def run_sweep(study: Study, storage: Path, console: Console, address: str | None = None) -> SweepOutcome:
    """Run or resume ``study``: what the store holds is taken from there, the rest is computed.

    Raises :class:`UserError` for what is the user's to mend, before anything is started.
    """
    store = StageStore(storage)
    corpora = check_study(study, store)
    check_address(address)
    run = SweepRun(study, storage, console, corpora)
    missing = run.replay(store)
    if missing:
        _compute(run, missing, address)
    return run.finish()


def _compute(run: SweepRun, missing: Sequence[Chain], address: str | None) -> None:
    """Compute the chains that the store lacks, on Ray."""
    with ray_instance(address, run.study.settings.resources.num_cpus):
        import ray

        cpus = float(ray.cluster_resources().get("CPU", 1.0))
        cores = cores_here() if address is None else int(cpus)
        plan = run.plan = make_plan(run.study.settings.resources, len(missing), cpus, cores)
        for line in (plan.describe(), *plan.shrunk):
            run.say(line)
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


def _start_engines(run: SweepRun, first: Chain, plan: Plan) -> Any:
    """The warm engines, started at once with weights to come, so that their start hides behind generation 0."""
    from fortifai_ray.engines.pool import EnginePool

    pool = EnginePool.create(
        plan.engines,
        name=f"{run.study.name}-{uuid.uuid4().hex[:8]}",
        namespace="fortifai",
        num_cpus=plan.engine_cpus,
        threads=plan.threads,
    )
    folder = run.results.folder / ".engine"
    corpus = open_corpus(run.tasks[first.chain_id].corpus, StageStore(run.storage))
    write_config(first.recipe.family.model, corpus, folder)
    pool.prestart(folder.absolute(), first.recipe.engine)
    return pool


def print_plan(study: Study, storage: Path, console: Console) -> None:
    """What a sweep of ``study`` would do, without doing any of it."""
    store = StageStore(storage)
    corpora = check_study(study, store)
    stored = 0
    for chain in study.chains:
        steps = Steps(store, replay=True)
        try:
            generations = len(list(run_chain(ChainTask.of(study, chain, corpora), steps, Devices())))
            state = f"whole in the store ({generations} generations)"
            stored += 1
        except NotStored as missing:
            state = f"{steps.reused} steps in the store; next: {missing}"
        console.print(f"{chain.label}: {state}", highlight=False, markup=False, soft_wrap=True)
    cpus = float(study.settings.resources.num_cpus or cores_here())
    plan = make_plan(study.settings.resources, max(1, len(study.chains) - stored), cpus, cores_here())
    console.print(
        f"{len(study.chains)} chains of {study.generations_asked} generations, {stored} of them in the store. "
        f"Here: {plan.describe()}",
        highlight=False,
        soft_wrap=True,
    )
    for line in plan.shrunk:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
