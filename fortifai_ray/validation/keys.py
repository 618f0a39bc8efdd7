"""The keys that a model has, at which places, and what an unknown one should have been; content at dotted keys."""

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

from pydantic import BaseModel

from fortifai_ray.validation.synonyms import KEYS, REMARKS_BY_NAME, WORDS, normalised

_DEEPEST = 6  # sections within sections
_MOST = 4  # places of one key that a message names
_LISTED = 40  # known words that a message lists
_TAGS = ("kind", "task")  # the keys that tell the forms of one section apart

Schema = Mapping[str, Any]


@cache
def _schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def all_keys(model: type[BaseModel]) -> list[str]:
    """Every key of a model and its parts."""
    schema = _schema(model)
    parts = [schema, *schema.get("$defs", {}).values()]
    return sorted({key for part in parts for key in part.get("properties", {})})


def keys_at(model: type[BaseModel], place: str, content: Any = None) -> list[str]:
    """The keys of a model at a dotted place: those of every form that the place may take.

    ``content``, the whole model's, decides between the forms as far as it says their ``kind`` or ``task``.
    """
    return sorted({key for form in _forms_at(model, place, content) for key in form.get("properties", {})})


def described_keys(model: type[BaseModel], place: str) -> str:
    """The keys that may stand at a dotted place, for a message: ``kind (replace, mixed), synthetic_ratio``."""
    forms = _forms_at(model, place, None)
    words = []
    for key in dict.fromkeys([*_TAGS, *keys_at(model, place)]):
        parts = [form["properties"][key] for form in forms if key in form.get("properties", {})]
        tags = dict.fromkeys(part["const"] for part in parts if "const" in part and key in _TAGS)
        words += [f"{key} ({', '.join(tags)})" if tags else key] * bool(parts)
    return ", ".join(words)


def is_required(model: type[BaseModel], place: str) -> bool:
    """Whether the key at a dotted place has no default."""
    section, _, key = place.rpartition(".")
    return any(key in form.get("required", ()) for form in _forms_at(model, section, None))


def _forms_at(model: type[BaseModel], place: str, content: Any) -> Sequence[Schema]:
    schema = _schema(model)
    known = schema.get("$defs", {})
    forms: Sequence[Schema] = _forms(schema, known)
    for name in filter(None, place.split(".")):
        content = _inside(content, name)
        parts = (form if name.isdigit() else form.get("properties", {}).get(name) for form in forms)
        forms = _of_kind([form for part in parts if part for form in _forms(part, known)], content)
    return forms


@cache
def dotted_keys(model: type[BaseModel]) -> tuple[str, ...]:
    """Every dotted key of a model, sections too; those of a list's entries without a place in the list."""
    schema = _schema(model)
    return tuple(dict.fromkeys(_walk(schema, schema.get("$defs", {}), "")))


def _walk(schema: Schema, known: Schema, prefix: str) -> Iterator[str]:
    if prefix.count(".") < _DEEPEST:
        for form in _forms(schema, known):
            for key, part in form.get("properties", {}).items():
                yield f"{prefix}{key}"
                yield from _walk(part, known, f"{prefix}{key}.")


def _forms(schema: Schema, known: Schema) -> list[Schema]:
    """The forms of a JSON schema, with references and alternatives resolved, and a list's entries for the list."""
    if "$ref" in schema:
        return _forms(known[schema["$ref"].rpartition("/")[2]], known)
    alternatives = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    if alternatives:
        return [form for part in alternatives for form in _forms(part, known)]
    entries = schema.get("items")
    return _forms(entries, known) if isinstance(entries, Mapping) else [schema]


def _of_kind(forms: Sequence[Schema], content: Any) -> Sequence[Schema]:
    """The forms of the kind that ``content`` asks for; all of them where it asks for none."""
    if not isinstance(content, Mapping):
        return forms
    for tag in _TAGS:
        tagged = [form for form in forms if form.get("properties", {}).get(tag, {}).get("const") == content.get(tag)]
        if tag in content and tagged:
            return tagged
    return forms


def _inside(content: Any, name: str) -> Any:
    if isinstance(content, Mapping):
        return content.get(name)
    if isinstance(content, list) and name.isdigit() and int(name) < len(content):
        return content[int(name)]
    return None


def unknown_key(key: str, place: str, models: Sequence[type[BaseModel]], content: Any = None) -> str:
    """What to say of an unknown ``key`` at a dotted ``place`` of the models that ``content`` is for.

    In this order: the same key spelled otherwise; the name that another tool gives to one of ours; a key of another
    place; a similar key here, then elsewhere; all keys of the place.
    """
    here = list(dict.fromkeys(name for model in models for name in keys_at(model, place, content)))
    everywhere = list(dict.fromkeys(name for model in models for name in dotted_keys(model)))
    if same := [name for name in here if normalised(name) == normalised(key)]:
        return f"unknown key; did you mean {same[0]}?"
    section = ".".join(name for name in place.split(".") if not name.isdigit())
    meant = [name for name in KEYS.get(normalised(key), ()) if _exists(name, everywhere)]
    if meant:
        beside = [last for name in meant if name == f"{section}.{(last := name.rpartition('.')[2])}" and last in here]
        return f"unknown key; did you mean {' or '.join((beside or meant)[:_MOST])}?"
    if remark := REMARKS_BY_NAME.get(normalised(key)):
        return f"unknown key; {remark}"
    others = [
        name for name in everywhere if name.rpartition(".")[0] != section
    ]  # what is at home here, another kind has
    elsewhere = [name for name in others if normalised(name.rpartition(".")[2]) == normalised(key)]
    if elsewhere and normalised(key) not in _TAGS:
        return f"unknown key here; its place is {' or '.join(elsewhere[:_MOST])}"
    if difflib.get_close_matches(key, here, n=1) or not everywhere:
        return f"unknown key{hint(key, here)}"
    leaves = {name.rpartition(".")[2]: name for name in reversed(others)}
    if close := difflib.get_close_matches(key, list(leaves), n=1, cutoff=0.85):
        return f"unknown key; did you mean {leaves[close[0]]}?"
    return f"unknown key{hint(key, here or sorted(leaves))}"


def _exists(name: str, everywhere: Sequence[str]) -> bool:
    """Whether the models have a dotted key; one under ``vary`` where they have ``vary``."""
    return name in everywhere or (name.startswith("vary.") and "vary" in everywhere)


def hint(word: str, known: Iterable[str], otherwise: str = "", *, listed: bool = True) -> str:
    """The end of a message about an unknown word: the known one that was meant, or else all of them, in their order,
    if they are to be ``listed``, and what there is to do ``otherwise``. Nothing follows it: it may end in a question.

    Known words may be dotted keys, of which the word is the last part.
    """
    names, plain = list(known), normalised(word)
    same = [name for name in names if normalised(name) == plain]
    meant = [name for name in (*WORDS.get(plain, ()), *KEYS.get(plain, ())) if name in names]
    inside = [name for name in names if normalised(name.rpartition(".")[2]) == plain]
    if close := [*same, *meant, *inside, *difflib.get_close_matches(word, names, n=1)]:
        return f"; did you mean {close[0]}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (f" (known: {', '.join(names[:_LISTED])}{more})" if names and listed else "") + otherwise


def put(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``content`` with values put in at dotted keys; missing sections on the way are added, and a number
    names an entry of a list."""
    result = deepcopy(dict(content))
    for dotted, value in changes.items():
        names = dotted.split(".")
        place: Any = result
        for name, below in itertools.pairwise(names):
            at = _at(place, name)
            inner = place.get(at) if isinstance(place, dict) else place[at]
            if not isinstance(inner, dict) and not _is_entry(inner, below):
                inner = place[at] = {}
            place = inner
        place[_at(place, names[-1])] = deepcopy(value)
    return result


def at(content: Any, key: str, otherwise: Any) -> Any:
    """The value at a dotted key; ``otherwise`` where there is none."""
    for name in key.split("."):
        if isinstance(content, dict) and name not in content:
            return otherwise
        content = content[_at(content, name)]
    return content


def _is_entry(place: Any, name: str) -> bool:
    """Whether a name of a dotted key is the number of an entry of a list, as in ``collapse.0.threshold``."""
    return isinstance(place, list) and name.isdecimal() and int(name) < len(place)


def _at(place: Any, name: str) -> Any:
    return int(name) if isinstance(place, list) else name


def leaves(content: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """The dotted keys of content that is no section itself; an empty section is a leaf."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{within}{key}.")
        else:
            yield f"{within}{key}"
