"""Reading and checking what a user wrote: YAML without duplicate keys, and one line for each mistake."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from fortifai_ray.errors import UserError

_Checked = TypeVar("_Checked", bound=BaseModel)


class Section(BaseModel):
    """A part of a study file, or settings made of one: it never changes, and a key that it lacks is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read_text(path: Path, what: str) -> str:
    """A text file's content; ``what`` it should be is for messages. Raises :class:`UserError`."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give {what}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error})") from error


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file; ``what`` it should be is for messages. Raises :class:`UserError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of {what}") from error
    return parse_yaml(content, str(path))


def parse_yaml(content: str | bytes, source: str) -> Any:
    """YAML without duplicate keys. Raises :class:`UserError` as coming from ``source``."""
    try:
        return yaml.load(content, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: is not valid YAML: {' '.join(str(error).split())}") from error


def validated(model: type[_Checked], content: Mapping[str, Any], source: str, vary: Iterable[str] = ()) -> _Checked:
    """``content`` as a ``model``. Errors are reported as coming from ``source``; those at keys in ``vary`` say so."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_error(error, model, content, set(vary))}") from None


def _first_error(error: ValidationError, model: type[BaseModel], content: Mapping[str, Any], vary: set[str]) -> str:
    errors = error.errors()
    first = errors[0]
    location = _location(first["loc"], content)
    varies = any(location == key or location.startswith(f"{key}.") for key in vary)
    where = f"{location} (under vary)" if varies else location or "the recipe"
    places = {_location(each["loc"], content) for each in errors}  # pydantic reports an error for each form of a key
    more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    if first["type"] == "extra_forbidden":
        place, _, key = location.rpartition(".")
        return f"{where}: unknown key{hint(key, keys_at(model, place) or all_keys(model))}{more}"
    if first["type"] == "union_tag_not_found":
        return f"{where}.kind: this key is needed and missing{more}"
    if first["type"] == "union_tag_invalid":
        key, tags = first["ctx"]["discriminator"].strip("'"), first["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{where}.{key}: there is no {first['ctx']['tag']}{hint(first['ctx']['tag'], tags)}{more}"
    if first["type"] == "missing":
        return f"{where}: this key is needed and missing{more}"
    given = first["input"]
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) and first["type"] != "value_error" else ""
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{where}: {message[0].lower() + message[1:]}{shown}{more}"


def _location(parts: tuple[int | str, ...], content: Any) -> str:
    """The key as the file has it: pydantic's path also contains the tags of unions."""
    names: list[str] = []
    for part in parts:
        if isinstance(content, str | int | float):
            break
        tagged = isinstance(content, Mapping) and part in (content.get("kind"), content.get("task"))
        is_kind = tagged and not isinstance(content.get(part), dict)
        is_form = part in ("range", "list") and not _has(content, part)
        if is_form or is_kind:
            continue
        names.append(str(part))
        content = content[part] if _has(content, part) else None
    return ".".join(names)


def _has(content: Any, part: int | str) -> bool:
    if isinstance(content, Mapping):
        return part in content
    return isinstance(content, list) and isinstance(part, int) and part < len(content)


def all_keys(model: type[BaseModel]) -> list[str]:
    """Every key of a model and its parts."""
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return sorted({key for part in parts for key in part.get("properties", {})})


def keys_at(model: type[BaseModel], place: str) -> list[str]:
    """The keys of a model at a dotted place: those of every form that the place may take."""
    schema = model.model_json_schema()
    known = schema.get("$defs", {})
    forms = _forms(schema, known)
    for name in filter(None, place.split(".")):
        parts = (form.get("items") if name.isdigit() else form.get("properties", {}).get(name) for form in forms)
        forms = [form for part in parts if part for form in _forms(part, known)]
    return sorted({key for form in forms for key in form.get("properties", {})})


def _forms(schema: Mapping[str, Any], known: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The forms of a JSON schema, with references and alternatives resolved."""
    if "$ref" in schema:
        return _forms(known[schema["$ref"].rpartition("/")[2]], known)
    alternatives = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    return [form for part in alternatives for form in _forms(part, known)] if alternatives else [schema]


def hint(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the most similar known one, or else all of them, in their order."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f" (known: {', '.join(names)})" if names else ""


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys, of which PyYAML would silently keep the last."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
