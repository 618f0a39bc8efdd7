"""A study file: one recipe, what varies, and the criterion of collapse. Read, checked and spread into chains here.

Everything that can be wrong with it is found before anything starts, and told in one line: the file, the key, what
was given and what would be right.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from fortifai_ray.errors import UserError
from fortifai_ray.metrics import register
from fortifai_ray.recipe.recipe import FAMILIES, Recipe, recipe_type
from fortifai_ray.results.schema import flatten, searched_keys, varied_keys
from fortifai_ray.statistics import CollapseCriterion
from fortifai_ray.storage.store import canonical_hash
from fortifai_ray.study.claim_checks import StudyFacts, checked_claims
from fortifai_ray.study.claims import Claim
from fortifai_ray.study.resources import ResourcesConfig
from fortifai_ray.study.search import Search, refuse_search
from fortifai_ray.validation import all_keys, hint, read_yaml, validated


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class Range(BaseModel):
    """``count`` whole numbers from ``start`` on: how a study file asks for a thousand seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    start: int = Field(0, ge=0)
    count: int = Field(ge=1, le=1_000_000)

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        return iter(range(self.start, self.start + self.count))


def _range_or_list(value: Any) -> str:
    return "range" if isinstance(value, dict | Range) else "list"


_Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Any], Field(min_length=1), Tag("list")],
    Discriminator(_range_or_list),
]


class StudySettings(BaseModel):
    """The keys of a study file beside the recipe's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    vary: dict[str, _Values] = {}
    collapse: Annotated[list[CollapseCriterion], BeforeValidator(_as_list), Field(min_length=1)]
    baseline: dict[str, Any] = {"loss.kind": "cross_entropy"}
    claims: list[Claim] = []
    search: Search | None = Field(None, description="chains are placed by a search instead of run as a grid")
    early_stopping: bool = Field(
        True, description="whether a chain ends once every criterion has confirmed its collapse"
    )
    resources: ResourcesConfig = ResourcesConfig()


class _Seed(BaseModel):
    seed: int = Field(ge=0, strict=True)


@dataclass(frozen=True)
class Chain:
    """One point of the grid: a resolved recipe and the values of the varied keys in it."""

    recipe: Recipe
    varied: Mapping[str, Any]

    @cached_property
    def chain_id(self) -> str:
        return self.recipe.chain_id

    @cached_property
    def cell_id(self) -> str:
        """Hash of the resolved recipe without its seed: what chains of one cell share."""
        return canonical_hash(self.recipe.model_dump(mode="json", exclude={"seed"}))[:16]

    @property
    def label(self) -> str:
        """For people, e.g. ``loss.kind=tce loss.gamma=0.3 seed=0``; nothing is ever read back out of it."""
        return _label(self.varied)

    @property
    def cell_label(self) -> str:
        """As ``label``, for all the chains that differ in their seed alone."""
        return self.label_without("seed")

    def label_without(self, *keys: str) -> str:
        """As ``label``, leaving some keys out."""
        return _label({key: value for key, value in self.varied.items() if key not in keys})


def _label(varied: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in varied.items() if value is not None) or "the recipe"


@dataclass(frozen=True)
class Study:
    """A checked study: its settings and its chains.

    Where it searches, ``chains`` has one of each cell, at the searched keys' values in the recipe. None of these is
    run: :meth:`probe` makes those that are.
    """

    source: str
    settings: StudySettings
    chains: tuple[Chain, ...]

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def varied(self) -> list[str]:
        """Dotted keys that vary, as they appear as columns (the seed among them only if it varies)."""
        return list(self.chains[0].varied)

    @cached_property
    def cells(self) -> tuple[Chain, ...]:
        """One chain, the first, of each combination of the varied keys but the seed."""
        first: dict[str, Chain] = {}
        for chain in self.chains:
            first.setdefault(chain.cell_id, chain)
        return tuple(first.values())

    @cached_property
    def generations_asked(self) -> int:
        """The longest chain's generations: the study's horizon is one less."""
        return max(chain.recipe.generations for chain in self.chains)

    def resolved(self) -> dict[str, Any]:
        """The study as resolved, defaults included: what ``STORAGE/NAME/study.yaml`` holds."""
        settings = self.settings.model_dump(mode="json")
        recipes = [cell.recipe.model_dump(mode="json") for cell in self.cells]
        return {"name": settings.pop("name"), **_shared(recipes, self.settings.vary), **settings}

    def probe(self, cell: Chain, values: Mapping[str, Any], seed: int) -> Chain:
        """The chain of a cell at ``values`` of the searched keys.

        Raises:
            UserError: the recipe refuses a value.
        """
        whole = {key for key, value in cell.recipe.flat().items() if isinstance(value, int)}
        changes = {key: int(value) if key in whole else value for key, value in values.items()}
        recipe = _resolve(f"{self.source}: search", _apply(cell.recipe.model_dump(mode="json"), changes))
        return self.chain(recipe.model_copy(update={"seed": seed}))

    def chain(self, recipe: Recipe) -> Chain:
        """The chain of a recipe, with its values of the study's varied keys."""
        flat = recipe.flat()
        return Chain(recipe, {key: flat.get(key) for key in self.varied})

    def baseline_of(self, chain: Chain) -> Recipe:
        """The recipe whose generation 0 a chain is measured against: its own, with the baseline's keys put in."""
        return _resolve(
            f"{self.source}: baseline",
            _apply(chain.recipe.model_dump(mode="json"), _whole_sections(self.settings.baseline)),
        )


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study file; ``overrides`` are ``key=value`` with a dotted key and a YAML value.

    Raises :class:`UserError` naming the file, the key and what would be right.
    """
    content = read_yaml(path, "a study file")
    if not isinstance(content, dict):
        raise UserError(f"{path}: a study file is a mapping of keys (name, family, corpus, …)")
    return make_study({**content}, str(path), overrides)


def make_study(content: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Study:
    """A checked study from a study file's content; see :func:`load_study`."""
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise UserError(f"--set {override}: key=value is needed, e.g. --set training.epochs=1")
        try:
            content = _apply(content, {key: yaml.safe_load(value)})
        except yaml.YAMLError as error:
            raise UserError(f"--set {override}: the value is not valid YAML: {' '.join(str(error).split())}") from error
    names = StudySettings.model_fields
    _check_top_level(content, source)
    settings = validated(StudySettings, {k: v for k, v in content.items() if k in names}, source)
    base = {key: value for key, value in content.items() if key not in names}
    if settings.search is not None:
        base = _with_searched(base, settings.search, source)
    study = Study(source, settings, _chains(base, settings, source))
    for chain in study.cells:
        register(*chain.recipe.declared)
        study.baseline_of(chain)  # raises where the baseline's keys do not fit the recipe
    if settings.search is not None:
        _refuse_search(study)
    claims = checked_claims(settings.claims, _facts(study), source)
    return replace(study, settings=settings.model_copy(update={"claims": claims}))


def _facts(study: Study) -> StudyFacts:
    settings = study.settings
    return StudyFacts(
        recipes=[cell.recipe.flat() for cell in study.cells],
        metrics={metric for cell in study.cells for metric in cell.recipe.metrics},
        criteria=[criterion.metric for criterion in settings.collapse],
        generations=study.generations_asked,
        searched=searched_keys(settings.model_dump(include={"search"})),
    )


def _with_searched(base: Mapping[str, Any], search: Search, source: str) -> dict[str, Any]:
    """The recipe with the lowest value of each searched key that it leaves out: it need not be given twice."""
    known = {key for kind in _recipe_types(base, source) for key in all_keys(kind)}
    given = flatten(dict(base))
    missing = {key: value for key, value in search.corners[0].items() if key not in given}
    return _apply(base, {key: value for key, value in missing.items() if key.rpartition(".")[2] in known})


def _refuse_search(study: Study) -> None:
    """Raises :class:`UserError` where the study's search does not fit it, or its range leads out of a recipe's."""
    settings, search = study.settings, study.settings.search
    assert search is not None
    refuse_search(
        search,
        [cell.recipe.flat() for cell in study.cells],
        list(settings.vary),
        settings.collapse,
        is_baseline=any(study.baseline_of(cell) == cell.recipe for cell in study.cells),
        source=study.source,
    )
    for cell in study.cells:
        for values in search.corners:
            study.probe(cell, values, cell.recipe.seed)


def _check_top_level(content: Mapping[str, Any], source: str) -> None:
    recipes: list[type[BaseModel]] = [Recipe, *_recipe_types(content, source)]
    known = list(dict.fromkeys([*StudySettings.model_fields, *(key for kind in recipes for key in kind.model_fields)]))
    for key in content:
        if key not in known:
            raise UserError(f"{source}: {key}: unknown key{hint(str(key), known)}")


def _recipe_types(content: Mapping[str, Any], source: str) -> list[type[Recipe]]:
    """The classes of recipe that a study's family, or the families it varies, ask for."""
    vary = content.get("vary")
    asked: list[Mapping[str, Any]] = [{"family": {"kind": kind}} for kind in _values(vary, "family.kind")]
    asked += [{"family": family} for family in _values(vary, "family")]
    return [_recipe_type(one, source) for one in asked or [content]]


def _values(vary: Any, key: str) -> list[Any]:
    values = vary.get(key) if isinstance(vary, Mapping) else None
    return values if isinstance(values, list) else []


def _recipe_type(content: Mapping[str, Any], source: str) -> type[Recipe]:
    found = recipe_type(content)
    if found is not None:
        return found
    family = content.get("family")
    if not isinstance(family, Mapping) or "kind" not in family:
        where = "family" if family is None else "family.kind"
        raise UserError(f"{source}: {where}: this key is needed and missing (kinds: {', '.join(FAMILIES)})")
    kind = family["kind"]
    raise UserError(
        f"{source}: family.kind: there is no family {kind!r}{hint(str(kind), FAMILIES)}; "
        "a family of your own is named module:Class"
    )


def _chains(base: Mapping[str, Any], settings: StudySettings, source: str) -> tuple[Chain, ...]:
    columns = varied_keys(settings.model_dump(include={"vary", "search", "baseline"}))
    cells = _Cells(base, settings.vary, source)
    chains = []
    for values in itertools.product(*settings.vary.values()):
        recipe, flat = cells.recipe(dict(zip(settings.vary, values, strict=True)))
        chains.append(Chain(recipe, {column: flat.get(column) for column in columns}))
    ids = Counter(chain.chain_id for chain in chains)
    for chain in chains:
        if ids[chain.chain_id] > 1:
            raise UserError(f"{source}: vary: the same chain comes out twice ({chain.label}); give each value once")
    return tuple(chains)


class _Cells:
    """The recipes of a grid: each cell checked once, however many thousand seeds it has."""

    def __init__(self, base: Mapping[str, Any], vary: Mapping[str, Any], source: str) -> None:
        self._base, self._vary, self._source = base, vary, source
        self._known: dict[str, tuple[Recipe, dict[str, Any]]] = {}

    def recipe(self, values: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
        """The recipe with ``values`` put in, and its flat form."""
        others = {key: value for key, value in values.items() if key != "seed"}
        cell = repr(others)  # not a hash of JSON: a value that is none must reach the check
        if cell not in self._known:
            recipe = _resolve(self._source, _apply(self._base, others), self._vary)
            self._known[cell] = (recipe, recipe.flat())
        recipe, flat = self._known[cell]
        if "seed" not in values:
            return recipe, flat
        seed = validated(_Seed, {"seed": values["seed"]}, self._source, ["seed"]).seed
        return recipe.model_copy(update={"seed": seed}), {**flat, "seed": seed}


def _shared(sections: Sequence[Mapping[str, Any]], varied: Collection[str]) -> dict[str, Any]:
    """What all sections have in common, but the ``varied`` dotted keys: a recipe's defaults are among it though the
    recipe is only whole once varied."""
    shared: dict[str, Any] = {}
    for key in sections[0]:
        if key in varied or not all(key in section for section in sections):
            continue
        values = [section[key] for section in sections]
        if all(isinstance(value, dict) for value in values):
            below = [one.removeprefix(f"{key}.") for one in varied if one.startswith(f"{key}.")]
            shared[key] = _shared(values, below)
        elif all(value == values[0] for value in values):
            shared[key] = values[0]
    return shared


def _apply(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``content`` with values put in at dotted keys; sections on the way are made where they lack."""
    result = deepcopy(dict(content))
    for dotted, value in changes.items():
        *sections, last = dotted.split(".")
        place = result
        for section in sections:
            inner = place.get(section)
            place[section] = inner if isinstance(inner, dict) else {}
            place = place[section]
        place[last] = deepcopy(value)
    return result


def _whole_sections(changes: Mapping[str, Any]) -> dict[str, Any]:
    """``{"loss.kind": "cross_entropy"}`` as ``{"loss": {"kind": "cross_entropy"}}``: a new kind keeps no old keys."""
    sections: dict[str, Any] = {}
    for dotted, value in changes.items():
        section, _, rest = dotted.partition(".")
        if rest == "kind":
            sections = {section: {"kind": value}, **sections}
        else:
            sections[dotted] = value
    return sections


def _resolve(source: str, content: Mapping[str, Any], vary: Iterable[str] = ()) -> Recipe:
    return validated(_recipe_type(content, source), content, source, vary)
