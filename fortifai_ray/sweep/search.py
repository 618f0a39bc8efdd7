"""A study that searches: its probes, from whatever the store already holds to the collapse points.

What a search asks next depends on the answers alone. So it is resumed by asking again: probes that the store holds are
answered from there, and only what is left goes to Ray Tune.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from fortifai_ray.chain.chain import ChainTask, GenerationResult
from fortifai_ray.chain.cohort import CohortTask
from fortifai_ray.recipe.devices import Devices
from fortifai_ray.results.schema import flatten
from fortifai_ray.search.boundary import CellSearches
from fortifai_ray.search.points import CollapsePoint, collapse_points
from fortifai_ray.storage.steps import NotStored, Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Chain
from fortifai_ray.sweep.probes import BoundaryProber, CohortResult, OptimiseProber, Verdict, probe_reports

if TYPE_CHECKING:
    from ray.tune.search import Searcher

    from fortifai_ray.sweep.run import SweepRun

_BETWEEN_WRITES = 5.0  # seconds: a search of cheap chains has hundreds of reports, and each write is of the whole table


class RunningSearch(ABC):
    """A study's search while it runs: where what its trials report goes, and what it has found."""

    prober: BoundaryProber | OptimiseProber

    def __init__(self, run: "SweepRun") -> None:
        self.run = run
        self._written = 0.0

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether nothing is left to ask."""

    @abstractmethod
    def replay(self, store: StageStore) -> None:
        """Answer every probe that the store holds whole."""

    @abstractmethod
    def searcher(self) -> "Searcher":
        """What Ray Tune asks for configurations, from here on."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many configurations are left to ask; −1: the search itself says when it is done."""

    @property
    @abstractmethod
    def at_once(self) -> int:
        """Chains that there are to run side by side."""

    @abstractmethod
    def told(self, config: Mapping[str, Any], outcome: Mapping[str, Any]) -> str:
        """Take in what a configuration came to; returns it in words."""

    @abstractmethod
    def write(self) -> None:
        """Write what was found, and tell MLflow."""

    def progress(self, config: Mapping[str, Any]) -> str | None:
        """What the search believes after a configuration was answered, where that is news."""
        return None

    @abstractmethod
    def label(self, config: Mapping[str, Any]) -> str:
        """A configuration, for people."""

    def started(self, config: Mapping[str, Any]) -> tuple[str, int]:
        """Announce a configuration's chains; returns its label and how many generations they have at most."""
        tasks = self.prober.tasks(config)
        for chain in _chains(tasks):
            self.run.add(chain)
        counts = [1 if isinstance(task, CohortTask) else task.recipe.generations for task in tasks]
        return self.label(config), sum(counts)

    def take_cohort(self, config: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """A cohort that a trial has stored."""
        (task,) = (t for t in self.prober.tasks(config) if isinstance(t, CohortTask) and t.id == report["cohort"])
        stage = StageStore(self.run.storage).open(report["stage"])
        assert stage is not None, "a trial reports what it has stored"
        self.run.take_cohort(task, replace(stage, reused=report["reused"]))
        self.write_generations()

    def failed(self, config: Mapping[str, Any], error: str) -> str:
        """A configuration that failed for good; returns its label."""
        left = [c.chain_id for c in _chains(self.prober.tasks(config)) if c.chain_id not in self.run.finished]
        self.run.results.failed |= dict.fromkeys(left, error)
        return self.label(config)

    def write_generations(self) -> None:
        """Write what came in so far, every few seconds."""
        if time.monotonic() - self._written > _BETWEEN_WRITES:
            self.run.save()
            self._written = time.monotonic()

    def _finished(self, config: Mapping[str, Any]) -> None:
        self.run.finished |= {chain.chain_id for chain in _chains(self.prober.tasks(config))}

    def _replayed(self, config: Mapping[str, Any], store: StageStore, computed: Collection[str] = ()) -> Verdict | None:
        """The verdict on a configuration that the store holds whole, its rows taken in; else None."""
        steps = Steps(store, replay=True)
        try:
            reports = list(probe_reports(self.prober, config, steps, Devices()))
        except NotStored:
            return None
        self.started(config)
        for report in reports:
            if isinstance(report, GenerationResult):
                self.run.take(report)
            elif isinstance(report, CohortResult):
                made_now = report.stage.hash in computed
                stage = replace(report.stage, reused=False) if made_now else report.stage
                self.run.take_cohort(report.task, stage, None if made_now else report.rows)
        self.run.stages["reused"] += 0 if computed else steps.reused  # a trial that computed some has counted them all
        verdict = reports[-1]
        assert isinstance(verdict, Verdict)
        self.told(config, {**verdict.outcome, "references": verdict.references})
        return verdict


class RunningBoundary(RunningSearch):
    """The search for the boundary of collapse in each cell."""

    prober: BoundaryProber

    def __init__(self, run: "SweepRun") -> None:
        super().__init__(run)
        self.prober = BoundaryProber(run.study, run.inputs)
        self.searches = CellSearches({name: self.prober.finder(name) for name in self.prober.names})
        self._rounds = dict.fromkeys(self.searches.finders, 0)

    @property
    def done(self) -> bool:
        return self.searches.done

    @property
    def samples(self) -> int:
        return -1

    @property
    def at_once(self) -> int:
        return self.prober.search.at_once * len(self.searches.finders)

    @property
    def batched(self) -> list[str]:
        """Cells of families whose chains cost milliseconds, that are not done."""
        names = self.prober.names
        return [n for n, finder in self.searches.finders.items() if names[n][0].recipe.batched and not finder.done]

    def replay(self, store: StageStore) -> None:
        self.catch_up(list(self.searches.finders), store)

    def catch_up(self, names: Iterable[str], store: StageStore, computed: Collection[str] = ()) -> None:
        """Answer the probes of these cells that the store holds whole; ``computed`` are stages made in this run."""
        for name in names:
            finder = self.searches.finders[name]
            while asked := finder.ask(1):
                (probe,) = asked
                verdict = self._replayed(probe.config(name), store, computed)
                if verdict is not None:
                    finder.tell(probe, verdict.outcome["collapsed"], verdict.outcome["generations"])
            finder.release()
        self.write_generations()

    def searcher(self) -> "Searcher":
        from fortifai_ray.sweep.searcher import BoundarySearcher

        return BoundarySearcher(self.searches)

    def label(self, config: Mapping[str, Any]) -> str:
        return self.prober.chain(config).label

    def told(self, config: Mapping[str, Any], outcome: Mapping[str, Any]) -> str:
        self.run.results.add_references(outcome["references"])
        self._finished(config)
        said = {True: "collapsed", False: "did not collapse", None: "no verdict"}[outcome["collapsed"]]
        return f"{self.label(config)}: {said}"

    def progress(self, config: Mapping[str, Any]) -> str | None:
        """The cell's interval, at the end of a round."""
        return self.news(config["cell"])

    def news(self, name: str) -> str | None:
        """What is believed of a cell, where a round was answered since it was last told."""
        finder = self.searches.finders[name]
        if finder.rounds == self._rounds[name]:
            return None
        self._rounds[name] = finder.rounds
        return f"{self._cell_label(name)}: {point_text(finder.result(), self.prober.search.over)}"

    def write(self) -> None:
        names, over = self.prober.names, self.prober.search.over
        points = {name: finder.result() for name, finder in self.searches.finders.items()}
        table = collapse_points(((names[n][0].varied, names[n][1], point) for n, point in points.items()), over)
        state = {"kind": "boundary", "done": self.done, "searches": self.searches.state()}
        self.run.results.write_search(table, state)
        for name, point in points.items():
            self._log_cell(name, point)

    def _cell_label(self, name: str) -> str:
        cell, criterion = self.prober.names[name]
        label = cell.label_without("seed", self.prober.search.over)
        several = len(self.run.study.settings.collapse) > 1
        return f"{label} ({criterion.words})" if several else label

    def _log_cell(self, name: str, point: CollapsePoint) -> None:
        """One MLflow run per cell and criterion: its probes in the order of their values, and the point."""
        cell, criterion = self.prober.names[name]
        recipe = {k: v for k, v in cell.recipe.flat().items() if k not in ("seed", self.prober.search.over)}
        settings = flatten(self.prober.search.model_dump(mode="json"), "search.")
        of_criterion = flatten(criterion.model_dump(mode="json"), "collapse.")
        self.run.tracker.add_chain(f"search/{name}", self._cell_label(name), {**recipe, **settings, **of_criterion})
        answers = sorted(self.searches.finders[name].answers.items())
        series = [
            (step, {"probe_value": probe.value, "probe_collapsed": float(answer.collapsed)})
            for step, (probe, answer) in enumerate(answers)
            if answer.collapsed is not None
        ]
        self.run.tracker.log_series(f"search/{name}", series)
        found = {key: value for key, value in vars(point).items() if value is not None}
        self.run.tracker.finish_chain(f"search/{name}", "finished", None, found)


class RunningOptimise(RunningSearch):
    """The search for the values at which the ratio of fidelity intervals is largest."""

    prober: OptimiseProber

    def __init__(self, run: "SweepRun") -> None:
        super().__init__(run)
        self.prober = OptimiseProber(run.study, run.inputs)
        self._settings = self.prober.search.model_dump(mode="json")
        self.tried: list[dict[str, Any]] = []

    @property
    def done(self) -> bool:
        return self.samples <= 0

    @property
    def samples(self) -> int:
        return self.prober.search.budget - len(self.tried)

    @property
    def at_once(self) -> int:
        return min(self.prober.search.at_once, max(1, self.samples))

    def replay(self, store: StageStore) -> None:
        before = self.run.results.read_search()
        if before.get("kind") == "optimise" and before.get("search") == self._settings:
            for point in before["points"]:
                self._replayed(point["values"], store)

    def searcher(self) -> "Searcher":
        from fortifai_ray.sweep.searcher import optuna_search

        recipe = self.run.study.cells[0].recipe
        whole = {key for key, value in recipe.flat().items() if isinstance(value, int)}
        return optuna_search(self.prober.search, recipe.seed, whole, [(p["values"], p["fi_ratio"]) for p in self.tried])

    def label(self, config: Mapping[str, Any]) -> str:
        return " ".join(f"{key}={config[key]:.6g}" for key in self.prober.search.over)

    def told(self, config: Mapping[str, Any], outcome: Mapping[str, Any]) -> str:
        values = {key: config[key] for key in self.prober.search.over}
        self.tried.append({"values": values, **{name: outcome[name] for name in self.prober.outcomes}})
        self._finished(config)
        return f"{self.label(config)}: {ratio_text(self.tried[-1])}"

    def write(self) -> None:
        best = max((p for p in self.tried if p["fi_ratio"] is not None), key=lambda p: p["fi_ratio"], default=None)
        criterion = self.run.study.settings.collapse[0].words
        state = {"kind": "optimise", "done": self.done, "search": self._settings, "criterion": criterion}
        self.run.results.write_search(pl.DataFrame(), {**state, "best": best, "points": self.tried})


def running_search(run: "SweepRun") -> RunningBoundary | RunningOptimise:
    """The search that a run's study asks for."""
    assert run.study.settings.search is not None
    return (RunningBoundary if run.study.settings.search.kind == "boundary" else RunningOptimise)(run)


def point_text(point: CollapsePoint, over: str) -> str:
    """A collapse point in words."""
    level = f"{100 * point.level:g}%"
    said = {
        "exact": f"{over} = {_short(point.critical)} [{_short(point.low)}, {_short(point.high)}] at {level}",
        "lower": f"{over} above {_short(point.critical)} at {level}",
        "upper": f"{over} below {_short(point.critical)} at {level}",
        "undetermined": f"{over} not determined",
    }[point.bound]
    ending = f", {point.ended}" if point.ended else ""
    return f"{said} ({point.chains_run} chains{ending})"


def ratio_text(point: Mapping[str, Any]) -> str:
    """A point of an optimise search in words."""
    if point["fi_ratio"] is None:
        return f"no FI ratio ({point['bound']})"
    least = "at least " if point["bound"] == "lower" else ""
    interval = ""
    if point["fi_ratio_low"] is not None and point["fi_ratio_high"] is not None:
        interval = f" [{_short(point['fi_ratio_low'])}, {_short(point['fi_ratio_high'])}]"
    return f"FI ratio {least}{_short(point['fi_ratio'])}{interval} ({point['n_pairs']} pairs)"


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def _chains(tasks: Iterable[ChainTask | CohortTask]) -> list[Chain]:
    chains: list[Sequence[Chain]] = [task.chains if isinstance(task, CohortTask) else [task.chain] for task in tasks]
    return [chain for some in chains for chain in some]
