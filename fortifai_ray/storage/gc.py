"""``fortifai gc``: which stages no study needs any more, and their removal.

Stages are shared by all the studies of a storage, so a study's folder can be removed at any time, and its stages stay.
A study needs the stages that its sweeps requested from the store (:mod:`fortifai_ray.storage.store`), wherever they ran
and however they ended. Two kinds of stage are kept even if no study needs them: those being computed, and those younger
than an hour.

Nobody ever finds half a stage. Where the storage is a folder, a stage is removed under its lock. On an object store the
epoch is changed first, so that every machine looks again for what it believed to be there, and the manifest goes before
the files.
"""

import fcntl
import json
import os
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from fortifai_ray.errors import UserError
from fortifai_ray.storage.lease import FOLDER as LEASES
from fortifai_ray.storage.links import remove_dead_links
from fortifai_ray.storage.local import DAMAGED, LOCKS, PARTIAL
from fortifai_ray.storage.location import STAGES, Storage, reserved
from fortifai_ray.storage.objects import Entry, Objects, connect
from fortifai_ray.storage.remote import KNOWN, new_epoch
from fortifai_ray.storage.stage import MANIFEST
from fortifai_ray.storage.store import RUNNING, SIGN_OF_LIFE, USES
from fortifai_ray.validation import parse_yaml

MIN_AGE = 1.0  # hours
_SILENT = 10 * SIGN_OF_LIFE  # seconds: a process on an object store that was silent for this long has ended
_AT_ONCE = 16

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Removal:
    """A folder to remove from ``stages/``: a stage of some kind of step, or the remains of one."""

    name: str
    kind: str
    size: int


@dataclass(frozen=True)
class GcPlan:
    """What ``fortifai gc`` would do.

    ``kept`` are the studies whose stages stay, including those that are ``running``; ``stages`` and ``size`` (bytes)
    count what they need; ``young`` counts stages that nobody needs but that are too young to be removed; ``removals``
    are the rest.
    """

    storage: Storage
    kept: Sequence[str]
    running: Sequence[str]
    stages: int
    size: int
    young: int
    removals: Sequence[Removal]

    @property
    def freed(self) -> int:
        """Bytes that would be freed."""
        return sum(removal.size for removal in self.removals)


def plan_gc(directory: str | Path, keep: Sequence[str] = (), min_age: float = MIN_AGE) -> GcPlan:
    """Plan to remove what no study under ``directory`` needs; with ``keep``, what no study named or running needs.

    Nothing written within the last ``min_age`` hours is removed. Raises :class:`UserError` where there is no storage,
    no study of a name in ``keep``, or no record of what a study needs.
    """
    storage = Storage.of(directory)
    with remover(storage) as at:
        studies = _studies(at)
        for name in keep:
            if name not in studies:
                raise UserError(
                    f"--keep {name}: there is no such study under {storage} ({', '.join(studies) or 'none'})"
                )
        running = at.running()
        kept = _with_sources(at.objects, sorted({*(keep or studies), *running}), studies)
        # Listed before the uses are read: a stage that comes into use from now on is not listed, or its use is seen.
        stages = _stage_files(at.objects)
        needed, busy, now = _needed(at, kept), at.busy(stages), at.clock()
        idle = {name: files for name, files in stages.items() if name not in needed and name not in busy}
        old = {n: files for n, files in idle.items() if now - max(f.modified for f in files) >= min_age * 3600}
        kinds = at.each(lambda name: _kind(at.objects, name, old[name]), old)
    removals = [Removal(name, kind, _size(old[name])) for name, kind in zip(old, kinds, strict=True)]
    staying = [files for name, files in stages.items() if name in needed]
    size = sum(_size(files) for files in staying)
    return GcPlan(storage, kept, running, len(staying), size, len(idle) - len(old), removals)


def collect(plan: GcPlan) -> GcPlan:
    """Carry out the plan; returns it with what was actually removed: a stage that has come into use stays."""
    with remover(plan.storage) as at:
        gone = at.remove([removal.name for removal in plan.removals], plan.kept)
        at.forget({*plan.kept, *_studies(at)})
    remove_dead_links({_hash(name) for name in gone})
    return replace(plan, removals=[removal for removal in plan.removals if removal.name in gone])


def print_gc(plan: GcPlan, done: bool, console: Console) -> None:
    """Print a line for each kind of step, and what stays."""
    table = Table()
    for column in ("step", "stages", "size"):
        table.add_column(column, justify="left" if column == "step" else "right")
    sizes: dict[str, list[int]] = defaultdict(list)
    for removal in plan.removals:
        sizes[removal.kind].append(removal.size)
    for kind, each in sorted(sizes.items(), key=lambda item: -sum(item[1])):
        table.add_row(kind, str(len(each)), decimal(sum(each)))
    table.add_row("all", str(len(plan.removals)), decimal(plan.freed))
    title = f"{'Removed' if done else 'Would be removed'} from {plan.storage}:"
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    names = ", ".join(f"{name} (running)" if name in plan.running else name for name in plan.kept) or "none"
    lines = [f"Kept: {plan.stages} stages, {decimal(plan.size)}, that these studies need: {names}"]
    if plan.young:
        lines.append(f"Left for now: {plan.young} stages that no study needs, too young to be removed")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _studies(at: "Remover") -> list[str]:
    names = [name for name in at.objects.folders("") if not reserved(name)]
    there = at.each(lambda name: at.objects.exists(f"{name}/study.yaml"), names)
    return [name for name, is_there in zip(names, there, strict=True) if is_there]


def _with_sources(objects: Objects, kept: Sequence[str], studies: Collection[str]) -> list[str]:
    """The studies to keep, and those whose text they train on (``corpus.written_by``), which each sweep reads."""
    wanted, names = list(kept), set(kept)
    for name in wanted:
        content = objects.read(f"{name}/study.yaml")
        for source in _written_by(parse_yaml(content, f"{name}/study.yaml")) if content else ():
            written = Path(source).name
            if written in studies and written not in names:
                names.add(written)
                wanted.append(written)
    return sorted(wanted)


def _written_by(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        source = value.get("written_by")
        if isinstance(source, dict) and isinstance(source.get("study"), str):
            yield source["study"]
        yield from (source for inner in value.values() for source in _written_by(inner))
    elif isinstance(value, list):
        yield from (source for inner in value for source in _written_by(inner))


def _needed(at: "Remover", kept: Sequence[str]) -> set[str]:
    """The hashes of every stage that a study to be kept has requested."""
    recorded = at.recorded()
    for name in kept:
        if name not in recorded and not _is_history(at.objects, name):
            raise UserError(
                f"{at.storage}/{name}: there is no record of the stages that this study needs; sweep it again (nothing "
                "that is stored is recomputed), name the studies to keep with --keep, or remove its folder"
            )
    return at.used_by(kept)


def _is_history(objects: Objects, name: str) -> bool:
    """Whether a study's chains ran elsewhere (``fortifai analyse``): it has no stages."""
    content = parse_yaml(objects.read(f"{name}/study.yaml") or b"", f"{name}/study.yaml")
    return isinstance(content, dict) and "history" in content


def _stage_files(objects: Objects) -> dict[str, list[Entry]]:
    """The files of each stage, and of partial and damaged ones, by their folder's name below ``stages/``."""
    files: dict[str, list[Entry]] = defaultdict(list)
    for entry in objects.entries(STAGES, recursive=True):
        parts = entry.name.split("/")[1:]
        depth = 2 if parts[0] in (PARTIAL, DAMAGED) else 1
        if len(parts) > depth and (depth == 2 or not parts[0].startswith(".")):
            files["/".join(parts[:depth])].append(entry)
    return files


def _kind(objects: Objects, name: str, files: Sequence[Entry]) -> str:
    if name.startswith("."):
        return "half-written" if name.startswith(PARTIAL) else "damaged"
    if not any(file.name == f"{STAGES}/{name}/{MANIFEST}" for file in files):
        return "half-written"
    try:
        return str(json.loads(objects.read(f"{STAGES}/{name}/{MANIFEST}") or b"")["kind"])
    except (ValueError, KeyError):
        return "damaged"


def _size(files: Sequence[Entry]) -> int:
    return sum(file.size for file in files)


@contextmanager
def remover(storage: Storage) -> Iterator["Remover"]:
    """A :class:`Remover` for the storage. Raises :class:`UserError` where it holds no stages."""
    if storage.remote:
        objects: Objects = connect(storage.uri)
    else:
        objects = Objects(fs.LocalFileSystem(), str(storage.folder.absolute()))
    if STAGES not in objects.folders(""):
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
        """``call`` each item, several at a time: on an object store each call is a round trip."""
        return list(self.pool.map(call, items))

    def clock(self) -> float:
        """The time on the storage's own clock (s), which also dates its files."""
        name = f"{STAGES}/.clock-{uuid.uuid4().hex}"
        self.objects.write(name, b"now")
        (now,) = (entry.modified for entry in self.objects.entries(STAGES) if entry.name == name)
        self.objects.delete(name)
        return now

    def recorded(self) -> list[str]:
        """The studies whose uses of stages are recorded."""
        return self.objects.folders(f"{STAGES}/{USES}")

    def used_by(self, studies: Sequence[str]) -> set[str]:
        """The hashes of the stages that any of ``studies`` has requested."""
        uses = self.each(lambda name: self.objects.entries(f"{STAGES}/{USES}/{name}"), studies)
        return {entry.name.rpartition("/")[2] for entries in uses for entry in entries}

    def running(self) -> list[str]:
        """The studies that are being swept now."""
        raise NotImplementedError

    def busy(self, names: Collection[str]) -> set[str]:
        """Those of ``names`` that are being computed or assembled now."""
        raise NotImplementedError

    def remove(self, names: Sequence[str], kept: Sequence[str]) -> set[str]:
        """Remove stages, except those that a study in ``kept`` or a running one now uses; returns those removed."""
        raise NotImplementedError

    def forget(self, studies: Collection[str]) -> None:
        """Remove the records of all studies but these and the running ones."""
        for name in set(self.recorded()) - {*studies, *self.running()}:
            self.objects.delete_folder(f"{STAGES}/{USES}/{name}")


class _FolderRemover(Remover):
    def running(self) -> list[str]:
        return [name for name in self.recorded() if _is_locked(self._folder / USES / name / RUNNING)]

    def busy(self, names: Collection[str]) -> set[str]:
        return {n for n in names if not n.startswith(DAMAGED) and _is_locked(self._folder / LOCKS / _hash(n))}

    def remove(self, names: Sequence[str], kept: Sequence[str]) -> set[str]:
        return {name for name in names if self._removed(name, kept)}

    @property
    def _folder(self) -> Path:
        return self.storage.folder / STAGES

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
        signs = {f"{STAGES}/{USES}/{name}/{RUNNING}": name for name in self.recorded()}
        entries = self.each(lambda name: self.objects.entries(f"{STAGES}/{USES}/{name}"), list(signs.values()))
        alive = {entry.name for each in entries for entry in each if now - entry.modified < _SILENT}
        return [name for sign, name in signs.items() if sign in alive]

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
        self.objects.delete(f"{STAGES}/{name}/{MANIFEST}")  # first: without it the stage counts as missing
        self.objects.delete_folder(f"{STAGES}/{name}")

    def _trim_cache(self, names: Sequence[str]) -> None:
        """Remove the same from this machine's cache, and the manifests that it keeps."""
        stages = self.storage.folder / STAGES
        for name in (*names, KNOWN, DAMAGED):
            shutil.rmtree(stages / name, ignore_errors=True)


def _hash(name: str) -> str:
    """The stage's hash, from ``HASH``, ``.partial/HASH-…`` or ``.damaged/HASH-…``."""
    return name.rpartition("/")[2].partition("-")[0]


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a file lock unless another process holds it; yields whether this one does."""
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
