"""The collapse criterion: the metric, its reference and threshold, and how many generations confirm a crossing."""

import math
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, model_validator

from fortifai_ray.metrics import metric
from fortifai_ray.results.schema import CRITERION_COLUMNS, table_schema
from fortifai_ray.validation import Section

RelativeTo = Literal["baseline_generation_0", "own_generation_0", "absolute"]
Direction = Literal["above", "below"]

_WHOSE = {"baseline_generation_0": "the baseline's generation 0", "own_generation_0": "its own generation 0"}


class CollapseCriterion(Section):
    """A generation meets the criterion when its metric lies strictly ``above`` or ``below`` the limit.

    With ``chance`` the threshold applies to the chance-normalised fidelity (value − chance) / (reference − chance),
    which is 1 at generation 0 and 0 at chance: an accuracy of 0.85 on four-choice questions has lost half of its
    fidelity at 0.55, not at 0.425. There is no limit where the threshold does not lead from the reference in that
    direction: an accuracy that starts at or below chance has nothing to lose.
    """

    metric: str = Field(min_length=1, description="a metric that the study measures")
    threshold: FiniteFloat = Field(description="the limit, or the factor on the reference that gives the limit")
    direction: Direction = Field(description="side of the limit on which the metric has collapsed")
    relative_to: RelativeTo = Field(
        "baseline_generation_0",
        description="the reference: generation 0 of the baseline with the same seed (so that a worse start earns no "
        "slack) or of the chain itself; absolute: none, the threshold is the limit",
    )
    confirm: int = Field(1, strict=True, ge=0, description="further generations that must meet the criterion, in a row")
    chance: FiniteFloat | None = Field(
        None,
        description="the metric of a model that only guesses; the threshold then applies to (value − chance) / "
        "(reference − chance); null: to value / reference",
    )

    @model_validator(mode="after")
    def _threshold_has_a_sign_that_makes_sense(self) -> "CollapseCriterion":
        if self.threshold <= 0 and self.relative_to != "absolute":
            raise ValueError(f"threshold must be above 0 for relative_to: {self.relative_to} (got {self.threshold})")
        if self.threshold <= 0 and self.log_scale:
            raise ValueError(f"threshold must be above 0 for {self.metric}, which is positive (got {self.threshold})")
        return self

    @model_validator(mode="after")
    def _chance_has_something_to_normalise(self) -> "CollapseCriterion":
        if self.chance is not None and self.relative_to == "absolute":
            raise ValueError("chance needs a generation 0 to normalise by: leave it out for relative_to: absolute")
        if self.chance is not None and self.threshold == 1:
            raise ValueError("threshold must not be 1 where chance is given: that is generation 0 itself")
        return self

    @property
    def log_scale(self) -> bool:
        """Whether the onset is interpolated on a log scale: where the metric is declared so."""
        return metric(self.metric).log

    @property
    def words(self) -> str:
        """The whole criterion: ``KR accuracy below 0.75, confirmed by 1 further generation``."""
        if self.confirm == 0:
            confirmed = "at the first crossing"
        else:
            confirmed = f"confirmed by {self.confirm} further generation{'s' if self.confirm > 1 else ''}"
        return f"{metric(self.metric).title} {self.limit_words}, {confirmed}"

    @property
    def short_words(self) -> str:
        """The metric, and the threshold as far as it tells two criteria apart: ``KR accuracy below 0.5×``."""
        times = "" if self.relative_to == "absolute" else "×"
        return f"{metric(self.metric).title} {self.direction} {self.threshold:g}{times}"

    @property
    def limit_words(self) -> str:
        """The limit: ``above 2× the baseline's generation 0``."""
        limit = f"{self.direction} {self.threshold:g}"
        if self.relative_to != "absolute":
            limit += f"× {_WHOSE[self.relative_to]}"
            limit += f" beyond chance ({self.chance:g})" if self.chance is not None else ""
        return limit

    def limit(self, own: float | None, baseline: float | None) -> float | None:
        """The limit in the metric's own units, from the metric at generation 0 of the chain and of its baseline.

        None where the reference was not measured or cannot be one: it is not finite, or not positive (without
        ``chance``), or the threshold does not lead away from it (with ``chance``).
        """
        if self.relative_to == "absolute":
            return self.threshold
        reference = own if self.relative_to == "own_generation_0" else baseline
        limit = float(self.limits(np.array([math.nan if reference is None else reference]))[0])
        return None if math.isnan(limit) else limit

    def limits(self, references: NDArray[np.float64]) -> NDArray[np.float64]:
        """(chains,) :meth:`limit` of many references (chains,) at once, NaN for None; not for ``absolute``."""
        assert self.relative_to != "absolute", "an absolute criterion has no reference"
        with np.errstate(over="ignore", invalid="ignore"):
            if self.chance is None:
                limits, sensible = self.threshold * references, references > 0
            else:
                limits = self.chance + self.threshold * (references - self.chance)
                sensible = limits > references if self.direction == "above" else limits < references
        return np.where(sensible & np.isfinite(limits), limits, np.nan)


def criterion_columns(criterion: CollapseCriterion) -> dict[str, pl.Expr]:
    """The columns of a result table that name a criterion, as constants of the table's types."""
    types = table_schema("collapse_points")
    return {name: pl.lit(getattr(criterion, name), dtype=types[name]) for name in CRITERION_COLUMNS}


def criterion_rows(criterion: CollapseCriterion) -> pl.Expr:
    """An expression: the rows of a result table under this criterion."""
    columns = {name: getattr(criterion, name) for name in CRITERION_COLUMNS}
    return pl.all_horizontal(pl.col(name).eq_missing(pl.lit(value)) for name, value in columns.items())


def criteria_of(table: pl.DataFrame) -> list[CollapseCriterion]:
    """The criteria of a result table's rows, in its order."""
    rows = table.select(CRITERION_COLUMNS).unique(maintain_order=True)
    return [CollapseCriterion.model_validate(row) for row in rows.to_dicts()]
