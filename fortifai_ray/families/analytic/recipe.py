"""The recipe of a chain of an analytic family, built in or a user's own: how many samples a generation has."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, Union

from pydantic import Discriminator, Field, PlainValidator, SerializeAsAny, Tag, ValidationError, model_validator

from fortifai_ray.families import KEPT_FRACTION, LINEAGE_DISTANCE
from fortifai_ray.families.analytic import ANALYTIC
from fortifai_ray.families.analytic.base import BEFORE, AnalyticFamily, Streams
from fortifai_ray.families.analytic.curating import varied
from fortifai_ray.families.analytic.ngram import Ngram
from fortifai_ray.families.analytic.user import UserFamily, validate_user_family
from fortifai_ray.losses import PointwiseLoss
from fortifai_ray.metrics import Metric
from fortifai_ray.recipe.curation import Deduplicate, Judge, judges, measured
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.storage.store import StageStore
from fortifai_ray.theory.growth import sample_sizes
from fortifai_ray.validation import Section, first_mistake, mistake


def _validate(value: Any) -> AnalyticFamily:
    if isinstance(value, AnalyticFamily):
        return value
    assert isinstance(value, Mapping)
    built_in = ANALYTIC.get(value["kind"])
    return validate_user_family(value) if built_in is None else built_in.model_validate(value)


_MOST = 10_000_000  # samples of one generation of one chain: a gigabyte for a dozen chains


class LinearGrowth(Section):
    """n + `increment`·g samples in generation g. Under replace it collapses, though slowly: Σ 1/n_g is infinite."""

    kind: Literal["linear"] = "linear"
    increment: float = Field(ge=0.0, allow_inf_nan=False, description="samples that each generation has more")


class PowerGrowth(Section):
    """n·(g + 1)^`exponent` samples in generation g; above 1 is superlinear, and prevents collapse."""

    kind: Literal["power"] = "power"
    exponent: float = Field(ge=0.0, allow_inf_nan=False, description="1 is `linear` with an increment of n")


class GeometricGrowth(Section):
    """n·`ratio`^g samples in generation g."""

    kind: Literal["geometric"] = "geometric"
    ratio: float = Field(ge=1.0, allow_inf_nan=False, description="of one generation's samples to the last one's")


class GrowingSamples(Section):
    """A number of samples that is a law of the generation (Xu, He and Cheng 2025; Shumailov et al. 2024)."""

    initial: int = Field(ge=2, description="n, of generation 0")
    growth: Annotated[LinearGrowth | PowerGrowth | GeometricGrowth, Field(discriminator="kind")] = Field(
        description="of the number of samples with the generation"
    )


_Samples = Annotated[
    Annotated[int, Field(ge=2), Tag("one number")] | Annotated[GrowingSamples, Tag("a law")],
    Discriminator(lambda value: "a law" if isinstance(value, Mapping | GrowingSamples) else "one number"),
]

_WITHOUT_TEXT = {kind: family for kind, family in ANALYTIC.items() if family is not Ngram}
_AnyFamily: Any = Union[tuple(_WITHOUT_TEXT.values())]  # noqa: UP007 (made from the list)


class AnalyticRecipe(Recipe):
    """A chain of a family that is fitted in closed form, or by a few iterations, to samples held as arrays."""

    kinds: ClassVar[tuple[str, ...]] = tuple(_WITHOUT_TEXT)
    batched: ClassVar[bool] = True

    family: Annotated[AnalyticFamily, PlainValidator(_validate, json_schema_input_type=_AnyFamily), SerializeAsAny()]
    samples_per_generation: _Samples = Field(
        100, description="generation 0's human samples, and the budget of each; or a law of the generation"
    )

    def bound(self, prepared: str | None, store: StageStore) -> AnalyticFamily:
        """The family with the data that :meth:`prepare` has read, if it needs any."""
        return self.family

    def check(self, prepared: str | None, store: StageStore, source: str) -> None:
        family, streams = self.bound(prepared, store), Streams((self.seed,), BEFORE)
        self.try_code(lambda n: family.human(self.sizes[0], streams)[0, :n], source, truth=family.truth_is_known)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The budget of each generation."""
        own = self.samples_per_generation
        if isinstance(own, int):
            return (own,) * self.generations
        law = own.growth.model_dump()
        return tuple(sample_sizes(own.initial, law.pop("kind"), self.generations, **law))

    @property
    def grows(self) -> bool:
        return self.regime.grows or self.sizes[-1] > self.sizes[0]

    @model_validator(mode="after")
    def _growth_is_possible(self) -> Self:
        if isinstance(self.samples_per_generation, int):
            return self
        if not self.regime.follows:
            raise ValueError(
                f"samples_per_generation.growth: regime.kind: {self.regime.kind} sets the size of its training sets "
                "itself; give one number, or take replace, accumulate, accumulate_subsample or mixed"
            )
        try:
            last = self.sizes[-1]
        except OverflowError:
            last = -1
        if not 0 <= last <= _MOST:
            raise ValueError(
                f"samples_per_generation.growth: generation {self.generations - 1} would have "
                f"{f'{last:.3g}' if last > 0 else 'more than 1e308'} samples; at most {_MOST:,} are right: fewer "
                "generations, or slower growth"
            )
        return self

    @model_validator(mode="after")
    def _losses_weigh_samples(self) -> Self:
        if not isinstance(self.loss, PointwiseLoss):
            raise ValueError(f"loss.kind: {self.loss.kind} gives single samples no weight: use a pointwise loss")
        by_rank = self.loss.kind != "cross_entropy"
        if any(isinstance(step, Deduplicate) for step in self.curation.steps) and not isinstance(self.family, Ngram):
            wrong = f"deduplicate is for texts, and {self.family.kind} writes samples of numbers"
            raise mistake("recipe", "curation", wrong, "deduplicate")
        judged = judges(self.curation.steps)
        if isinstance(self.family, UserFamily):
            weighs = by_rank or self.regime.weights is not None
            self.family.check_methods(
                weighs=weighs, ranks=by_rank or bool(judged), by_truth="truth" in dict(judged).values()
            )
        for where, by in judged:
            if isinstance(by, Judge):
                self._check_judge(where, by)
        return self

    def _check_judge(self, where: str, by: Judge) -> None:
        if by.family is None:
            raise mistake("recipe", f"{where}.model", "it is of a language model; {family: …} is right here", by.model)
        if "kind" in by.family:
            wrong = f"it is the chain's, {self.family.kind}: leave it out"
            raise mistake("recipe", f"{where}.family.kind", wrong, by.family)
        try:
            varied(self.family, by)
        except ValidationError as error:
            key, wrong = first_mistake(error, type(self.family), by.family)
            raise mistake("recipe", f"{where}.family.{key}", wrong, by.family) from None

    @property
    def metrics(self) -> tuple[str, ...]:
        curation = measured(self.curation.steps, truth=self.family.truth_is_known)
        return (*(metric.name for metric in (*self.family.metrics, KEPT_FRACTION)), *curation)

    @property
    def compared(self) -> tuple[str, ...]:
        return (LINEAGE_DISTANCE.name,)

    @property
    def declared(self) -> tuple[Metric, ...]:
        return self.family.metrics if isinstance(self.family, UserFamily) else ()
