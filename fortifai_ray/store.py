"""The stage store: each completed step under the hash of everything that determines it.

``ROOT/stages/HASH/`` holds a step's files and a ``manifest.json`` (files, sizes, checksums, what determined it, what
it found). A step is computed aside and renamed into place with its manifest already inside, so that a stage exists
whole or not at all, whatever kills the process. Two processes that want the same missing step take turns by a file
lock that the kernel lets go when its holder dies: one computes, the other waits and finds it there.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fortifai_ray.errors import UserError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


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
    """A completed step: where its files are, and the small results in its manifest (``outputs``)."""

    hash: str
    path: Path
    outputs: Mapping[str, Any]
    reused: bool = field(default=True, compare=False)


class StageStore:
    """Stages in a local (or shared, POSIX) folder.

    Raises :class:`UserError` where the folder cannot be created or written.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._stages = self.root / "stages"
        self._verified: set[str] = set()
        try:
            for folder in (self._stages, self._stages / ".locks", self._stages / ".partial"):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self._stages / f".write-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"--storage {self.root}: cannot be written ({error.strerror}); give a folder that can"
            ) from error

    def find(self, key: StageKey) -> Stage | None:
        """The stage if it is there and whole. A damaged one is removed, reported, and counts as missing."""
        return self.open(key.hash)

    def open(self, stage_hash: str) -> Stage | None:
        """As :meth:`find`, for a process that was told the hash by one that had the key."""
        folder = self._stages / stage_hash
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            self._discard(folder, "its manifest is not readable")
            return None
        if stage_hash not in self._verified:
            for name, expected in manifest["files"].items():
                if not _is_intact(folder / name, expected):
                    self._discard(folder, f"{name} is not what was written")
                    return None
            self._verified.add(stage_hash)
        return Stage(stage_hash, folder, manifest["outputs"])

    def path(self, stage_hash: str) -> Path:
        """The folder of a stage that this process has found or computed."""
        assert stage_hash in self._verified, f"stage {stage_hash} was not asked for before"
        return self._stages / stage_hash

    def step(
        self,
        key: StageKey,
        compute: Callable[[Path], Mapping[str, Any]],
        on_wait: Callable[[float], None] = lambda seconds: None,
    ) -> Stage:
        """The stage of ``key``, computed by ``compute(folder) -> outputs`` if it is missing.

        ``compute`` writes files into the empty folder it is given and returns JSON. ``on_wait`` is called with the
        seconds waited so far while another process computes the same step.
        """
        stage = self.find(key)
        if stage is not None:
            return stage
        with self._lock(key.hash, on_wait):
            stage = self.find(key)  # somebody else may have finished it while this process waited
            return stage if stage is not None else self._compute(key, compute)

    def _compute(self, key: StageKey, compute: Callable[[Path], Mapping[str, Any]]) -> Stage:
        for leftover in (self._stages / ".partial").glob(f"{key.hash}-*"):
            shutil.rmtree(leftover, ignore_errors=True)  # this process holds the lock, so its writer is dead
        partial = self._stages / ".partial" / f"{key.hash}-{uuid.uuid4().hex}"
        partial.mkdir()
        try:
            outputs = dict(compute(partial))
            self._write_manifest(partial, key, outputs)
            final = self._stages / key.hash
            partial.rename(final)
            _fsync(self._stages)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._verified.add(key.hash)
        return Stage(key.hash, final, outputs, reused=False)

    def _write_manifest(self, folder: Path, key: StageKey, outputs: Mapping[str, Any]) -> None:
        files = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            _fsync(path)
            files[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
        manifest = {
            "hash": key.hash,
            "kind": key.kind,
            "code_version": key.version,
            "inputs": key.inputs,
            "files": files,
            "outputs": outputs,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        path = folder / MANIFEST
        path.write_text(json.dumps(manifest, indent=1, sort_keys=True))
        _fsync(path)
        _fsync(folder)

    def _discard(self, folder: Path, why: str) -> None:
        log.warning("stage %s is damaged (%s): it will be computed again", folder.name, why)
        shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _lock(self, name: str, on_wait: Callable[[float], None]) -> Iterator[None]:
        started = time.monotonic()
        descriptor = os.open(self._stages / ".locks" / name, os.O_CREAT | os.O_RDWR)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    on_wait(time.monotonic() - started)
                    time.sleep(0.1)
            yield
        finally:
            os.close(descriptor)


def _is_intact(path: Path, expected: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == expected["size"] and file_sha256(path) == expected["sha256"]


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
