"""A run in MLflow, and what it holds as far as is known."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # The import takes four seconds.
    from mlflow import MlflowClient
    from mlflow.entities import Run

STAMP = "fortifai.content"  # a tag of a run that has ended and is complete: the hash of its content
OVERVIEW = "fortifai.overview"  # a tag of a study's run: the hash of what it shows in the end


@dataclass
class RunState:
    """A run, and what it holds as far as is known."""

    run_id: str
    status: str
    stamp: str | None = None
    params: set[str] = field(default_factory=set)
    metric_keys: set[str] = field(default_factory=set)  # those of an earlier sweep
    values: dict[str, dict[int, float]] = field(default_factory=dict)  # by metric and step
    files: set[str] | None = field(default_factory=set)  # paths of artefacts; None: not asked for yet
    named: set[str] = field(default_factory=set)  # tags that tell the whole names of keys
    inputs: set[str] = field(default_factory=set)  # digests of data
    overview: str | None = None


def state_of(run: "Run") -> RunState:
    data = run.data
    params, metrics, told = set(data.params), set(data.metrics), data.tags.get(OVERVIEW)
    return RunState(run.info.run_id, run.info.status, data.tags.get(STAMP), params, metrics, files=None, overview=told)


def search_runs(client: "MlflowClient", experiment_id: str, query: str) -> "Iterator[Run]":
    """All runs of an experiment that a query of MLflow's matches."""
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], filter_string=query, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
