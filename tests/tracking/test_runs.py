"""A run's content within MLflow's limits, and what MLflow cannot hold."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from fortifai_ray.tracking import limits
from fortifai_ray.tracking.database import Database
from fortifai_ray.tracking.limits import NAME_TAG, batches, key
from fortifai_ray.tracking.run_content import RunContent, RunEnd
from fortifai_ray.tracking.run_state import search_runs
from fortifai_ray.tracking.runs import StudyRuns

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
    assert run.data.metrics[key("accuracy@1")] == 0.5
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


def test_every_name_is_held_and_told(storage: Path) -> None:
    """Names that MLflow refuses, and names that would become one if they were only cleaned or cut: each has a key of
    its own and a tag with the whole name; the ordinary ones stay as they are, and the batch gets through."""
    long = "x" * 300
    names = [
        "plain",
        "a b/c-d.e:f",
        "γ",
        "accuracy@1",
        "accuracy#1",
        f"{long}1",
        f"{long}2",
        "..",
        "../up",
        "/a",
        "a//b",
    ]
    recipe: dict[str, Any] = {"family": {"kind": "mine:Family", **{name: index for index, name in enumerate(names)}}}
    series = {0: {name: float(index) for index, name in enumerate(names)}, 1: dict.fromkeys(names, 0.5)}
    end = RunEnd("failed", "no" * 9000, {long: "text", "onset": 1.0})
    study = hold(storage, RunContent("odd", "label " * 100, recipe, series, end=end))
    assert study.refusals() == []
    (run,) = (found for found in runs(storage).values() for found in found if found.data.metrics)
    assert len(run.info.run_name) == 250
    own = {name: run.data.metrics[key(name)] for name in names}
    assert own == dict.fromkeys(names, 0.5)
    assert {run.data.params[key(f"family.{name}")] for name in names} == set(map(str, range(len(names))))
    assert {"plain", "a b/c-d.e:f", "γ"} < run.data.metrics.keys()
    told = {tag.removeprefix(NAME_TAG): name for tag, name in run.data.tags.items() if tag.startswith(NAME_TAG)}
    assert {told.get(key(name), name) for name in names} == set(names)
    assert run.data.tags["fortifai.reason"].endswith("… (cut)")
    assert run.data.tags["fortifai.status"] == "failed"


def test_requests_have_a_size_that_a_server_takes(storage: Path) -> None:
    """A hundred parameters of 6,000 characters, each two escapes in JSON, are 7 MB; a request may have one."""
    recipe = {f"key{i}": "𝛾" * 6000 for i in range(40)}
    hold(storage, RunContent("wide", "wide", recipe, end=RunEnd("finished")))
    assert runs(storage)["wide"][0].data.params == recipe
    entries = [Param(name, value) for name, value in recipe.items()]
    assert all(len(json.dumps([dict(entry) for entry in batch])) < 1e6 for batch in batches("params", entries))


def test_what_mlflow_refuses_costs_the_rest_nothing(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value that MLflow refuses for good: all others of its batch are held, a line names it, and a later sweep does
    not ask again."""
    monkeypatch.setattr(limits, "key", lambda name: name)  # nothing is made to fit
    monkeypatch.setattr(Database, "of", lambda client, uri: None)
    metrics = {f"metric{i}": float(i) for i in range(7)} | {"no@good": 1.0, "x" * 251: 2.0}
    content = RunContent("aaa", "a", {"seed": 0, "odd@": 1}, {0: metrics}, end=RunEnd("finished"))
    study = hold(storage, content)
    run = runs(storage)["a"][0]
    assert run.data.metrics == {f"metric{i}": float(i) for i in range(7)}
    assert run.data.params == {"seed": "0"}
    said = study.refusals()
    assert len(said) == 3
    assert all(line.startswith("MLflow refuses ") and line.endswith("; the tables have them") for line in said)
    again = hold(storage, content)
    assert again.refusals() == []


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


def test_a_generation_takes_one_request_and_an_end_two(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its artefacts one: thousands of runs must get through. What the run holds is not sent again. So it is with a
    server, and with a database that is not written past the client."""
    monkeypatch.setattr(Database, "of", lambda client, uri: None)
    asked: list[str] = []

    def noted(name: str, call: Any) -> Any:
        return lambda *arguments, **options: (asked.append(name), call(*arguments, **options))[1]

    for name in ("create_run", "log_batch", "log_artifacts", "set_terminated", "list_artifacts", "get_metric_history"):
        monkeypatch.setattr(MlflowClient, name, noted(name, getattr(MlflowClient, name)))
    study = StudyRuns(storage, {"name": "small"}, f"sqlite:///{storage}/mlflow.db")
    study.end_study("interrupted", "KILLED")
    recipe = {f"key {number}": number for number in range(60)} | {"odd@": 1}
    series = {g: {f"metric{number}": float(number + g) for number in range(80)} for g in range(3)}
    texts = {g: {f"generation_{g:03d}.txt": b"text"} for g in range(3)}
    end = RunEnd("collapsed", results={"onset": 1.5, "metric": "perplexity"})
    later = {g: series[g] for g in (1, 2)}
    expected = (
        (({0: series[0]}, texts[0], None), ["create_run", "log_batch", "log_artifacts"]),
        ((later, texts[1] | texts[2], None), ["log_batch", "log_artifacts"]),
        ((series, {}, end), ["set_terminated", "log_batch"]),
    )
    for content, requests in expected:
        asked.clear()
        study.hold(RunContent("a", "a", recipe, *content))
        assert asked == requests
    run = runs(storage)["a"][0]
    assert run.info.status == "FINISHED"
    assert run.data.tags["fortifai.status"] == "collapsed"
    assert run.data.metrics["result/onset"] == 1.5
    assert run.data.metrics["metric7"] == 9.0


HISTORY: list[RunContent] = [  # of one chain: as it runs, as it ends, and as a later sweep sends it again
    RunContent("a", "a", {"loss": {"gamma": 0.3}, "odd@": "x" * 7000}, {0: {"x": 1.0, "no@good": 0.5}}),
    RunContent("a", "a", {"loss": {"gamma": 0.3}}, {2: {"x": 3.0}, 1: {"x": math.nan, "y": -1e308}}, {"t": b"text"}),
    RunContent("a", "a", {"loss": {"gamma": 0.3}}, {1: {"y": -1e308, "late": 7.0}}),
    RunContent("a", "a", {"loss": {"gamma": 0.3}}, {2: {"x": 3.0}}, end=RunEnd("failed", "memory", {"onset": 1.5})),
    RunContent("a", "a", {"loss": {"gamma": 0.3}}, {3: {"x": 4.0}}, end=RunEnd("collapsed", None, {"onset": 1.5})),
]


@pytest.mark.parametrize("fresh", [False, True], ids=["one sweep", "a sweep for each"])
def test_the_database_holds_what_the_client_would_have_sent(
    fresh: bool, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written past MLflow's client: its parameters, tags, status, history and latest values are the same to it."""

    def held(by: str) -> Any:
        study = StudyRuns(storage, {"name": by}, f"sqlite:///{storage}/mlflow.db")
        for content in HISTORY:
            study = StudyRuns(storage, {"name": by}, f"sqlite:///{storage}/mlflow.db") if fresh else study
            study.hold(content)
        [run] = search_runs(client(storage), str(study.experiment_id), "tags.`fortifai.kind` = 'chain'")
        points = {key: client(storage).get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        own = ("fortifai.study", "fortifai.study_hash", "mlflow.parentRunId")
        tags = {key: value for key, value in run.data.tags.items() if key not in own}
        history = {key: sorted((one.step, str(one.value)) for one in some) for key, some in points.items()}
        ended = run.info.end_time is not None
        latest = {key: str(value) for key, value in run.data.metrics.items()}
        return {"history": history, "latest": latest, "tags": tags, "ended": (ended, run.info.status, run.data.params)}

    written = held("database")
    monkeypatch.setattr(Database, "of", lambda client, uri: None)
    assert written == held("client")
    assert written["ended"][:2] == (True, "FINISHED")
    assert written["history"]["x"] == [(0, "1.0"), (1, "nan"), (2, "3.0"), (3, "4.0")]


def test_a_run_that_is_gone_is_not_written_to(storage: Path) -> None:
    """Deleted in MLflow while the sweep runs: the attempt fails, as by the client, and the next makes it anew."""
    study = hold(storage, RunContent("a", "a", {}, {0: {"x": 1.0}}))
    client(storage).delete_run(runs(storage)["a"][0].info.run_id)
    with pytest.raises(MlflowException):
        study.hold(RunContent("a", "a", {}, {1: {"x": 2.0}}))
    study.forget("a")
    study.hold(RunContent("a", "a", {}, {0: {"x": 1.0}, 1: {"x": 2.0}}))
    assert runs(storage)["a"][0].data.metrics == {"x": 2.0}


def test_an_experiment_of_an_earlier_version_opens_in_the_ordinary_view(storage: Path) -> None:
    location = (storage / "mlartifacts" / "small").as_uri()
    made = client(storage).create_experiment("small", artifact_location=location)
    study = hold(storage, RunContent("aaa", "a", {"seed": 0}, end=RunEnd("finished")))
    assert study.experiment_id == made
    assert client(storage).get_experiment(made).tags["mlflow.experimentKind"] == "custom_model_development"
