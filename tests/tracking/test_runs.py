"""A run's content within MLflow's limits, and what MLflow cannot hold."""

import math
from pathlib import Path
from typing import Any

import yaml

from fortifai_ray.tracking.runs import RunContent, RunEnd, StudyRuns

from .folders import artefact, client, runs


def hold(storage: Path, content: RunContent) -> StudyRuns:
    study = StudyRuns(storage, {"name": "small"}, f"sqlite:///{storage}/mlflow.db")
    study.hold(content)
    return study


def test_infinities_are_left_out_and_undefined_values_stay(storage: Path) -> None:
    """MLflow would store an infinity as 1.8e308, a plausible number; as a result it is a tag."""
    series = {1: {"perplexity": math.inf, "loss": math.nan, "accuracy@1": 0.5}}
    hold(storage, RunContent("aaa", "a", {"seed": 0}, series, end=RunEnd("survived", results={"onset": math.inf})))
    run = runs(storage)["a"][0]
    assert "perplexity" not in run.data.metrics
    assert math.isnan(run.data.metrics["loss"])
    assert run.data.metrics["accuracy_1"] == 0.5
    assert run.data.tags["fortifai.result.onset"] == "Infinity"


def test_long_and_many_parameters_and_metrics_fit_mlflows_limits(storage: Path) -> None:
    """6,000 characters a value, 100 parameters and 1,000 metrics a request; the recipe has the whole value."""
    recipe: dict[str, Any] = {"keys": {f"key{i}": i for i in range(250)}, "prompt": "x" * 7000}
    metrics = {f"metric{i}": float(i) for i in range(1500)}
    hold(storage, RunContent("long", "long", recipe, {0: metrics}, end=RunEnd("finished")))
    run = runs(storage)["long"][0]
    assert len(run.data.params) == 251
    assert run.data.params["keys.key7"] == "7"
    assert len(run.data.params["prompt"]) == 6000
    assert run.data.params["prompt"].endswith("(cut: whole in recipe.yaml)")
    assert yaml.safe_load(artefact(storage, run.info.run_id, "recipe.yaml")) == recipe
    assert run.data.metrics == metrics


def test_a_request_that_failed_halfway_is_not_repeated_for_what_it_did(storage: Path) -> None:
    """After a failure the store is asked again: a value that got through is not logged twice."""
    content = RunContent("aaa", "a", {"seed": 0}, {0: {"x": 1.0}, 1: {"x": 2.0}}, {"generation_000.txt": b"text"})
    study = StudyRuns(storage, {"name": "small"}, f"sqlite:///{storage}/mlflow.db")
    for _ in range(2):
        study.hold(content)
        study.forget("aaa")
    (run,) = runs(storage)["a"]
    assert [point.step for point in client(storage).get_metric_history(run.info.run_id, "x")] == [0, 1]
    assert study.differences() == []


def test_an_experiment_of_an_earlier_version_opens_in_the_ordinary_view(storage: Path) -> None:
    location = (storage / "mlartifacts" / "small").as_uri()
    made = client(storage).create_experiment("small", artifact_location=location)
    study = hold(storage, RunContent("aaa", "a", {"seed": 0}, end=RunEnd("finished")))
    assert study.experiment_id == made
    assert client(storage).get_experiment(made).tags["mlflow.experimentKind"] == "custom_model_development"
