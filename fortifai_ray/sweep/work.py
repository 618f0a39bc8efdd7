"""What a sweep has to do, as jobs: the chains of a grid here, those that a search asks for in ``sweep/search.py``.

The driver and its trials hold the same work and make the same jobs of the same keys, so that only keys and results
travel between them. What the store holds whole is answered by running the same jobs in replay. Nothing here knows Ray.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import polars as pl

from fortifai_ray.chain.chain import ChainTask, GenerationResult, Inputs, run_chain
from fortifai_ray.chain.cohort import CohortTask, Computed, cohort_rows, cohorts, rows_of, run_cohort, run_cohorts
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.recipe.executor import Executor
from fortifai_ray.results.cells import ChainNames
from fortifai_ray.results.words import counted
from fortifai_ray.statistics.chains import Reference
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import NotStored, StageStore
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.sweep.plan import Plan

Task = ChainTask | CohortTask
Config = Mapping[str, Any]
Judge = Callable[[pl.DataFrame, Steps, Executor], "Verdict"]

_GROUPS = 16  # trials that share a grid's cohorts: enough for the workers of a small cluster, few to start


@dataclass(frozen=True)
class Verdict:
    """The verdict on a search's job: ``outcome`` answers the search, ``references`` go to the tables."""

    outcome: Mapping[str, Any]
    references: Sequence[Reference] = ()


@dataclass(frozen=True)
class CohortResult:
    """A completed cohort: the stage that holds it, and its rows where they have been read. The driver reads the others:
    those of many chains are too much to be sent."""

    cohort_id: str
    stage_hash: str
    reused: bool
    rows: pl.DataFrame | None = None


Result = GenerationResult | CohortResult | Verdict


@dataclass(frozen=True)
class Job:
    """Tasks that run one after the other.

    Attributes:
        key: what :meth:`Work.job` makes this job of.
        id: its name on the board and in the progress view.
        label: its name for people.
        judge: the verdict on the rows of all its chains, where a search wants one.
    """

    key: Any
    id: str
    label: str
    tasks: Sequence[Task]
    judge: Judge | None = None

    @property
    def chains(self) -> list[Chain]:
        parts = (task.chains if isinstance(task, CohortTask) else [task.chain] for task in self.tasks)
        return [chain for part in parts for chain in part]

    @property
    def steps(self) -> int:
        """How many results it has at most: one for each generation of a chain, one for each cohort."""
        return sum(1 if isinstance(task, CohortTask) else task.results for task in self.tasks)

    def cohort(self, cohort_id: str) -> CohortTask:
        """Its cohort of that id."""
        return next(task for task in self.tasks if isinstance(task, CohortTask) and task.id == cohort_id)


def run_job(
    job: Job, steps: Steps, executor: Executor, known: Mapping[str, CohortResult] = MappingProxyType({})
) -> Iterator[Result]:
    """Yield each generation or cohort of a job as it completes, and last its verdict, if it has a judge.

    ``known`` are cohorts that were run beforehand, by their ids.

    Raises :class:`fortifai_ray.storage.store.NotStored` at the first missing step where ``steps`` only replays.
    """
    rows: list[Mapping[str, Any]] = []
    tables: list[pl.DataFrame] = []
    for task in job.tasks:
        if isinstance(task, CohortTask):
            cohort = known.get(task.id) or _cohort(task, steps, read=steps.replay or job.judge is not None)
            tables += [] if cohort.rows is None else [cohort.rows]
            yield cohort
        else:
            for result in run_chain(task, steps, executor):
                rows.append(result.row)
                yield result
    if job.judge is not None:
        tables += [pl.DataFrame(rows, infer_schema_length=None, strict=False)] if rows else []
        whole = tables[0] if len(tables) == 1 else pl.concat(tables or [pl.DataFrame()], how="diagonal_relaxed")
        yield job.judge(whole, steps, executor)


def _cohort(task: CohortTask, steps: Steps, *, read: bool) -> CohortResult:
    stage = run_cohort(task, steps)
    return CohortResult(task.id, stage.hash, stage.reused, cohort_rows(task, stage) if read else None)


def cohorts_of(jobs: Sequence[Job], steps: Steps) -> dict[str, CohortResult]:
    """The cohorts of jobs that were asked for together, by their ids: computed together, and read.

    Raises :class:`fortifai_ray.storage.store.NotStored` where ``steps`` only replays.
    """
    tasks = {task.id: task for job in jobs for task in job.tasks if isinstance(task, CohortTask)}
    alike: dict[str, list[Computed]] = defaultdict(list)
    for one in run_cohorts(list(tasks.values()), steps):
        alike[one.task.but_seeds].append(one)
    results: dict[str, CohortResult] = {}
    for group in alike.values():
        rows, start = rows_of(group), 0
        for one in group:
            own = rows.slice(start, one.table.height)
            results[one.task.id] = CohortResult(one.task.id, one.stage.hash, one.stage.reused, own)
            start += one.table.height
    return results


@dataclass(frozen=True)
class Replay:
    """What the store holds of a job: its results up to the step that is ``missing`` (None: it holds the whole job)."""

    job: Job
    results: Sequence[Result]
    stages: int
    missing: NotStored | None


def replay(job: Job, store: StageStore, known: Mapping[str, CohortResult] = MappingProxyType({})) -> Replay:
    """Run a job from the store alone; ``known`` as in :func:`run_job`."""
    steps, results = Steps(store, replay=True), list[Result]()
    try:
        for result in run_job(job, steps, InProcess(), known):
            results.append(result)  # not a comprehension: what comes before a missing step is kept
    except NotStored as missing:
        return Replay(job, results, steps.reused, missing)
    before = sum(isinstance(task, CohortTask) and task.id in known for task in job.tasks)
    return Replay(job, results, before + steps.reused, None)


def replay_together(jobs: Sequence[Job], store: StageStore) -> list[Replay]:
    """Run jobs that are asked for together from the store alone."""
    try:
        known = cohorts_of(jobs, Steps(store, replay=True))
    except NotStored:  # each job says what it lacks
        known = {}
    return [replay(job, store, known) for job in jobs]


@dataclass(frozen=True)
class SearchResult:
    """The result of a search: its collapse points (a row per cell and criterion), and its course, as JSON."""

    points: pl.DataFrame
    state: Mapping[str, Any]
    done: bool


class Work(ABC):
    """What a sweep has to do. Trials run the jobs of their configurations; the driver gets the verdicts on them.

    Attributes:
        is_search: whether later jobs are chosen by the verdicts on earlier ones.
        chain_names: what its chains are called.
        asks: whether :meth:`ask` gives jobs to processes that run them without Ray.
        outcomes: what a searcher reads in a trial's last result: the keys of a verdict's outcome.
    """

    is_search: ClassVar[bool] = False
    asks: ClassVar[bool] = False
    outcomes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, study: Study, inputs: Inputs) -> None:
        self.study, self.inputs, self.chain_names = study, inputs, ChainNames(study)

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether nothing is left to run."""

    @property
    @abstractmethod
    def at_once(self) -> int:
        """How many jobs could run side by side."""

    @property
    @abstractmethod
    def cells(self) -> Sequence[Chain]:
        """Chains like those that are left to run: what they need decides what is started."""

    @abstractmethod
    def replay(self, store: StageStore) -> Iterator[Replay]:
        """Yield each job that the store holds whole, and take it as run."""

    @abstractmethod
    def configs(self, plan: Plan) -> list[dict[str, Any]]:
        """Configurations of the trials that are known beforehand, all of one key."""

    @abstractmethod
    def job(self, key: Any) -> Job:
        """The job of a key."""

    @abstractmethod
    def jobs(self, config: Config) -> Generator[Sequence[Job], list[Verdict | None], None]:
        """Yield the jobs of a trial, those together that can run together; each is answered with its verdict, None if
        it failed."""

    @abstractmethod
    def announced(self, config: Config) -> Iterable[Job]:
        """The jobs of a trial that are known when it starts."""

    def ask(self, processes: int) -> tuple[Config, list[Any]] | None:
        """The keys of jobs to run now, together and without Ray, and what :meth:`answer` gets as their configuration;
        None where there is none as long as others run. ``processes`` share them."""
        return None

    def searcher(self) -> tuple[Any, int] | None:
        """A searcher of Ray Tune that suggests further configurations once those known beforehand have run, and how
        many (−1: until it has no more); None where nothing does."""
        return None

    def answer(self, config: Config, job: Job, verdict: Verdict | None) -> str | None:
        """Take the verdict on a job that a trial of ``config`` ran, None if the job failed; returns it in words where
        that deserves a line."""
        return None

    def news(self) -> Iterator[str]:
        """Yield what the verdicts have changed since the last call, in words."""
        yield from ()

    def result(self) -> SearchResult | None:
        """The result of a search so far."""
        return None


class Grid(Work):
    """A job for each chain of a study that searches nothing, and for each cohort of its batched chains.

    Jobs are made when they are asked for, a cell's from the task of its first chain: a grid of thousands of seeds goes
    to every trial, and must be no larger than its study.
    """

    def __init__(self, study: Study, inputs: Inputs) -> None:
        super().__init__(study, inputs)
        self._cohorts = {task.id: task for task in cohorts(study.chains, inputs)}
        self._chains = {chain.chain_id: chain for chain in study.chains if not chain.recipe.batched}
        cells = {chain.cell_id: chain for chain in reversed(self._chains.values())}
        self._first = {cell: ChainTask.of(study, chain, inputs) for cell, chain in cells.items()}
        self._left = dict.fromkeys([*self._cohorts, *self._chains])

    @property
    def done(self) -> bool:
        return not self._left

    def finish(self) -> None:
        """Take every job as run."""
        self._left.clear()

    @property
    def at_once(self) -> int:
        return len(self._left)

    @property
    def cells(self) -> Sequence[Chain]:
        return [self._chains[key] if key in self._chains else self._cohorts[key].chains[0] for key in self._left]

    def stored(self, store: StageStore) -> Iterator[Replay]:
        """Yield what the store holds of each job."""
        for key in list(self._left):
            yield replay(self.job(key), store)

    def replay(self, store: StageStore) -> Iterator[Replay]:
        for held in self.stored(store):
            if held.missing is None:
                del self._left[held.job.id]
                yield held

    def configs(self, plan: Plan) -> list[dict[str, Any]]:
        """A trial per chain, but few for all cohorts: these take less time than a trial's start."""
        batched = [key for key in self._left if key in self._cohorts]
        groups = [batched[start::_GROUPS] for start in range(min(_GROUPS, len(batched)))]
        alone = [[key] for key in self._left if key in self._chains]
        return [{"jobs": ids} for ids in (*groups, *alone)]

    def job(self, key: Any) -> Job:
        if key in self._cohorts:
            task = self._cohorts[key]
            return Job(
                key, key, f"{self.chain_names.cell(task.chains[0])} ({counted(len(task.chains), 'chain')})", [task]
            )
        chain = self._chains[key]
        baseline_seed = self.study.settings.baseline.get("seed", chain.recipe.seed)
        return Job(key, key, self.chain_names.chain(chain), [self._first[chain.cell_id].of_seed(chain, baseline_seed)])

    def jobs(self, config: Config) -> Generator[Sequence[Job], list[Verdict | None], None]:
        for key in config["jobs"]:
            yield [self.job(key)]

    def announced(self, config: Config) -> Iterable[Job]:
        return [self.job(key) for key in config["jobs"]]
