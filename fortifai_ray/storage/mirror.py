"""A study's results on an object store: written into a local folder, uploaded after each write, fetched to be read.

A study's folder (``study.yaml``, ``results/*.parquet``, ``report.html``) is small and is written by one process, the
driver of its sweep: so it is kept whole locally, and changes are uploaded. Files whose names begin with a dot are
half-written or scratch, and are not uploaded.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from fortifai_ray.errors import UserError
from fortifai_ray.storage.location import Storage, split_study
from fortifai_ray.storage.stage import stays_inside

log = logging.getLogger(__name__)

_TRANSFERS = 8


class StudyMirror:
    """The local folder of study ``name``, and its copy on ``storage``; in a storage that is a folder they are one."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.folder = storage.folder / name
        self._name = name
        self._sent: dict[str, tuple[int, int]] = {}
        self._pushed = float("-inf")
        self._objects = None
        if storage.remote:
            from fortifai_ray.storage.objects import connect

            self._objects = connect(storage.uri)

    def push(self, at_most_every: float = 0.0) -> int:
        """Upload the files that changed since the last time; returns how many. What was removed here goes there, too.

        With ``at_most_every``, it does nothing within that many seconds of the last push, and only logs where the
        storage does not answer: for files that will be pushed again. Without it, raises ``OSError`` in that case.
        """
        objects = self._objects
        if objects is None or time.monotonic() - self._pushed < at_most_every:
            return 0
        files = self._files()
        changed = {name: state for name, state in files.items() if self._sent.get(name) != state}
        gone = self._sent.keys() - files.keys()
        try:
            self._each(lambda name: objects.upload(self.folder / name, f"{self._name}/{name}"), changed)
            self._each(lambda name: objects.delete(f"{self._name}/{name}"), gone)
        except OSError as error:
            if not at_most_every:
                raise
            log.warning("the results of %s could not be uploaded and will be retried: %s", self._name, error)
            return 0
        finally:
            self._pushed = time.monotonic()
        self._sent = files
        return len(changed)

    def fetch(self) -> bool:
        """Bring the local folder up to date with the storage; returns whether the study exists there."""
        if self._objects is None:
            return (self.folder / "study.yaml").is_file()
        objects, prefix = self._objects, f"{self._name}/"
        names = [e.name.removeprefix(prefix) for e in objects.entries(self._name, recursive=True)]
        names = [name for name in names if stays_inside(name)]
        for name in names:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        self._each(lambda name: objects.download(prefix + name, self.folder / name), names)
        files = self._files()
        for name in files.keys() - set(names):
            if name.startswith("results/"):  # part files that were merged into their table since
                (self.folder / name).unlink()
        self._sent = {name: state for name, state in files.items() if name in names}
        return "study.yaml" in names

    def _each(self, transfer: Callable[[str], None], names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(transfer, names))  # raises the first error

    def _files(self) -> dict[str, tuple[int, int]]:
        files = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                state = path.stat()
                files[name.as_posix()] = (state.st_size, state.st_mtime_ns)
        return files


@contextmanager
def opened_study(study: str | Path, *, push: bool = True) -> Iterator[Path]:
    """The local folder of a study, fetched from ``s3://BUCKET/PREFIX/NAME``; with ``push``, changes are uploaded at the
    end.

    Raises :class:`UserError` where the address holds no study.
    """
    place = Storage.of(study)
    if not place.remote:
        yield place.folder
        return
    storage, name = split_study(study)
    mirror = StudyMirror(storage, name)
    if not mirror.fetch():
        raise UserError(f"{storage.uri}/{name}: there is no study there; give STORAGE/NAME of one that has run")
    yield mirror.folder
    if push:
        mirror.push()
