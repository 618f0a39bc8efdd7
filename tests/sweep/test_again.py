"""A finished study run again: what is there is seen to be there, by little more than reading it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.resources import ResourcesConfig
from fortifai_ray.study.study import load_study
from fortifai_ray.sweep.plan import make_plan
from fortifai_ray.sweep.preflight import check_study
from fortifai_ray.sweep.work import Grid, run_job

STUDY: dict[str, Any] = {
    "name": "again",
    "family": {"kind": "gaussian", "dim": 1},
    "samples_per_generation": 20,
    "regime": {"kind": "replace"},
    "generations": 4,
    "vary": {"samples_per_generation": [20, 40], "seed": {"count": 20}},
    "collapse": {"metric": "trace_ratio", "relative_to": "absolute", "threshold": 0.5, "direction": "below"},
    "baseline": {"samples_per_generation": 20},
}
PLAN = make_plan(ResourcesConfig(), 1, 1.0, 1)
_HEAVY = ("ray", "torch", "transformers", "mlflow", "sqlalchemy", "altair", "pandas", "scipy.stats")
_RUN = f"""
import sys
from pathlib import Path
from fortifai_ray.cli import app
app(["sweep", *sys.argv[1:]], standalone_mode=False)
print("imported:", *(name for name in {_HEAVY} if name in sys.modules))
"""


def run(study: Path, storage: Path) -> list[str]:
    """Sweep in a process of its own; returns the heavy libraries that it imported."""
    command = [sys.executable, "-c", _RUN, str(study), "--storage", str(storage)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.rpartition("imported:")[2].split()


def test_a_finished_study_imports_nothing_heavy(tmp_path: Path) -> None:
    """No Ray, no torch, no MLflow, no charts: its report and its runs in MLflow are seen to be there, and stay."""
    file, runs = tmp_path / "again.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(STUDY))
    study, store = load_study(file), StageStore(Storage.of(runs))
    work = Grid(study, check_study(study, store))
    for job in [work.job(key) for config in work.configs(PLAN) for key in config["jobs"]]:
        list(run_job(job, Steps(store), InProcess()))
    assert {"altair", "mlflow"} <= set(run(file, runs)), "the first run writes the report, and MLflow's runs"
    shown = [runs / "again" / "report.html", runs / "mlflow.db"]
    before = [path.stat().st_mtime_ns for path in shown]
    assert run(file, runs) == []
    assert [path.stat().st_mtime_ns for path in shown] == before
