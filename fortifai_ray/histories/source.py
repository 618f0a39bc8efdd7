"""Where a history is, what is asked of it, and the table that every kind of source gives."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.validation import hint

PLACE = "\x00place"  # a column that says where a row stands in the source, for messages
RUN = "run"  # the name of a row's run, where the source tells its rows by runs
# What a sweep's table says of a generation beside its metrics; a history that says it is judged by it, too.
BESIDE = {"synthetic_size_cum": pl.Int64, "unit": pl.String, "ended": pl.String, "collapse_reason": pl.String}


@dataclass(frozen=True)
class Columns:
    """The columns that matter, by their role.

    Attributes:
        metrics: what the criteria judge.
        step: the generation.
        by: what tells the cells apart.
        seed: what repeats a cell.
        first_step: the step that is generation 0.
    """

    metrics: tuple[str, ...]
    step: str
    by: tuple[str, ...]
    seed: str
    first_step: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns that tell the chains apart."""
        return (*self.by, self.seed)


@dataclass(frozen=True)
class Run:
    """One run of a tracker: its name, what it was run with, and the values of its metrics by step (empty where nobody
    asked for them)."""

    name: str
    settings: Mapping[str, Any]
    series: Mapping[str, Mapping[int, float]]


def table_of_runs(runs: Iterable[Run], asked: Columns, source: str) -> pl.DataFrame:
    """(rows of all runs) One row per run and step at which a metric was logged.

    Columns: ``run``, the step (as it is asked for, if by a name like ``step``), the metrics, every setting of a run
    (null where another has none), and the labels that are no settings but stand in the run's name (:func:`said_in`). A
    run without any of the metrics is left out: it is about something else, or it is the parent of others.

    Raises:
        UserError: no run has the metric.
    """
    rows, logged = list[dict[str, Any]](), dict[str, None]()
    at = asked.step if asked.step.casefold().strip("_") == "step" else "step"
    for run in runs:
        logged |= dict.fromkeys(run.series)
        steps = sorted({step for name in asked.metrics for step in run.series.get(name, ())})
        in_name = {label: said_in(run.name, label) for label in asked.labels if label not in run.settings}
        labels = {**run.settings, **{label: value for label, value in in_name.items() if value is not None}}
        named = (asked.step, *asked.metrics, *BESIDE, *(label for label in asked.labels if label not in labels))
        for step in steps:
            values = {name: run.series[name][step] for name in named if step in run.series.get(name, ())}
            place = f"run {run.name}, step {step}"
            rows.append({RUN: run.name, **labels, at: step, **values, PLACE: place})
    if not rows:
        wanted = asked.metrics[0]
        raise UserError(f"{source}: --metric {wanted}: no run has logged it{hint(wanted, logged)}")
    names = dict.fromkeys(name for row in rows for name in row)
    return pl.DataFrame([series(name, [row.get(name) for row in rows]) for name in names])


def series(name: str, values: Sequence[Any]) -> pl.Series:
    """Values as a column: of one type if they have one, as text where they differ in it."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or len(kinds) <= 1:
        try:
            return pl.Series(name, values, strict=not kinds >= {int, float})
        except (TypeError, OverflowError, pl.exceptions.PolarsError):
            pass
    return pl.Series(name, [None if value is None else _text(value) for value in values], dtype=pl.String)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def said_in(name: str, label: str) -> str | None:
    """The value that a run's name gives to a label: ``0.9`` of ``tce gamma=0.9 seed 3`` for gamma; None for none.

    Between the two stand ``=``, ``:``, ``_``, ``-`` or a space, or nothing before a number (``seed3``). A number ends
    where it ends; a word goes up to a space or a sign that parts, and may have ``_`` and ``-`` after ``=`` and ``:``.
    """
    number = r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?(?![A-Za-z0-9.])"
    word = r"(?:(?![_-][A-Za-z.]+[=:])[^\s,;/|()\[\]=:])+"
    given = rf"\s*[=:]\s*(?P<given>{number}|{word})"
    beside = rf"(?:[ _-]+|(?=\d))(?P<beside>{number}|[^\s,;/|()\[\]=:_-]+)"
    found = re.search(rf"(?<![A-Za-z0-9]){re.escape(label)}(?:{given}|{beside})", name, re.IGNORECASE)
    return (found["given"] or found["beside"]) if found else None


def existing(path: Path, what: str) -> Path:
    """The path, if there is something.

    Raises:
        UserError: there is nothing; with the nearest name beside it.
    """
    if path.exists():
        return path
    beside = sorted(one.name for one in path.parent.iterdir()) if path.parent.is_dir() else []
    raise UserError(f"{path}: not found{hint(path.name, beside, f'; give {what}', listed=False)}")
