"""Studies' folders as a sweep leaves them, without sweeping; and what MLflow holds of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from fortifai_ray.results.schema import write_table
from fortifai_ray.study.study import Chain, Study, make_study
from fortifai_ray.tracking.sync import StudyStatus, StudySync, TrackingOutcome

CONTENT: dict[str, Any] = {
    "name": "small",
    "family": {"kind": "vae", "data": {"source": "digits"}},
    "generations": 3,
    "vary": {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.3}], "seed": [0]},
    "collapse": {"metric": "wasserstein", "relative_to": "own_generation_0", "threshold": 2.0, "direction": "above"},
}
_TYPES = {"collapse_reason": pl.String, "stage": pl.String, "wasserstein": pl.Float64, "kept_fraction": pl.Float64}


def write_study(storage: Path, **changes: Any) -> tuple[Path, Study]:
    """A study's folder with its study file, and the study."""
    study = make_study(CONTENT | changes, "test")
    folder = storage / study.name
    (folder / "results").mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study.resolved(), sort_keys=False, allow_unicode=True))
    return folder, study


def rows_of(chain: Chain, generations: int = 3, **columns: Any) -> list[dict[str, Any]]:
    """A chain's rows: a Wasserstein distance that doubles, and a fraction that was not measured."""
    return [
        {
            "chain_id": chain.chain_id,
            "generation": generation,
            "seed": chain.recipe.seed,
            **chain.varied,
            "wasserstein": 300.0 * 2**generation,
            "kept_fraction": None,
            "synthetic_size_cum": 100 * generation,
            "collapse_reason": None,
            "stage": None,
            **columns,
        }
        for generation in range(generations)
    ]


def generations_table(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema_overrides=_TYPES, infer_schema_length=None)


def write_generations(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """``generations.parquet``, and a sample text for each of its rows."""
    write_table(folder, "generations", generations_table(rows))
    samples = [
        {key: row[key] for key in ("chain_id", "generation")}
        | {"row": 7, "prompt_text": "once", "generated_text": f"{row['generation']} times"}
        for row in rows
    ]
    write_table(folder, "samples", pl.DataFrame(samples))


def write_end(
    folder: Path, chains: Sequence[Chain], status: str = "collapsed", reason: str | None = None, onset: float = 1.0
) -> None:
    """What a sweep writes when it ends: verdicts, summary and report."""
    rows = [
        {
            "chain_id": chain.chain_id,
            "seed": chain.recipe.seed,
            **chain.varied,
            "metric": "wasserstein",
            "onset": onset,
            "status": status,
            "censored": False,
            "fi_generations": 1.0,
            "fi_synthetic": None,
        }
        for chain in chains
    ]
    if rows:
        write_table(folder, "chains", pl.DataFrame(rows, infer_schema_length=None))
    summaries = [
        {"chain_id": c.chain_id, "status": "failed" if reason else "finished", "reason": reason} for c in chains
    ]
    (folder / "results" / "summary.json").write_text(json.dumps({"chains": summaries}))
    (folder / "report.html").write_text("<p>curves</p>")


def sweep(
    storage: Path,
    *,
    chains: int = 2,
    generations: int = 3,
    status: StudyStatus = "finished",
    tracking_uri: str | None = None,
    **changes: Any,
) -> TrackingOutcome:
    """What a sweep does: ``generations`` generations of the first ``chains`` chains, and their ends if it finished."""
    folder, study = write_study(storage, **changes)
    sync = StudySync(folder, storage, tracking_uri)
    own = study.chains[:chains]
    write_generations(folder, [row for chain in own for row in rows_of(chain, generations)])
    sync.poke()
    write_end(folder, own if status == "finished" else [])
    return sync.close(status)


def client(storage: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{storage}/mlflow.db")


def runs(storage: Path) -> dict[str, list[Run]]:
    """Every run of every experiment in the storage by its name, but the study's own, which is under ""."""
    mlflow = client(storage)
    logged: dict[str, list[Run]] = {}
    for run in mlflow.search_runs([experiment.experiment_id for experiment in mlflow.search_experiments()]):
        name = str(run.info.run_name) if "fortifai.chain_id" in run.data.tags else ""
        logged.setdefault(name, []).append(run)
    return logged


def artefact(storage: Path, run_id: str, path: str) -> str:
    return Path(client(storage).download_artifacts(run_id, path)).read_text()


def steps(storage: Path, run: Run, metric: str) -> list[tuple[int, float]]:
    """A metric's values by step, as often as they were logged."""
    return [(point.step, point.value) for point in client(storage).get_metric_history(run.info.run_id, metric)]
