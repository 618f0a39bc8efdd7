"""Stages on an object store, and a local folder in which they are computed and into which they are fetched.

A stage exists once its manifest does, which is uploaded last; each file is compared with its checksum when it is
fetched. Manifests are cached locally, so that a stage is looked up on the network once; files are fetched when they are
first needed, so that a finished sweep is recognised without moving a model. Each file costs two requests, and a replay
reads the samples of every generation: so the manifest has a stage's small files inside, too (base64), and what is not
there, or not intact there, is fetched.

The cache is valid for one *epoch*, a name kept in the storage: gc changes it before it removes stages there. In a new
epoch everything is looked up again, and a stage that only this machine still has is uploaded.
"""

import base64
import json
import logging
import os
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fortifai_ray.files import write_bytes
from fortifai_ray.storage.lease import Leases
from fortifai_ray.storage.local import LocalStages
from fortifai_ray.storage.objects import Objects
from fortifai_ray.storage.stage import (
    MANIFEST,
    Compute,
    OnWait,
    Stage,
    StageKey,
    StageLost,
    first_damage,
    is_intact,
    stays_inside,
)

log = logging.getLogger(__name__)

KNOWN, EPOCH = ".known", "stages/.epoch"
_TRANSFERS = 8  # files at a time
_INSIDE = 256 << 10  # bytes of files that travel in a manifest, the smallest first
_INSIDE_CHEAP = 4 << 20  # of a cheap stage, whose files everybody wants who looks it up
_LOOK_UPS = 32  # manifests at a time: small ones, each of which waits for the network


class RemoteStages:
    """The stages under ``objects``, with ``local`` as their cache."""

    def __init__(self, objects: Objects, local: LocalStages, leases: Leases) -> None:
        self.objects, self._local, self._leases = objects, local, leases
        self.known = local.folder / KNOWN / _epoch(objects)
        self._whole: set[str] = set()  # fetched or computed, and verified, by this process

    def open(self, stage_hash: str) -> Stage | None:
        """The stage if its manifest exists; its files are fetched and checked when they are first needed.

        A stage that is whole here but was never fully uploaded (its process was killed) is uploaded now.
        """
        manifest = self._manifest(stage_hash)
        if manifest is None and (self._local.folder / stage_hash).is_dir():
            with self._local.lock(stage_hash, lambda seconds: None):  # it may be on its way already
                manifest = self._finish_upload(stage_hash)
        return None if manifest is None else self._stage(stage_hash, manifest)

    def folders(self) -> set[str]:
        """The names of the stages that there are, and of a few other folders: a request for each thousand."""
        return set(self.objects.folders("stages"))

    def look_up(self, hashes: Iterable[str]) -> None:
        """Fetch the manifests of many stages side by side; those that do not exist count as missing, as ever."""

        def look_up(stage_hash: str) -> None:  # and forget it: many manifests with their files are gigabytes
            self._manifest(stage_hash)

        unknown = [one for one in hashes if not (self.known / f"{one}.json").exists()]
        with ThreadPoolExecutor(_LOOK_UPS) as pool:
            list(pool.map(look_up, unknown))

    def path(self, stage_hash: str) -> Path:
        """The local folder of a stage that this process has opened or computed, its files fetched.

        Raises :class:`StageLost` where they are damaged, which sets the stage aside, or where the stage has gone.
        """
        folder = self._local.folder / stage_hash
        if stage_hash in self._whole:
            return folder
        manifest = self._manifest(stage_hash)
        if manifest is None:
            raise StageLost(f"use stage {stage_hash}, which is not in the storage any more")
        with self._local.lock(stage_hash, lambda seconds: None):
            if folder.is_dir() and first_damage(folder, manifest["files"]) is not None:
                log.warning("the local copy of stage %s is damaged: it is fetched again", stage_hash)
                self._local.move_aside(stage_hash)
            if not folder.is_dir():
                self._fetch(stage_hash, manifest)
        self._whole.add(stage_hash)
        return folder

    def step(self, key: StageKey, compute: Compute, on_wait: OnWait) -> Stage:
        """The stage of a missing key, computed here and uploaded, or by a process that has begun already."""
        with self._local.lock(key.hash, on_wait):
            manifest = self._finish_upload(key.hash)
            if manifest is not None:
                return self._stage(key.hash, manifest)
            with self._leases.hold(key.hash, on_wait):
                manifest = self._manifest(key.hash)
                if manifest is not None:  # another machine finished it while this one waited
                    return self._stage(key.hash, manifest)
                self._local.compute(key, compute)
                return self._publish(key.hash)

    def _stage(self, stage_hash: str, manifest: Mapping[str, Any], reused: bool = True) -> Stage:
        return Stage(stage_hash, lambda: self.path(stage_hash), manifest["outputs"], reused=reused)

    def _manifest(self, stage_hash: str) -> dict[str, Any] | None:
        kept = self.known / f"{stage_hash}.json"
        try:
            return _parsed(kept.read_bytes())
        except FileNotFoundError:
            content = self.objects.read(_object(stage_hash, MANIFEST))
        if content is None:
            return None
        manifest = _parsed(content)
        if manifest is None:
            self._set_aside(stage_hash, [], "its manifest cannot be read")
            return None
        _write_whole(kept, content)
        return manifest

    def _finish_upload(self, stage_hash: str) -> dict[str, Any] | None:
        """The manifest of a stage, uploaded now where only this machine has it. The caller holds its local lock."""
        manifest = self._manifest(stage_hash)
        if manifest is not None or self._local.open(stage_hash) is None:
            return manifest
        log.info("stage %s exists only on this machine: it is uploaded", stage_hash)
        self._publish(stage_hash)
        return self._manifest(stage_hash)

    def _publish(self, stage_hash: str) -> Stage:
        """Upload a stage that is whole here, its manifest last; where another machine was faster, use its stage."""
        manifest = self._manifest(stage_hash)
        if manifest is not None:
            return self._stage(stage_hash, manifest)
        folder = self._local.folder / stage_hash
        content = (folder / MANIFEST).read_bytes()
        manifest = json.loads(content)
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(lambda n: self.objects.upload(folder / n, _object(stage_hash, n)), manifest["files"]))
        self.objects.write(_object(stage_hash, MANIFEST), _with_files(manifest, folder))
        _write_whole(self.known / f"{stage_hash}.json", content)
        self._whole.add(stage_hash)
        return self._stage(stage_hash, manifest, reused=False)

    def _fetch(self, stage_hash: str, manifest: Mapping[str, Any]) -> None:
        files = manifest["files"]
        with self._local.aside(stage_hash) as partial:
            inside = manifest.get("inside") or {}
            left = [name for name in files if not _unpacked(inside, name, partial / name, files[name])]
            damaged = self._fetch_files(stage_hash, {name: files[name] for name in left}, partial)
            if damaged:  # perhaps in transit: try once more
                damaged = self._fetch_files(stage_hash, {name: files[name] for name in damaged}, partial)
            if damaged:
                self._set_aside(stage_hash, list(files), f"{damaged[0]} is missing or altered")
                raise StageLost(f"use stage {stage_hash}, whose {damaged[0]} was damaged in the storage")
            local = {key: value for key, value in manifest.items() if key != "inside"}
            (partial / MANIFEST).write_text(json.dumps(local, indent=1, sort_keys=True))
            self._local.put_in_place(partial, stage_hash, durable=False)  # the storage has it

    def _fetch_files(self, stage_hash: str, files: Mapping[str, Any], folder: Path) -> list[str]:
        """Fetch files of a stage; returns those that are missing or altered."""
        if not files:
            return []

        def fetch(name: str) -> bool:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.objects.download(_object(stage_hash, name), target)
            except FileNotFoundError:
                return False
            return is_intact(target, files[name])

        with ThreadPoolExecutor(_TRANSFERS) as pool:
            intact = list(pool.map(fetch, files))
        return [name for name, is_whole in zip(files, intact, strict=True) if not is_whole]

    def _set_aside(self, stage_hash: str, files: list[str], why: str) -> None:
        """Move a stage out of the way, the manifest first: from then on it counts as missing."""
        log.warning("stage %s is damaged (%s): it is set aside and will be recomputed", stage_hash, why)
        (self.known / f"{stage_hash}.json").unlink(missing_ok=True)
        aside = f"stages/.damaged/{stage_hash}-{uuid.uuid4().hex[:8]}"
        for name in (MANIFEST, *files):
            self.objects.move(_object(stage_hash, name), f"{aside}/{name}")


def _with_files(manifest: Mapping[str, Any], folder: Path) -> bytes:
    """A manifest with the small files of its stage inside."""
    files, room = manifest["files"], _INSIDE_CHEAP if manifest.get("cheap") else _INSIDE
    inside = {}
    for name in sorted(files, key=lambda name: (files[name]["size"], name)):
        room -= files[name]["size"]
        if room < 0:
            break
        inside[name] = base64.b64encode((folder / name).read_bytes()).decode()
    return json.dumps({**manifest, "inside": inside}, sort_keys=True).encode()


def _unpacked(inside: Any, name: str, target: Path, expected: Mapping[str, Any]) -> bool:
    """Whether a file lay in its manifest, and is intact where it now is."""
    content = inside.get(name) if isinstance(inside, Mapping) else None
    if not isinstance(content, str):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.write_bytes(base64.b64decode(content, validate=True))
    except ValueError:
        return False
    return is_intact(target, expected)


def new_epoch(objects: Objects) -> str:
    """Begin another epoch: every machine will look up again what it has cached."""
    epoch = uuid.uuid4().hex
    objects.write(EPOCH, epoch.encode())
    return epoch


def _epoch(objects: Objects) -> str:
    content = objects.read(EPOCH)
    return content.decode() if content else new_epoch(objects)


def node_of(folder: Path) -> str:
    """The name of the processes that share this folder, and so its locks."""
    file = folder / ".node"
    if not file.exists():
        own = folder / f".node-{uuid.uuid4().hex}"
        own.write_text(uuid.uuid4().hex[:12])
        try:
            os.link(own, file)
        except FileExistsError:
            pass  # another process was faster: its name holds
        finally:
            own.unlink()
    return file.read_text()


def _object(stage_hash: str, name: str) -> str:
    return f"stages/{stage_hash}/{name}"


def _parsed(content: bytes) -> dict[str, Any] | None:
    """A manifest; None where it is malformed or names files outside its stage: its writer is not trusted."""
    try:
        manifest = json.loads(content)
    except ValueError:
        return None
    whole = isinstance(manifest, dict) and {"files", "outputs"} <= manifest.keys()
    return manifest if whole and all(stays_inside(name) for name in manifest["files"]) else None


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # gc may have emptied the cache
    write_bytes(path, content)
