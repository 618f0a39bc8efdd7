"""Removing stages: what is in use is left alone, and nobody ever finds half a stage.

Where the storage is a folder, a stage is removed under its lock. On an object store the epoch is changed first, so that
every machine looks again for what it believed to be there, and the manifest goes before the files.
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyarrow import fs

from fortifai_ray.errors import UserError
from fortifai_ray.storage.lease import FOLDER as LEASES
from fortifai_ray.storage.local import DAMAGED, LOCKS, PARTIAL
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.objects import Objects
from fortifai_ray.storage.remote import KNOWN, new_epoch
from fortifai_ray.storage.stage import MANIFEST
from fortifai_ray.storage.uses import RUNNING, SIGN_OF_LIFE, USES

_SILENT = 10 * SIGN_OF_LIFE  # seconds: a process on an object store that was not heard of for this long has ended
_AT_ONCE = 16
_STAGES = "stages"

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def remover(storage: Storage) -> Iterator["Remover"]:
    """What removes stages from a storage. Raises :class:`UserError` where there are none."""
    if storage.remote:
        from fortifai_ray.storage.connection import connect

        objects: Objects = connect(storage.uri)
    else:
        objects = Objects(fs.LocalFileSystem(), str(storage.folder.absolute()))
    if _STAGES not in objects.folders(""):
        raise UserError(f"{storage}: there are no stages there; give the storage of a sweep, e.g. runs")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield (_ObjectRemover if storage.remote else _FolderRemover)(storage, objects, pool)


@dataclass(frozen=True)
class Remover:
    """A storage as ``fortifai gc`` sees it. Names are those of folders below ``stages/``."""

    storage: Storage
    objects: Objects
    pool: ThreadPoolExecutor

    def each(self, call: Callable[[T], R], items: Collection[T]) -> list[R]:
        """``call`` of each, some at a time: on an object store each is a round trip."""
        return list(self.pool.map(call, items))

    def clock(self) -> float:
        """The time by the storage's own clock (s), which also dates its files."""
        name = f"{_STAGES}/.clock-{uuid.uuid4().hex}"
        self.objects.write(name, b"now")
        (now,) = (entry.modified for entry in self.objects.entries(_STAGES) if entry.name == name)
        self.objects.delete(name)
        return now

    def recorded(self) -> list[str]:
        """The studies whose uses of stages are recorded."""
        return self.objects.folders(f"{_STAGES}/{USES}")

    def used_by(self, studies: Sequence[str]) -> set[str]:
        """The hashes of the stages that any of ``studies`` has asked for."""
        uses = self.each(lambda name: self.objects.entries(f"{_STAGES}/{USES}/{name}"), studies)
        return {entry.name.rpartition("/")[2] for entries in uses for entry in entries}

    def running(self) -> list[str]:
        """The studies that a sweep is at just now."""
        raise NotImplementedError

    def busy(self, names: Collection[str]) -> set[str]:
        """Those of ``names`` that are being computed or put together just now."""
        raise NotImplementedError

    def remove(self, names: Sequence[str], kept: Sequence[str]) -> set[str]:
        """Remove stages, but for what a study in ``kept``, or one that began meanwhile, has come to use; which went."""
        raise NotImplementedError

    def forget(self, studies: Collection[str]) -> None:
        """Remove the records of all studies but these and the running ones."""
        for name in set(self.recorded()) - {*studies, *self.running()}:
            self.objects.delete_folder(f"{_STAGES}/{USES}/{name}")


class _FolderRemover(Remover):
    def running(self) -> list[str]:
        return [name for name in self.recorded() if _is_locked(self._folder / USES / name / RUNNING)]

    def busy(self, names: Collection[str]) -> set[str]:
        return {n for n in names if not n.startswith(DAMAGED) and _is_locked(self._folder / LOCKS / _hash(n))}

    def remove(self, names: Sequence[str], kept: Sequence[str]) -> set[str]:
        return {name for name in names if self._removed(name, kept)}

    @property
    def _folder(self) -> Path:
        return self.storage.folder / _STAGES

    def _removed(self, name: str, kept: Sequence[str]) -> bool:
        with _locked(self._folder / LOCKS / _hash(name)) as is_free:
            if not is_free or any((self._folder / USES / s / name).exists() for s in {*kept, *self.running()}):
                return False
            aside = self._folder / PARTIAL / f"{_hash(name)}-{uuid.uuid4().hex}"
            (self._folder / name).rename(aside)  # at once: nobody finds half a stage
            shutil.rmtree(aside, ignore_errors=True)
        return True


class _ObjectRemover(Remover):
    def running(self) -> list[str]:
        now = self.clock()
        signs = {f"{_STAGES}/{USES}/{name}/{RUNNING}": name for name in self.recorded()}
        entries = self.each(lambda name: self.objects.entries(f"{_STAGES}/{USES}/{name}"), list(signs.values()))
        heard = {entry.name for each in entries for entry in each if now - entry.modified < _SILENT}
        return [name for sign, name in signs.items() if sign in heard]

    def busy(self, names: Collection[str]) -> set[str]:
        now = self.clock()
        tickets = [entry.name for entry in self.objects.entries(LEASES) if now - entry.modified < _SILENT]
        leased = {ticket.rpartition("/")[2].partition(".")[0] for ticket in tickets}
        return {name for name in names if _hash(name) in leased}

    def remove(self, names: Sequence[str], kept: Sequence[str]) -> set[str]:
        if not names:
            return set()
        new_epoch(self.objects)
        used = self.used_by(sorted({*kept, *self.running()})) | self.busy(names)
        gone = [name for name in names if name not in used]
        self.each(self._remove, gone)
        self._trim_cache(gone)
        return set(gone)

    def _remove(self, name: str) -> None:
        self.objects.delete(f"{_STAGES}/{name}/{MANIFEST}")  # first: without it the stage counts as missing
        self.objects.delete_folder(f"{_STAGES}/{name}")

    def _trim_cache(self, names: Sequence[str]) -> None:
        """Remove the same from this machine's cache, and what it believed before."""
        stages = self.storage.folder / _STAGES
        for name in (*names, KNOWN, DAMAGED):
            shutil.rmtree(stages / name, ignore_errors=True)


def _hash(name: str) -> str:
    """The stage of ``HASH``, ``.partial/HASH-…`` or ``.damaged/HASH-…``."""
    return name.rpartition("/")[2].partition("-")[0]


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a file lock, if nobody else does."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except BlockingIOError:
            is_free = False
        yield is_free
    finally:
        os.close(descriptor)


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with _locked(path) as is_free:
        return not is_free
