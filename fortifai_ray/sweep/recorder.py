"""The record of a sweep: it alone holds what a run knows, and it alone writes it.

Whoever runs chains calls its verbs; tables, summary, claims, report, MLflow and the copy on an object store follow.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import psutil
from rich.console import Console

from fortifai_ray.chain.chain import GenerationResult
from fortifai_ray.chain.cohort import CohortTask, cohort_rows
from fortifai_ray.results.writer import StudyResults
from fortifai_ray.storage.mirror import StudyMirror
from fortifai_ray.storage.store import StageStore, Storage
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.sweep.plan import Plan
from fortifai_ray.sweep.work import CohortResult, Found, Job, Result
from fortifai_ray.tracking import ChainInfo, StudyStatus, StudyTracker
from fortifai_ray.tracking.content import RECORDED_COLLAPSE
from fortifai_ray.tracking.quantiles import seed_quantiles

FLUSH_SECONDS = 5.0  # between two writes: a driver that is killed loses the rows of so long, and no finished step
_SIZES = ("synthetic_ratio_realised", "synthetic_size_cum")


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep left behind: ``failed`` chains (their last error) and those it was interrupted in."""

    folder: Path
    report: Path
    failed: Mapping[str, str]
    unfinished: Sequence[str]


class Recorder:
    """Takes in what a run computes or finds in the store, chain by chain."""

    def __init__(self, study: Study, storage: Storage, console: Console) -> None:
        self.storage = storage
        self._study, self._console, self._store = study, console, StageStore(storage)
        self._mirror = StudyMirror(storage, study.name)
        self._mirror.fetch()
        self._results = StudyResults(study, self._mirror.folder, self._mirror)
        self._before = self._results.read_summary()
        self._chains: dict[str, Chain] = {}
        self._failed: dict[str, str] = {}
        self._finished: set[str] = set()
        self._stages = {"computed": 0, "reused": 0}
        self._useful = 0.0
        self._flushed = 0.0
        self._is_told = False
        grid = [] if study.settings.search else study.chains
        # Thousands of chains that cost milliseconds each: in MLflow a cell of them is one run.
        self._cells = [cell for cell in study.cells if cell.recipe.batched] if grid else []
        runs = [ChainInfo(cell.cell_id, cell.cell_label, _without_seed(cell)) for cell in self._cells]
        self._tracker = StudyTracker(study.name, storage.folder, study.resolved(), runs)
        self.add(grid)

    @property
    def folder(self) -> Path:
        """The study's folder here."""
        return self._mirror.folder

    @property
    def last_search(self) -> dict[str, Any]:
        """How the last run of this study's search went; empty where there was none."""
        return self._results.read_search()

    def say(self, text: str) -> None:
        """A line for the person who waits."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def add(self, chains: Iterable[Chain]) -> None:
        """Chains that the tables are about: the grid's from the start, a search's as it chooses them."""
        for chain in chains:
            if chain.chain_id not in self._chains:
                self._chains[chain.chain_id] = chain
                self._results.add_chain(chain)
                if not chain.recipe.batched:
                    self._tracker.add_chain(chain.chain_id, chain.label, chain.recipe.flat())

    def take(self, job: Job, result: Result) -> None:
        """A result of a job, whatever it is."""
        if isinstance(result, GenerationResult):
            self.generation(result)
        elif isinstance(result, CohortResult):
            task, rows = job.cohort(result.cohort_id), result.rows
            if rows is None:
                stage = self._store.open(result.stage_hash)
                assert stage is not None, "a trial reports what it has stored"
                rows = cohort_rows(task, replace(stage, reused=result.reused))
            self.cohort(task, rows)
        else:
            self._results.add_references(result.references)

    def generation(self, result: GenerationResult) -> None:
        """A completed generation."""
        row, samples = result.row, result.samples
        self._results.add(row, samples, result.picture, result.details)
        self._useful += row["computed_seconds"]
        metrics = {name: row.get(name) for name in (*self._results.metrics, *_SIZES)}
        metrics[RECORDED_COLLAPSE] = 1.0 if row["collapse_reason"] else None
        text = "\n\n".join(f"[{s['row']}] {s['prompt_text']} ▸ {s['generated_text']}" for s in samples)
        self._tracker.log_generation(row["chain_id"], row["generation"], metrics, text or None, result.picture)

    def cohort(self, task: CohortTask, rows: pl.DataFrame) -> None:
        """A completed cohort and the rows of its chains."""
        self._results.add_cohort(task.id, rows)
        self._useful += float(rows["computed_seconds"].sum())

    def chain_finished(self, chain_id: str) -> None:
        """A chain has run to its end."""
        self._finished.add(chain_id)

    def chain_failed(self, chain_id: str, error: str) -> None:
        """A chain failed for good; one that has run to its end does not."""
        if chain_id not in self._finished:
            self._failed[chain_id] = error

    def stages(self, computed: int, reused: int) -> None:
        """Stages that were computed, and that were taken from the store."""
        self._stages["computed"] += computed
        self._stages["reused"] += reused

    def flush(self, at_most_every: float = FLUSH_SECONDS) -> None:
        """Write what came in since the last time, unless that is less than ``at_most_every`` seconds ago.

        A disk that is full now may have room later: that it is full is said once, and the sweep goes on.
        """
        if time.monotonic() - self._flushed < at_most_every:
            return
        try:
            self._results.write_generations()
        except OSError as error:
            if not self._is_told:
                self.say(f"the tables could not be written: {error.strerror}; the sweep goes on")
            self._is_told = True
        self._flushed = time.monotonic()

    def close(self, plan: Plan | None, engines: Mapping[str, Any], found: Found | None) -> SweepOutcome:
        """Write every table, the claims, the report and the summary, and end the runs in MLflow.

        Args:
            plan: what the sweep ran on; None where nothing was left to run.
            engines: starts, kind and seconds of the warm engines, for the summary.
            found: what the search has found, where the study searches.
        """
        import pandas  # noqa: F401 - whole, before charts meet it half imported by MLflow's thread

        from fortifai_ray.claims import check_claims, write_claims
        from fortifai_ray.report import write_report

        ended = self._finished | self._failed.keys()
        unfinished = [chain_id for chain_id in self._chains if chain_id not in ended]
        # A chain that was cut short did not survive to its last generation: it must not count as censored there.
        self._failed |= dict.fromkeys(unfinished, "interrupted")
        self._results.failed |= self._failed
        chains, _ = self._results.write()
        if found is not None:
            self._results.write_search(found.points, found.state)
            unfinished += [] if found.done else ["the search"]
        summary = self._summary(plan, engines)
        self._results.write_summary(summary)
        write_claims(self.folder, check_claims(self.folder))
        report = write_report(self.folder)
        for name, label, parameters, series, point in found.runs if found is not None else ():
            self._tracker.add_chain(name, label, parameters)
            self._tracker.log_series(name, series)
            self._tracker.finish_chain(name, "finished", None, point)
        self._end_runs(chains, report, "interrupted" if unfinished else "failed" if self._failed else "finished")
        self._results.write_summary({**summary, **self._wall(plan)})
        self._mirror.push()
        return SweepOutcome(self.folder, report, self._failed, unfinished)

    def _end_runs(self, chains: pl.DataFrame, report: Path, status: StudyStatus) -> None:
        """End every run in MLflow: those of chains that ran alone, and those of cells of batched chains."""
        if self._cells:
            cell_of = {chain.chain_id: chain.cell_id for chain in self._chains.values() if chain.recipe.batched}
            for cell_id, series in seed_quantiles(self._results.generations(), cell_of, self._results.metrics):
                self._tracker.log_series(cell_id, series)
                self._tracker.finish_chain(cell_id, "finished", None, {})
        for row in chains.unique("chain_id", maintain_order=True).to_dicts():
            if not self._chains[row["chain_id"]].recipe.batched:
                values = {key: row[key] for key in ("metric", "onset", "censored", "fi_generations", "fi_synthetic")}
                self._tracker.finish_chain(row["chain_id"], row["status"], self._failed.get(row["chain_id"]), values)
        tables = sorted((self.folder / "results").glob("*.parquet"))
        for problem in self._tracker.finish(status, [report, *tables]).problems:
            self.say(f"MLflow: {problem}")

    def _wall(self, plan: Plan | None) -> dict[str, Any]:
        """Seconds since the program started, and how much of them was not useful."""
        wall, at_once = time.time() - psutil.Process().create_time(), plan.chains_at_once if plan else 1
        overhead = (wall * at_once - self._useful) / self._useful if self._useful else None
        return {"wall_seconds": wall, "chains_at_once": at_once, "useful_seconds": self._useful, "overhead": overhead}

    def _summary(self, plan: Plan | None, engines: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "name": self._study.name,
            **self._wall(plan),
            **engines,
            "stages_computed": self._stages["computed"],
            "stages_reused": self._stages["reused"],
            "plan": plan.model_dump(mode="json") if plan else None,
            "chains": self._chain_summaries(),
            "last_computed": self._last_computed(engines),
            "versions": {name: version(name) for name in ("ray", "torch", "transformers", "mlflow", "polars")},
        }

    def _last_computed(self, engines: Mapping[str, Any]) -> dict[str, Any] | None:
        """How the last run went that computed anything, where this one only looked things up."""
        if self._useful or self._before is None:
            return None
        names = ("wall_seconds", "chains_at_once", "useful_seconds", "overhead", *engines, "stages_computed")
        return self._before.get("last_computed") or {name: self._before.get(name) for name in names}

    def _chain_summaries(self) -> list[dict[str, Any]]:
        """How each chain ran; of a batched family's thousands, those with something to say."""
        seen = (
            self._results.generations()
            .group_by("chain_id")
            .agg(
                worlds=pl.col("world_size").drop_nulls().unique().sort(),
                reason=pl.col("collapse_reason").drop_nulls().first(),
            )
        )
        rows = {row["chain_id"]: row for row in seen.to_dicts()}
        summaries = [
            (chain, self._chain_summary(chain, rows.get(chain.chain_id, {}))) for chain in self._chains.values()
        ]
        return [summary for chain, summary in summaries if not chain.recipe.batched or summary["reason"]]

    def _chain_summary(self, chain: Chain, seen: Mapping[str, Any]) -> dict[str, Any]:
        worlds = seen.get("worlds") or []
        mode = ", ".join("one process" if world == 1 else f"DDP over {world} workers" for world in worlds)
        return {
            "chain_id": chain.chain_id,
            "label": chain.label,
            "training_mode": mode or None,
            "status": "failed" if chain.chain_id in self._failed else "finished",
            "reason": self._failed.get(chain.chain_id) or seen.get("reason"),
        }


def _without_seed(cell: Chain) -> dict[str, Any]:
    return {key: value for key, value in cell.recipe.flat().items() if key != "seed"}
