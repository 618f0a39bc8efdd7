"""Files on any of pyarrow's filesystems, under one root. Every call is tried again while the service is busy."""

import logging
import posixpath
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyarrow import fs
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

log = logging.getLogger(__name__)

PATIENCE = 300.0  # seconds: an object store that throttles for minutes is waited for
_LONGEST_PAUSE = 15.0
_CHUNK = 8 << 20  # bytes
# What asking again does not change. Everything else without an errno comes from the network or the service.
_FINAL = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "NO_SUCH_BUCKET",
    "NO_SUCH_KEY",
    "EXPIRED_TOKEN",
    "HTTP status 400",
    "HTTP status 401",
    "HTTP status 403",
    "HTTP status 301",
)

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A file: its name below the root, its size in bytes, and when it was written by the service's own clock (s)."""

    name: str
    size: int
    modified: float


def is_transient(error: BaseException, final: tuple[str, ...] = ()) -> bool:
    """Whether asking again may help: throttling, a 5xx, a timeout, a connection lost; never what the disk here says."""
    if not isinstance(error, OSError) or error.errno is not None:
        return False
    return not any(word in str(error) for word in (*_FINAL, *final))


class Objects:
    """Files under ``root`` on ``filesystem``, by their names below it.

    A call that fails for a reason that may pass is made again, with growing random pauses, for ``patience`` seconds;
    after that, or where asking again is no use (an error with one of the words ``final`` in it), pyarrow's own
    ``OSError`` is raised.
    """

    def __init__(
        self, filesystem: fs.FileSystem, root: str, patience: float = PATIENCE, final: tuple[str, ...] = ()
    ) -> None:
        self._filesystem, self._root, self._patience, self._final = filesystem, root.rstrip("/"), patience, final

    def read(self, name: str) -> bytes | None:
        """A small file's content; None where there is no such file."""

        def read() -> bytes | None:
            try:
                with self._filesystem.open_input_stream(self._at(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._tried(f"read {name}", read)

    def write(self, name: str, content: bytes, patience: float | None = None) -> None:
        """Write a small file: it is there whole or not at all."""

        def write() -> None:
            with self._filesystem.open_output_stream(self._at(name)) as stream:
                stream.write(content)

        self._tried(f"write {name}", write, patience)

    def upload(self, file: Path, name: str) -> None:
        """A file here, to there: whole or not at all, unless it is being written by another process too."""

        def upload() -> None:
            # pyarrow's own copy_files is no use here: it drops an error of the last request, which ends the upload.
            with file.open("rb") as source, self._filesystem.open_output_stream(self._at(name)) as target:
                shutil.copyfileobj(source, target, _CHUNK)

        self._tried(f"upload {name}", upload)

    def download(self, name: str, file: Path) -> None:
        """A file there, to here. Raises ``FileNotFoundError`` where there is none."""

        def download() -> None:
            with self._filesystem.open_input_stream(self._at(name)) as source, file.open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)

        self._tried(f"download {name}", download)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        info = self._tried(f"look for {name}", lambda: self._filesystem.get_file_info(self._at(name)))
        return bool(info.type == fs.FileType.File)

    def entries(self, folder: str, recursive: bool = False) -> list[Entry]:
        """The files of a folder, sorted by name; none where there is no such folder."""
        selector = fs.FileSelector(self._at(folder), allow_not_found=True, recursive=recursive)
        found = self._tried(f"list {folder}", lambda: self._filesystem.get_file_info(selector))
        entries = [
            Entry(info.path[len(self._root) :].lstrip("/"), info.size, (info.mtime_ns or 0) / 1e9)
            for info in found
            if info.type == fs.FileType.File
        ]
        return sorted(entries, key=lambda entry: entry.name)

    def folders(self, folder: str) -> list[str]:
        """The names of a folder's own folders, sorted."""
        selector = fs.FileSelector(self._at(folder), allow_not_found=True)
        found = self._tried(f"list {folder}", lambda: self._filesystem.get_file_info(selector))
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    def delete(self, name: str) -> None:
        """Remove a file; nothing where there is none."""

        def delete() -> None:
            try:
                self._filesystem.delete_file(self._at(name))
            except FileNotFoundError:
                return

        self._tried(f"delete {name}", delete)

    def delete_folder(self, folder: str) -> None:
        """Remove a folder and everything in it; nothing where there is none."""

        def delete() -> None:
            try:
                self._filesystem.delete_dir(self._at(folder))
            except FileNotFoundError:
                return

        self._tried(f"delete {folder}", delete)

    def move(self, source: str, target: str) -> None:
        """Give a file another name; nothing where there is none."""

        def move() -> None:
            try:
                self._filesystem.move(self._at(source), self._at(target))
            except FileNotFoundError:
                return
            except OSError as error:
                if "NO_SUCH_KEY" not in str(error):
                    raise

        self._tried(f"move {source}", move)

    def _at(self, name: str) -> str:
        return posixpath.join(self._root, name) if name else self._root

    def _tried(self, what: str, call: Callable[[], T], patience: float | None = None) -> T:
        def tell(state: RetryCallState) -> None:
            if state.attempt_number == 1 and state.outcome is not None:
                log.warning("storage: could not %s, trying again: %s", what, _first_line(state.outcome.exception()))

        return Retrying(
            retry=retry_if_exception(lambda error: is_transient(error, self._final)),
            wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_PAUSE),
            stop=stop_after_delay(self._patience if patience is None else patience),
            before_sleep=tell,
            reraise=True,
        )(call)


def _first_line(error: BaseException | None) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
