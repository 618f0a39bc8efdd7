"""Which study asked for which stage: written down when it asks, and what ``fortifai gc`` goes by.

No table of results names every step of a study (a baseline's generation 0, a fit that diverged, a probe of a search),
and no replay elsewhere is sure to ask for the same ones (other engines, other paths). So the store writes
``stages/.uses/STUDY/HASH``, an empty file, before it looks for a stage. A study that is running is told from one that
has ended by a shared file lock on ``.running``, which the kernel lets go; on an object store by that file's age.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a storage in a folder does without pyarrow's filesystems
    from fortifai_ray.storage.objects import Objects

USES, RUNNING = ".uses", ".running"
SIGN_OF_LIFE = 60.0  # seconds between two


class LocalUses:
    """The uses of one study in ``folder`` (``stages/.uses/STUDY``). Holding one marks the study as running."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._running = os.open(folder / RUNNING, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._running, fcntl.LOCK_SH)  # waits at most for gc's own look at it

    def __del__(self) -> None:
        os.close(self._running)

    def record(self, stage_hash: str) -> None:
        """The study needs the stage."""
        (self._folder / stage_hash).touch()

    def alive(self) -> None:
        """Nothing: the lock says it."""


class RemoteUses:
    """The uses of one study on an object store; ``known`` is a folder here of what was recorded already."""

    def __init__(self, objects: "Objects", study: str, known: Path) -> None:
        self._objects, self._at, self._known = objects, f"stages/{USES}/{study}", known / study
        self._told = float("-inf")
        self.alive()

    def record(self, stage_hash: str) -> None:
        """The study needs the stage."""
        self.alive()
        here = self._known / stage_hash
        if not here.exists():
            self._objects.write(f"{self._at}/{stage_hash}", b"")
            here.parent.mkdir(parents=True, exist_ok=True)  # gc may have emptied what is known here
            here.touch()

    def alive(self) -> None:
        """The study is running: said once a minute at most."""
        now = time.monotonic()
        if now - self._told > SIGN_OF_LIFE:
            self._objects.write(f"{self._at}/{RUNNING}", b"")
            self._told = now
