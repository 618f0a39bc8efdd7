"""One run of a sweep: the generations as they come in, where they go, and how the run went."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import psutil
from rich.console import Console

from fortifai_ray.chain.chain import ChainTask, GenerationResult, Inputs, run_chain
from fortifai_ray.chain.cohort import CohortTask, cohort_rows, cohorts, run_cohort
from fortifai_ray.recipe.devices import Devices
from fortifai_ray.results.writer import StudyResults
from fortifai_ray.storage.mirror import StudyMirror
from fortifai_ray.storage.steps import NotStored, Steps
from fortifai_ray.storage.store import Stage, StageStore, Storage
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.sweep.plan import Plan
from fortifai_ray.tracking import ChainInfo, StudyStatus, StudyTracker
from fortifai_ray.tracking.from_mlflow import RECORDED_COLLAPSE
from fortifai_ray.tracking.quantiles import seed_quantiles

if TYPE_CHECKING:
    from fortifai_ray.sweep.search import RunningSearch


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep left behind: ``failed`` chains (their last error) and those it was interrupted in."""

    folder: Path
    report: Path
    failed: Mapping[str, str]
    unfinished: Sequence[str]


class SweepRun:
    """One run of a sweep: where its rows go, and how it went."""

    def __init__(self, study: Study, storage: Storage, console: Console, inputs: Inputs) -> None:
        self.study, self.storage, self.console, self.inputs = study, storage, console, inputs
        self.mirror = StudyMirror(storage, study.name)
        self.mirror.fetch()
        self.results = StudyResults(study, self.mirror.folder, self.mirror)
        grid = list(self.results.chains.values())
        # Thousands of chains that cost milliseconds each: in MLflow a cell of them is one run.
        self._cells = [cell for cell in study.cells if cell.recipe.batched] if grid else []
        runs = [ChainInfo(cell.cell_id, cell.cell_label, _without_seed(cell)) for cell in self._cells]
        self.tracker = StudyTracker(study.name, storage.folder, study.resolved(), runs)
        self.tasks: dict[str, ChainTask] = {}
        for chain in grid:
            self.add(chain)
        self.cohorts = {task.id: task for task in cohorts(grid)}
        self.plan: Plan | None = None
        self.stages = {"computed": 0, "reused": 0}
        self.engines: dict[str, Any] = {"engine_starts": 0, "engine_kind": None}
        self.finished: set[str] = set()
        self._counted: dict[str, tuple[int, int]] = {}
        self._told = False
        self._before = self.results.read_summary()
        self._useful = 0.0

    def say(self, text: str) -> None:
        """A line for the person who waits."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def add(self, chain: Chain) -> None:
        """A chain that this run computes or takes from the store: the grid's from the start, a search's as it goes."""
        self.results.add_chain(chain)
        if not chain.recipe.batched and chain.chain_id not in self.tasks:
            self.tasks[chain.chain_id] = ChainTask.of(self.study, chain, self.inputs)
            self.tracker.add_chain(chain.chain_id, chain.label, chain.recipe.flat())

    def count(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Stages that a trial computed or reused since it last said so."""
        computed, reused = self._counted.get(trial_id, (0, 0))
        self.stages["computed"] += max(0, result["stages_computed"] - computed)
        self.stages["reused"] += max(0, result["stages_reused"] - reused)
        self._counted[trial_id] = (result["stages_computed"], result["stages_reused"])

    def replay(self, store: StageStore) -> tuple[list[Chain], list[CohortTask]]:
        """Take in every chain and cohort that the store holds whole; returns those it does not."""
        missing, missing_cohorts = [], []
        for task in self.tasks.values():
            steps = Steps(store, replay=True)
            try:
                finished = list(run_chain(task, steps, Devices()))
            except NotStored:
                missing.append(task.chain)
                continue
            for result in finished:
                self.take(result)
            self.stages["reused"] += steps.reused
            self.finished.add(task.chain.chain_id)
        for cohort in self.cohorts.values():
            try:
                stage = run_cohort(cohort, Steps(store, replay=True))
                rows = cohort_rows(cohort, stage)
            except NotStored:
                missing_cohorts.append(cohort)
                continue
            self.take_cohort(cohort, stage, rows)
            self.stages["reused"] += 1
        self.results.write_generations()
        return missing, missing_cohorts

    def take(self, result: GenerationResult) -> None:
        """A completed generation."""
        row, samples = result.row, result.samples
        self.results.add(row, samples, result.picture, result.details)
        self._useful += row["computed_seconds"]
        metrics = {name: row.get(name) for name in (*self.results.metrics, *_SIZES)}
        metrics[RECORDED_COLLAPSE] = 1.0 if row["collapse_reason"] else None
        text = "\n\n".join(f"[{s['row']}] {s['prompt_text']} ▸ {s['generated_text']}" for s in samples)
        self.tracker.log_generation(row["chain_id"], row["generation"], metrics, text or None, result.picture)

    def take_cohort(self, task: CohortTask, stage: Stage, rows: pl.DataFrame | None = None) -> None:
        """A completed cohort, and its rows where they have been read already."""
        rows = cohort_rows(task, stage) if rows is None else rows
        self.results.add_cohort(task.id, rows)
        self._useful += float(rows["computed_seconds"].sum())
        self.finished |= {chain.chain_id for chain in task.chains}

    def save(self) -> None:
        """Write what came in so far. A disk that is full now may have room at the end: until then it is said once."""
        try:
            self.results.write_generations()
        except OSError as error:
            if not self._told:
                self.say(f"the tables could not be written: {error.strerror}; the sweep goes on")
            self._told = True

    def finish(self, search: "RunningSearch | None" = None) -> SweepOutcome:
        """Write every table, the report and the summary; close the runs in MLflow."""
        import pandas  # noqa: F401 - whole, before charts meet it half imported by MLflow's thread

        from fortifai_ray.claims import check_claims, write_claims
        from fortifai_ray.report import write_report

        ended = self.finished | self.results.failed.keys()
        unfinished = [chain_id for chain_id in self.results.chains if chain_id not in ended]
        # A chain that was cut short did not survive to its last generation: it must not count as censored there.
        self.results.failed |= dict.fromkeys(unfinished, "interrupted")
        chains, _ = self.results.write()
        if search is not None:
            search.write()
            unfinished += [] if search.done else ["the search"]
        self.results.write_summary(self._summary())
        write_claims(self.results.folder, check_claims(self.results.folder))
        report = write_report(self.results.folder)
        self._log_cells()
        alone = chains.filter(pl.col("chain_id").is_in(list(self.tasks)))
        for row in alone.unique("chain_id", maintain_order=True).to_dicts():
            reason = self.results.failed.get(row["chain_id"])
            found = {key: row[key] for key in ("metric", "onset", "censored", "fi_generations", "fi_synthetic")}
            self.tracker.finish_chain(row["chain_id"], row["status"], reason, found)
        tables = sorted((self.results.folder / "results").glob("*.parquet"))
        status: StudyStatus = "interrupted" if unfinished else "failed" if self.results.failed else "finished"
        outcome = self.tracker.finish(status, [report, *tables])
        for problem in outcome.problems:
            self.say(f"MLflow: {problem}")
        self.results.write_summary(self._summary())
        self.mirror.push()
        return SweepOutcome(self.results.folder, report, self.results.failed, unfinished)

    def _log_cells(self) -> None:
        """A run for each cell of a batched family: quantiles over its seeds, by generation."""
        if not self._cells:
            return
        cell_of = {chain.chain_id: chain.cell_id for task in self.cohorts.values() for chain in task.chains}
        for cell_id, series in seed_quantiles(self.results.generations(), cell_of, self.results.metrics):
            self.tracker.log_series(cell_id, series)
            self.tracker.finish_chain(cell_id, "finished", None, {})

    def _summary(self) -> dict[str, Any]:
        wall = time.time() - psutil.Process().create_time()
        at_once = self.plan.chains_at_once if self.plan else 1
        useful = self._useful
        return {
            "name": self.study.name,
            "wall_seconds": wall,
            "chains_at_once": at_once,
            "useful_seconds": useful,
            "overhead": (wall * at_once - useful) / useful if useful else None,
            **self.engines,
            "stages_computed": self.stages["computed"],
            "stages_reused": self.stages["reused"],
            "plan": self.plan.model_dump(mode="json") if self.plan else None,
            "chains": self._chain_summaries(),
            "last_computed": self._last_computed(),
            "versions": {name: version(name) for name in ("ray", "torch", "transformers", "mlflow", "polars")},
        }

    def _last_computed(self) -> dict[str, Any] | None:
        """How the last run went that computed anything, where this one only looked things up."""
        if self._useful or self._before is None:
            return None
        names = ("wall_seconds", "chains_at_once", "useful_seconds", "overhead", *self.engines, "stages_computed")
        return self._before.get("last_computed") or {name: self._before.get(name) for name in names}

    def _chain_summaries(self) -> list[dict[str, Any]]:
        """How each chain ran; of a batched family's thousands, those with something to say."""
        told = (
            self.results.generations()
            .group_by("chain_id")
            .agg(
                worlds=pl.col("world_size").drop_nulls().unique().sort(),
                reason=pl.col("collapse_reason").drop_nulls().first(),
            )
        )
        rows = {row["chain_id"]: row for row in told.to_dicts()}
        chains = self.results.chains.values()
        summaries = [self._chain_summary(chain, rows.get(chain.chain_id, {})) for chain in chains]
        return [one for one in summaries if one["chain_id"] in self.tasks or one["reason"]]

    def _chain_summary(self, chain: Chain, told: Mapping[str, Any]) -> dict[str, Any]:
        worlds = told.get("worlds") or []
        mode = ", ".join("one process" if world == 1 else f"DDP over {world} workers" for world in worlds)
        return {
            "chain_id": chain.chain_id,
            "label": chain.label,
            "training_mode": mode or None,
            "status": "failed" if chain.chain_id in self.results.failed else "finished",
            "reason": self.results.failed.get(chain.chain_id) or told.get("reason"),
        }


_SIZES = ("synthetic_ratio_realised", "synthetic_size_cum")


def _without_seed(cell: Chain) -> dict[str, Any]:
    return {key: value for key, value in cell.recipe.flat().items() if key != "seed"}
