"""The parts of a study file as models, and the one line that is said of content that does not fit them."""

import math
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from fortifai_ray.errors import UserError
from fortifai_ray.validation.documents import dump_yaml
from fortifai_ray.validation.keys import described_keys, hint, is_required, unknown_key

_FORMS = (
    "range",
    "list",
    "one criterion",
    "several criteria",
    "one number",
    "a law",
    "a graph",
    "a matrix",
)  # tags of unions that no file has
_LONGEST = 80  # characters of a value that a message shows
_NEEDED = {  # what is needed, by the type of pydantic's error
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a section with keys"),
    "string_type": "text",
    "literal_error": "{expected}",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number greater than or equal to {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number less than or equal to {le}",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
}
_TYPES = r"[A-Z]\w*|[\w-]+\[.*\]|str|int|float|bool|none"  # pydantic's names for the members of a union
_NO_SECTION = ("model_type", "model_attributes_type", "dict_type")  # pydantic's errors where a section is needed

_Checked = TypeVar("_Checked", bound=BaseModel)


class Section(BaseModel):
    """A part of a study file, or settings made of one: it never changes, and a key that it lacks is refused.

    Its numbers are finite, and no truth value stands for one: ``yes`` is not 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, content: Any) -> Any:
        for key, value in content.items() if isinstance(content, Mapping) else ():
            field = cls.model_fields.get(key) if isinstance(value, bool) else None
            if field is not None and _is_number(cast(Hashable, field.annotation)):
                raise mistake(cls.__name__, key, f"a number is needed, not {str(value).lower()}", value)
        return content


def mistake(section: str, key: str, message: str, given: Any) -> ValidationError:
    """A user's mistake at a key of a section, as pydantic reports its own."""
    # A message may contain braces, which would otherwise be read as a template.
    error = PydanticCustomError("value_error", "{message}", {"message": message})
    return ValidationError.from_exception_data(section, [InitErrorDetails(type=error, loc=(key,), input=given)])


def a_name(signs: str) -> AfterValidator:
    """Checks text that becomes a file's or a column's name: of a to z, A to Z, digits and ``signs``, none of the signs
    first."""

    def check(value: str) -> str:
        if re.fullmatch(f"[A-Za-z0-9][A-Za-z0-9{re.escape(signs)}]*", value):
            return value
        listed = " ".join(signs)
        raise ValueError(f"letters (a to z), digits and {listed} are allowed, a letter or digit first, not {value!r}")

    return AfterValidator(check)


@cache
def _is_number(annotation: Hashable) -> bool:
    """Whether an annotation admits a number and no truth value."""
    types = {annotation, *get_args(annotation)}
    types |= {inner for kind in types for inner in get_args(kind)}
    return bool({int, float} & types) and bool not in types


def validated(model: type[_Checked], content: Mapping[str, Any], source: str, vary: Iterable[str] = ()) -> _Checked:
    """``content`` as a ``model``. Errors are reported as coming from ``source``; those at keys in ``vary`` say so."""
    varied = set(vary)
    for place, number in _not_finite(content, ()):
        where = _named(_location(place, content), varied)
        raise UserError(f"{source}: {where}: a finite number is needed, not {number}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_error(error, model, content, varied)}") from None


def _not_finite(content: Any, place: tuple[int | str, ...]) -> Iterator[tuple[tuple[int | str, ...], float]]:
    """Numbers that are infinite or undefined, wherever they stand: also where a section takes anything."""
    if isinstance(content, float) and not math.isfinite(content):
        yield place, content
    items = content.items() if isinstance(content, Mapping) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from _not_finite(value, (*place, key))


def _first_error(error: ValidationError, model: type[BaseModel], content: Mapping[str, Any], vary: set[str]) -> str:
    place, wrong = first_mistake(error, model, content)
    places = {_location(each["loc"], content) for each in error.errors()}  # pydantic reports one for each form of a key
    more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    names_its_key = not place and re.match(r"[a-z_]+(\.\w+)*: ", wrong)  # of a check of several keys together
    return f"{wrong if names_its_key else f'{_named(place, vary)}: {wrong}'}{more}"


def first_mistake(error: ValidationError, model: type[BaseModel], content: Mapping[str, Any]) -> tuple[str, str]:
    """Where content does not fit a model, as a dotted key ("" for the whole), and what is said of it."""
    first = _telling(error.errors())
    location = _location(first["loc"], content)
    if not first["type"].startswith("union_tag"):
        return location, _complaint(first, location, model, content)
    tag = first["ctx"]["discriminator"].strip("'")
    return f"{location}.{tag}".lstrip("."), _wrong_tag(first["ctx"], first["input"].get(tag))


def _telling(errors: Sequence[Any]) -> Any:
    """The first error; but where a key is missing and another beside it is unknown, that one: it may be misspelled."""
    first = errors[0]
    beside = [one for one in errors if one["type"] == "extra_forbidden" and one["loc"][:-1] == first["loc"][:-1]]
    return beside[0] if beside and first["type"] == "missing" else first


def _named(location: str, vary: set[str]) -> str:
    varies = any(location == key or location.startswith(f"{key}.") for key in vary)
    return f"{location} (under vary)" if varies else location or "the recipe"


def _wrong_tag(context: Mapping[str, Any], given: Any) -> str:
    if "tag" not in context:
        return "this key is needed and missing"
    tags = context["expected_tags"].replace("'", "").split(", ")
    what = f"there is no {given}" if isinstance(given, str) else f"a name is needed, not {shown(given)}"
    return what + hint(context["tag"], tags)


def _complaint(error: Any, location: str, model: type[BaseModel], content: Mapping[str, Any]) -> str:
    """What follows the key in the message."""
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        key = str(error["loc"][-1])
        return unknown_key(key, location.removesuffix(key).rstrip("."), [model], content)
    if kind == "missing":
        return "this key is needed and missing"
    if (given is None or kind in _NO_SECTION) and location and (keys := described_keys(model, location)):
        wrong = "this section is empty" if given is None else f"a section with keys is needed, not {shown(given)}"
        leave = "" if is_required(model, location) or given is not None else "; or leave it out for its defaults"
        return f"{wrong}; it may hold {keys}{leave}"
    return _message(error)


def _message(error: Any) -> str:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "string_type" and isinstance(given, bool):
        return f"text is needed, not {str(given).lower()}: write it in quotes (YAML reads yes, no, on and off so, too)"
    if kind == "string_type" and isinstance(given, int | float):
        return f"text is needed, not the number {given}: write it in quotes"
    if kind == "literal_error" and isinstance(given, str):
        known = re.findall("'([^']*)'", context["expected"])
        return f"there is no {given!r}{hint(given, known)}"
    if kind in _NEEDED:
        limits = {key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}
        needed = _NEEDED[kind].format(**limits).replace("'", "")
        return f"{needed} is needed, not {context.get('actual_length', shown(given))}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if message.startswith("Input should be "):
        message = f"{message.removeprefix('Input should be ')} is needed"
    return message[0].lower() + message[1:] + (f", not {shown(given)}" if kind != "value_error" else "")


def shown(value: Any) -> str:
    """A value as a study file has it, if it is short; text in quotes, as its spaces may be the mistake."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    try:
        text = dump_yaml(value, flow=True).strip() if isinstance(value, list | dict) else repr(value)
    except yaml.YAMLError:  # an object of Python, not of a file
        text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def _location(parts: tuple[int | str, ...], content: Any) -> str:
    """The key as the file has it: pydantic's path also contains the tags of unions, and places in a list that stands
    for its one entry."""
    names: list[str] = []
    for part in parts:
        if isinstance(content, str | int | float):
            break
        tagged = isinstance(content, Mapping) and part in (content.get("kind"), content.get("task"))
        is_kind = tagged and not isinstance(content.get(part), dict)
        is_form = part in _FORMS and not _has(content, part)
        is_entry = isinstance(part, int) and not isinstance(content, list | tuple)
        is_type = isinstance(part, str) and re.fullmatch(_TYPES, part) and not _has(content, part)
        if is_form or is_kind or is_entry or is_type:
            continue
        names.append(str(part))
        content = content[part] if _has(content, part) else None
    return ".".join(names)


def _has(content: Any, part: int | str) -> bool:
    if isinstance(content, Mapping):
        return part in content
    return isinstance(content, list) and isinstance(part, int) and part < len(content)
