"""A recipe: everything that determines a chain's numbers, and nothing else.

Each family has its own recipe, a subclass that adds the family's keys (a corpus, training settings, a number of
samples) and builds the family: a Gaussian has no corpus, and a study file that gives it one is refused.
"""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fortifai_ray.errors import UserError
from fortifai_ray.losses import CrossEntropy, Loss
from fortifai_ray.metrics import Metric
from fortifai_ray.recipe.curation import Content, Curation, Judge, NoCuration, places
from fortifai_ray.recipe.ecosystem import Ecosystem, Writing
from fortifai_ray.recipe.regimes import Regime, Replace
from fortifai_ray.results.schema import as_text, flatten
from fortifai_ray.seeds import LARGEST_SEED
from fortifai_ray.storage.store import StageStore, canonical_hash
from fortifai_ray.user_code import names_code
from fortifai_ray.validation import Section, mistake

if TYPE_CHECKING:
    from fortifai_ray.recipe.executor import Executor
    from fortifai_ray.recipe.family import Family
    from fortifai_ray.storage.steps import Steps

Unit = Literal["tokens", "samples"]


class Recipe(Section):
    """Family, loss, regime, curation and seed of one chain; its family's recipe adds the rest.

    Storage, resources and what other chains vary do not belong here: they must not change a result.
    """

    kinds: ClassVar[tuple[str, ...]] = ()  # the values of family.kind that ask for this class
    family_class: ClassVar[str]  # module:Class, imported when a chain runs; batched families have cohorts instead
    unit: ClassVar[Unit] = "samples"
    items: ClassVar[Content] = "samples"  # what curation chooses among
    batched: ClassVar[bool] = False  # chains that differ in their seed alone are computed together, as arrays
    read_apart: ClassVar[frozenset[str]] = frozenset()  # keys of which what :meth:`prepare` read stands in hashes
    uses_engines: ClassVar[bool] = False  # generation runs on warm engines

    family: Any
    regime: Regime = Field(Replace(), description="how training sets are made from human and synthetic data")
    loss: Loss = Field(CrossEntropy(), description="the training loss; in analytic families, it weighs samples")
    curation: Curation = Field(NoCuration(), description="which synthetic data may enter the next training set")
    generations: int = Field(ge=1, le=1_000_000, description="generations 0 to generations − 1 are computed")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="of every random draw of the chain")
    ecosystem: Ecosystem | None = Field(
        None,
        exclude_if=lambda value: value is None,  # most recipes are older than the key
        description="several models that train on each other's output; null: one model, on its own",
    )

    @model_validator(mode="after")
    def _curation_fits(self) -> Self:
        steps = self.curation.steps
        for where, step in zip(places(steps), steps, strict=True):
            if self.items not in step.takes:
                wrong = f"{step.kind} is for {' and '.join(step.takes)}, and this family writes {self.items}"
                raise mistake("recipe", f"{where}.kind", wrong, step.kind)
            if step.of_pool and self.regime.weights is not None:
                wrong = f"a {step.kind}'s pool has no labels, and regime.weights weighs by them: leave one out"
                raise mistake("recipe", f"{where}.kind", wrong, step.kind)
            if step.of_pool and not self.regime.two_kinds:
                wrong = (
                    f"a {step.kind} needs a pool of human and synthetic data, and regime: {self.regime.kind} has none"
                )
                raise mistake("recipe", f"{where}.kind", f"{wrong}; mixed or accumulate is right", step.kind)
            for by in step.judges:
                if by == "truth" and self.items != "samples":
                    wrong = f"the truth of {self.items} is not known; generation_0 is right here"
                    raise mistake("recipe", f"{where}.{step.judged_by}", wrong, by)
                if isinstance(by, Judge) and {"texts": by.model, "samples": by.family}.get(self.items) is None:
                    wrong = "model is of language models, and family of analytic families"
                    raise mistake("recipe", f"{where}.{step.judged_by}", wrong, by)
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured of each generation: columns of the results, and metrics that a criterion may name."""
        raise NotImplementedError

    @property
    def compared(self) -> tuple[str, ...]:
        """What is measured besides of a lineage's generation, against those of the other lineages."""
        return ()

    @property
    def declared(self) -> tuple[Metric, ...]:
        """The metrics that this recipe adds to the built-in ones: a user's own, for each process to register."""
        return ()

    @property
    def grows(self) -> bool:
        """Whether training sets hold more synthetic data from generation to generation."""
        return self.regime.grows

    @property
    def chain_id(self) -> str:
        """Hash of the resolved recipe, seed included."""
        return canonical_hash(self.model_dump(mode="json"))[:16]

    def flat(self) -> dict[str, Any]:
        """The resolved recipe with dotted keys, e.g. ``{"loss.kind": "tce", "loss.gamma": 0.3, …}``."""
        flat = flatten(self.model_dump(mode="json"))
        return {**flat, **{key: as_text(flat[key]) for key in _AS_TEXT if key in flat}}

    def lineages(self) -> dict[str | None, Self]:
        """The recipe of each lineage by its name, with this recipe's seed; of a single chain itself, without a name."""
        if self.ecosystem is None:
            return {None: self}
        known = _lineages(type(self), self.model_dump_json(exclude={"seed"}))
        return {name: recipe.model_copy(update={"seed": self.seed}) for name, recipe in known.items()}

    def located(self) -> Self:
        """The same recipe with absolute paths, for processes that run in other folders.

        Stages depend on content, never on paths; a chain's id is that of the recipe as written.
        """
        return self

    @property
    def shared_input(self) -> Any:
        """What :meth:`prepare` depends on: recipes that share it are prepared once."""
        return None

    def prepare(self, store: StageStore, source: str) -> str | None:
        """Read the recipe's data into the store; returns the key by which :meth:`build` opens it.

        Raises :class:`UserError`, beginning with ``source``, for data that cannot be read.
        """
        return None

    def check(self, prepared: str | None, store: StageStore, source: str) -> None:
        """Check the recipe against its data: too few samples, rows that do not fit. Raises :class:`UserError`."""

    def try_code(self, human: Callable[[int], Any], source: str, *, truth: bool = False) -> None:
        """Call a user's steps and rewards on human items (:func:`fortifai_ray.recipe.curation.trial.try_code`). Raises
        :class:`UserError`, beginning with ``source``."""
        from fortifai_ray.recipe.curation.trial import try_code

        try:
            try_code(self.curation.steps, human, truth=truth)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    def needs(self, prepared: str | None, store: StageStore) -> Sequence[float]:
        """Units of synthetic data for its next training set, by generation; none where how much a model writes needs
        no check."""
        return ()

    def check_writing(self, writing: Writing, prepared: str | None, store: StageStore, source: str) -> tuple[str, ...]:
        """Check what a model of this recipe is to write; returns what a dry run says of it.

        Raises :class:`UserError`, beginning with ``source``.
        """
        return ()

    def describe(self, prepared: str | None, store: StageStore) -> tuple[str, ...]:
        """What a dry run says of the recipe's data and model: a line each, to be read before anything is computed.

        Raises :class:`UserError` for data that cannot be read.
        """
        return ()

    @property
    def notices(self) -> tuple[str, ...]:
        """What a sweep says of the recipe when it starts: a line for each thing that is not as one might expect."""
        return ()

    def flattery(self, metric: str) -> str | None:
        """Why the models of a chain look better by a metric than they are; None where it chose none of them."""
        return None

    def check_resources(self, engine_gpus: float, source: str) -> None:
        """Raise :class:`UserError`, beginning with ``source``, where no engine can spread over ``engine_gpus`` GPUs."""

    def engine_start(self, prepared: str | None, store: StageStore, folder: Path) -> Any:
        """The configuration of the engines that generate, with what they start from written into ``folder``; None
        where the family uses no engines."""
        return None

    def build(self, prepared: str | None, steps: "Steps", executor: "Executor") -> "Family":
        """The family of one chain of this recipe, which is not batched."""
        return _imported(self.family_class).of(self, prepared, steps, executor)


def for_theory(whole: Recipe, lineage: str) -> dict[str, Any]:
    """What closed forms read of a lineage beside its flat recipe, and of the others: in the order of the mixing."""
    assert whole.ecosystem is not None
    order, mixing, recipes = whole.ecosystem.order, whole.ecosystem.mixing, whole.lineages()
    still = [whole.ecosystem.frozen(name) or recipes[name].regime.always_the_same for name in order]
    return {
        "ecosystem.shares": mixing if isinstance(mixing, list) else mixing.matrix(len(order)),
        "ecosystem.place": order.index(lineage),
        "ecosystem.sizes": [recipes[name].flat().get("samples_per_generation") for name in order],
        "ecosystem.still": still,
        "ecosystem.own": whole.ecosystem.differing(dict(zip(order, still, strict=True))),
    }


@lru_cache(maxsize=64)
def _lineages(kind: type[Recipe], text: str) -> dict[str, Any]:
    content = json.loads(text)
    ecosystem = Ecosystem.model_validate(content["ecosystem"])
    return {name: kind.model_validate(ecosystem.merged(content, name)) for name in ecosystem.order}


_AS_TEXT = ("curation", "ecosystem.mixing", "ecosystem.order")  # where they are lists: a table's column has one type
_USERS = "fortifai_ray.families.analytic.recipe:AnalyticRecipe"  # a user's own family gives samples
_RECIPES = (
    "fortifai_ray.families.language.recipe:LanguageRecipe",
    "fortifai_ray.families.images.recipe:ImageRecipe",
    "fortifai_ray.families.analytic.ngram_recipe:NgramRecipe",
    _USERS,
)


@cache
def recipe_types() -> Mapping[str, type[Recipe]]:
    """The class of recipe of each family's kind, without those of users."""
    return {kind: recipe for recipe in map(_imported, _RECIPES) for kind in recipe.kinds}


def recipe_type(kind: Any) -> type[Recipe] | None:
    """The class of recipe of a ``family.kind``, also of a user's own family (``module:Class``); None for an unknown
    one."""
    if names_code(kind):
        return _imported(_USERS)
    return recipe_types().get(kind) if isinstance(kind, str) else None


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
