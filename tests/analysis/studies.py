"""Analytic studies for the notebooks, computed in this process: real ones, without Ray."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fortifai_ray.chain.cohort import cohort_rows, cohorts, run_cohort
from fortifai_ray.results.writer import ResultsWriter
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import make_study

PROJECT = Path(__file__).resolve().parent.parent.parent
ANALYSIS = PROJECT / "analysis"
NOTEBOOKS = sorted(path.stem for path in ANALYSIS.glob("*.py"))

Definitions = Mapping[str, Any]
Run = Callable[..., tuple[str, Definitions]]
"""Runs a notebook with arguments: what its cells show, and what they define."""


def compute_study(folder: Path, **settings: Any) -> Path:
    """An analytic study's folder as a sweep leaves it, computed here without Ray."""
    study = make_study({"name": "second", **settings}, "test")
    writer, steps = ResultsWriter(study, folder / "second"), Steps(StageStore(folder))
    for task in cohorts(study.chains):
        writer.add_rows(cohort_rows(task, run_cohort(task, steps)))
    writer.close(study.chains)
    writer.write_json("summary", {"name": "second"})
    return writer.folder
