"""A study that searches: the chains of each suggested configuration, the verdict on them, and the collapse points.

What a search asks next depends on the answers alone. So it resumes by asking again: jobs that the store holds are
answered from there, and only the others go to Ray Tune.
"""

import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from fortifai_ray.chain.chain import ChainTask, Inputs
from fortifai_ray.chain.cohort import cohort, cohort_table
from fortifai_ray.recipe.executor import Executor
from fortifai_ray.recipe.regimes import Replace
from fortifai_ray.results.words import MARKS, in_words, number, ratio_bound
from fortifai_ray.search.boundary import BoundaryFinder
from fortifai_ray.search.cells import CellSearches
from fortifai_ray.search.points import CollapsePoint, Probe, collapse_points
from fortifai_ray.statistics.chains import Reference, chain_table
from fortifai_ray.statistics.criterion import Collapse, CollapseCriterion, criterion_rows
from fortifai_ray.statistics.crossing import Evidence, judge_any
from fortifai_ray.statistics.fidelity import fidelity_table
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.search import BoundarySearch, OptimiseSearch
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.sweep.plan import Plan
from fortifai_ray.sweep.work import Config, Job, Replay, SearchResult, Task, Verdict, Work, replay, replay_together

if TYPE_CHECKING:
    from ray.tune.search import Searcher


_NEIGHBOURS = 16  # seeds: a search takes one after the other, and each alone would be a stage


Round = tuple[int, float | None, float | None, float | None]
"""A search after a round: its number, and the critical value with its interval, as far as they are known."""


class SearchWork(Work):
    """The chains that a search asks for."""

    is_search: ClassVar[bool] = True

    @property
    def cells(self) -> Sequence[Chain]:
        return self.study.cells

    def configs(self, plan: Plan) -> list[dict[str, Any]]:
        return []

    def jobs(self, config: Config) -> Generator[Sequence[Job], list[Verdict | None], None]:
        yield [self.job(config)]

    def announced(self, config: Config) -> Iterable[Job]:
        return [self.job(config)]

    def _tasks(self, chains: Sequence[Chain]) -> list[Task]:
        if chains[0].recipe.batched:
            return [cohort(chains, self.inputs)]
        return [ChainTask.of(self.study, chain, self.inputs) for chain in chains]


class BoundaryWork(SearchWork):
    """The search for the boundary of collapse in each cell.

    A key is ``{"cell": name, "value": number, "seed": whole number, "place": whole number}`` and means one chain. With
    several criteria a cell has a search, and a name, for each of them. Cells of a batched family are searched inside a
    few trials (``{"cells": [name, …]}``): one trial per chain would be mostly start-up cost.
    """

    asks: ClassVar[bool] = True
    outcomes: ClassVar[tuple[str, ...]] = ("collapsed", "generations")

    def __init__(self, study: Study, inputs: Inputs, before: Mapping[str, Any] | None = None) -> None:
        """``before`` is how the last run of this search went, for the rounds that this one takes from the store."""
        super().__init__(study, inputs)
        assert isinstance(study.settings.search, BoundarySearch)
        self.search = study.settings.search
        criteria = enumerate(study.settings.collapse)
        self.names: dict[str, tuple[Chain, Collapse]] = {
            f"{cell.cell_id}/{index}": (cell, criterion)
            for cell, (index, criterion) in itertools.product(study.cells, criteria)
        }
        self.searches = CellSearches({name: self._finder(cell) for name, (cell, _) in self.names.items()})
        self._rounds = dict.fromkeys(self.names, 0)
        self._before, self.course = before or {}, dict[str, list[Round]]()
        self._chains: dict[tuple[str, float], Chain] = {}  # to check a recipe takes milliseconds
        self._firsts: dict[str, Mapping[int, Mapping[str, Any]]] = {}  # baselines' metrics, by stage and seed
        self._first_of: dict[tuple[str, float, int], str] = {}  # which of them a cell, a value and some seeds have

    def _finder(self, cell: Chain) -> BoundaryFinder:
        whole = isinstance(cell.recipe.flat()[self.search.over], int)
        return BoundaryFinder(self.search, whole, cell.recipe.seed)

    @property
    def done(self) -> bool:
        return self.searches.done

    @property
    def at_once(self) -> int:
        return self.search.at_once * len(self.names)

    def replay(self, store: StageStore) -> Iterator[Replay]:
        for name, finder in self.searches.finders.items():
            while probes := finder.ask():
                jobs = [self.job(probe.config(name)) for probe in probes]
                for probe, held in zip(probes, replay_together(jobs, store), strict=True):
                    if held.missing is None:
                        finder.tell(probe, *self._outcome(held.results[-1]))
                        yield held
            finder.release()
            self._rounds[name] = finder.rounds
            self.course[name] = self._known_course(name)

    def _known_course(self, name: str) -> list[Round]:
        """The intervals that the last run of this very search had after the rounds that are answered already."""
        finders = self._before.get("searches", {}).get("finders", {})
        finder = self.searches.finders[name]
        if finders.get(name, {}).get("search") != finder.state()["search"]:
            return []
        return [one for one in self._before.get("course", {}).get(name, []) if one[0] <= finder.rounds]

    def configs(self, plan: Plan) -> list[dict[str, Any]]:
        """Trials that share the cells of batched families."""
        self.searches.release()  # probes of processes that have ended
        names = self._batched
        trials = min(plan.chains_at_once, len(names))
        return [{"cells": names[start::trials]} for start in range(trials)]

    @property
    def _batched(self) -> list[str]:
        """The cells of batched families that are not done."""
        finders = self.searches.finders
        return [name for name, (cell, _) in self.names.items() if cell.recipe.batched and not finders[name].done]

    def ask(self, processes: int) -> tuple[Config, list[Any]] | None:
        names = self._batched
        share = math.ceil(self.search.at_once * len(names) / processes)  # few cells: several processes share a round
        asked = self.searches.ask_one(names, max(1, share))
        return None if asked is None else ({"cells": [asked[0]]}, [probe.config(asked[0]) for probe in asked[1]])

    def searcher(self) -> "tuple[Searcher, int] | None":
        from fortifai_ray.sweep.searcher import BoundarySearcher

        self.searches.release()  # probes of a trial that searched by itself, and failed
        return BoundarySearcher(self.searches), -1

    def chain(self, key: Any) -> Chain:
        """The chain of a key."""
        cell, _ = self.names[key["cell"]]
        known = (cell.cell_id, key["value"])
        if known not in self._chains:
            self._chains[known] = self.study.probe(cell, {self.search.over: key["value"]}, key["seed"])
        return self._chains[known].of_seed(key["seed"])

    def job(self, key: Any) -> Job:
        chain, verdict = self.chain(key), partial(self._verdict, key)
        return Job(
            key,
            f"{key['cell']}/{key['value']}/{key['seed']}",
            self.chain_names.chain(chain),
            self._tasks([chain]),
            verdict,
        )

    def jobs(self, config: Config) -> Generator[Sequence[Job], list[Verdict | None], None]:
        if "cells" not in config:
            yield [self.job(config)]
            return
        finders = {name: deepcopy(self.searches.finders[name]) for name in config["cells"]}
        while any(not finder.done for finder in finders.values()):
            for name, finder in finders.items():
                if probes := finder.ask():
                    verdicts = yield [self.job(probe.config(name)) for probe in probes]
                    for probe, verdict in zip(probes, verdicts, strict=True):
                        finder.tell(probe, *self._outcome(verdict))

    def announced(self, config: Config) -> Iterable[Job]:
        return [] if "cells" in config else [self.job(config)]

    def answer(self, config: Config, job: Job, verdict: Verdict | None) -> str | None:
        if "cells" in config:
            finder, key = self.searches.finders[job.key["cell"]], job.key
            probe = Probe(key["place"], key["value"], key["seed"])
            if probe not in finder.answers:  # a trial that was started again repeats itself
                if not finder.waits_for(probe):  # a trial's own copy of it has asked
                    finder.ask()
                finder.tell(probe, *self._outcome(verdict))
            return None
        collapsed, _ = self._outcome(verdict)  # Tune passes it to the searcher
        return {True: "collapsed", False: "did not collapse", None: "no verdict"}[collapsed]

    def news(self) -> Iterator[str]:
        """The interval of each cell in which a round was completed."""
        for name, finder in self.searches.finders.items():
            if finder.rounds != self._rounds[name]:
                self._rounds[name], point = finder.rounds, finder.result()
                self.course.setdefault(name, []).append((finder.rounds, point.critical, point.low, point.high))
                yield f"{self._label(name)}: {point_text(point, self.search.over)}"

    def result(self) -> SearchResult:
        results = {name: finder.result() for name, finder in self.searches.finders.items()}
        points = ((cell.varied, criterion, results[name]) for name, (cell, criterion) in self.names.items())
        state = {"kind": "boundary", "done": self.done, "searches": self.searches.state(), "course": self.course}
        return SearchResult(collapse_points(points, self.search.over), state, self.done)

    def _label(self, name: str) -> str:
        cell, criterion = self.names[name]
        label = self.chain_names.cell(cell)
        return f"{label} ({criterion.words})" if len(self.study.settings.collapse) > 1 else label

    def _outcome(self, verdict: Any) -> tuple[bool | None, int]:
        """Whether the chain of a verdict collapsed, and its generations."""
        return (verdict.outcome["collapsed"], verdict.outcome["generations"]) if verdict else (None, 0)

    def _verdict(self, key: Any, generations: pl.DataFrame, steps: Steps, executor: Executor) -> Verdict:
        """Whether the chain collapsed within its horizon by the cell's criterion; None where it cannot be judged."""
        _, criterion = self.names[key["cell"]]
        references = self._references(key, steps, executor)
        status = chain_status(generations, criterion, {metric: value for _, metric, value in references})
        collapsed = None if status == "failed" else status == "collapsed"
        return Verdict({"collapsed": collapsed, "generations": generations.height}, references)

    def _references(self, key: Any, steps: Steps, executor: Executor) -> list[Reference]:
        """What the study's criteria are relative to, where that is another chain's."""
        members = (member for criterion in self.study.settings.collapse for member in criterion.members)
        wanted = {member.metric for member in members if member.relative_to == "baseline_generation_0"}
        if not wanted:
            return []
        chain = self.chain(key)
        if chain.recipe.batched:
            metrics = self._first_metrics(key, steps)
        else:
            metrics = ChainTask.of(self.study, chain, self.inputs).baseline_metrics(steps, executor)
        values = {name: metrics.get(name) for name in sorted(wanted)}
        return [(chain.chain_id, name, float(value)) for name, value in values.items() if value is not None]

    def _first_metrics(self, key: Any, steps: Steps) -> Mapping[str, Any]:
        """What the batched baseline of a key has in generation 0, of which its regime knows nothing: so one stage
        serves all values of the regime, and some neighbouring seeds."""
        seed = self.study.settings.baseline.get("seed", key["seed"])
        start = seed - seed % _NEIGHBOURS
        asked = (self.names[key["cell"]][0].cell_id, key["value"], start)
        if asked not in self._first_of:
            baseline = self.study.baseline_of(self.chain(key))
            first = self.study.chain(baseline.model_copy(update={"generations": 1, "regime": Replace()}))
            task = cohort([first.of_seed(seed) for seed in range(start, start + _NEIGHBOURS)], self.inputs)
            if task.id not in self._firsts:
                self._firsts[task.id] = {row["seed"]: row for row in cohort_table(task, steps).to_dicts()}
            self._first_of[asked] = task.id
        return self._firsts[self._first_of[asked]][seed]


class OptimiseWork(SearchWork):
    """The search for the values at which the ratio of fidelity intervals is largest.

    A key is ``{key: number, …}`` and means a chain for each seed of the study, and the baseline's of the same seed.
    ``before`` is how the last run of this search went: its points are answered from the store.
    """

    outcomes: ClassVar[tuple[str, ...]] = ("fi_ratio", "fi_ratio_low", "fi_ratio_high", "bound", "n_pairs")

    def __init__(self, study: Study, inputs: Inputs, before: Mapping[str, Any]) -> None:
        super().__init__(study, inputs)
        assert isinstance(study.settings.search, OptimiseSearch)
        self.search = study.settings.search
        self._settings = self.search.model_dump(mode="json")
        same = before.get("kind") == "optimise" and before.get("search") == self._settings
        self._before = [point["values"] for point in before["points"]] if same else []
        self.tried: list[dict[str, Any]] = []

    @property
    def _left(self) -> int:
        return self.search.budget - len(self.tried)

    @property
    def done(self) -> bool:
        return self._left <= 0

    @property
    def at_once(self) -> int:
        return min(self.search.at_once, max(1, self._left))

    def replay(self, store: StageStore) -> Iterator[Replay]:
        for values in self._before:
            held = replay(self.job(values), store)
            if held.missing is None:
                *_, verdict = held.results
                assert isinstance(verdict, Verdict)
                self.answer({}, held.job, verdict)
                yield held

    def searcher(self) -> "tuple[Searcher, int] | None":
        from fortifai_ray.sweep.searcher import optuna_search

        recipe = self.study.cells[0].recipe
        whole = {key for key, value in recipe.flat().items() if isinstance(value, int)}
        tried = [(point["values"], point["fi_ratio"]) for point in self.tried]
        return optuna_search(self.search, recipe.seed, whole, tried), self._left

    def job(self, key: Any) -> Job:
        cell, values = self.study.cells[0], {name: key[name] for name in self.search.over}
        chains = [self.study.probe(cell, values, chain.recipe.seed) for chain in self.study.chains]
        baselines = [self.study.chain(self.study.baseline_of(chain)) for chain in chains]
        name = " ".join(f"{name}={value:.6g}" for name, value in values.items())
        return Job(values, name, in_words(values), [*self._tasks(baselines), *self._tasks(chains)], self._verdict)

    def answer(self, config: Config, job: Job, verdict: Verdict | None) -> str | None:
        if verdict is None:
            return None
        self.tried.append({"values": job.key, **{name: verdict.outcome[name] for name in self.outcomes}})
        return ratio_text(self.tried[-1])

    def result(self) -> SearchResult:
        best = max((p for p in self.tried if p["fi_ratio"] is not None), key=lambda p: p["fi_ratio"], default=None)
        criterion = self.study.settings.collapse[0].words
        state = {"kind": "optimise", "done": self.done, "search": self._settings, "criterion": criterion}
        return SearchResult(pl.DataFrame(), {**state, "best": best, "points": self.tried}, self.done)

    def _verdict(self, generations: pl.DataFrame, steps: Steps, executor: Executor) -> Verdict:
        """The ratio of fidelity intervals to the baseline's, in generations, by the study's first criterion.

        It is None where no ratio can be given; ``bound`` says whether it is an estimate or a bound.
        """
        criterion, study = self.study.settings.collapse[0], self.study
        chains = chain_table(generations, [criterion], study.baseline, study.varied, study.generations_asked)
        fidelity = fidelity_table(chains, study.varied, study.baseline)
        own = fidelity.filter(criterion_rows(criterion), ~pl.col("is_baseline"), pl.col("unit") == "generations")
        row = own.row(0, named=True)
        bound = ratio_bound(row)
        ratio = row["fi_ratio"] if bound in ("exact", "lower") else None
        return Verdict({**{name: row[name] for name in self.outcomes}, "fi_ratio": ratio, "bound": bound})


def chain_status(generations: pl.DataFrame, criterion: Collapse, baseline: Mapping[str, float]) -> str:
    """The status that :func:`fortifai_ray.statistics.chain_table` gives one chain, from its rows in order, without the
    milliseconds of a table; ``baseline`` has the metrics of the baseline's generation 0."""
    return judge_any([_evidence(generations, member, baseline) for member in criterion.members], criterion)


def _evidence(generations: pl.DataFrame, criterion: CollapseCriterion, baseline: Mapping[str, float]) -> Evidence:
    measured = generations[criterion.metric].to_list()
    end = next((g for g, reason in enumerate(generations["collapse_reason"]) if reason is not None), None)
    values = list(
        itertools.takewhile(lambda value: value is not None, measured if end is None else measured[: end + 1])
    )
    limit = criterion.limit(values[0] if values else None, baseline.get(criterion.metric))
    if end is not None and len(values) == end:
        values.append(math.nan)  # recorded as collapsed before it was measured
    return Evidence(values, limit, recorded=end is not None and len(values) == end + 1)


def point_text(point: CollapsePoint, over: str) -> str:
    """A collapse point in words."""
    words = f"{over} not determined"
    ends = "" if None in (point.low, point.high) else f" [{number(point.low, 4)}, {number(point.high, 4)}]"
    if point.bound == "exact":
        words = f"{over} = {number(point.critical, 4)}{ends}"
    elif point.bound == "undetermined":
        words += ends
    else:
        words = f"{over} {'above' if point.bound == 'lower' else 'below'} {number(point.critical, 4)}"
    ending = f", {point.ended}" if point.ended else ""
    return f"{words} at {100 * point.level:g}% ({point.chains_run} chains{ending})"


def ratio_text(point: Mapping[str, Any]) -> str:
    """A point of an optimise search in words."""
    if point["fi_ratio"] is None:
        return f"no FI ratio ({point['bound']})"
    low, high = point["fi_ratio_low"], point["fi_ratio_high"]
    interval = "" if None in (low, high) else f" [{number(low, 4)}, {number(high, 4)}]"
    return f"FI ratio {MARKS[point['bound']]}{number(point['fi_ratio'], 4)}{interval} ({point['n_pairs']} pairs)"
