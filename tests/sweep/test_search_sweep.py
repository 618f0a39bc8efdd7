"""Searches as a user runs them: on Ray, resumed from the store, and the tables they leave."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from rich.console import Console

from fortifai_ray.report import print_tables
from fortifai_ray.study.study import Study, make_study
from fortifai_ray.sweep.sweep import run_sweep

pytestmark = [pytest.mark.ray]

GAUSSIAN: dict[str, Any] = {
    "name": "search",
    "family": {"kind": "gaussian", "dim": 1},
    "regime": {"kind": "mixed"},
    "samples_per_generation": 20,
    "generations": 12,
    "vary": {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.9}]},
    "collapse": {"metric": "kl_divergence", "threshold": 0.15, "direction": "above", "relative_to": "absolute"},
    "search": {"kind": "boundary", "over": "regime.synthetic_ratio", "low": 0.0, "high": 1.0, "tolerance": 0.2},
}
SHAPES: dict[str, Any] = {
    "name": "shapes",
    "family": {"kind": "diffusion", "data": {"source": "blobs"}},
    "training": {"epochs": 1},
    "samples_per_generation": 64,
    "generations": 3,
    "regime": {"kind": "mixed"},
    "collapse": {"metric": "wasserstein", "threshold": 0.5, "direction": "above", "confirm": 0},
    "search": {**GAUSSIAN["search"], "budget": 5, "at_once": 2},
}
OPTIMISE: dict[str, Any] = {
    **GAUSSIAN,
    "name": "best",
    "loss": {"kind": "tce", "gamma": 0.9},
    "regime": {"kind": "replace"},
    "collapse": {**GAUSSIAN["collapse"], "threshold": 0.6},
    "generations": 200,
    "vary": {"seed": {"count": 8}},
    "search": {"kind": "optimise", "over": {"loss.gamma": [0.9, 1.0]}, "budget": 3, "at_once": 2},
}


@pytest.fixture(autouse=True)
def mlflow_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def study(content: dict[str, Any], **search: Any) -> Study:
    return make_study({**content, "search": {**content["search"], **search}}, "search.yaml")


def sweep(asked: Study, storage: Path, address: str) -> dict[str, Any]:
    """Run it; returns its summary."""
    with (storage.parent / "out.txt").open("a") as out:
        outcome = run_sweep(asked, storage, Console(file=out, width=120), address)
    assert not outcome.failed
    return json.loads((outcome.folder / "results" / "summary.json").read_text())


def table(storage: Path, name: str, of: str = "search") -> pl.DataFrame:
    return pl.read_parquet(storage / of / "results" / f"{name}.parquet")


def test_a_search_that_was_cut_short_goes_on(tmp_path: Path, ray_instance: str) -> None:
    """Its chains are taken from the store, its points are those of a search that ran through, and a third run computes
    nothing."""
    short, whole = tmp_path / "short", tmp_path / "whole"
    first = sweep(study(GAUSSIAN, budget=9), short, ray_instance)
    assert set(table(short, "collapse_points")["ended"]) == {"budget"}
    resumed, through = sweep(study(GAUSSIAN), short, ray_instance), sweep(study(GAUSSIAN), whole, ray_instance)
    assert resumed["stages_reused"] >= first["stages_computed"] == 2 * 9
    assert resumed["stages_computed"] + first["stages_computed"] == through["stages_computed"]
    assert_frame_equal(table(short, "collapse_points"), table(whole, "collapse_points"))
    assert sweep(study(GAUSSIAN), short, ray_instance)["stages_computed"] == 0
    assert_frame_equal(table(short, "collapse_points"), table(whole, "collapse_points"))


def test_what_a_search_leaves(tmp_path: Path, ray_instance: str) -> None:
    """Collapse points by the contract, each chain in the tables once, an MLflow run per cell, and a readable report."""
    from mlflow import MlflowClient

    asked = study(GAUSSIAN)
    sweep(asked, tmp_path / "runs", ray_instance)
    points, chains = table(tmp_path / "runs", "collapse_points"), table(tmp_path / "runs", "chains")
    assert points.columns[:3] == ["loss.kind", "loss.gamma", "metric"]
    contract = ["over", "critical", "low", "high", "level", "bound", "chains_run", "generations_run"]
    assert [name for name in contract if name in points.columns] == contract
    assert points["loss.kind"].to_list() == ["cross_entropy", "tce"]
    assert chains.height == chains["chain_id"].n_unique() == points["chains_run"].sum()
    assert set(chains["ended"]) == {"horizon"}
    exact = points.filter(pl.col("bound") == "exact")
    assert (exact["high"] - exact["low"] <= 2 * 0.2 + 1e-9).all()
    with (tmp_path / "report.txt").open("w") as out:
        print_tables(tmp_path / "runs" / "search", Console(file=out, width=120))
    said = (tmp_path / "report.txt").read_text()
    assert "collapse point: synthetic ratio" in said
    assert "FI median" not in said
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("search")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    cells = [run for run in runs if "result/critical" in run.data.metrics]
    assert sorted(run.data.metrics["result/critical"] for run in cells) == sorted(exact["critical"].to_list())


def test_a_search_over_chains_that_are_trained(tmp_path: Path, ray_instance: str) -> None:
    """Each probe a Tune trial, measured against the baseline's generation 0; run again, nothing is trained."""
    storage = tmp_path / "runs"
    first = sweep(study(SHAPES), storage, ray_instance)
    assert first["stages_computed"] > 0
    chains = table(storage, "chains", "shapes")
    assert chains.height == 5
    assert chains["limit"].is_not_null().all()
    assert table(storage, "collapse_points", "shapes")["chains_run"].to_list() == [5]
    assert sweep(study(SHAPES), storage, ray_instance)["stages_computed"] == 0
    assert_frame_equal(table(storage, "chains", "shapes"), chains)


def test_an_optimise_search_goes_on_from_what_it_tried(tmp_path: Path, ray_instance: str) -> None:
    """With a larger budget only the further points are computed; the best one is the largest ratio of the table."""
    storage = tmp_path / "runs"
    sweep(study(OPTIMISE), storage, ray_instance)
    searched = json.loads((storage / "best" / "results" / "search.json").read_text())
    assert searched["done"] is True
    assert len(searched["points"]) == 3
    ratios = [point["fi_ratio"] for point in searched["points"] if point["fi_ratio"] is not None]
    assert searched["best"]["fi_ratio"] == max(ratios)
    assert all(0.9 <= point["values"]["loss.gamma"] <= 1.0 for point in searched["points"])
    assert sweep(study(OPTIMISE), storage, ray_instance)["stages_computed"] == 0
