"""Collapse criteria in words, and which of them the result tables have rows for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from fortifai_ray.metrics import metric
from fortifai_ray.statistics import CollapseCriterion
from fortifai_ray.statistics import criteria_of as criteria_in
from fortifai_ray.statistics import criterion_rows as fidelity_rows

CRITERION = ("metric", "threshold", "relative_to", "direction", "confirm")
_WHOSE = {"baseline_generation_0": "the baseline's generation 0", "own_generation_0": "its own generation 0"}


def limit_text(criterion: CollapseCriterion) -> str:
    """What the metric is held against: ``above 2× the baseline's generation 0``."""
    threshold = f"{criterion.threshold:g}"
    if criterion.relative_to != "absolute":
        threshold += f"× {_WHOSE[criterion.relative_to]}"
        if criterion.chance is not None:
            threshold += f" beyond chance ({criterion.chance:g})"
    return f"{criterion.direction} {threshold}"


def criterion_text(criterion: CollapseCriterion) -> str:
    """The whole criterion in words."""
    words = f"{metric(criterion.metric).title} {limit_text(criterion)}"
    if criterion.confirm == 0:
        return f"{words}, at the first crossing"
    return f"{words}, confirmed by {criterion.confirm} further generation{'s' if criterion.confirm > 1 else ''}"


def short_text(criterion: CollapseCriterion) -> str:
    """The criterion in few words: the metric, and the threshold as far as it tells two criteria apart."""
    times = "" if criterion.relative_to == "absolute" else "×"
    return f"{metric(criterion.metric).title} {criterion.direction} {criterion.threshold:g}{times}"


def criterion_rows(criterion: CollapseCriterion) -> pl.Expr:
    """An expression: the rows of a result table that are about this criterion."""
    return fidelity_rows(criterion)


def criteria_of(table: pl.DataFrame) -> list[CollapseCriterion]:
    """The criteria a table (chains or fidelity) has rows for, in its order."""
    return criteria_in(table)


def criteria_asked(study: Mapping[str, Any]) -> list[CollapseCriterion]:
    """The criteria of a resolved study file: one mapping or a list under ``collapse``."""
    asked = study.get("collapse") or []
    return _checked(asked if isinstance(asked, list) else [asked])


def _checked(items: Sequence[Any]) -> list[CollapseCriterion]:
    return [CollapseCriterion.model_validate(item) for item in items]
