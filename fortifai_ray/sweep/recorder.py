"""The record of a sweep: it alone holds what a run knows, and it alone writes it.

Whoever runs chains calls its verbs; tables, summary, claims, report, MLflow and the copy on an object store follow.
"""

import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from fortifai_ray.chain.chain import GenerationResult
from fortifai_ray.chain.cohort import cohort_rows
from fortifai_ray.errors import UserError
from fortifai_ray.report import prepare_report, write_report
from fortifai_ray.results.cells import ChainNames
from fortifai_ray.results.scan import collected
from fortifai_ray.results.schema import part_paths, read_json, read_table, table_path
from fortifai_ray.results.writer import ResultsWriter
from fortifai_ray.statistics.chains import Reference
from fortifai_ray.storage.mirror import StudyMirror
from fortifai_ray.storage.store import StageStore, Storage, canonical_hash
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.sweep.plan import Plan
from fortifai_ray.sweep.preflight import notices
from fortifai_ray.sweep.work import CohortResult, Job, Result, SearchResult
from fortifai_ray.tracking.sync import StudyStatus, StudySync

FLUSH_SECONDS = 5.0  # between two writes: a driver that is killed loses the rows of so long, and no finished step
_PUSH_SECONDS = 10.0  # between two uploads to an object store


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep left behind: ``failed`` chains (their last error) and those it was interrupted in."""

    folder: Path
    report: Path
    failed: Mapping[str, str]
    unfinished: Sequence[str]


class Recorder:
    """Records what a run computes or takes from the store, chain by chain."""

    def __init__(self, study: Study, storage: Storage, console: Console, started: float | None = None) -> None:
        self.storage = storage
        self._started = started or time.time()
        self._study, self._console, self._store = study, console, StageStore(storage)
        self._mirror = StudyMirror(storage, study.name)
        self._mirror.fetch()
        self._results = ResultsWriter(study, self.folder)
        self._before = self.left_behind("summary")
        self._sync = StudySync(self.folder, storage.folder)
        self._chains = {} if study.settings.search else {chain.chain_id: chain for chain in study.chains}
        self._references: dict[Reference, None] = {}
        self._failed: dict[str, str] = {}
        self._finished: set[str] = set()
        self._stages = {"computed": 0, "reused": 0}
        self._useful = 0.0
        self._flushed = 0.0
        self._disk_was_full = False
        self._moments: dict[str, float] = {}
        self._plan: Plan | None = None
        self._engines: dict[str, Any] = {"engine_starts": 0, "engine_kind": None}
        self._ahead: threading.Thread | None = None

    @property
    def folder(self) -> Path:
        """The study's folder here."""
        return self._mirror.folder

    def left_behind(self, name: str) -> dict[str, Any]:
        """The content of ``results/NAME.json`` that the last run of this study left; empty where it left none."""
        try:
            return read_json(self.folder, name)
        except UserError:
            return {}

    def whole_before(self) -> pl.DataFrame | None:
        """The generations of the last run of this very study, if it ended whole and its tables are all there."""
        tables = [table_path(self.folder, name) for name in ("generations", "samples")]
        if self._before.get("whole") != self._identity or not all(path.is_file() for path in tables):
            return None
        if any(part_paths(self.folder, name) for name in ("generations", "samples", "pictures", "details")):
            return None
        try:
            return read_table(self.folder, "generations")
        except UserError:
            return None

    def keep(self, generations: pl.DataFrame) -> None:
        """Keep the tables of the last run, its generations in this form."""
        self._results.keep(generations)
        self._finished |= self._chains.keys()
        self.stages(0, self._before["stages_computed"] + self._before["stages_reused"])

    @property
    def _identity(self) -> str:
        """The hash of the study as resolved."""
        return canonical_hash(json.loads(json.dumps(self._study.resolved(), default=str)))

    def say(self, text: str) -> None:
        """A line for the person who waits."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def planned(self, plan: Plan) -> None:
        """What the sweep runs on."""
        self._plan = plan
        for line in (plan.describe(), *plan.shrunk, *notices(self._study)):
            self.say(line)

    def generated(self, starts: int, kind: str, start_seconds: Sequence[float]) -> None:
        """How the warm engines ran that the sweep had."""
        self._engines = {"engine_starts": starts, "engine_kind": kind, "engine_start_seconds": start_seconds}

    def add(self, chains: Iterable[Chain]) -> None:
        """Chains that a search has chosen: the tables are about them, too."""
        for chain in chains:
            self._chains.setdefault(chain.chain_id, chain)

    def take(self, job: Job, result: Result) -> None:
        """A result of a job, whatever it is."""
        if isinstance(result, GenerationResult):
            self._results.add_generation(result.row, result.samples, result.picture, result.details)
            self._useful += result.row["computed_seconds"]
        elif isinstance(result, CohortResult):
            rows = result.rows
            if rows is None:
                stage = self._store.open(result.stage_hash)
                assert stage is not None, "a trial reports what it has stored"
                rows = cohort_rows(job.cohort(result.cohort_id), replace(stage, reused=result.reused))
            self._results.add_rows(rows)
            self._useful += float(rows["computed_seconds"].sum())
        else:
            self._references |= dict.fromkeys(map(tuple, result.references))  # type: ignore[arg-type]

    def chain_finished(self, chain_id: str) -> None:
        """A chain has run to its end. Where fewer are left than run at once, a core is free for the imports
        of the report."""
        self._finished.add(chain_id)
        left = len(self._chains) - len(self._finished) - len(self._failed)
        if self._ahead is None and self._plan is not None and left < self._plan.chains_at_once:
            self._ahead = threading.Thread(target=prepare_report, name="fortifai-report", daemon=True)
            self._ahead.start()

    def prepared(self) -> None:
        """Wait for the imports of the report: two threads that import the same libraries may each find half of them."""
        if self._ahead is not None:
            self._ahead.join()

    def chain_failed(self, chain_id: str, error: str) -> None:
        """A chain failed for good; one that has run to its end does not."""
        if chain_id not in self._finished:
            self._failed[chain_id] = error

    def stages(self, computed: int, reused: int) -> None:
        """Stages that were computed, and that were taken from the store."""
        self._stages["computed"] += computed
        self._stages["reused"] += reused

    def happened(self, moments: Mapping[str, float]) -> None:
        """Moments of this run, in seconds since the epoch; of several of a name, the first counts."""
        for name, at in moments.items():
            self._moments[name] = min(at, self._moments.get(name, at))

    def reached(self, moment: str) -> None:
        """This run has come so far."""
        self.happened({moment: time.time()})

    def flush(self, at_most_every: float = FLUSH_SECONDS) -> None:
        """Write what is new since the last write, unless that is less than ``at_most_every`` seconds ago.

        A disk that is full now may have room later: a message says so once, and the sweep continues.
        """
        if time.monotonic() - self._flushed < at_most_every:
            return
        self._flushed = time.monotonic()
        try:
            if self._results.flush():
                self._sync.poke()
            self._mirror.push(at_most_every=_PUSH_SECONDS)
        except OSError as error:
            if not self._disk_was_full:
                self.say(f"the tables could not be written: {error.strerror}; the sweep continues")
            self._disk_was_full = True

    def close(self, searched: SearchResult | None) -> SweepOutcome:
        """Write every table, the claims, the report and the summary, and end the runs in MLflow.

        ``searched`` is the result of the search, where the study searches.
        """
        from fortifai_ray.claims.check import check_claims
        from fortifai_ray.claims.result import write_claims

        self.prepared()
        ended = self._finished | self._failed.keys()
        unfinished = [chain_id for chain_id in self._chains if chain_id not in ended]
        # A chain that was cut short did not survive to its last generation: it must not count as censored there.
        self._failed |= dict.fromkeys(unfinished, "interrupted")
        generations = self._results.close(list(self._chains.values()), self._failed, self._references)
        if searched is not None:
            self._results.write_points(searched.points)
            self._results.write_json("search", searched.state)
            unfinished += [] if searched.done else ["the search"]
        summary = self._summary(generations)
        summary["told"] = {name: summary[name] for name in ("wall_seconds", "overhead")}
        self._results.write_json("summary", summary)
        self.reached("tables")
        write_claims(self.folder, check_claims(self.folder))
        report = write_report(self.folder, unless_same=not self._stages["computed"])
        self.reached("report")
        status: StudyStatus = "interrupted" if unfinished else "failed" if self._failed else "finished"
        for problem in self._sync.close(status).problems:
            self.say(f"MLflow: {problem}")
        self._results.write_json("summary", {**summary, **self._wall()})
        self._mirror.push()
        return SweepOutcome(self.folder, report, self._failed, unfinished)

    def _wall(self) -> dict[str, Any]:
        """Seconds since the sweep was asked for, and how much of them was not useful."""
        start, at_once = self._started, self._plan.chains_at_once if self._plan else 1
        wall = time.time() - start
        overhead = (wall * at_once - self._useful) / self._useful if self._useful else None
        timeline = {name: at - start for name, at in sorted(self._moments.items(), key=lambda moment: moment[1])}
        return {
            "wall_seconds": wall,
            "timeline": timeline,
            "chains_at_once": at_once,
            "useful_seconds": self._useful,
            "overhead": overhead,
        }

    def _summary(self, generations: pl.LazyFrame) -> dict[str, Any]:
        return {
            "name": self._study.name,
            "whole": None if self._failed else self._identity,
            **self._wall(),
            **self._engines,
            "stages_computed": self._stages["computed"],
            "stages_reused": self._stages["reused"],
            "plan": self._plan.model_dump(mode="json") if self._plan else None,
            "chains": self._chain_summaries(generations),
            "last_computed": self._last_computed(),
            "versions": {name: version(name) for name in ("ray", "torch", "transformers", "mlflow", "polars")},
        }

    def _last_computed(self) -> dict[str, Any] | None:
        """How the last run went that computed anything, where this one only looked things up."""
        if self._useful or not self._before:
            return None
        names = (*self._wall(), *self._engines, "stages_computed", "stages_reused", "told")
        return self._before.get("last_computed") or {name: self._before.get(name) for name in names}

    def _chain_summaries(self, generations: pl.LazyFrame) -> list[dict[str, Any]]:
        """How each chain ran; of a batched family's thousands, those with something to say."""
        told = collected(
            generations.select("chain_id", "world_size", "collapse_reason").filter(
                pl.col("world_size").is_not_null() | pl.col("collapse_reason").is_not_null()
            )
        )
        seen = told.group_by("chain_id").agg(
            worlds=pl.col("world_size").drop_nulls().unique().sort(),
            reason=pl.col("collapse_reason").drop_nulls().first(),
        )
        rows = {row["chain_id"]: row for row in seen.to_dicts()}
        names = ChainNames(self._study)
        return [
            self._chain_summary(one, rows.get(one.chain_id, {}), names.chain(one))
            for chain in self._chains.values()
            if not chain.recipe.batched or chain.chain_id in self._failed or rows
            for one in chain.members
            if not one.recipe.batched or self._error(one) or rows.get(one.chain_id, {}).get("reason")
        ]

    def _error(self, chain: Chain) -> str | None:
        """The last error of a chain, or of the ecosystem that it is a lineage of; None where it did not fail."""
        return self._failed.get((chain.whole or chain).chain_id)

    def _chain_summary(self, chain: Chain, seen: Mapping[str, Any], name: str) -> dict[str, Any]:
        worlds = seen.get("worlds") or []
        mode = ", ".join("one process" if world == 1 else f"DDP over {world} workers" for world in worlds)
        return {
            "chain_id": chain.chain_id,
            "label": name,
            "training_mode": mode or None,
            "status": "failed" if self._error(chain) is not None else "finished",
            "reason": self._error(chain) or seen.get("reason"),
        }
