"""What a program gives where the command line would give text: as that text, or one line on what is wrong."""

from collections.abc import Mapping, Sequence, Set
from os import PathLike
from typing import Any, TypeVar

from fortifai_ray.errors import UserError

Values = Sequence[str] | Mapping[str, Any]
_Path = TypeVar("_Path")


def texts(value: Any, what: str) -> list[str]:
    """One text or several as a list. Raises UserError for anything else; ``what`` is the argument's name."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, Sequence) or not all(isinstance(one, str) for one in listed):
        raise UserError(f"{what}: a text or a list of texts is needed, not {value!r}")
    return list(listed)


def path_of(value: _Path, what: str, needed: str) -> _Path:
    """The value, if it is a path. Raises UserError if not."""
    if not isinstance(value, str | PathLike):
        raise UserError(f"{what}: {needed} is needed, not {value if value is None else type(value).__name__}")
    return value


def whole(value: Any, what: str) -> int:
    """The value as a whole number, NumPy's too. Raises UserError for anything else."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, bool | str) or number != value:
        raise UserError(f"{what}: a whole number is needed, not {value!r}")
    return number


def plain_values(value: Any) -> Any:
    """The same of YAML's types: ranges, tuples, sets, arrays and series are lists, their numbers Python's; a loss and
    other sections are mappings."""
    if isinstance(value, Mapping):
        return {key: plain_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain_values(inner) for inner in value]
    if isinstance(value, Set):
        return plain_values(sorted(value, key=str))
    for method in ("tolist", "to_list", "model_dump"):  # of NumPy, pandas and torch; of Polars; of a section
        if not isinstance(value, type) and callable(convert := getattr(value, method, None)):
            return plain_values(convert())
    return str(value) if isinstance(value, PathLike) else value


def overrides(values: Values | None) -> list[str]:
    """``KEY=VALUE`` of each value to put in, as after ``--set``.

    Raises:
        UserError: a value is of a type that a study file cannot hold.
    """
    from yaml import YAMLError

    from fortifai_ray.validation import dump_yaml

    if not isinstance(values, Mapping):
        return texts(values or (), "set")
    lines = []
    for key, value in values.items():
        try:
            text = dump_yaml(plain_values(value), flow=True)
        except YAMLError:
            raise UserError(f"set {key}: a number, a text, a list or a mapping is needed, not {value!r}") from None
        lines.append(f"{key}={text.strip().removesuffix('...').strip()}")
    return lines
