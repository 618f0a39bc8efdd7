"""What a stage is: its key, its hash, its files' checksums, and what is left to say of one that has gone."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
Compute = Callable[[Path], Mapping[str, Any]]
OnWait = Callable[[float], None]


class NotStored(Exception):
    """A step that the store does not hold, where it must not be computed."""


class StageLost(NotStored):
    """A stage that was found, and whose files turned out damaged or gone when they were fetched.

    The store has set it aside: whoever asks for the step again finds it missing, and computes it.
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
    """What determines a step: its kind, the version of the code that computes it, and its inputs.

    ``inputs`` is JSON; another stage enters it by its hash, so that a key fixes the whole history behind it.
    """

    kind: str
    version: int
    inputs: Mapping[str, Any]

    @property
    def hash(self) -> str:
        return canonical_hash({"kind": self.kind, "version": self.version, "inputs": self.inputs})


@dataclass(frozen=True)
class Stage:
    """A completed step: where its files are, and the small results in its manifest (``outputs``).

    ``where`` is the folder, or what brings the files into one when they are first wanted.
    """

    hash: str
    where: Path | Callable[[], Path]
    outputs: Mapping[str, Any]
    reused: bool = field(default=True, compare=False)

    @property
    def path(self) -> Path:
        """The local folder of the stage's files. Raises :class:`StageLost` where they cannot be had any more."""
        return self.where if isinstance(self.where, Path) else self.where()


def first_damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first of a manifest's ``files`` that is not in ``folder`` as it was written; None where all are."""
    return next((name for name, expected in files.items() if not is_intact(folder / name, expected)), None)


def stays_inside(name: str) -> bool:
    """Whether a file's name, as a storage gives it, stays in the folder that it is put into."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def is_intact(path: Path, expected: Mapping[str, Any]) -> bool:
    """Whether a file is there with the ``size`` and the ``sha256`` that its manifest gives."""
    return path.is_file() and path.stat().st_size == expected["size"] and file_sha256(path) == expected["sha256"]
