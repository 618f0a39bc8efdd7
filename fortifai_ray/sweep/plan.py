"""What a sweep runs on: how many chains, engines, workers and threads fit, decided before anything starts.

Every share below is a fraction of what there is, so a plan always fits: on one logical CPU a chain, its trainer, an
engine and Ray Data's tasks share it; on sixteen they spread. A plan never asks for what Ray could not give: such a run
would wait for ever without a word.
"""

import math
import os
import sys
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from fortifai_ray.errors import UserError
from fortifai_ray.study.resources import ResourcesConfig

# Of the logical CPUs that a chain is given, the shares of its parts. They sum to less than 1: the rest is left for Ray
# Data's tasks, which feed the engines and would starve beside actors that hold everything.
_TRAINING_SHARE = 0.5
_ENGINE_SHARE = 0.3
# On a single GPU that trains and generates, each gets less than half: vLLM and torch both keep some for themselves.
_SHARED_GPU = 0.45


class Plan(BaseModel):
    """How a sweep spreads over the available CPUs and GPUs. Shares are logical ones, as Ray counts them."""

    model_config = ConfigDict(frozen=True)
    cpus: float
    chains_at_once: int
    engines: int
    workers: int
    threads: int
    trial_cpus: float
    worker_cpus: float
    engine_cpus: float
    gpus: float = 0.0
    worker_gpus: float = 0.0
    engine_gpus: float = 0.0
    shrunk: tuple[str, ...] = ()

    @property
    def trial_gpus(self) -> float:
        """What a chain's own process holds: a single worker trains in it."""
        return self.worker_gpus if self.workers == 1 else 0.0

    @property
    def engines_at_once(self) -> int:
        """Engines that one chain's generation spreads over: its share, so that chains do not queue for each other."""
        return max(1, self.engines // self.chains_at_once)

    def describe(self) -> str:
        """The plan in one line."""
        where = f"{self.cpus:g} CPU(s)" + (f" and {self.gpus:g} GPU(s)" if self.gpus else "")
        mode = "in the chain's process" if self.workers == 1 else f"in {self.workers} workers"
        device = f"{self.worker_gpus:g} GPU(s)" if self.worker_gpus else f"{self.threads} thread(s)"
        each = " each" if self.workers > 1 else ""
        engines = f", {self.engines} warm engine(s)" if self.engines else ""
        if engines and self.engine_gpus > 1:
            engines += f" spread over {self.engine_gpus:g} GPUs each (tensor parallel)"
        elif engines and self.gpus:
            engines += f" with {self.engine_gpus:g} GPU(s) each"
        return f"{self.chains_at_once} chain(s) at once on {where}: training {mode} with {device}{each}{engines}"


def make_plan(
    resources: ResourcesConfig,
    chains: int,
    cpus: float,
    cores: int,
    *,
    engines: bool = True,
    gpus: float = 0.0,
    node_gpus: Sequence[float] | None = None,
) -> Plan:
    """The plan for ``chains`` chains on ``cpus`` logical CPUs that stand for ``cores`` real ones, and ``gpus`` GPUs.

    What the study asks for and does not fit is cut down, and ``shrunk`` says so. ``engines`` is whether any chain
    generates on warm engines. ``node_gpus`` are the GPUs of each node; None: all are on one.

    Raises:
        UserError: a single chain could not get the GPUs that the study asks for; it would wait for ever.
    """
    room = max(1, int(min(cpus, cores)))
    workers = resources.train.workers
    worker_gpus, engine_gpus = _gpu_shares(resources, gpus, engines)
    fit_on_nodes = _fit_on_nodes(engine_gpus, node_gpus)
    taken = workers * worker_gpus + engine_gpus
    on_gpus = int(gpus / taken + 1e-9) if taken else 0  # chains that fit side by side; 0 where they take no GPU
    count, asked = resources.engines.count, resources.chains_at_once
    if count != "auto" and worker_gpus:  # fewer engines than chains: the GPUs that they leave train
        on_gpus = max(on_gpus, int((gpus - count * engine_gpus) / (workers * worker_gpus) + 1e-9))
    most = min(room, on_gpus) if on_gpus else room
    fit = on_gpus or room // workers
    at_once = max(1, min(chains, fit if asked == "auto" else asked))
    shrunk = []
    if asked != "auto" and asked > most:
        at_once = max(1, min(chains, most))
        where = f"{room} CPU(s)" + (f" and {gpus:g} GPU(s)" if gpus else "")
        shrunk.append(f"resources.chains_at_once: {asked} chains at once do not fit on {where}: {at_once} will run")
    most_engines = 2 * room
    if engine_gpus:
        left = int((gpus - at_once * workers * worker_gpus) / engine_gpus + 1e-9)
        most_engines = max(1, min(left, fit_on_nodes))
    wanted = (at_once if engine_gpus else at_once * workers) if count == "auto" else count
    started = max(1, min(wanted, room if count == "auto" and not engine_gpus else most_engines))
    if count != "auto" and started < count and engines:
        where = f"{gpus:g} GPU(s)" if engine_gpus else f"{room} CPU(s)"
        shrunk.append(f"resources.engines.count: {count} engines do not fit on {where}: {started} will start")
    training = _TRAINING_SHARE * cpus / at_once
    return Plan(
        cpus=cpus,
        chains_at_once=at_once,
        engines=started if engines else 0,
        workers=workers,
        threads=max(1, room // (at_once * workers)),
        trial_cpus=_share(training if workers == 1 else 0.1 * training),
        worker_cpus=_share(0.9 * training / workers),
        engine_cpus=_share(_ENGINE_SHARE * cpus / started),
        gpus=gpus,
        worker_gpus=worker_gpus,
        engine_gpus=engine_gpus,
        shrunk=tuple(shrunk),
    )


def _gpu_shares(resources: ResourcesConfig, gpus: float, engines: bool) -> tuple[float, float]:
    """GPUs of a training worker and of an engine: as the study sets them, else whole ones if a chain gets them, else
    shares."""
    workers, asked_worker = resources.train.workers, resources.train.gpus_per_worker
    asked_engine = resources.engines.gpus if engines else 0.0
    if gpus == 0 and "auto" in (asked_worker, asked_engine):
        asked_worker = 0.0 if asked_worker == "auto" else asked_worker
        asked_engine = 0.0 if asked_engine == "auto" else asked_engine
    whole = workers + (bool(engines) if asked_engine == "auto" else math.ceil(asked_engine)) <= gpus
    share = _SHARED_GPU * gpus if engines else gpus
    left = gpus if asked_engine == "auto" else gpus - asked_engine
    training = min(share, left) if left > 0 else share  # with nothing left, the error below
    worker = (1.0 if whole else _fraction(training / workers)) if asked_worker == "auto" else float(asked_worker)
    engine = (1.0 if whole else min(1.0, _fraction(share))) if asked_engine == "auto" else float(asked_engine)
    if workers * worker + engine > gpus + 1e-9:
        raise UserError(
            f"resources: a chain's training needs {workers} x {worker:g} GPU(s) and an engine {engine:g}, of {gpus:g} "
            f"available: lower resources.train.gpus_per_worker or resources.engines.gpus, or leave them at auto"
        )
    return worker, engine


def _fit_on_nodes(engine: float, node_gpus: Sequence[float] | None) -> int:
    """Engines that the nodes have room for: none spreads over several nodes, since its workers exchange too much."""
    if engine <= 1 or node_gpus is None:
        return sys.maxsize
    fit = sum(int(gpus / engine) for gpus in node_gpus)
    if not fit:
        raise UserError(
            f"resources.engines.gpus: an engine over {engine:g} GPUs needs them on one node, and the largest has "
            f"{max(node_gpus, default=0):g}"
        )
    return fit


def _fraction(gpus: float) -> float:
    """A share that Ray can give: whole GPUs, or less than one."""
    return float(int(gpus)) if gpus >= 1 else int(gpus * 100) / 100


def _share(cpus: float) -> float:
    """Ray counts CPUs in ten-thousandths; more than one must be whole."""
    return float(int(cpus)) if cpus >= 1 else max(0.001, int(cpus * 1000) / 1000)


def cores_here() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))
