"""``generations`` read back from MLflow's runs, for :mod:`fortifai_ray.statistics` to judge as it judges the Parquet.

A study is a parent run and a run for each chain (:class:`fortifai_ray.tracking.StudyTracker`). A chain's run holds its
recipe as parameters and each generation's metrics by step. Families whose chains are computed in cohorts have a run for
each cell, with quantiles over its seeds: no chain can be read out of those, so their chains come from the table
``generations.parquet`` that the sweep left with the study's run.

What MLflow does not hold: seconds, stages, and sizes but ``synthetic_size_cum``. That a generation was recorded as
collapsed is the metric ``recorded_collapse`` (1); runs without it may lose a collapse that no metric shows.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl
import yaml

from fortifai_ray.errors import UserError
from fortifai_ray.results.schema import RECIPE_COLUMNS, varied_keys

if TYPE_CHECKING:  # the import takes four seconds
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")

RECORDED_COLLAPSE = "recorded_collapse"
_INFINITE = "fortifai.infinite."
_CUT_SHORT = ("RUNNING", "SCHEDULED", "KILLED")
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("chain_id", "family.kind", "loss.kind", "regime.kind", "collapse_reason"), pl.String),
    **dict.fromkeys(("generation", "seed", "synthetic_size_cum"), pl.Int64),
    **dict.fromkeys(("loss.gamma", "regime.synthetic_ratio"), pl.Float64),
}


@dataclass(frozen=True)
class StudyRuns:
    """What MLflow holds of a study: all that :func:`~fortifai_ray.statistics.chains.chain_table` asks for.

    ``study`` is the study file as resolved (``collapse``, ``baseline``, ``vary``, …), ``varied`` its varied keys,
    ``generations_asked`` its longest chain's generations, ``generations`` the table of :func:`generations_from_mlflow`,
    and ``failed`` the ids of the chains that failed or were cut short.
    """

    study: Mapping[str, Any]
    varied: Sequence[str]
    generations_asked: int
    generations: pl.DataFrame
    failed: frozenset[str]


def generations_from_mlflow(tracking_uri: str, experiment: str) -> pl.DataFrame:
    """A study's ``generations`` from its runs in MLflow.

    Returns:
        A row per chain and generation, sorted by them: ``chain_id, generation, seed``, the recipe's columns,
        the varied keys, every metric as a column (null: not measured), ``collapse_reason``. Where chains were
        computed in cohorts, the columns of ``generations.parquet`` too.

    Raises:
        UserError: as :func:`read_mlflow`.
    """
    return read_mlflow(tracking_uri, experiment).generations


def read_mlflow(tracking_uri: str, experiment: str) -> StudyRuns:
    """The study that an experiment holds; where it holds several versions of it, the one that was started last.

    Raises:
        UserError: no such experiment, no study in it, or nothing that says what its chains did.
    """
    from fortifai_ray.tracking.sender import prepare_environment

    database = Path(tracking_uri.removeprefix("sqlite:///"))
    if tracking_uri.startswith("sqlite:///") and not database.is_file():
        raise UserError(f"{database} does not exist: no study has logged its runs there")  # MLflow would make it
    prepare_environment()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    experiment_id, parent = _study_run(client, experiment)
    runs = list(_search(client, experiment_id, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"))
    if not runs:
        raise UserError(f"experiment {experiment!r}: its study has no chains yet: nothing of it has run")
    chains = [run for run in runs if "seed" in run.data.params]  # a cell's run has none
    study = yaml.safe_load(_artefact(client, parent.info.run_id, "study.yaml", _read_text))
    varied = varied_keys(study)
    rows = [row for run in chains for row in _rows(client, run, varied)]
    table = pl.DataFrame(rows, schema_overrides=_TYPES, infer_schema_length=None, strict=False)
    if len(chains) < len(runs):
        whole = _artefact(client, parent.info.run_id, "generations.parquet", pl.read_parquet)
        known = [_chain_id(run) for run in chains]
        table = pl.concat([table, whole.filter(~pl.col("chain_id").is_in(known))], how="diagonal_relaxed")
    return StudyRuns(
        study=study,
        varied=varied,
        generations_asked=max(int(run.data.params["generations"]) for run in runs),
        generations=table.sort("chain_id", "generation"),
        failed=frozenset(_chain_id(run) for run in chains if _has_failed(run)),
    )


def _study_run(client: "MlflowClient", experiment: str) -> tuple[str, "Run"]:
    """The experiment's id and the run of the study that was started last."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(sorted(one.name for one in client.search_experiments())) or "none"
        raise UserError(f"MLflow has no experiment {experiment!r}: there are {names}")
    studies = list(_search(client, found.experiment_id, "tags.`fortifai.kind` = 'study'"))
    if not studies:
        raise UserError(
            f"experiment {experiment!r} holds no study: those of `fortifai sweep` carry the tag fortifai.kind"
        )
    return found.experiment_id, max(studies, key=lambda run: run.info.start_time)


def _search(client: "MlflowClient", experiment_id: str, query: str) -> "Iterator[Run]":
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], filter_string=query, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _artefact(client: "MlflowClient", run_id: str, name: str, read: Callable[[str], T]) -> T:
    """An artefact of the study's run."""
    with tempfile.TemporaryDirectory(prefix="fortifai-mlflow-") as folder:
        try:
            return read(client.download_artifacts(run_id, name, folder))
        except Exception as error:  # whatever the artefact store raises
            raise UserError(
                f"MLflow's run {run_id} has no readable {name}, which says what its chains did: {error}"
            ) from error


def _read_text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _rows(client: "MlflowClient", run: "Run", varied: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A chain's rows."""
    recipe = {key: _value(text) for key, text in run.data.params.items()}
    metrics: dict[int, dict[str, float]] = {}
    for key in run.data.metrics:
        if not key.startswith("result/"):
            for point in client.get_metric_history(run.info.run_id, key):
                metrics.setdefault(point.step, {})[key] = point.value
    for tag, text in run.data.tags.items():
        if tag.startswith(_INFINITE):
            key, _, step = tag.removeprefix(_INFINITE).rpartition(".")
            metrics.setdefault(int(step), {})[key] = float(text)
    for generation, values in sorted(metrics.items()):
        yield {
            "chain_id": _chain_id(run),
            "generation": generation,
            **{key: recipe.get(key) for key in ("seed", *RECIPE_COLUMNS, *varied)},
            **{key: value for key, value in values.items() if key != RECORDED_COLLAPSE},
            "collapse_reason": "recorded as collapsed" if values.get(RECORDED_COLLAPSE) else None,
        }


def _chain_id(run: "Run") -> str:
    return run.data.tags["fortifai.chain_id"]


def _has_failed(run: "Run") -> bool:
    """Whether a chain failed or was cut short. The reason alone does not say so: it stays when a later run succeeds."""
    tags = run.data.tags
    failed = "fortifai.reason" in tags and tags.get("fortifai.status") in ("failed", "collapsed")
    return failed or run.info.status in _CUT_SHORT


def _value(text: str) -> Any:
    """A parameter as the recipe had it; MLflow keeps text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
