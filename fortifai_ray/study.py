"""A study file: one recipe, what varies, and the criterion of collapse. Read, checked and spread into chains here.

Everything that can be wrong with it is found before anything starts, and told in one line: the file, the key, what
was given and what would be right.
"""

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fortifai_ray.errors import UserError
from fortifai_ray.fidelity import CollapseCriterion
from fortifai_ray.recipe import Recipe, flatten
from fortifai_ray.resources import ResourcesConfig


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _no_claims_yet(claims: list[Any]) -> list[Any]:
    if claims:
        raise ValueError("claims cannot be checked yet; leave them out")
    return claims


class StudySettings(BaseModel):
    """The keys of a study file beside the recipe's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    collapse: Annotated[list[CollapseCriterion], BeforeValidator(_as_list), Field(min_length=1)]
    baseline: dict[str, Any] = {"loss.kind": "cross_entropy"}
    claims: Annotated[list[Any], AfterValidator(_no_claims_yet)] = []
    resources: ResourcesConfig = ResourcesConfig()


@dataclass(frozen=True)
class Chain:
    """One point of the grid: a resolved recipe and the values of the varied keys in it."""

    recipe: Recipe
    varied: Mapping[str, Any]

    @cached_property
    def chain_id(self) -> str:
        return self.recipe.chain_id

    @property
    def label(self) -> str:
        """For people, e.g. ``loss.kind=tce loss.gamma=0.3 seed=0``; nothing is ever read back out of it."""
        return " ".join(f"{key}={value}" for key, value in self.varied.items() if value is not None) or "the recipe"


@dataclass(frozen=True)
class Study:
    """A checked study: its settings, the recipe as written, and its chains."""

    source: str
    settings: StudySettings
    base: Mapping[str, Any]
    chains: tuple[Chain, ...]

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def varied(self) -> list[str]:
        """Dotted keys that vary, as they appear as columns (the seed among them only if it varies)."""
        return list(self.chains[0].varied)

    @cached_property
    def generations_asked(self) -> int:
        """The longest chain's generations: the study's horizon is one less."""
        return max(chain.recipe.generations for chain in self.chains)

    def resolved(self) -> dict[str, Any]:
        """The study as resolved, defaults included: what ``STORAGE/NAME/study.yaml`` holds."""
        settings = self.settings.model_dump(mode="json")
        recipe = self.chains[0].recipe.model_dump(mode="json") if not self.settings.vary else dict(self.base)
        return {"name": settings.pop("name"), **recipe, **settings}

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
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a study file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
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
    settings = _validated(StudySettings, {k: v for k, v in content.items() if k in names}, source)
    base = {key: value for key, value in content.items() if key not in names}
    study = Study(source, settings, _resolved_base(base, settings, source), _chains(base, settings, source))
    for chain in study.chains:
        study.baseline_of(chain)  # raises where the baseline's keys do not fit the recipe
    return study


def _check_top_level(content: Mapping[str, Any], source: str) -> None:
    known = [*StudySettings.model_fields, *Recipe.model_fields]
    for key in content:
        if key not in known:
            raise UserError(f"{source}: {key}: unknown key{_suggest(str(key), known)}")


def _resolved_base(base: Mapping[str, Any], settings: StudySettings, source: str) -> dict[str, Any]:
    """The recipe with its defaults, before anything varies; as written where it is only whole once varied."""
    try:
        return Recipe.model_validate(base).model_dump(mode="json")
    except ValidationError:
        if not settings.vary:
            _resolve(source, base)
        return dict(base)


def _chains(base: Mapping[str, Any], settings: StudySettings, source: str) -> tuple[Chain, ...]:
    recipes = [
        _resolve(source, _apply(base, dict(zip(settings.vary, values, strict=True))), settings.vary)
        for values in itertools.product(*settings.vary.values())
    ]
    columns = _varied_columns(settings.vary)
    chains = []
    for recipe in recipes:
        flat = recipe.flat()
        chains.append(Chain(recipe, {column: flat.get(column) for column in columns}))
    ids = [chain.chain_id for chain in chains]
    for chain in chains:
        if ids.count(chain.chain_id) > 1:
            raise UserError(f"{source}: vary: the same chain comes out twice ({chain.label}); give each value once")
    return tuple(chains)


def _varied_columns(vary: Mapping[str, Iterable[Any]]) -> list[str]:
    columns: dict[str, None] = {}
    for key, values in vary.items():
        for value in values:
            columns |= dict.fromkeys(flatten(value, f"{key}.") if isinstance(value, dict) else [key])
    return list(columns)


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
    return _validated(Recipe, content, source, vary)


_Checked = TypeVar("_Checked", bound=BaseModel)


def _validated(model: type[_Checked], content: Mapping[str, Any], source: str, vary: Iterable[str] = ()) -> _Checked:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_error(error, model, content, set(vary))}") from None


def _first_error(error: ValidationError, model: type[BaseModel], content: Mapping[str, Any], vary: set[str]) -> str:
    errors = error.errors()
    first = errors[0]
    location = _location(first["loc"], content)
    varies = any(location == key or location.startswith(f"{key}.") for key in vary)
    where = f"{location} (under vary)" if varies else location
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key{_suggest(location.rpartition('.')[2], _all_keys(model))}{more}"
    if first["type"] == "union_tag_not_found":
        return f"{where}.kind: this key is needed and missing{more}"
    if first["type"] == "missing":
        return f"{where}: this key is needed and missing{more}"
    given = first["input"]
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) and first["type"] != "value_error" else ""
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{where}: {message[0].lower() + message[1:]}{shown}{more}"


def _location(parts: tuple[int | str, ...], content: Any) -> str:
    """The key as written: pydantic puts the tag of a tagged union into its path, which stands in no file."""
    names: list[str] = []
    for index, part in enumerate(parts):
        is_tag = isinstance(content, Mapping) and part not in content and content.get("kind") == part
        if is_tag and index < len(parts) - 1:
            continue
        names.append(str(part))
        content = content[part] if _has(content, part) else None
    return ".".join(names)


def _has(content: Any, part: int | str) -> bool:
    if isinstance(content, Mapping):
        return part in content
    return isinstance(content, list) and isinstance(part, int) and part < len(content)


def _all_keys(model: type[BaseModel]) -> list[str]:
    """Every key that a model or one of its parts knows."""
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return sorted({key for part in parts for key in part.get("properties", {})})


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f" (known keys: {', '.join(known)})"


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML, safely, and no key twice: PyYAML would silently keep the last."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
