"""A claim: what a paper says a study will show, in a form that can be refuted.

::

    - id: variance-shrinks
      source: Shumailov et al. 2024, section 3
      kind: theory
      statistic: {kind: metric, metric: trace_ratio, at: 9}
      where: {regime.kind: replace}
      relation: equals
      tolerance: {relative: 0.05}
      value: {theory: gaussian_replace_mean_variance}
      must_reject: {name: nothing happens, value: 1.0}
      level: 0.99
      min_chains: 100
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from fortifai_ray.study.claim_statistics import Statistic, Where, where_words
from fortifai_ray.theory.registry import ClosedForm, check_given, evaluate, lookup
from fortifai_ray.validation import Section, shown

Relation = Literal["equals", "at_most", "at_least", "less", "greater", "between"]
DEFAULT_LEVEL = 0.99  # several claims are tested at once: see `fortifai_ray.claims.result.multiplicity`


class TheoryValue(BaseModel):
    """A closed form by name. The recipe of the claim's cells determines its arguments, the statistic its generation;
    arguments written here, by keyword, take precedence.

    The study as resolved has all of them written (:mod:`fortifai_ray.study.claim_checks`).
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    theory: str = Field(description="name of a closed form in `fortifai_ray.theory`")

    @property
    def form(self) -> ClosedForm:
        return lookup(self.theory)

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def is_complete(self) -> bool:
        """Whether every argument without a default is given; ValueError for one that the closed form does not
        take."""
        check_given(self.theory, self.arguments)
        return not self.form.missing(self.arguments)

    def number(self, generation: int | None) -> float:
        """Its value (:func:`fortifai_ray.theory.evaluate`)."""
        return evaluate(self.theory, self.arguments, {}, generation)


Number = FiniteFloat | TheoryValue


class Tolerance(Section):
    """The distance from the value that still counts as equal: either ``relative`` or ``absolute``."""

    relative: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(None, description="share of the value")
    absolute: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(None, description="in its own units")

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


class WrongTheory(Section):
    """What the statistic would be if a claim were wrong in the way that is nearest to being right."""

    name: str = Field(min_length=1, description="the mistake in words: `nothing happens`, `kept for fresh`")
    value: Annotated[Number, BeforeValidator(lambda value: _readable_number(value))] = Field(
        description="the value under it, a number or a closed form"
    )


class Claim(Section):
    """A statement about the study's results that can be refuted: how a statistic relates to a value."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="names this claim alone")
    source: str = Field(min_length=1, description="paper, and where in it")
    kind: Literal["theory", "replication"] = Field(
        description="a `theory` must hold; a `replication` that fails at this scale is a finding"
    )
    statistic: Statistic = Field(description="what is measured")
    where: Where = Field({}, description="which chains, by keys of the recipe: `{loss.kind: tce}`; a list: any of it")
    relation: Relation = Field(description="of the statistic to the value; decided on the whole confidence interval")
    tolerance: Tolerance | None = Field(None, description="of `equals`: the interval must lie within it (equivalence)")
    value: Annotated[Number | tuple[Number, Number], BeforeValidator(lambda value: _readable_value(value))] = Field(
        description="a number or a closed form, or a pair `[low, high]` of them for `between`"
    )
    must_reject: Annotated[
        tuple[WrongTheory, ...],
        BeforeValidator(
            lambda value: _wrong_theories(value), json_schema_input_type=WrongTheory | tuple[WrongTheory, ...]
        ),
    ] = Field(
        (),
        description="the nearest wrong theories, one or a list; a theory claim needs one. None may satisfy the claim, "
        "and with `equals` the tolerance is at most half of the distance to each",
    )
    level: float = Field(DEFAULT_LEVEL, gt=0.0, lt=1.0, description="confidence level of this claim's own interval")
    looks: int = Field(
        1,
        strict=True,
        ge=1,
        le=1000,
        description="how often chains may be counted: 1, their number is fixed beforehand; K, chains may be added up "
        "to K − 1 times, each interval being at 1 − (1 − level)/K, so that all of them together have the level",
    )
    min_chains: int = Field(2, strict=True, ge=1, description="fewer independent chains (seeds) give no verdict")

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
        theories = [value for value in (*self._values, *self._wrong_values) if isinstance(value, TheoryValue)]
        if not all([value.is_complete for value in theories]):
            return self  # the study's recipes supply the rest
        numbers = self.numbers()  # raises for arguments outside a closed form's domain
        self.wrong_numbers()
        if numbers[0] > numbers[-1]:
            raise ValueError(f"value: the lower end {numbers[0]:g} is above the upper end {numbers[1]:g}")
        return self

    @property
    def _values(self) -> tuple[Number, ...]:
        return self.value if isinstance(self.value, tuple) else (self.value,)

    def numbers(self) -> tuple[float, ...]:
        """The value as one number, or as the two ends for ``between``.

        Raises:
            ValueError: a closed form that cannot be evaluated.
        """
        return tuple(map(self._number, self._values))

    def wrong_numbers(self) -> tuple[float, ...]:
        """The value under each theory of ``must_reject``; ValueError as :meth:`numbers`."""
        return tuple(map(self._number, self._wrong_values))

    @property
    def _wrong_values(self) -> tuple[Number, ...]:
        return tuple(wrong.value for wrong in self.must_reject)

    def _number(self, value: Number) -> float:
        return value.number(self.statistic.generation) if isinstance(value, TheoryValue) else float(value)

    @property
    def interval_level(self) -> float:
        """The level of the interval at each look: Bonferroni's over the looks, so valid however they depend."""
        return 1 - (1 - self.level) / self.looks if self.looks > 1 else self.level

    @property
    def words(self) -> str:
        """What is measured, in words."""
        where = f", at {where_words(self.where)}" if self.where else ""
        return f"{self.statistic.words}{where}{self.statistic.against_words}"


def _wrong_theories(value: Any) -> Any:
    entries = value if isinstance(value, list | tuple) else [value]
    for one in entries:
        if not isinstance(one, dict | WrongTheory):
            raise ValueError(f"{{name: …, value: …}} is needed, or a list of such (got {shown(one)})")
    return entries


def _readable_value(value: Any) -> Any:
    """Refuse in one line what pydantic would refuse with a line for each member of the union."""
    items = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, list | tuple) and len(items) != 2:
        raise ValueError(f"value is one number, or a pair [low, high] for between (got {len(items)} items)")
    for item in items:
        _readable_number(item)
    return value


def _readable_number(value: Any) -> Any:
    if isinstance(value, TheoryValue) or (isinstance(value, dict) and isinstance(value.get("theory"), str)):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"value is a number, or {{theory: NAME, …}} naming a closed form (got {shown(value)})")
    return value
