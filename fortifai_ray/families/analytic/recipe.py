"""The recipe of a chain of an analytic family, built in or a user's own: how many samples a generation has."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, Union

from pydantic import Field, PlainValidator, SerializeAsAny, ValidationError, model_validator

from fortifai_ray.families import KEPT_FRACTION
from fortifai_ray.families.analytic import ANALYTIC
from fortifai_ray.families.analytic.base import AnalyticFamily
from fortifai_ray.families.analytic.curating import varied
from fortifai_ray.families.analytic.user import UserFamily, validate_user_family
from fortifai_ray.losses import PointwiseLoss
from fortifai_ray.metrics import Metric
from fortifai_ray.recipe.curation import Judge, measured
from fortifai_ray.recipe.recipe import Recipe


def _validate(value: Any) -> AnalyticFamily:
    if isinstance(value, AnalyticFamily):
        return value
    assert isinstance(value, Mapping)
    built_in = ANALYTIC.get(value["kind"])
    return validate_user_family(value) if built_in is None else built_in.model_validate(value)


_AnyFamily: Any = Union[tuple(ANALYTIC.values())]  # noqa: UP007 (made from the list)


class AnalyticRecipe(Recipe):
    """A chain of a family that is fitted in closed form, or by a few iterations, to samples held as arrays."""

    kinds: ClassVar[tuple[str, ...]] = tuple(ANALYTIC)
    batched: ClassVar[bool] = True

    family: Annotated[AnalyticFamily, PlainValidator(_validate, json_schema_input_type=_AnyFamily), SerializeAsAny()]
    samples_per_generation: int = Field(100, ge=2, description="generation 0's human samples, and the budget of each")

    @model_validator(mode="after")
    def _losses_weigh_samples(self) -> Self:
        if not isinstance(self.loss, PointwiseLoss):
            raise ValueError(f"loss.kind: {self.loss.kind} gives single samples no weight: use a pointwise loss")
        weighs = self.loss.kind != "cross_entropy"
        judges = [by for step in self.curation.steps for by in step.judges]
        if isinstance(self.family, UserFamily):
            self.family.check_methods(weighs=weighs, ranks=weighs or bool(judges), by_truth="truth" in judges)
        for by in judges:
            if isinstance(by, Judge):
                self._check_judge(by)
        return self

    def _check_judge(self, by: Judge) -> None:
        if by.family is None:
            raise ValueError("curation.by.model: it is of a language model; {family: …} is right here")
        if "kind" in by.family:
            raise ValueError(f"curation.by.family: its kind is the chain's, {self.family.kind}: leave it out")
        try:
            varied(self.family, by)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"curation.by.family.{key}: {first['msg'].removeprefix('Value error, ')}") from None

    @property
    def metrics(self) -> tuple[str, ...]:
        curation = measured(self.curation.steps, truth=self.family.truth_is_known)
        return (*(metric.name for metric in (*self.family.metrics, KEPT_FRACTION)), *curation)

    @property
    def declared(self) -> tuple[Metric, ...]:
        return self.family.metrics if isinstance(self.family, UserFamily) else ()
