"""A sweep: every chain of a study, on Ray Tune, from whatever the store already holds to the finished tables."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fortifai_ray.chain.chain import Inputs
from fortifai_ray.process.signals import Stopped, signals_wait
from fortifai_ray.storage.store import StageStore, Storage
from fortifai_ray.study.search import BoundarySearch
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.sweep.finished import recognised
from fortifai_ray.sweep.fork_server import NETWORKS, NUMBERS, TEXTS
from fortifai_ray.sweep.instance import bring_nodes, check_address, connected, ray_instance
from fortifai_ray.sweep.plan import Plan, cores_here, make_plan
from fortifai_ray.sweep.preflight import check_study
from fortifai_ray.sweep.progress import Board, SweepProgress
from fortifai_ray.sweep.recorder import Recorder, SweepOutcome
from fortifai_ray.sweep.work import Grid, Work

if TYPE_CHECKING:
    from fortifai_ray.engines.pool import EnginePool


def run_sweep(
    study: Study,
    storage: Storage | Path,
    console: Console,
    address: str | None = None,
    started: float | None = None,
) -> SweepOutcome:
    """Run or resume ``study``: what the store holds is taken from there, the rest is computed.

    ``started`` is when it was asked for (seconds since the epoch), by default now.

    Raises :class:`UserError` for what is the user's to mend, before anything is started.
    """
    storage = Storage.of(storage).for_study(study.name)
    store = StageStore(storage)
    inputs = check_study(study, store)
    check_address(address)
    recorder = Recorder(study, storage, console, started)
    work = _work(study, inputs, recorder)
    with suppress(Stopped):  # what is finished by then is recorded like the rest
        _replay(work, store, recorder)
        recorder.reached("checked")
        if not work.done:
            _compute(study, inputs, work, recorder, console, address)
    with signals_wait():
        return recorder.close(work.result())


def _replay(work: Work, store: StageStore, recorder: Recorder) -> None:
    """Record what the store holds whole."""
    if recognised(work.study, work, store, recorder):
        return
    store.recall(work.study.name)
    for held in work.replay(store):
        recorder.add(held.job.chains)
        recorder.stages(0, held.stages)
        for result in held.results:
            recorder.take(held.job, result)
        for chain in held.job.chains:
            recorder.chain_finished(chain.chain_id)
    if not work.done:  # else every table is written whole in a moment
        recorder.flush(at_most_every=0.0)


def _work(study: Study, inputs: Inputs, recorder: Recorder) -> Work:
    if study.settings.search is None:
        return Grid(study, inputs)
    from fortifai_ray.sweep.search import BoundaryWork, OptimiseWork  # with SciPy, which takes its time to import

    kind = BoundaryWork if isinstance(study.settings.search, BoundarySearch) else OptimiseWork
    return kind(study, inputs, recorder.left_behind("search"))


def _compute(
    study: Study, inputs: Inputs, work: Work, recorder: Recorder, console: Console, address: str | None
) -> None:
    """Run what the store lacks: here where that is enough, else on Ray."""
    if address is None and not connected():
        _compute_here(study, work, recorder, console)
    if work.done:
        return
    with ray_instance(address, study.settings.resources.num_cpus, _needed(work)):
        recorder.reached("ray")
        plan = _planned(study, work, recorder, address)
        writers = [chain for chain in work.cells if chain.recipe.uses_engines]
        with _engines(study, inputs, writers, plan, recorder) as pool:
            import ray

            from fortifai_ray.sweep.trials import run_trials

            board = ray.remote(Board).options(num_cpus=0).remote()
            with SweepProgress(console, board, open_ended=work.is_search) as progress:
                run_trials(work, recorder, plan, pool, board, progress)
                recorder.reached("last_step")
            recorder.prepared()  # while Ray ends, no thread of ours is at work: it could end this process


def _compute_here(study: Study, work: Work, recorder: Recorder, console: Console) -> None:
    """Run without Ray what a search asks for, where its chains are arrays."""
    if not work.asks or not any(cell.recipe.batched for cell in work.cells):
        return
    from fortifai_ray.sweep.here import run_here

    resources, cores = study.settings.resources, cores_here()
    plan = make_plan(resources, work.at_once, resources.num_cpus or cores, cores, engines=False)
    recorder.planned(plan)
    with SweepProgress(console, open_ended=True) as progress:
        run_here(work, recorder, progress, plan)
    if work.done:
        recorder.reached("last_step")


def _needed(work: Work) -> Sequence[str]:
    """The modules that the workers of a sweep import."""
    if any(chain.recipe.uses_engines for chain in work.cells):
        return TEXTS
    return NUMBERS if all(chain.recipe.batched for chain in work.cells) else NETWORKS


def _planned(study: Study, work: Work, recorder: Recorder, address: str | None) -> Plan:
    """What the Ray instance has room for, once a cluster has brought the nodes that it can."""
    import ray

    trained = any(not chain.recipe.batched for chain in work.cells)
    engines = any(chain.recipe.uses_engines for chain in work.cells)
    resources = study.settings.resources
    if address is not None:
        bring_nodes(resources, work.at_once, trained=trained, engines=engines, say=recorder.say)
    have = ray.cluster_resources()
    cpus, gpus = float(have.get("CPU", 1.0)), float(have.get("GPU", 0.0)) if trained else 0.0
    cores = cores_here() if address is None else int(cpus)
    nodes = [float(node["Resources"].get("GPU", 0.0)) for node in ray.nodes() if node["Alive"]]
    plan = make_plan(resources, work.at_once, cpus, cores, engines=engines, gpus=gpus, node_gpus=nodes)
    recorder.planned(plan)
    return plan


@contextmanager
def _engines(
    study: Study, inputs: Inputs, writers: list[Chain], plan: Plan, recorder: Recorder
) -> "Iterator[EnginePool | None]":
    """The warm engines; in the end, what they did is known.

    They are started at once, with weights to come: so their start hides behind generation 0.
    """
    if not writers:
        yield None
        return
    from fortifai_ray.engines.pool import EnginePool

    pool = EnginePool.create(
        plan.engines,
        name=f"{study.name}-{uuid.uuid4().hex[:8]}",
        namespace="fortifai",
        num_cpus=plan.engine_cpus,
        num_gpus=plan.engine_gpus,
        threads=plan.threads,
    )
    folder, first = (recorder.folder / ".engine").absolute(), writers[0].members[0].recipe
    engine = first.located().engine_start(inputs.of(first), StageStore(recorder.storage), folder)
    assert engine is not None, "these chains generate on engines"
    pool.prestart(folder, engine)
    yield pool
    state = pool.state()
    recorder.generated(state.starts, engine.kind, state.start_seconds)
    pool.shutdown()
