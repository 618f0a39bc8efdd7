"""A stage: its key and hash, its files' checksums, and the errors for one that is missing or lost."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
Compute = Callable[[Path], Mapping[str, Any]]
OnWait = Callable[[float], None]


class NotStored(Exception):
    """The store lacks a step that must not be computed here."""


class StageLost(NotStored):
    """The files of a stage turned out to be damaged or gone when they were fetched.

    The store has set it aside: the next request for the step finds it missing, and computes it.
    """


def canonical_hash(value: Any) -> str:
    """SHA-256 (first 32 hex digits) of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class StageKey:
    """Everything that determines a step: its kind, the version of the code that computes it, and its inputs.

    ``inputs`` is JSON; another stage enters it by its hash, so that a key fixes the whole history behind it.
    ``cheap``: it takes milliseconds, and its files are small. They are not forced onto the disk, which takes as long;
    if the power fails, the checksums tell.
    """

    kind: str
    version: int
    inputs: Mapping[str, Any]
    cheap: bool = False

    @cached_property
    def hash(self) -> str:
        return canonical_hash({"kind": self.kind, "version": self.version, "inputs": self.inputs})


@dataclass(frozen=True)
class Stage:
    """A completed step: where its files are, and the small results in its manifest (``outputs``).

    ``where`` is the folder, or a function that fetches the files into one when they are first needed.
    """

    hash: str
    where: Path | Callable[[], Path]
    outputs: Mapping[str, Any]
    reused: bool = field(default=True, compare=False)

    @property
    def path(self) -> Path:
        """The local folder of the stage's files. Raises :class:`StageLost` where they are lost."""
        return self.where if isinstance(self.where, Path) else self.where()


def first_damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first of a manifest's ``files`` that is missing from ``folder`` or altered; None where all are intact."""
    return next((name for name, expected in files.items() if not is_intact(folder / name, expected)), None)


def stays_inside(name: str) -> bool:
    """Whether a file's name, as read from a storage, stays inside the folder that it is written into."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def is_intact(path: Path, expected: Mapping[str, Any]) -> bool:
    """Whether a file exists with the ``size`` and the ``sha256`` that its manifest gives."""
    return path.is_file() and path.stat().st_size == expected["size"] and file_sha256(path) == expected["sha256"]
