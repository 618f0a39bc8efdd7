"""Fidelity of somebody else's runs: a history, judged as a sweep's chains are, in a folder as a sweep leaves it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.files import write_text
from fortifai_ray.histories.columns import baseline_of, generations_of, paired
from fortifai_ray.histories.files import KINDS, read_file, read_frame
from fortifai_ray.histories.remote import copied
from fortifai_ray.histories.source import Columns, existing, table_of_runs
from fortifai_ray.histories.trackers import EVENTS, OFFLINE, event_runs, mlflow_runs, offline_runs
from fortifai_ray.metrics import METRICS
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.schema import read_table, table_path, write_table
from fortifai_ray.statistics.criterion import Collapse, first_repeated
from fortifai_ray.statistics.criterion_text import criterion_of
from fortifai_ray.statistics.judged import Terms
from fortifai_ray.statistics.ratios import PlainBaseline
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.mirror import StudyMirror
from fortifai_ray.study.study import check_name
from fortifai_ray.tracking.address import tracking_uri_for
from fortifai_ray.tracking.download import experiment_folder
from fortifai_ray.validation import dump_yaml, read_yaml

_MLFLOW = "mlflow:"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:/")
IN_MEMORY = "history"  # what rows in memory are called


@dataclass(frozen=True)
class History:
    """A history as it was read and checked: its rows as ``generations.parquet`` has them, and on which terms they are
    judged; ``source`` is where it is, and ``notes`` say what was read otherwise than it stands there."""

    source: str
    asked: Columns
    terms: Terms
    generations: pl.DataFrame
    notes: list[str]


def read_history(
    history: Any,
    *,
    metric: str,
    step: str,
    by: Sequence[str],
    seed: str,
    baseline: Sequence[str],
    criteria: Sequence[str],
    confirm: int | None = None,
    first_step: int = 0,
    storage: str | Path | Storage = "runs",
) -> History:
    """Read and check a history.

    Args:
        history: a CSV, JSON-lines or Parquet file, with a row per chain and generation (or the CSV of a Weights &
            Biases chart); a folder of TensorBoard event files or of offline runs of Weights & Biases; a study's folder;
            ``mlflow:EXPERIMENT``; or rows in memory (:func:`~fortifai_ray.histories.files.read_frame`).
        metric: the column that the criteria judge.
        step: the column that counts generations, 0, 1, 2, …
        by: the columns that tell the cells apart; at least one.
        seed: the column that repeats a cell: a whole number, or a text that is numbered.
        baseline: ``COLUMN=VALUE`` of the chains that the others are compared with, within the other ``by`` columns and
            the seed.
        criteria: sentences (:func:`~fortifai_ray.statistics.criterion_text.criterion_of`), one or more.
        confirm: generations that confirm a crossing where the sentence says nothing; 1 by default.
        first_step: the step that is generation 0.
        storage: its MLflow database is read where ``MLFLOW_TRACKING_URI`` is not set.

    Raises:
        UserError: nothing is there, or a column is not what its role asks for.
    """
    judged = _criteria(criteria, metric, confirm)
    metrics = tuple(dict.fromkeys([metric, *(one.metric for each in judged for one in each.members)]))
    asked = Columns(metrics, step, tuple(by), seed, first_step)
    if not asked.by:
        raise UserError("--by: a column is needed that tells the baseline from the rest, e.g. --by loss")
    if not baseline:
        raise UserError(f"--baseline: COLUMN=VALUE is needed, e.g. {asked.by[0]}=…")
    in_memory = not isinstance(history, str | Path)
    source, table = (IN_MEMORY, read_frame(history)) if in_memory else _read(str(history), asked, Storage.of(storage))
    notes = list[str]()
    generations = generations_of(table, asked, source, notes)
    labels = PlainBaseline(baseline_of(baseline, generations, asked, source))
    generations = paired(generations, labels, asked, f"{source}: --baseline {' '.join(baseline)}", notes)
    longest = 1 + int(generations["generation"].max())  # type: ignore[arg-type]
    return History(source, asked, Terms(judged, labels, [*asked.by, "seed"], longest), generations, notes)


def analyse_history(
    history: Any, *, storage: str | Path | Storage = "runs", name: str | None = None, **asked: Any
) -> Path:
    """Judge a history and write ``STORAGE/NAME`` as a sweep leaves it; returns its folder on this machine.

    Args:
        history, asked: as for :func:`read_history`.
        name: of the folder; the history's own name by default.

    Raises:
        UserError: as :func:`read_history` does, or the folder holds a study that was swept, or another history of that
            name and nobody asked for it by ``name``.
    """
    place = Storage.of(storage)
    called = name
    if called is None:
        called = _name_of(str(history)) if isinstance(history, str | Path) else IN_MEMORY
    check_name(called, f"--name {called}")
    found = read_history(history, storage=place, **asked)
    return _write(StudyMirror(place, called), called, found, replace=name is not None)


def _criteria(texts: Sequence[str], metric: str, confirm: int | None) -> list[Collapse]:
    if not texts:
        raise UserError("--criterion: a sentence is needed, e.g. 'above 2x own generation 0'")
    criteria = [criterion_of(text, metric, confirm, titled=METRICS, source="--criterion") for text in texts]
    if repeated := first_repeated(criteria):
        raise UserError(f"--criterion {texts[repeated[1]]!r}: is given twice")
    return criteria


def _name_of(history: str) -> str:
    plain = (
        history.removeprefix(_MLFLOW) if history.startswith(_MLFLOW) else Path(history).absolute().name.split(".")[0]
    )
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._") or "history"


def _read(history: str, asked: Columns, storage: Storage) -> tuple[str, pl.DataFrame]:
    """What messages call the history, and its rows."""
    if history.startswith(_MLFLOW):
        return history, _read_mlflow(history, asked, tracking_uri_for(storage.folder))
    if _SCHEME.match(history):
        with copied(history) as copy:
            return history, _read_path(copy, asked)[1]
    return _read_path(Path(history).expanduser(), asked)


def _read_mlflow(history: str, asked: Columns, uri: str) -> pl.DataFrame:
    """The runs of an experiment; of a study whose chains have no run each, the table that its own run has."""
    experiment = history.removeprefix(_MLFLOW)
    runs = list(mlflow_runs(uri, experiment, asked))
    logged = {name for run in runs for name in run.series}
    if asked.metrics[0] in logged or f"{asked.metrics[0]}/median" not in logged:
        return table_of_runs(runs, asked, history)
    with experiment_folder(uri, experiment) as folder:
        table = read_frame(read_table(folder, "generations"))
    steps = asked.step not in table.columns and asked.step.casefold().strip("_") == "step"  # as MLflow calls it
    return table.with_columns(pl.col("generation").alias(asked.step)) if steps else table


def _read_path(path: Path, asked: Columns) -> tuple[str, pl.DataFrame]:
    path = existing(path, f"{KINDS}, a folder of runs, or mlflow:EXPERIMENT")
    if path.is_dir() and (whole := table_path(path, "generations")).is_file():
        path = whole
    if path.match(OFFLINE) or (path.is_dir() and any(path.rglob(OFFLINE))):
        return str(path), table_of_runs(offline_runs(path), asked, str(path))
    if path.match(EVENTS) or (path.is_dir() and any(path.rglob(EVENTS))):
        return str(path), table_of_runs(event_runs(path), asked, str(path))
    if path.is_dir():
        raise UserError(
            f"{path}: holds no event files of TensorBoard and no .wandb files; a table is given as its file"
        )
    return str(path), read_file(path, asked)


def _write(mirror: StudyMirror, name: str, history: History, *, replace: bool) -> Path:
    from fortifai_ray.report import write_report

    mirror.fetch()
    folder, file = mirror.folder, mirror.folder / "study.yaml"
    content = _content(name, history)
    if file.is_file():
        before, now = _history_in(file), content["history"]
        if before is None:
            raise UserError(f"--name {name}: {folder} holds a study that was swept; give another name")
        if not replace and any(before.get(key) != now.get(key) for key in ("source", "rows")):
            other = "other rows in memory" if before.get("source") == IN_MEMORY else str(before.get("source"))
            raise UserError(f"{folder} holds another history, {other}; give --name: {name} replaces it")
    terms, generations = history.terms, history.generations
    chains = terms.chains(generations)
    (folder / "results").mkdir(parents=True, exist_ok=True)
    write_text(file, dump_yaml(content))
    cells = Cells.of(generations, [key for key in terms.varied if key != "seed"], terms.baseline)
    fidelity = cells.first(terms.fidelity(chains))
    for table, rows in (("chains", chains), ("fidelity", fidelity), ("generations", generations)):
        write_table(folder, table, rows)
    summary = {"name": name, "history": history.source, "rows": generations.height}
    write_text(folder / "results" / "summary.json", json.dumps(summary, indent=1))
    write_report(folder)
    mirror.push()
    return folder


def _history_in(file: Path) -> dict[str, Any] | None:
    """What a study file says of the history that it judges; None of a sweep's."""
    content: Any = read_yaml(file, "a study file")
    return content.get("history") if isinstance(content, dict) else None


def _content(name: str, history: History) -> dict[str, Any]:
    """What was asked, in the words of a study file; ``history`` says whose chains they are."""
    asked, terms, source = history.asked, history.terms, history.source
    labels: dict[str, Any] = {"step": asked.step, "by": list(asked.by), "seed": asked.seed}
    labels |= {"first_step": asked.first_step} if asked.first_step else {}
    if source == IN_MEMORY:  # the rows tell two of them apart
        rows = history.generations.write_csv().encode()
        place, labels = source, {"rows": hashlib.sha256(rows).hexdigest()[:16], **labels}
    else:
        place = source if _SCHEME.match(source) or source.startswith(_MLFLOW) else str(Path(source).absolute())
    return {
        "name": name,
        "history": {"source": place, **labels, "notes": history.notes},
        "generations": terms.generations_asked,
        "vary": {key: history.generations[key].unique().sort().to_list() for key in terms.varied},
        "collapse": [criterion.model_dump(mode="json") for criterion in terms.criteria],
        "baseline": dict(terms.baseline),
        "claims": [],
    }
