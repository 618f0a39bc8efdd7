"""`fortifai sweep FILE --dry-run --cluster …`: how long a study would take on a cluster, and how busy it keeps it."""

import math
from collections import defaultdict
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any

from fortifai_ray.chain.chain import GenerationResult
from fortifai_ray.errors import UserError
from fortifai_ray.results.schema import SECONDS
from fortifai_ray.study.study import Study
from fortifai_ray.sweep.plan import Plan, make_plan
from fortifai_ray.sweep.simulation import Generation, Outcome, Setting, simulate
from fortifai_ray.sweep.work import Replay

BETWEEN = 2.0  # seconds after each generation, as measured
_DRIVER_MS = 14.0  # of the driver's CPU for each generation, MLflow on SQLite included (python -m benchmarks.driver)
_SPREAD = 0.1  # of seconds that are given; those that were measured have their own
_CHAINS_PER_GPU = (1, 2, 4)  # tried: while one writes, others train


@dataclass(frozen=True)
class Cluster:
    """What a forecast is for. ``start`` is the seconds until trainers and engines are ready; the seconds of a
    generation's steps, and the MB that it stores, replace those of generations in the store."""

    cpus: float
    gpus: float = 0.0
    gpus_per_node: float = 8.0
    start: float | None = None
    train: float | None = None
    evaluate: float = 0.0
    generate: float = 0.0
    stored: float | None = None

    @classmethod
    def of(cls, text: str) -> "Cluster":
        """Read ``gpus=64,cpus=512``. Raises :class:`UserError`, which says what would be right."""
        names, values = [one.name for one in fields(cls)], dict[str, float]()
        for part in text.split(","):
            key, _, value = (piece.strip() for piece in part.partition("="))
            if key not in names:
                raise UserError(f"--cluster: {key or 'nothing'} is no key of a cluster; {', '.join(names)} are")
            try:
                values[key] = float(value)
            except ValueError:
                values[key] = math.nan
            positive = key in ("cpus", "gpus_per_node", "train")
            if not 0 <= values[key] < math.inf or (positive and not values[key]):
                raise UserError(f"--cluster: {key}={value}: a number {'above 0' if positive else 'from 0 on'} is right")
        if "cpus" not in values:
            raise UserError("--cluster: cpus is missing; e.g. gpus=64,cpus=512")
        return cls(**values)

    def plan(self, study: Study, chains: int, **resources: Any) -> Plan:
        """What a sweep of ``chains`` chains would run on, some of its ``resources`` changed."""
        asked = type(study.settings.resources).model_validate(study.settings.resources.model_dump() | resources)
        engines = any(cell.recipe.uses_engines for cell in study.cells)
        whole, rest = divmod(self.gpus, self.gpus_per_node)
        nodes = [self.gpus_per_node] * int(whole) + [rest] * bool(rest)
        return make_plan(asked, chains, self.cpus, int(self.cpus), engines=engines, gpus=self.gpus, node_gpus=nodes)


@dataclass
class Left:
    """What of a grid is left to compute, and how long generations took that are not; the nearest are used.

    ``measured`` has them by cell and generation, by generation, and all.
    """

    chains: list[tuple[str, range]] = field(default_factory=list)
    measured: dict[Any, list[Generation]] = field(default_factory=lambda: defaultdict(list))

    def add(self, held: Replay) -> None:
        """What the store holds of a job; chains of batched families take no time to speak of."""
        if held.job.chains[0].recipe.batched:
            return
        cell = held.job.chains[0].cell_id
        for result in held.results:
            if isinstance(result, GenerationResult):
                train, generate, evaluate = (float(result.row[name] or 0.0) for name in SECONDS)
                for key in ((cell, result.row["generation"]), result.row["generation"], None):
                    self.measured[key].append(Generation(train, evaluate, generate))
        if held.missing:
            self.chains.append((cell, range(len(held.results), held.job.steps)))

    @property
    def generations(self) -> int:
        """How many are left to compute, at most."""
        return sum(len(generations) for _, generations in self.chains)

    def seconds(self, cluster: Cluster) -> list[list[Generation]]:
        """The seconds of each chain's generations, drawn at random: the same at each call."""
        draw = Random(0)
        if cluster.train is None:
            return [[draw.choice(self._near(cell, g)) for g in generations] for cell, generations in self.chains]
        steps = (cluster.train, cluster.evaluate, cluster.generate)
        return [
            [Generation(*(s * draw.uniform(1 - _SPREAD, 1 + _SPREAD) for s in steps)) for _ in generations]
            for _, generations in self.chains
        ]

    def _near(self, cell: str, generation: int) -> list[Generation]:
        return self.measured.get((cell, generation)) or self.measured.get(generation) or self.measured[None]


def check_forecast(study: Study) -> None:
    """Raise :class:`UserError` for a study whose chains are not known beforehand, or take no time."""
    if study.settings.search or any(cell.recipe.batched for cell in study.cells):
        raise UserError(
            f"{study.source}: --cluster: a forecast is for a grid of chains that train networks; a search chooses its "
            "chains as it goes, and those of analytic families take milliseconds"
        )


def forecast_lines(study: Study, left: Left, size: float | None, cluster: Cluster) -> list[str]:
    """The forecast in words, for what the store does not hold; ``size`` is what a generation stores, in bytes.

    Raises :class:`UserError` where nothing says how long a generation takes.
    """
    if not left.chains:
        return ["Forecast: nothing is left to compute"]
    if cluster.train is None and not left.measured:
        raise UserError(
            "--cluster: no generation of this study is in the store: say how many seconds the steps of one take, e.g. "
            "train=300,evaluate=20,generate=100, or run one chain first (--set vary.seed=[0])"
        )
    chains, plan = left.seconds(cluster), cluster.plan(study, len(left.chains))
    ready = cluster.start if cluster.start is not None else 60.0 if plan.gpus else 20.0
    outcome = simulate(chains, setting_of(plan, ready))
    number = sum(map(len, chains))
    per_minute = 60 * number / outcome.wall
    given = f"the seconds given, {100 * _SPREAD:g}% more or less"
    if cluster.train is None:
        given = f"the seconds of the {len(left.measured[None])} generations in the store, as if on the same machines"
    return [
        f"On the cluster: {plan.describe()}",
        *plan.shrunk,
        f"Forecast: {_duration(outcome.wall)} for {number:,} generations of {len(chains):,} chains",
        _busy(plan, outcome),
        *_better(study, chains, cluster, plan, outcome, ready),
        _traffic(number, outcome, size if cluster.stored is None else 1e6 * cluster.stored),
        f"Driver: {per_minute:,.1f} generations a minute, {_DRIVER_MS * per_minute / 600:.2g}% of a core at "
        f"{_DRIVER_MS:g} ms each",
        f"Assumed: {given}; {ready:g} s until trainers and engines are ready, {BETWEEN:g} s after each generation; no "
        "chain ends early or shares a step with another, which would make it shorter",
    ]


def setting_of(plan: Plan, ready: float) -> Setting:
    """The devices of a plan: the cores of machines without GPUs, or GPUs, which Ray fills one after the other, as the
    engines come first. Several GPUs of one process count as one device."""
    if not plan.worker_gpus:
        cores, none = max(1, int(plan.cpus / plan.threads)), [0]
        return Setting(none * plan.chains_at_once, none * plan.engines, cores, plan.engines_at_once, ready, BETWEEN)
    free = list[float]()

    def device(share: float) -> int:
        fitting = [number for number, left in enumerate(free) if left + 1e-9 >= share]
        number = min(fitting, key=free.__getitem__, default=len(free))
        free[number:] = [*free[number:], *([1.0] if number == len(free) else [])]
        free[number] -= min(1.0, share)
        return number

    engines = [device(plan.engine_gpus) for _ in range(plan.engines)]
    places = [device(plan.worker_gpus) for _ in range(plan.chains_at_once)]
    return Setting(places, engines, 1, plan.engines_at_once, ready, BETWEEN)


def _busy(plan: Plan, outcome: Outcome) -> str:
    engines = f", engines {outcome.engines:.0%}" if plan.engines else ""
    warm, what = outcome.warm_idle, "GPUs" if plan.worker_gpus else "cores"
    each = f" ({min(warm):.0%} to {max(warm):.0%} of each)" if plan.worker_gpus else ""
    idle = f"{what} idle {outcome.idle:.0%}, once warm {sum(warm) / len(warm):.0%}{each}"
    return f"Busy: trainers {outcome.trainers:.0%}{engines}; {idle}"


def _better(
    study: Study, chains: list[list[Generation]], cluster: Cluster, plan: Plan, outcome: Outcome, ready: float
) -> list[str]:
    """A line for each number of chains to a GPU that makes the sweep shorter, with the engines that the work needs."""
    if plan.worker_gpus < 1 or plan.engine_gpus != 1 or plan.workers > 1:
        return []
    written = sum(one.generate for chain in chains for one in chain)
    wanted = plan.gpus * written / (written + sum(one.train + one.evaluate for chain in chains for one in chain))
    counts = sorted({max(1, int(wanted)), min(math.ceil(wanted), int(plan.gpus) - 1)})
    lines, least = list[str](), outcome.wall
    for each in _CHAINS_PER_GPU:
        resources = [{"train": {"gpus_per_worker": 1 / each}, "engines": {"count": n, "gpus": 1.0}} for n in counts]
        others = [cluster.plan(study, len(chains), **asked) for asked in resources]
        found, best = min(((simulate(chains, setting_of(other, ready)), other) for other in others), key=_wall)
        if found.wall < 0.98 * least:
            least, idle = found.wall, sum(found.warm_idle) / len(found.warm_idle)
            room = f", if {each} models in training fit into a GPU" if each > 1 else ""
            lines.append(
                f"Shorter: {_duration(found.wall)}, {idle:.0%} idle once warm, by resources.engines.count: "
                f"{best.engines} and resources.train.gpus_per_worker: {1 / each:g}{room}"
            )
    return lines


def _wall(found: tuple[Outcome, Plan]) -> float:
    return found[0].wall


def _traffic(number: int, outcome: Outcome, size: float | None) -> str:
    if size is None:
        return "Storage: what a generation stores is not known; give it in MB, as stored=2500"
    rate = f"{number * size / outcome.wall / 1e6:,.1f} MB/s each way"
    return f"Storage: {size / 1e6:,.1f} MB written a generation and at most as much read: {rate}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
