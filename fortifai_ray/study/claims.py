"""A claim: what a paper says a study will show, in a form that can come out wrong.

::

    - id: variance-shrinks
      source: Shumailov et al. 2024, section 3
      kind: theory
      statistic: {kind: metric, metric: trace_ratio, at: 9}
      where: {regime.kind: replace}
      relation: equals
      tolerance: {relative: 0.05}
      value: {theory: gaussian_replace_mean_variance, n: 100}
      level: 0.99
      min_chains: 100
"""

import math
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from fortifai_ray.errors import UserError
from fortifai_ray.study.claim_fields import Criterion, Where, where_words
from fortifai_ray.study.claim_statistics import PerChain, Statistic
from fortifai_ray.theory import evaluate
from fortifai_ray.validation import hint

Relation = Literal["equals", "at_most", "at_least", "less", "greater", "between"]
DEFAULT_LEVEL = 0.99  # several claims are tested at once: see `fortifai_ray.claims.lines.multiplicity`


class TheoryValue(BaseModel):
    """A closed form by name, with its arguments by keyword; ``generation`` is the statistic's unless it is given."""

    model_config = ConfigDict(frozen=True, extra="allow")
    theory: str

    def number(self, generation: int | None) -> float:
        """Its value (:func:`fortifai_ray.theory.evaluate.evaluate`)."""
        given = {**(self.model_extra or {})}
        return evaluate(self.theory, given, {}, generation)


Number = FiniteFloat | TheoryValue


class Tolerance(BaseModel):
    """How far from the value still counts as equal: a share of the value (``relative``), or a number (``absolute``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    relative: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    absolute: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Tolerance":
        if (self.relative is None) == (self.absolute is None):
            raise ValueError("tolerance is either {relative: 0.05} or {absolute: 0.1}")
        return self

    def around(self, value: float) -> float:
        """The distance from ``value`` that it allows, in the value's units."""
        return self.absolute if self.absolute is not None else (self.relative or 0.0) * abs(value)

    @property
    def words(self) -> str:
        return f"{self.absolute:g}" if self.absolute is not None else f"{100 * (self.relative or 0):g} %"


class Claim(BaseModel):
    """One claim of a study file.

    Attributes:
        source: paper, and where in it.
        kind: ``theory`` must hold; a ``replication`` that fails at this scale is a finding.
        where: which chains, by dotted recipe keys or contract columns; a list of values means any of them.
        relation: the measured number to the value. The verdict comes from the whole interval.
        tolerance: of ``equals``, which is a test of equivalence: the interval must lie within it.
        value: a number, ``{theory: NAME, …}``, or a pair of them for ``between``.
        level: confidence level of the interval of this claim alone.
        min_chains: with fewer independent chains (seeds) there is no verdict.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    source: str = Field(min_length=1)
    kind: Literal["theory", "replication"]
    statistic: Statistic
    where: Where = {}
    relation: Relation
    tolerance: Tolerance | None = None
    value: Annotated[Number | tuple[Number, Number], BeforeValidator(lambda value: _readable_value(value))]
    level: Annotated[float, Field(gt=0.0, lt=1.0)] = DEFAULT_LEVEL
    min_chains: Annotated[int, Field(strict=True, ge=1)] = 2

    @model_validator(mode="after")
    def _value_fits_the_relation(self) -> "Claim":
        if (self.relation == "between") != isinstance(self.value, tuple):
            raise ValueError(
                "relation between needs a pair, value: [low, high]; every other relation needs one number "
                f"(relation is {self.relation})"
            )
        if self.relation == "equals" and self.tolerance is None:
            raise ValueError("relation equals needs tolerance: {relative: 0.05} or {absolute: 0.1}")
        if self.relation != "equals" and self.tolerance is not None:
            raise ValueError(f"tolerance belongs to relation equals (relation is {self.relation})")
        if isinstance(self.value, tuple):
            low, high = self.numbers()
            if not low <= high:
                raise ValueError(f"value: the lower end {low:g} is above the upper end {high:g}")
        else:
            self.numbers()  # raises for a closed form that is not there, or does not take these arguments
        return self

    def numbers(self) -> tuple[float, ...]:
        """The value as one number, or as the two ends for ``between``.

        Raises:
            ValueError: a closed form that cannot be evaluated.
        """
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        generation = self.statistic.generation
        return tuple(v.number(generation) if isinstance(v, TheoryValue) else float(v) for v in values)

    @property
    def words(self) -> str:
        """What is measured, in words."""
        where = f", at {where_words(self.where)}" if self.where else ""
        return f"{self.statistic.words}{where}{self.statistic.against_words}"


def _readable_value(value: Any) -> Any:
    """Refuses in one line what pydantic would refuse in one line for each member of the union."""
    items = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, list | tuple) and len(items) != 2:
        raise ValueError(f"value is one number, or a pair [low, high] for between (got {len(items)} items)")
    for item in items:
        if isinstance(item, TheoryValue) or (isinstance(item, dict) and isinstance(item.get("theory"), str)):
            continue
        if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
            raise ValueError(f"value is a number, or {{theory: NAME, …}} naming a closed form (got {item!r})")
    return value


# Checks a study file's claims against the rest of the study, before anything runs.

# What `where` may name beside the recipe's own dotted keys, and what a statistic may read beside the families' metrics.
_WHERE_COLUMNS = ("family", "loss", "gamma", "regime", "synthetic_ratio", "seed", "unit")
_MEASURED_COLUMNS = (
    "synthetic_ratio_realised",
    "human_size",
    "synthetic_size",
    "synthetic_size_cum",
    "train_seconds",
    "generate_seconds",
    "evaluate_seconds",
)


def refuse_claims(
    claims: Sequence[Claim], *, keys: Collection[str], metrics: Collection[str], criteria: Sequence[str], source: str
) -> None:
    """Refuse a claim on something that the study does not have.

    Args:
        keys: dotted keys of the study's recipes.
        metrics: what its families measure.
        criteria: the metric of each collapse criterion, in their order.
        source: the study file, for the message.

    Raises:
        UserError: an id twice, an unknown key in ``where`` or ``against``, an unknown metric or collapse criterion.
    """
    seen: set[str] = set()
    for index, claim in enumerate(claims):
        problem = _problem(claim, keys, metrics, criteria)
        if claim.id in seen:
            problem = ("id", f"the id {claim.id!r} stands twice: an id names one claim")
        seen.add(claim.id)
        if problem:
            key, message = problem
            raise UserError(f"{source}: claims.{index}.{key}: {message} (claim {claim.id})")


def _problem(
    claim: Claim, keys: Collection[str], metrics: Collection[str], criteria: Sequence[str]
) -> tuple[str, str] | None:
    """The key and what is wrong with it."""
    statistic = claim.statistic
    known = {*keys, *_WHERE_COLUMNS}
    against = statistic.against or {} if isinstance(statistic, PerChain) else {}
    for place, where in (("where", claim.where), ("statistic.against", against)):
        for key in where:
            if key not in known:
                return f"{place}.{key}", f"unknown key{hint(key, sorted(known))}"
    measured = {*metrics, *_MEASURED_COLUMNS}
    for metric in statistic.metrics:
        if metric not in measured:
            return "statistic.metric", f"this study does not measure {metric!r}{hint(metric, sorted(measured))}"
    for criterion in statistic.criteria:
        if message := _criterion_problem(criterion, criteria):
            return "statistic", message
    return None


def _criterion_problem(criterion: Criterion, criteria: Sequence[str]) -> str | None:
    if isinstance(criterion, int):
        if criterion < len(criteria):
            return None
        return f"there is no collapse criterion {criterion}; there are {len(criteria)}, counted from 0"
    if criterion not in criteria:
        return f"no collapse criterion has the metric {criterion!r}{hint(criterion, sorted(set(criteria)))}"
    if criteria.count(criterion) > 1:
        return f"several collapse criteria have the metric {criterion!r}: give the place of one, 0, 1, …"
    return None
