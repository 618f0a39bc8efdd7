"""The grid of a study: a chain for each combination of the values that vary, each with its resolved recipe."""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, Field

from fortifai_ray.errors import UserError
from fortifai_ray.recipe.ecosystem import FROZEN, Ecosystem, common_key
from fortifai_ray.recipe.recipe import Recipe, for_theory, recipe_type, recipe_types
from fortifai_ray.results.schema import LINEAGE, WHOLES
from fortifai_ray.seeds import LARGEST_SEED
from fortifai_ray.storage.store import canonical_hash
from fortifai_ray.validation import at, hint, put, shown, validated


@dataclass(frozen=True)
class Chain:
    """One point of the grid: a resolved recipe and the values of the varied keys in it."""

    recipe: Recipe
    varied: Mapping[str, Any]
    lineage: str | None = None
    whole: "Chain | None" = None  # of which it is a lineage

    @property
    def members(self) -> "tuple[Chain, ...]":
        """The chains that tables are about: itself, or one of each lineage of its ecosystem."""
        if self.recipe.ecosystem is None:
            return (self,)
        lineages = self.recipe.lineages().items()
        return tuple(Chain(recipe, {**self.varied, LINEAGE: name}, name, self) for name, recipe in lineages)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured of each of its generations."""
        return self.recipe.metrics if self.lineage is None else (*self.recipe.metrics, *self.recipe.compared)

    @property
    def facts(self) -> dict[str, Any]:
        """Its flat recipe, with its lineage and the keys of the ecosystem that it is of."""
        if self.whole is None:
            return self.recipe.flat()
        return {
            **{key: value for key, value in self.whole.recipe.flat().items() if key.startswith("ecosystem.")},
            **self.recipe.flat(),
            LINEAGE: self.lineage,
            **for_theory(self.whole.recipe, str(self.lineage)),
        }

    @property
    def wholes(self) -> "tuple[Chain, ...]":
        """What tables judge of its ecosystem as a whole, under the names of lineages."""
        names = WHOLES if self.recipe.ecosystem is not None and len(self.recipe.ecosystem.order) > 1 else ()
        return tuple(Chain(self.recipe, {**self.varied, LINEAGE: name}, name, self) for name in names)

    @cached_property
    def chain_id(self) -> str:
        if self.whole is not None:
            return canonical_hash([self.whole.chain_id, self.lineage])[:16]
        return self.recipe.chain_id

    @cached_property
    def cell_id(self) -> str:
        """Hash of the resolved recipe without its seed: what chains of one cell share."""
        if self.whole is not None:
            return canonical_hash([self.whole.cell_id, self.lineage])[:16]
        return canonical_hash(self.recipe.model_dump(mode="json", exclude={"seed"}))[:16]

    def of_seed(self, seed: int) -> "Chain":
        """The chain that differs from this one in its seed alone."""
        varied = {key: seed if key == "seed" else value for key, value in self.varied.items()}
        return Chain(self.recipe.model_copy(update={"seed": seed}), varied)

    @property
    def keys(self) -> str:
        """Its varied keys as its file has them: ``loss.kind=tce loss.gamma=0.3 seed=0``. For a name, see
        :class:`~fortifai_ray.results.cells.ChainNames`."""
        known = {key: value for key, value in self.varied.items() if value is not None}
        said = {key: value if isinstance(value, str) else shown(value) for key, value in known.items()}
        return " ".join(f"{key}={value}" for key, value in said.items()) or "the recipe"


def grid(
    base: Mapping[str, Any], vary: Mapping[str, Iterable[Any]], columns: Sequence[str], source: str
) -> tuple[Chain, ...]:
    """The chains of a study.

    Args:
        base: the recipe's keys as the study file gives them.
        vary: the values of each varied dotted key.
        columns: the keys whose values a chain carries (:func:`~fortifai_ray.results.schema.varied_keys`).
        source: the study file, for messages.

    Raises:
        UserError: a recipe is not valid, or a chain occurs twice.
    """
    chains = [
        Chain(recipe, {column: flat.get(column) for column in columns}) for recipe, flat in _recipes(base, vary, source)
    ]
    ids = Counter(chain.chain_id for chain in chains)
    for chain in chains:
        if ids[chain.chain_id] > 1:
            raise UserError(f"{source}: vary: the same chain comes out twice ({chain.keys}); give each value once")
    told = [repr(chain.varied) for chain in chains]
    alike = Counter(told)
    for chain, own in zip(chains, told, strict=True):
        if alike[own] > 1:
            raise UserError(f"{source}: vary: tables could not tell two chains apart ({chain.keys}): vary single keys")
    return tuple(chains)


class _Seed(BaseModel):
    seed: int = Field(ge=0, le=LARGEST_SEED, strict=True)


def _recipes(
    base: Mapping[str, Any], vary: Mapping[str, Iterable[Any]], source: str
) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    """The recipes of a grid, each with its flat form. A cell is checked once, however many thousand seeds it has."""
    known: dict[str, tuple[Recipe, dict[str, Any]]] = {}
    for combination in itertools.product(*vary.values()):
        values = dict(zip(vary, combination, strict=True))
        seed = {"seed": values.pop("seed")} if "seed" in values else {}
        cell = repr(values)  # not a hash of JSON: a value that is no JSON must reach the check
        if cell not in known:
            recipe = resolve(source, put(base, values), vary)
            known[cell] = (recipe, recipe.flat())
        recipe, flat = known[cell]
        if seed:
            seed = validated(_Seed, seed, source, ["seed"]).model_dump()
        yield recipe.model_copy(update=seed), {**flat, **seed}


def check_overrides(overrides: Sequence[str], vary: Collection[str]) -> None:
    """Raise :class:`UserError` where an override gives a key, or a part of one, that every chain has a value of."""
    for key in (override.partition("=")[0].strip() for override in overrides):
        if (over := next((one for one in vary if f"{key}.".startswith(f"{one}.")), None)) is not None:
            raise UserError(f"--set {key}: {over} varies, so no chain would have this: give --set vary.{over}='[…]'")


def resolve(source: str, content: Mapping[str, Any], vary: Iterable[str] = ()) -> Recipe:
    """The recipe with these keys, defaults filled in; :class:`UserError` from ``source`` where it is not valid."""
    vary = list(vary)
    recipe = validated(_type_of(content, source), content, source, vary)
    if recipe.ecosystem is not None:
        _check_lineages(recipe, recipe.ecosystem, source)
    check_for_all(recipe, vary, source)
    return recipe


def check_for_all(recipe: Recipe, keys: Iterable[str], source: str) -> None:
    """Raise :class:`UserError` where a lineage has one of ``keys``, which a study sets for all, as its own."""
    if recipe.ecosystem is None:
        return
    for key in keys:
        if (name := recipe.ecosystem.sets(key)) is not None:
            own = f"ecosystem.lineages.{name}.{key}"
            raise UserError(f"{source}: {key}: lineage {name} has its own: {own} is right, or leave it out there")


def _check_lineages(recipe: Recipe, ecosystem: Ecosystem, source: str) -> None:
    """Raise :class:`UserError` where a lineage's recipe is not valid or sets what all share, or where its row of the
    mixing gives it nothing to read."""
    places = {name: f"{source}: ecosystem.lineages.{name}" for name in ecosystem.order}
    for name, place in places.items():
        if not isinstance(ecosystem.lineages[name].get(FROZEN, False), bool):
            raise UserError(f"{place}.{FROZEN}: true or false is needed")
        if shared := common_key(ecosystem.own(name)):
            raise UserError(f"{place}.{shared}: all lineages share it: set it for the whole recipe, as {shared}")
    for name, place in places.items():
        one = validated(type(recipe), ecosystem.merged(recipe.model_dump(mode="json"), name), place)
        reads = not ecosystem.frozen(name) and one.regime.synthetic_size(1e6, 0) > 0
        if reads and not ecosystem.shares[name]:
            raise UserError(
                f"{source}: ecosystem.mixing: the row of {name} is 0 throughout, and its regime, {one.regime.kind}, "
                "takes synthetic data: its shares must sum to 1"
            )


def asked_types(content: Mapping[str, Any], source: str) -> list[type[Recipe]]:
    """The classes of recipe of a study's family, or of the families that it varies."""
    vary = content.get("vary")
    kinds: list[Mapping[str, Any]] = [{"family": {"kind": kind}} for kind in _values(vary, "family.kind")]
    kinds += [{"family": family} for family in _values(vary, "family")]
    return [_type_of(one, source) for one in kinds or [content]]


def _values(vary: Any, key: str) -> list[Any]:
    values = vary.get(key) if isinstance(vary, Mapping) else None
    return values if isinstance(values, list) else []


def _type_of(content: Mapping[str, Any], source: str) -> type[Recipe]:
    family = content.get("family")
    if not isinstance(family, Mapping) or "kind" not in family:
        where = "family" if family is None else "family.kind"
        raise UserError(f"{source}: {where}: this key is needed and missing (kinds: {', '.join(recipe_types())})")
    if (recipe := recipe_type(family["kind"])) is not None:
        return recipe
    raise UserError(
        f"{source}: family.kind: there is no family {shown(family['kind'])}"
        + hint(str(family["kind"]), recipe_types(), "; a family of your own is named module:Class")
    )


def whole_sections(changes: Mapping[str, Any]) -> dict[str, Any]:
    """``{"loss.kind": "cross_entropy"}`` as ``{"loss": {"kind": "cross_entropy"}}``: a new kind keeps no old keys."""
    sections: dict[str, Any] = {}
    for dotted, value in changes.items():
        section, _, last = dotted.rpartition(".")
        if section and last == "kind":
            sections = {section: {"kind": value}, **sections}
        else:
            sections[dotted] = value
    return sections


def in_full(baseline: Mapping[str, Any], resolved: Callable[[Mapping[str, Any]], Recipe]) -> dict[str, Any]:
    """A baseline whose sections and lists have the recipe's defaults filled in, as tables have them; ``resolved`` gives
    the recipe of one."""
    whole = {key: value for key, value in baseline.items() if isinstance(value, Mapping | list)}
    if not whole:
        return {**baseline}
    if isinstance(lineages := baseline.get("ecosystem.lineages"), Mapping):
        whole["ecosystem.order"] = [*lineages]
    content = resolved({**baseline, **whole}).model_dump(mode="json")
    return {**baseline, **{key: at(content, key, value) for key, value in whole.items()}}


def common(sections: Sequence[Mapping[str, Any]], varied: Collection[str]) -> dict[str, Any]:
    """What all sections have in common, without the ``varied`` dotted keys. Defaults are included even where a recipe
    is only complete once varied."""
    result: dict[str, Any] = {}
    for key in sections[0]:
        if key in varied or not all(key in section for section in sections):
            continue
        values = [section[key] for section in sections]
        if all(isinstance(value, dict) for value in values):
            below = [one.removeprefix(f"{key}.") for one in varied if one.startswith(f"{key}.")]
            result[key] = common(values, below)
        elif all(value == values[0] for value in values):
            result[key] = values[0]
    return result
