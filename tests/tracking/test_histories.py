"""An MLflow experiment is a history like any other: the runs are at the address at which a sweep's would be."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from fortifai_ray.errors import UserError
from fortifai_ray.results.schema import write_table
from fortifai_ray.tracking.sync import StudySync
from tests.histories.runs import chains, read, same_as_csv

from .folders import generations_table, rows_of, write_end, write_study
from .test_content import GAUSSIAN


@pytest.fixture
def experiment(storage: Path) -> Path:
    """A storage with an experiment: a parent, a run that was deleted, and a run for each chain."""
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    number = client.create_experiment("collapse", artifact_location=str(storage))
    parent = client.create_run(number, run_name="all").info.run_id
    client.log_metric(parent, "best", 1.0)
    for (loss, gamma, seed), values in chains().items():
        run = client.create_run(number, tags={"mlflow.parentRunId": parent}, run_name="r").info.run_id
        for name, value in {"loss": loss, "gamma": gamma, "seed": seed}.items():
            if value is not None:
                client.log_param(run, name, value)
        for step, value in enumerate(values):
            client.log_metric(run, "ppl", value, step=10 * step)
            client.log_metric(run, "gen", step, step=10 * step)
        deleted = client.create_run(number).info.run_id
        client.log_metric(deleted, "ppl", 1.0)
        client.delete_run(deleted)
    return storage


def test_mlflow(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are labels; the step is another metric, or MLflow's own; the address is the sweeps' own."""
    same_as_csv("mlflow:collapse", tmp_path, storage=experiment)
    strides = read("mlflow:collapse", storage=experiment, step="step")  # 0, 10, …
    assert (
        strides.generations["generation"].to_list()
        == read("mlflow:collapse", storage=experiment).generations["generation"].to_list()
    )
    with pytest.raises(UserError, match=r"mlflow:colapse: there is no such experiment; did you mean collapse\?"):
        read("mlflow:colapse", storage=experiment)
    with pytest.raises(UserError, match=r"--by los: no such column; did you mean loss\?"):
        read("mlflow:collapse", storage=experiment, by=["los"], baseline=["los=ce"])
    with pytest.raises(UserError, match="--metric pp: no run has logged it; did you mean ppl"):
        read("mlflow:collapse", storage=experiment, metric="pp")
    with pytest.raises(UserError, match="does not exist; set MLFLOW_TRACKING_URI"):
        read("mlflow:collapse", storage=tmp_path / "empty")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{experiment}/mlflow.db")
    same_as_csv("mlflow:collapse", tmp_path, storage=tmp_path / "empty")


def test_a_study_of_batched_chains_is_its_table(storage: Path) -> None:
    """MLflow has quantiles over seeds of such chains; the table that the study's own run has is judged instead."""
    changes = {"regime": {"kind": "replace"}, "vary": {**GAUSSIAN["vary"], "seed": {"count": 3}}}
    folder, study = write_study(storage, **GAUSSIAN | changes)
    rows = [
        row
        for chain in study.chains
        for g, row in enumerate(rows_of(chain))
        if row.update(kl_divergence=(1.0 + chain.recipe.seed) * 3.0**g) is None
    ]
    write_table(folder, "generations", generations_table(rows))
    write_end(folder, study.chains)
    assert StudySync(folder, storage).close("finished").problems == []
    asked = {"by": ["loss.kind", "loss.gamma"], "baseline": ["loss.kind=cross_entropy"], "metric": "kl_divergence"}
    for step in ("generation", "step"):
        found = read(f"mlflow:{study.name}", storage=storage, step=step, **asked).generations
        ours = found.sort("loss.kind", "seed", "generation")
        theirs = generations_table(rows).sort("loss.kind", "seed", "generation")
        assert ours["kl_divergence"].to_list() == theirs["kl_divergence"].to_list()
        assert ours["seed"].to_list() == theirs["seed"].to_list()
    with pytest.raises(UserError, match="no run has logged it"):
        read(f"mlflow:{study.name}", storage=storage, step="step", **{**asked, "metric": "kl"})
