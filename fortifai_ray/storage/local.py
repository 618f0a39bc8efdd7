"""Stages in a folder: a local disk, or one that machines share.

A step is computed aside and renamed into place with its manifest already inside, so that a stage exists whole or not
at all, whatever kills the process. Processes that want the same missing step take turns, by a file lock that the kernel
releases when its holder dies.
"""

import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fortifai_ray.errors import UserError
from fortifai_ray.storage.stage import MANIFEST, Compute, OnWait, Stage, StageKey, file_sha256, first_damage

log = logging.getLogger(__name__)

LOCKS, PARTIAL, DAMAGED = ".locks", ".partial", ".damaged"


class LocalStages:
    """The stages in ``folder``; ``source`` is the storage as the user named it.

    Raises :class:`UserError` where the folder cannot be created or written.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self._verified: set[str] = set()
        try:
            for each in (folder, folder / LOCKS, folder / PARTIAL):
                each.mkdir(parents=True, exist_ok=True)
            probe = folder / f".write-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"--storage {source}: cannot be written ({error.strerror}); give a folder that can") from (
                error
            )

    def open(self, stage_hash: str) -> Stage | None:
        """The stage if it exists and is whole. A damaged one is set aside, reported, and counts as missing."""
        folder = self.folder / stage_hash
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            self.set_aside(stage_hash, "its manifest cannot be read")
            return None
        if stage_hash not in self._verified:
            damaged = first_damage(folder, manifest["files"])
            if damaged is not None:
                self.set_aside(stage_hash, f"{damaged} is missing or altered")
                return None
            self._verified.add(stage_hash)
        return Stage(stage_hash, folder, manifest["outputs"])

    def folders(self) -> set[str]:
        """The names of the stages that there are, and of a few other folders."""
        return {entry.name for entry in os.scandir(self.folder)}

    def path(self, stage_hash: str) -> Path:
        """The folder of a stage that this process has opened or computed."""
        assert stage_hash in self._verified, f"stage {stage_hash} was not opened before"
        return self.folder / stage_hash

    def step(self, key: StageKey, compute: Compute, on_wait: OnWait) -> Stage:
        """The stage of a missing key, computed here or by a process that has begun already."""
        with self.lock(key.hash, on_wait):
            stage = self.open(key.hash)  # another process may have finished it while this one waited
            return stage if stage is not None else self.compute(key, compute)

    def compute(self, key: StageKey, compute: Compute) -> Stage:
        """Compute a step whose lock this process holds."""
        with self.aside(key.hash) as partial:
            outputs = dict(compute(partial))
            self._write_manifest(partial, key, outputs)
            self.put_in_place(partial, key.hash, durable=not key.cheap)
        return Stage(key.hash, self.folder / key.hash, outputs, reused=False)

    @contextmanager
    def aside(self, stage_hash: str) -> Iterator[Path]:
        """An empty folder in which to assemble a stage, under its lock; removed where that fails."""
        for name in os.listdir(self.folder / PARTIAL):
            if name.startswith(f"{stage_hash}-"):  # this process holds the lock, so its writer is dead
                shutil.rmtree(self.folder / PARTIAL / name, ignore_errors=True)
        partial = self.folder / PARTIAL / f"{stage_hash}-{uuid.uuid4().hex}"
        partial.mkdir()
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def put_in_place(self, partial: Path, stage_hash: str, *, durable: bool = True) -> None:
        """Rename a complete folder, manifest included, to be the stage; ``durable``: whatever becomes of the power."""
        if durable:
            for path in (*partial.rglob("*"), partial):
                _fsync(path)
        partial.rename(self.folder / stage_hash)
        if durable:
            _fsync(self.folder)
        self._verified.add(stage_hash)

    def set_aside(self, stage_hash: str, why: str) -> None:
        """Move a damaged stage out of the way, for inspection; ``fortifai gc`` removes it."""
        log.warning("stage %s is damaged (%s): it is set aside and will be recomputed", stage_hash, why)
        self.move_aside(stage_hash)

    def move_aside(self, stage_hash: str) -> None:
        """Move a stage out of the way."""
        aside = self.folder / DAMAGED
        aside.mkdir(exist_ok=True)
        self._verified.discard(stage_hash)
        try:
            (self.folder / stage_hash).rename(aside / f"{stage_hash}-{uuid.uuid4().hex[:8]}")
        except FileNotFoundError:
            return  # another process was faster

    @contextmanager
    def lock(self, name: str, on_wait: OnWait) -> Iterator[None]:
        """Hold a step's lock; ``on_wait`` receives the seconds waited so far."""
        started = time.monotonic()
        descriptor = os.open(self.folder / LOCKS / name, os.O_CREAT | os.O_RDWR)
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

    def _write_manifest(self, folder: Path, key: StageKey, outputs: Mapping[str, Any]) -> None:
        files = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            files[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
        manifest = {
            "hash": key.hash,
            "kind": key.kind,
            "code_version": key.version,
            "inputs": key.inputs,
            "files": files,
            "outputs": outputs,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **({"cheap": True} if key.cheap else {}),
        }
        indent = None if key.cheap else 1  # to indent takes as long as the file's writing
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=indent, sort_keys=True))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
