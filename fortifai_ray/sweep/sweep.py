"""A sweep: every chain of a study, on Ray Tune, from whatever the store already holds to the finished tables."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fortifai_ray.chain.cohort import CohortTask
from fortifai_ray.families.language.recipe import LanguageRecipe
from fortifai_ray.storage.store import StageStore, Storage
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.sweep.instance import ray_instance
from fortifai_ray.sweep.nodes import bring_nodes
from fortifai_ray.sweep.plan import Plan, cores_here, make_plan
from fortifai_ray.sweep.preflight import check_address, check_study
from fortifai_ray.sweep.progress import Board, SweepProgress
from fortifai_ray.sweep.run import SweepOutcome, SweepRun

if TYPE_CHECKING:
    from fortifai_ray.engines.pool import EnginePool


def run_sweep(study: Study, storage: Storage | Path, console: Console, address: str | None = None) -> SweepOutcome:
    """Run or resume ``study``: what the store holds is taken from there, the rest is computed.

    Raises :class:`UserError` for what is the user's to mend, before anything is started.
    """
    storage = Storage.of(storage).for_study(study.name)
    store = StageStore(storage)
    inputs = check_study(study, store)
    check_address(address)
    run = SweepRun(study, storage, console, inputs)
    if study.settings.search is not None:
        return _search(run, store, address)
    chains, groups = run.replay(store)
    if chains or groups:
        _compute(run, chains, groups, address)
    return run.finish()


def _search(run: SweepRun, store: StageStore, address: str | None) -> SweepOutcome:
    """Go on with the study's search from what the store holds."""
    from fortifai_ray.sweep.search import RunningBoundary, running_search

    search = running_search(run)
    search.replay(store)
    if not search.done:
        with _running(run, search.at_once, run.study.cells, address) as ray_side, ray_side.progress({}) as progress:
            from fortifai_ray.sweep.tuning import tune_cells, tune_search

            plan, pool, board = ray_side.plan, ray_side.pool, ray_side.board
            if isinstance(search, RunningBoundary) and search.batched:
                tune_cells(search, plan, board, progress)
            if not search.done:
                tune_search(search, search.searcher(), search.samples, plan, pool, board, progress)
    return run.finish(search)


def _compute(
    run: SweepRun, missing: Sequence[Chain], missing_cohorts: Sequence[CohortTask], address: str | None
) -> None:
    """Compute the chains and cohorts that the store lacks, on Ray."""
    work = {chain.chain_id: (chain.label, chain.recipe.generations) for chain in missing}
    work |= {task.id: (task.label, 1) for task in missing_cohorts}
    with _running(run, len(work), missing, address) as ray_side, ray_side.progress(work) as progress:
        from fortifai_ray.sweep.tuning import tune_chains, tune_cohorts

        plan, pool, board = ray_side.plan, ray_side.pool, ray_side.board
        if missing_cohorts:
            tune_cohorts(run, missing_cohorts, plan, board, progress)
        if missing:
            tune_chains(run, [chain.chain_id for chain in missing], plan, pool, board, progress)


@dataclass(frozen=True)
class _RaySide:
    """What a run has on Ray: its plan, its warm engines where any chain generates on them, and the board."""

    run: SweepRun
    plan: Plan
    pool: "EnginePool | None"
    board: Any

    def progress(self, work: Mapping[str, tuple[str, int]]) -> SweepProgress:
        """The view of the work; of none that is known yet, where a search chooses it."""
        return SweepProgress(work, self.run.console, self.board, open_ended=not work)


@contextmanager
def _running(run: SweepRun, chains: int, among: Sequence[Chain], address: str | None) -> Iterator[_RaySide]:
    """A Ray instance with room for ``chains`` chains like those ``among`` the study's."""
    with ray_instance(address, run.study.settings.resources.num_cpus):
        import ray

        trained = any(not chain.recipe.batched for chain in among)
        writers = [chain for chain in among if chain.recipe.uses_engines]
        resources = run.study.settings.resources
        if address is not None:
            bring_nodes(resources, chains, trained=trained, engines=bool(writers), say=run.say)
        have = ray.cluster_resources()
        cpus, gpus = float(have.get("CPU", 1.0)), float(have.get("GPU", 0.0))
        cores = cores_here() if address is None else int(cpus)
        gpus = gpus if trained else 0.0
        nodes = [float(node["Resources"].get("GPU", 0.0)) for node in ray.nodes() if node["Alive"]]
        plan = run.plan = make_plan(resources, chains, cpus, cores, engines=bool(writers), gpus=gpus, node_gpus=nodes)
        for line in (plan.describe(), *plan.shrunk):
            run.say(line)
        pool = _start_engines(run, writers[0], plan) if writers else None
        yield _RaySide(run, plan, pool, ray.remote(Board).options(num_cpus=0).remote())
        if pool is not None:
            run.engines = _engine_summary(writers[0], pool)
            pool.shutdown()


def _engine_summary(first: Chain, pool: "EnginePool") -> dict[str, Any]:
    recipe = first.recipe
    assert isinstance(recipe, LanguageRecipe)
    return {
        "engine_starts": pool.starts(),
        "engine_kind": recipe.writer.kind,
        "engine_start_seconds": pool.start_seconds(),
    }


def _start_engines(run: SweepRun, first: Chain, plan: Plan) -> "EnginePool":
    """The warm engines, started at once with weights to come, so that their start hides behind generation 0."""
    from fortifai_ray.engines.pool import EnginePool
    from fortifai_ray.families.language.corpus import open_corpus
    from fortifai_ray.families.language.models import write_config

    pool = EnginePool.create(
        plan.engines,
        name=f"{run.study.name}-{uuid.uuid4().hex[:8]}",
        namespace="fortifai",
        num_cpus=plan.engine_cpus,
        num_gpus=plan.engine_gpus,
        threads=plan.threads,
    )
    folder = run.results.folder / ".engine"
    prepared, recipe = run.inputs.of(first.recipe), first.recipe.located()
    assert prepared is not None
    assert isinstance(recipe, LanguageRecipe)
    write_config(recipe.family.model, open_corpus(prepared, StageStore(run.storage)), folder)
    pool.prestart(folder.absolute(), recipe.writer)
    return pool
