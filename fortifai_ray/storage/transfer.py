"""Files on other nodes than the one that a chain runs on.

Ray places a chain's training workers and engines wherever there is room. Where the storage is a folder that all nodes
see, a path is enough. Where it is an object store, each node keeps what it has fetched in a folder of its own, and a
path means nothing on another node: there a stage travels as its hash (:class:`StageFiles`), and what a worker writes is
sent back to the node that asked for it (:func:`written_for`), where the stage is put together as ever.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.errors import UserError
from fortifai_ray.storage.store import Stage, StageLost, StageStore, Storage

if TYPE_CHECKING:
    import numpy as np

_CHUNK = 64 << 20  # bytes: much more than a message costs, little beside Ray's object store
_UNDER_WAY = 4  # chunks


@dataclass(frozen=True)
class StageFiles:
    """The folder of a stage, for a process on any node: sent to another process, it finds the files there."""

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
    stage = StageStore(replace(storage, study=None)).open(stage_hash)  # whoever sent it has recorded the use
    if stage is None:
        raise StageLost(f"use stage {stage_hash}, which is not in the storage any more")
    return stage.path


@contextmanager
def written_for(target: Path, node: str) -> Iterator[Path]:
    """Where to write what is wanted in ``target``, a folder on Ray's node ``node`` whose name is no other folder's.

    It is ``target`` itself where this process sees it: on that node, or in a storage that nodes share. Else it is a
    folder here, whose files are sent when the context ends without an error. Raises ``FileNotFoundError`` where
    ``target`` has gone meanwhile.
    """
    if target.is_dir():
        yield target
        return
    with tempfile.TemporaryDirectory(prefix="fortifai-") as folder:
        yield Path(folder)
        _send(Path(folder), target, node)


def _send(source: Path, target: Path, node: str) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    write = ray.remote(num_cpus=0)(_write).options(scheduling_strategy=there)
    pending: list[Any] = []
    for name, start, chunk in _chunks(source):
        if len(pending) == _UNDER_WAY:
            ray.get(pending.pop(0))
        pending.append(write.remote(target, name, start, chunk))
    ray.get(pending)


def _chunks(folder: Path) -> "Iterator[tuple[str, int, np.ndarray]]":
    """The files below ``folder`` piece by piece: name, offset in bytes, uint8 of shape (bytes,)."""
    import numpy as np

    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for start in range(0, max(1, path.stat().st_size), _CHUNK):  # an empty file too
            yield path.relative_to(folder).as_posix(), start, np.fromfile(path, np.uint8, _CHUNK, offset=start)


def _write(folder: Path, name: str, start: int, chunk: "np.ndarray") -> None:
    """A Ray task on the node of ``folder``; made again, it writes the same."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} has gone: whoever wanted {name} has ended")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+b") as file:
        file.seek(start)
        file.write(chunk.data)
