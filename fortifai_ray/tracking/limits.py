"""What MLflow accepts (``mlflow.utils.validation``), and how everything is made to fit it.

A key that MLflow would refuse becomes one that it takes, with a hash of the whole name so that no two become one; a
value that is too long is cut, and says so; a request holds no more than it may.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

Kind = Literal["metrics", "params", "tags"]

_KEY = 250  # characters of a key
_CLEANED = 200  # of a key that was made to fit: a tag NAME_TAG + key must fit, too
_RUN_NAME = 250
_PARAM = 6000
_TAG = 8000
_ENTRIES: Mapping[Kind, int] = {"metrics": 1000, "params": 100, "tags": 100}  # of a request
_BYTES = 900_000  # of a request, which may have a million
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # the same request would be refused again
NAME_TAG = "fortifai.name."  # and a key that was made to fit: a tag with the whole name


@lru_cache(maxsize=10_000)
def key(name: str) -> str:
    """The key under which MLflow holds a parameter, metric or tag ``name``: itself wherever MLflow takes it.

    It takes letters, digits, ``_ - . : /`` and spaces, at most 250, that make a relative path without detours.
    """
    cleaned = re.sub(r"[^/\w.\- :]", "_", name)
    path = posixpath.normpath(f"/{cleaned}").lstrip("/")
    path = path.lstrip("./") if path.startswith("..") else path
    if name and cleaned == name == path and len(name) <= _KEY:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{path[:_CLEANED] or 'name'}-{digest}"


def whole_names(names: Iterable[str]) -> dict[str, str]:
    """The tags that tell the whole names of those whose keys are others."""
    return {NAME_TAG + key(name): name for name in names if key(name) != name}


def param_value(value: object, whole_in: str) -> str:
    """A parameter's text; where it is cut, it says that ``whole_in`` has all of it."""
    return _cut(as_text(value), _PARAM, f"… (cut: whole in {whole_in})")


def tag_value(value: object) -> str:
    return _cut(as_text(value), _TAG, "… (cut)")


def run_name(label: str) -> str:
    return _cut(_storable(label), _RUN_NAME, "…")


def as_text(value: object) -> str:
    """A value as text that every database takes."""
    return _storable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _storable(text: str) -> str:
    """Without NUL, which PostgreSQL refuses, and halves of surrogate pairs, which no encoding has."""
    return text.replace("\0", "␀").encode("utf-8", "replace").decode("utf-8")


def _cut(text: str, most: int, note: str) -> str:
    return text if len(text) <= most else text[: most - len(note)] + note


def batches(kind: Kind, entries: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Entries in requests of a size that MLflow takes."""
    start, size = 0, 0
    for index, entry in enumerate(entries):
        own = _size(entry)
        if index - start == _ENTRIES[kind] or (size + own > _BYTES and index > start):
            yield entries[start:index]
            start, size = index, 0
        size += own
    if entries[start:]:
        yield entries[start:]


def fit(entries: Mapping[Kind, Sequence[Any]]) -> bool:
    """Whether entries of several kinds fit into one request."""
    size = sum(_size(entry) for some in entries.values() for entry in some)
    return size <= _BYTES and all(len(some) <= _ENTRIES[kind] for kind, some in entries.items())


def _size(entry: Any) -> int:
    """Bytes of an entry in a request, with the names of its fields, a time and a step."""
    return len(json.dumps([entry.key, entry.value])) + 100


def is_refusal(error: BaseException) -> bool:
    """Whether MLflow refuses what was sent, for good: sending it again would be in vain."""
    return getattr(error, "error_code", None) in _REFUSALS
