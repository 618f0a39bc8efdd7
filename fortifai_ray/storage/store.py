"""The stage store: each completed step under the hash of everything that determines it.

``STORAGE/stages/HASH/`` holds a step's files and a ``manifest.json`` (files, sizes, checksums, what determined it, its
results). A stage exists whole or not at all, whatever kills the process that makes it; damage is detected, and the
step recomputed; of several processes that want the same missing step, one computes it and the others wait. The storage
is a folder or an object store (:mod:`fortifai_ray.storage.local`, :mod:`fortifai_ray.storage.remote`).

Each study's use of a stage is recorded when it requests it, which is what ``fortifai gc`` goes by. No table of results
names every step of a study (a baseline's generation 0, a fit that diverged, a probe of a search), and no replay
elsewhere is sure to request the same ones (other engines, other paths). So the store writes
``stages/.uses/STUDY/HASH``, an empty file, before it looks for a stage. A shared file lock on ``.running``, which the
kernel releases, marks a study as running; on an object store, that file's age does.
"""

import fcntl
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.errors import UserError
from fortifai_ray.storage.local import LocalStages
from fortifai_ray.storage.location import STAGES, Storage
from fortifai_ray.storage.stage import (
    MANIFEST,
    Compute,
    NotStored,
    OnWait,
    Stage,
    StageKey,
    StageLost,
    canonical_hash,
    file_sha256,
)

if TYPE_CHECKING:  # a storage in a folder does without pyarrow's filesystems
    from fortifai_ray.storage.objects import Objects
    from fortifai_ray.storage.remote import RemoteStages

__all__ = [
    "MANIFEST",
    "Folder",
    "NotStored",
    "Stage",
    "StageFiles",
    "StageKey",
    "StageLost",
    "StageStore",
    "Storage",
    "canonical_hash",
    "file_sha256",
    "folder_here",
]


USES, RUNNING = ".uses", ".running"
SIGN_OF_LIFE = 60.0  # seconds between two


class StageStore:
    """The stages of a storage: a folder (local, or shared by machines), or the address of an object store.

    For a study (:meth:`Storage.for_study`), requests are recorded, and ``fortifai gc`` keeps those stages.
    Raises :class:`UserError` where the storage cannot be written.
    """

    def __init__(self, root: Storage | Path | str) -> None:
        self.storage = Storage.of(root)
        self._stages, self._uses = _backend(self.storage)

    def find(self, key: StageKey) -> Stage | None:
        """The stage if it exists and is whole. A damaged one is set aside, reported, and counts as missing."""
        return self.open(key.hash)

    def open(self, stage_hash: str) -> Stage | None:
        """As :meth:`find`, for a process that received the hash from one that had the key."""
        if self._uses is not None:
            self._uses.record(stage_hash)
        return self._stages.open(stage_hash)

    def has_all(self, hashes: Iterable[str]) -> bool:
        """Whether none of some stages has gone, and the study's use of each is recorded, by their names alone: whether
        they are intact is not looked at."""
        names = set(hashes)
        return names <= self._stages.folders() and (self._uses is None or names <= self._uses.listed())

    def recall(self, study: str) -> None:
        """Look up at once what a study has used so far, for a process that is about to open most of it.

        On an object store, a stage then costs the reading of its manifest (two requests), and many are read side by
        side; in a folder there is nothing to gain.
        """
        if not isinstance(self._stages, LocalStages):
            self._stages.look_up(_used_by(self._stages.objects, study, self._uses))

    def path(self, stage_hash: str) -> Path:
        """The local folder of a stage that this process has opened or computed.

        Raises :class:`StageLost` where its files on an object store are damaged or gone.
        """
        return self._stages.path(stage_hash)

    def step(self, key: StageKey, compute: Compute, on_wait: OnWait = lambda seconds: None) -> Stage:
        """The stage of ``key``, computed by ``compute(folder) -> outputs`` if it is missing.

        ``compute`` writes files into the empty folder that it receives and returns JSON. ``on_wait`` is called with the
        seconds waited so far while another process computes the same step.
        """
        stage = self.find(key)
        return stage if stage is not None else self._stages.step(key, compute, on_wait)


def _backend(storage: Storage) -> "tuple[LocalStages | RemoteStages, _LocalUses | _RemoteUses | None]":
    """What keeps the stages, and what records their use by a study."""
    folder, study = storage.folder / STAGES, storage.study
    if not storage.remote:
        local = LocalStages(folder, str(storage))
        return local, _LocalUses(folder / USES / study) if study else None
    from fortifai_ray.storage.lease import Leases
    from fortifai_ray.storage.objects import connect
    from fortifai_ray.storage.remote import RemoteStages, node_of

    objects = connect(storage.uri)
    local = LocalStages(folder, str(folder))
    leases = Leases(objects, node_of(folder))
    stages = RemoteStages(objects, local, leases)
    if study is None:
        return stages, None
    uses = _RemoteUses(objects, study, stages.known / USES)
    leases.on_beat = uses.alive
    return stages, uses


def _used_by(objects: "Objects", study: str, uses: "_LocalUses | _RemoteUses | None") -> set[str]:
    """The stages that a study has requested, by the storage's record, which ``uses`` then need not write again."""
    recorded = _recorded(objects, study) - {RUNNING}
    if isinstance(uses, _RemoteUses) and uses.study == study:
        uses.recorded = recorded
    return recorded


def _recorded(objects: "Objects", study: str) -> set[str]:
    """The names in the storage's record of a study's uses."""
    return {entry.name.rpartition("/")[2] for entry in objects.entries(f"{STAGES}/{USES}/{study}")}


class _LocalUses:
    """The uses of one study in ``folder`` (``stages/.uses/STUDY``). Holding one marks the study as running."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._running = os.open(folder / RUNNING, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._running, fcntl.LOCK_SH)  # waits at most until gc has looked at it

    def __del__(self) -> None:
        os.close(self._running)

    def record(self, stage_hash: str) -> None:
        """The study needs the stage."""
        (self._folder / stage_hash).touch()

    def listed(self) -> set[str]:
        """The stages whose use is recorded, and a few other names."""
        return {entry.name for entry in os.scandir(self._folder)}


class _RemoteUses:
    """The uses of one study on an object store; ``known`` is a local folder that lists what is recorded already."""

    def __init__(self, objects: "Objects", study: str, known: Path) -> None:
        self.study, self.recorded = study, set[str]()
        self._objects, self._at, self._known = objects, f"stages/{USES}/{study}", known / study
        self._marked = float("-inf")
        self.alive()

    def record(self, stage_hash: str) -> None:
        """The study needs the stage."""
        self.alive()
        here = self._known / stage_hash
        if stage_hash not in self.recorded and not here.exists():
            self._objects.write(f"{self._at}/{stage_hash}", b"")
            here.parent.mkdir(parents=True, exist_ok=True)  # gc may have emptied what is known here
            here.touch()

    def listed(self) -> set[str]:
        """The stages whose use is recorded, and a few other names."""
        return _recorded(self._objects, self.study)

    def alive(self) -> None:
        """Mark the study as running, once a minute at most."""
        now = time.monotonic()
        if now - self._marked > SIGN_OF_LIFE:
            self._objects.write(f"{self._at}/{RUNNING}", b"")
            self._marked = now


@dataclass(frozen=True)
class StageFiles:
    """The folder of a stage, for a process on any node: after being sent there, it finds the files there.

    Where the storage is a folder that all nodes see, a path is enough. Where it is an object store, each node keeps
    what it has fetched in a folder of its own, so a stage travels as its hash.
    """

    stage: Stage
    storage: Storage

    @property
    def path(self) -> Path:
        """The absolute path on this node, fetched and checked where the storage is an object store.

        Raises :class:`StageLost` where the stage has gone, :class:`UserError` where this node does not see the storage.
        """
        path = self.stage.path
        if not path.is_dir():
            raise UserError(
                f"--storage {self.storage}: a node of the cluster does not see it; give a folder that all nodes see, "
                "or an object store (s3://BUCKET/PREFIX)"
            )
        return path.absolute()

    def __reduce__(self) -> tuple[Any, ...]:
        shared = None if self.storage.remote else self.stage.path.absolute()
        return _elsewhere, (self.stage.hash, self.storage, shared)


Folder = Path | StageFiles


def folder_here(folder: Folder) -> Path:
    """The absolute path on this node of a folder that came with a call or a configuration."""
    return folder.path if isinstance(folder, StageFiles) else Path(folder).absolute()


def _elsewhere(stage_hash: str, storage: Storage, shared: Path | None) -> StageFiles:
    return StageFiles(Stage(stage_hash, shared or (lambda: _fetched(stage_hash, storage)), {}), storage)


@lru_cache(maxsize=8)  # an engine asks for the same weights at each call
def _fetched(stage_hash: str, storage: Storage) -> Path:
    stage = StageStore(replace(storage, study=None)).open(stage_hash)  # the sender has recorded the use
    if stage is None:
        raise StageLost(f"use stage {stage_hash}, which is not in the storage any more")
    return stage.path
