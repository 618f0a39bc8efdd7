"""One run of a sweep: the generations as they come in, where they go, and how the run went."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import psutil
from rich.console import Console

from fortifai_ray.chain import ChainTask, Corpora, run_chain
from fortifai_ray.families.language.family import METRICS, Devices
from fortifai_ray.resources import Plan
from fortifai_ray.results import StudyResults
from fortifai_ray.steps import NotStored, Steps
from fortifai_ray.store import StageStore
from fortifai_ray.study import Chain, Study
from fortifai_ray.tracking import ChainInfo, StudyStatus, StudyTracker


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep left behind: ``failed`` chains (their last error) and those it was interrupted in."""

    folder: Path
    report: Path
    failed: Mapping[str, str]
    unfinished: Sequence[str]


class SweepRun:
    """One run of a sweep: where its rows go, and how it went."""

    def __init__(self, study: Study, storage: Path, console: Console, corpora: Corpora) -> None:
        self.study, self.storage, self.console = study, storage, console
        self.results = StudyResults(study, storage / study.name)
        runs = [ChainInfo(chain.chain_id, chain.label, chain.recipe.flat()) for chain in study.chains]
        self.tracker = StudyTracker(study.name, storage, study.resolved(), runs)
        self.tasks = {chain.chain_id: ChainTask.of(study, chain, corpora) for chain in study.chains}
        self.plan: Plan | None = None
        self.stages = {"computed": 0, "reused": 0}
        self.engines: dict[str, Any] = {"engine_starts": 0, "engine_kind": None}
        self.finished: set[str] = set()
        self._before = self.results.read_summary()
        self._useful = 0.0

    def say(self, text: str) -> None:
        """A line for the person who waits."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def replay(self, store: StageStore) -> list[Chain]:
        """Take in every chain that the store holds whole; returns those it does not."""
        missing = []
        for chain in self.study.chains:
            steps = Steps(store, replay=True)
            try:
                finished = list(run_chain(self.tasks[chain.chain_id], steps, Devices()))
            except NotStored:
                missing.append(chain)
                continue
            for result in finished:
                self.take(result.row, result.samples)
            self.stages["reused"] += steps.reused
            self.finished.add(chain.chain_id)
        self.results.write_generations()
        return missing

    def take(self, row: Any, samples: Any) -> None:
        """A completed generation."""
        self.results.add(row, samples)
        self._useful += row["computed_seconds"]
        metrics = {name: row[name] for name in (*METRICS, "synthetic_ratio_realised", "synthetic_size_cum")}
        text = "\n\n".join(f"[{s['row']}] {s['prompt_text']} ▸ {s['generated_text']}" for s in samples)
        self.tracker.log_generation(row["chain_id"], row["generation"], metrics, text or None)

    def finish(self) -> SweepOutcome:
        """Write every table, the report and the summary; close the runs in MLflow."""
        from fortifai_ray.report import write_report

        unfinished = [
            c.chain_id for c in self.study.chains if c.chain_id not in self.finished | self.results.failed.keys()
        ]
        # A chain that was cut short did not survive to its last generation: it must not count as censored there.
        self.results.failed |= dict.fromkeys(unfinished, "interrupted")
        chains, _ = self.results.write()
        self.results.write_summary(self._summary())
        report = write_report(self.results.folder)
        for row in chains.unique("chain_id", maintain_order=True).to_dicts():
            reason = self.results.failed.get(row["chain_id"])
            found = {key: row[key] for key in ("metric", "onset", "censored", "fi_generations", "fi_synthetic")}
            self.tracker.finish_chain(row["chain_id"], row["status"], reason, found)
        tables = sorted((self.results.folder / "results").glob("*.parquet"))
        status: StudyStatus = "interrupted" if unfinished else "failed" if self.results.failed else "finished"
        outcome = self.tracker.finish(status, [report, *tables])
        for problem in outcome.problems:
            self.say(f"MLflow: {problem}")
        self.results.write_summary(self._summary())
        return SweepOutcome(self.results.folder, report, self.results.failed, unfinished)

    def _summary(self) -> dict[str, Any]:
        wall = time.time() - psutil.Process().create_time()
        at_once = self.plan.chains_at_once if self.plan else 1
        useful, generations = self._useful, self.results.generations()
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
            "chains": [self._chain_summary(chain, generations) for chain in self.study.chains],
            "last_computed": self._last_computed(),
            "versions": {name: version(name) for name in ("ray", "torch", "transformers", "mlflow", "polars")},
        }

    def _last_computed(self) -> dict[str, Any] | None:
        """How the last run went that computed anything, where this one only looked things up."""
        if self._useful or self._before is None:
            return None
        names = ("wall_seconds", "chains_at_once", "useful_seconds", "overhead", *self.engines, "stages_computed")
        return self._before.get("last_computed") or {name: self._before.get(name) for name in names}

    def _chain_summary(self, chain: Chain, generations: pl.DataFrame) -> dict[str, Any]:
        rows = generations.filter(chain_id=chain.chain_id)
        worlds = rows["world_size"].drop_nulls().unique().sort().to_list()
        mode = ", ".join("one process" if world == 1 else f"DDP over {world} workers" for world in worlds)
        reasons = rows["collapse_reason"].drop_nulls().to_list()
        return {
            "chain_id": chain.chain_id,
            "label": chain.label,
            "training_mode": mode or None,
            "status": "failed" if chain.chain_id in self.results.failed else "finished",
            "reason": self.results.failed.get(chain.chain_id) or (reasons[0] if reasons else None),
        }
