"""What a study calls collapse: a criterion (the metric, its reference and threshold, and how many generations confirm a
crossing), or any of several criteria; and how a result table names either."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BeforeValidator, Discriminator, Field, FiniteFloat, Tag, field_validator, model_validator

from fortifai_ray.metrics import metric
from fortifai_ray.results.schema import CRITERION_COLUMNS, table_schema, with_criterion_columns
from fortifai_ray.validation import Section, mistake, shown

RelativeTo = Literal["baseline_generation_0", "own_generation_0", "absolute"]
Direction = Literal["above", "below", "outside"]
Limit = float | tuple[float, float]  # two where the direction is outside: the lowest and the highest faithful value

_WHOSE = {"baseline_generation_0": "the baseline's generation 0", "own_generation_0": "its own generation 0"}


class CollapseCriterion(Section):
    """A generation meets the criterion when its metric lies strictly ``above`` or ``below`` the limit, or ``outside``
    the range between two.

    With ``chance`` the threshold applies to the chance-normalised fidelity (value − chance) / (reference − chance),
    which is 1 at generation 0 and 0 at chance: an accuracy of 0.85 on four-choice questions has lost half of its
    fidelity at 0.55, not at 0.425. There is no limit where the threshold does not lead from the reference in that
    direction: an accuracy that starts at or below chance has nothing to lose. For ``outside`` the reference must lie
    above chance.
    """

    metric: str = Field(min_length=1, description="a metric that the study measures")
    threshold: FiniteFloat | tuple[FiniteFloat, FiniteFloat] = Field(
        description="the limit, or the factor on the reference that gives the limit; two, [low, high], for outside"
    )
    direction: Direction = Field(
        description="side of the limit on which the metric has collapsed; outside: either side of a range"
    )
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

    @field_validator("threshold", mode="before")
    @classmethod
    def _one_number_or_two(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
            if len(value) != 2 or not numbers:
                raise ValueError(f"two numbers are needed, [low, high], not {_shown(value)}")
            if value[0] >= value[1]:
                raise ValueError(f"the first number must be the lower one, not {_shown(value)}")
            return value
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"a number is needed (for direction: outside two, [low, high]), not {shown(value)}"
            ) from None

    @model_validator(mode="after")
    def _a_threshold_for_each_limit(self) -> "CollapseCriterion":
        two = isinstance(self.threshold, tuple)
        if self.direction == "outside" and not two:
            wrong = f"direction: outside needs two numbers, [low, high], not {self.threshold:g}"
            raise mistake("CollapseCriterion", "threshold", wrong, self.threshold)
        if self.direction != "outside" and two:
            wrong = f"two numbers are for direction: outside; {self.direction} needs one, not {self._shown_threshold}"
            raise mistake("CollapseCriterion", "threshold", wrong, self.threshold)
        return self

    @model_validator(mode="after")
    def _threshold_has_a_sign_that_makes_sense(self) -> "CollapseCriterion":
        lowest, shown = min(self.thresholds), self._shown_threshold
        if lowest <= 0 and self.relative_to != "absolute":
            raise ValueError(f"threshold must be above 0 for relative_to: {self.relative_to} (got {shown})")
        if lowest <= 0 and self.log_scale:
            raise ValueError(f"threshold must be above 0 for {self.metric}, which is positive (got {shown})")
        return self

    @model_validator(mode="after")
    def _chance_has_something_to_normalise(self) -> "CollapseCriterion":
        if self.chance is not None and self.relative_to == "absolute":
            raise ValueError("chance needs a generation 0 to normalise by: leave it out for relative_to: absolute")
        if self.chance is not None and 1 in self.thresholds:
            raise ValueError("threshold must not be 1 where chance is given: that is generation 0 itself")
        return self

    @model_validator(mode="after")
    def _a_range_around_its_reference(self) -> "CollapseCriterion":
        low, high = min(self.thresholds), max(self.thresholds)
        if self.direction == "outside" and self.relative_to != "absolute" and not low <= 1 <= high:
            raise ValueError(
                f"threshold must have 1, generation 0 itself, between its two numbers for relative_to: "
                f"{self.relative_to} (got {self._shown_threshold})"
            )
        return self

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The threshold as a tuple, of two where the direction is outside."""
        return self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)

    @property
    def members(self) -> "tuple[CollapseCriterion, ...]":
        """The criteria of which any is collapse: this one."""
        return (self,)

    @property
    def earliest(self) -> int:
        """The first generation that can meet it: 1 where generation 0 is its own reference and within the limit."""
        if self.relative_to != "own_generation_0":
            return 0
        within = {"above": min(self.thresholds) >= 1, "below": max(self.thresholds) <= 1, "outside": True}
        return int(self.chance is not None or within[self.direction])

    @property
    def _shown_threshold(self) -> str:
        return _shown(self.thresholds) if len(self.thresholds) > 1 else f"{self.thresholds[0]}"

    @property
    def log_scale(self) -> bool:
        """Whether the onset is interpolated on a log scale: where the metric is declared so."""
        return metric(self.metric).log

    @property
    def words(self) -> str:
        """The whole criterion: ``KR accuracy below 0.75, confirmed by 1 further generation``."""
        return f"{self._unconfirmed_words}, {_confirmed(self.confirm)}"

    @property
    def _unconfirmed_words(self) -> str:
        return f"{metric(self.metric).title} {self.limit_words}"

    @property
    def short_words(self) -> str:
        """The metric, and the threshold as far as it tells two criteria apart: ``KR accuracy below 0.5×``."""
        times = "" if self.relative_to == "absolute" else "×"
        return f"{metric(self.metric).title} {self.direction} {self._numbers(times)}"

    @property
    def limit_words(self) -> str:
        """The limit: ``above 2× the baseline's generation 0``."""
        if self.relative_to == "absolute":
            return f"{self.direction} {self._numbers('')}"
        limit = f"{self.direction} {self._numbers('×')} {_WHOSE[self.relative_to]}"
        return limit + (f" beyond chance ({self.chance:g})" if self.chance is not None else "")

    def _numbers(self, times: str) -> str:
        return " to ".join(f"{threshold:g}{times}" for threshold in self.thresholds)

    def limit(self, own: float | None, baseline: float | None) -> Limit | None:
        """The limit in the metric's own units, from the metric at generation 0 of the chain and of its baseline; two of
        them where the direction is outside.

        None where the reference was not measured or cannot be one: it is not finite, or not positive (without
        ``chance``), or the threshold does not lead away from it (with ``chance``).
        """
        if self.relative_to == "absolute":
            return self.threshold
        reference = own if self.relative_to == "own_generation_0" else baseline
        limits = self.limits(np.array([math.nan if reference is None else reference]))[0]
        if np.isnan(limits).any():
            return None
        return (float(limits[0]), float(limits[1])) if self.direction == "outside" else float(limits)

    def limits(self, references: NDArray[np.float64]) -> NDArray[np.float64]:
        """(chains,) :meth:`limit` of many references (chains,) at once, NaN for None; (chains, 2) where the direction
        is outside; not for ``absolute``."""
        assert self.relative_to != "absolute", "an absolute criterion has no reference"
        if self.direction == "outside":
            limits = np.stack([self._scaled(threshold, references) for threshold in self.thresholds], axis=1)
            inside = (limits[:, 0] <= references) & (references <= limits[:, 1]) & (limits[:, 0] < limits[:, 1])
            return np.where((inside & np.isfinite(limits).all(axis=1))[:, None], limits, np.nan)
        limits = self._scaled(self.thresholds[0], references)
        if self.chance is None:
            return limits
        return np.where(limits > references if self.direction == "above" else limits < references, limits, np.nan)

    def _scaled(self, threshold: float, references: NDArray[np.float64]) -> NDArray[np.float64]:
        """(chains,) The limit that a threshold gives, NaN for a reference that cannot be one."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.chance is not None:
                limits = self.chance + threshold * (references - self.chance)
                return np.where(np.isfinite(limits), limits, np.nan)
            limits = threshold * references
            return np.where((references > 0) & np.isfinite(limits), limits, np.nan)


def _entries(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise ValueError("a list of two criteria or more is needed, any of which is collapse")
    if any((isinstance(one, Mapping) and "any_of" in one) or isinstance(one, AnyOf) for one in value):
        raise ValueError("an entry has any_of itself: list its criteria here, beside the others")
    return value


class AnyOf(Section):
    """Any of several criteria, as one: the fidelity interval ends where the first of them is met.

    Each entry is a criterion with a threshold, a reference and confirmations of its own. A crossing of one is confirmed
    by further crossings of that one alone. A chain is known to be faithful as far as it is under every entry, so that
    an unconfirmed crossing of one of them, earlier than the confirmed onset of another, leaves the chain censored
    there.
    """

    any_of: Annotated[tuple[CollapseCriterion, ...], BeforeValidator(_entries)] = Field(
        description="criteria (two or more), the first of which to be met is the onset"
    )

    @model_validator(mode="before")
    @classmethod
    def _nothing_beside(cls, content: Any) -> Any:
        for key in content if isinstance(content, Mapping) else ():
            if key != "any_of":
                raise mistake("AnyOf", str(key), "beside any_of there is no other key: each entry has its own", content)
        return content

    @model_validator(mode="after")
    def _different(self) -> "AnyOf":
        if len(set(self.any_of)) < len(self.any_of):
            raise ValueError("any_of: two entries are the same criterion")
        return self

    @property
    def members(self) -> tuple[CollapseCriterion, ...]:
        """The criteria of which any is collapse."""
        return self.any_of

    @property
    def words(self) -> str:
        """The whole criterion: ``perplexity above 300 or KR accuracy below 0.75, at the first crossing``."""
        confirms = {one.confirm for one in self.any_of}
        if len(confirms) > 1:
            return "; or ".join(one.words for one in self.any_of)
        return f"{' or '.join(one._unconfirmed_words for one in self.any_of)}, {_confirmed(*confirms)}"

    @property
    def short_words(self) -> str:
        """As far as it tells two criteria apart: ``perplexity above 2× or KR accuracy below 0.5×``."""
        return " or ".join(one.short_words for one in self.any_of)


def _form(content: Any) -> str:
    several = "any_of" in content if isinstance(content, Mapping) else isinstance(content, AnyOf)
    return "several criteria" if several else "one criterion"


Collapse = Annotated[
    Annotated[CollapseCriterion, Tag("one criterion")] | Annotated[AnyOf, Tag("several criteria")], Discriminator(_form)
]


def criterion_from(content: Any) -> Collapse:
    """The criterion of an entry under ``collapse``; raises pydantic's ValidationError."""
    return (
        AnyOf.model_validate(content)
        if _form(content) == "several criteria"
        else CollapseCriterion.model_validate(content)
    )


def first_repeated(criteria: Sequence[Collapse]) -> tuple[int, int] | None:
    """The places of two criteria that are the same, any of several in whatever order; None where all differ."""
    seen: dict[Any, int] = {}
    for place, criterion in enumerate(criteria):
        if (first := seen.setdefault(frozenset(criterion.members), place)) != place:
            return first, place
    return None


def one_metric(criterion: Collapse) -> str | None:
    """The metric by which a criterion may be named; None for one of several metrics."""
    return criterion.metric if isinstance(criterion, CollapseCriterion) else None


def _confirmed(confirm: int) -> str:
    if confirm == 0:
        return "at the first crossing"
    return f"confirmed by {confirm} further generation{'s' if confirm > 1 else ''}"


def _shown(numbers: Any) -> str:
    texts = (f"{one:g}" if isinstance(one, int | float) and not isinstance(one, bool) else repr(one) for one in numbers)
    return f"[{', '.join(texts)}]"


def criterion_values(criterion: Collapse) -> dict[str, Any]:
    """What names a criterion in a result table, by column."""
    values: dict[str, Any] = dict.fromkeys(CRITERION_COLUMNS)
    if isinstance(criterion, AnyOf):
        entries = [one.model_dump(mode="json", exclude_none=True) for one in criterion.any_of]
        return values | {"any_of": json.dumps(entries)}
    values |= {name: getattr(criterion, name) for name in values.keys() & CollapseCriterion.model_fields.keys()}
    low, *high = criterion.thresholds
    return values | {"threshold": low, "threshold_high": high[0] if high else None}


def criterion_columns(criterion: Collapse) -> dict[str, pl.Expr]:
    """The columns of a result table that name a criterion, as constants of the table's types."""
    types = table_schema("collapse_points")
    return {name: pl.lit(value, dtype=types[name]) for name, value in criterion_values(criterion).items()}


def criterion_rows(criterion: Collapse) -> pl.Expr:
    """An expression: the rows of a result table under this criterion."""
    # A table without such criteria may lack the columns of two-sided and of combined ones.
    columns = {
        name: value for name, value in criterion_values(criterion).items() if value is not None or name == "chance"
    }
    return pl.all_horizontal(pl.col(name).eq_missing(pl.lit(value)) for name, value in columns.items())


def criteria_of(table: pl.DataFrame) -> list[Collapse]:
    """The criteria of a result table's rows, in its order."""
    rows = with_criterion_columns(table).select(CRITERION_COLUMNS).unique(maintain_order=True)
    return [_of_row(row) for row in rows.to_dicts()]


def _of_row(row: dict[str, Any]) -> Collapse:
    if row["any_of"] is not None:
        return AnyOf(any_of=json.loads(row["any_of"]))
    keys = {name: row[name] for name in CollapseCriterion.model_fields}
    if row["threshold_high"] is not None:
        keys["threshold"] = (row["threshold"], row["threshold_high"])
    return CollapseCriterion.model_validate(keys)


def unconfirmable(criteria: Sequence[Collapse], generations: int) -> Iterator[str]:
    """A warning for each criterion for which not even the longest chain has the generations that confirm a crossing."""
    for place, criterion in enumerate(criteria):
        for entry, one in enumerate(criterion.members):
            most = max(0, generations - 1 - one.earliest)
            if one.confirm > most:
                at = f".{place}" * (len(criteria) > 1) + f".any_of.{entry}" * (len(criterion.members) > 1)
                yield (
                    f"warning: collapse{at}.confirm: {one.confirm} is more than the generations that can follow a "
                    f"crossing: generation {one.earliest} is the first that can cross, and {generations - 1} the last. "
                    f"No chain can be found collapsed; at most {most} is right, or more generations"
                )
