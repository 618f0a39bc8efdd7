"""The way to an object store: connecting to its address, and its files, by names below one root.

Every call is repeated while the service is busy. Credentials are those that the AWS SDK finds: the environment's, a
profile's, the instance's role. The endpoint is ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` where either is set:
pyarrow heeds them only for addresses that it parses itself, and there its retries cannot be set.
"""

import logging
import os
import posixpath
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pyarrow import fs
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from fortifai_ray.errors import UserError

log = logging.getLogger(__name__)

PATIENCE = 300.0  # seconds: an object store that throttles for minutes is waited for
_LONGEST_PAUSE = 15.0
_CHUNK = 8 << 20  # bytes
_ATTEMPTS = 5  # of the SDK, at each request, within those of Objects: a busy moment costs no second upload
_CONNECT_SECONDS = 5.0
_REQUEST_SECONDS = 60.0
# Errors that a retry does not mend. Everything else without an errno comes from the network or the service.
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
    """Whether a retry may help: throttling, a 5xx, a timeout, a lost connection; never an error of the local disk."""
    if not isinstance(error, OSError) or error.errno is not None:
        return False
    return not any(word in str(error) for word in (*_FINAL, *final))


class Objects:
    """Files under ``root`` on ``filesystem``, by their names below it.

    A call that fails for a transient reason is retried, with growing random pauses, for ``patience`` seconds; after
    that, or where a retry is useless (an error that contains one of the words ``final``), pyarrow's own ``OSError`` is
    raised.
    """

    def __init__(
        self, filesystem: fs.FileSystem, root: str, patience: float = PATIENCE, final: tuple[str, ...] = ()
    ) -> None:
        self._filesystem, self._root, self._patience, self._final = filesystem, root.rstrip("/"), patience, final

    def read(self, name: str) -> bytes | None:
        """A small file's content; None where there is no such file."""

        def read() -> bytes:
            with self._filesystem.open_input_file(self._at(name)) as file:  # a stream asks for each 256 KiB
                return bytes(file.read())

        try:
            return self._tried(f"read {name}", read)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes, patience: float | None = None) -> None:
        """Write a small file: it appears whole or not at all."""

        def write() -> None:
            with self._filesystem.open_output_stream(self._at(name)) as stream:
                stream.write(content)

        self._tried(f"write {name}", write, patience)

    def upload(self, file: Path, name: str) -> None:
        """Upload a local file: whole or not at all, unless another process is writing it too."""

        def upload() -> None:
            # pyarrow's own copy_files drops an error of the last request, which ends the upload.
            with file.open("rb") as source, self._filesystem.open_output_stream(self._at(name)) as target:
                shutil.copyfileobj(source, target, _CHUNK)

        self._tried(f"upload {name}", upload)

    def download(self, name: str, file: Path) -> None:
        """Download a file. Raises ``FileNotFoundError`` where there is none."""

        def download() -> None:
            with self._filesystem.open_input_stream(self._at(name)) as source, file.open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)

        self._tried(f"download {name}", download)

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        info = self._tried(f"look for {name}", lambda: self._filesystem.get_file_info(self._at(name)))
        return bool(info.type == fs.FileType.File)

    def entries(self, folder: str, recursive: bool = False) -> list[Entry]:
        """The files of a folder, sorted by name; none where there is no such folder."""
        selector = fs.FileSelector(self._at(folder), allow_not_found=True, recursive=recursive)
        listed = self._tried(f"list {folder}", lambda: self._filesystem.get_file_info(selector))
        entries = [
            Entry(info.path[len(self._root) :].lstrip("/"), info.size, (info.mtime_ns or 0) / 1e9)
            for info in listed
            if info.type == fs.FileType.File
        ]
        return sorted(entries, key=lambda entry: entry.name)

    def folders(self, folder: str) -> list[str]:
        """The names of a folder's direct subfolders, sorted."""
        selector = fs.FileSelector(self._at(folder), allow_not_found=True)
        listed = self._tried(f"list {folder}", lambda: self._filesystem.get_file_info(selector))
        return sorted(info.base_name for info in listed if info.type == fs.FileType.Directory)

    def delete(self, name: str) -> None:
        """Remove a file; nothing where there is none."""
        with suppress(FileNotFoundError):
            self._tried(f"delete {name}", lambda: self._filesystem.delete_file(self._at(name)))

    def delete_folder(self, folder: str) -> None:
        """Remove a folder and everything in it; nothing where there is none."""
        with suppress(FileNotFoundError):
            self._tried(f"delete {folder}", lambda: self._filesystem.delete_dir(self._at(folder)))

    def move(self, source: str, target: str) -> None:
        """Rename a file; nothing where there is none."""
        try:
            self._tried(f"move {source}", lambda: self._filesystem.move(self._at(source), self._at(target)))
        except FileNotFoundError:
            return
        except OSError as error:
            if "NO_SUCH_KEY" not in str(error):
                raise

    def _at(self, name: str) -> str:
        return posixpath.join(self._root, name) if name else self._root

    def _tried(self, what: str, call: Callable[[], T], patience: float | None = None) -> T:
        def log_first(state: RetryCallState) -> None:
            if state.attempt_number == 1 and state.outcome is not None:
                log.warning("storage: could not %s, retrying: %s", what, _first_line(state.outcome.exception()))

        return Retrying(
            retry=retry_if_exception(lambda error: is_transient(error, self._final)),
            wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_PAUSE),
            stop=stop_after_delay(self._patience if patience is None else patience),
            before_sleep=log_first,
            reraise=True,
        )(call)


def _first_line(error: BaseException | None) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def connect(uri: str) -> Objects:
    """The files under ``uri``; the first connection of a process writes a file there and removes it again.

    Raises :class:`UserError` for a bucket that does not exist, credentials that are missing or refused, or a service
    that does not answer.
    """
    return _connected(uri, _endpoint())


def for_reading(uri: str) -> Objects:
    """The files under ``uri``, which are only read: nothing is tried before. Raises ``OSError`` at the first call where
    they cannot be."""
    return Objects(*_open(uri, _endpoint(), _ATTEMPTS), final=("NETWORK_CONNECTION",))


@lru_cache
def _connected(uri: str, endpoint: str | None) -> Objects:
    _probe(uri, *_open(uri, endpoint, 2))
    return Objects(*_open(uri, endpoint, _ATTEMPTS))


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _open(uri: str, endpoint: str | None, attempts: int) -> tuple[fs.FileSystem, str]:
    parts = urlsplit(uri)
    try:
        system = _s3(parts.netloc, endpoint, attempts)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--storage {uri}: cannot be opened ({_reason(error)}); an address is s3://BUCKET/PREFIX"
        ) from (error)
    return system, parts.netloc + parts.path


def _s3(bucket: str, endpoint: str | None, attempts: int) -> fs.S3FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        allow_delayed_open=True,  # a small file is one request, not three
    )


def _probe(uri: str, filesystem: fs.FileSystem, root: str) -> None:
    """Write where stages will be written: listing alone would not show whether that is allowed."""
    name = posixpath.join("stages", f".write-{uuid.uuid4().hex}")
    objects = Objects(filesystem, root, final=("NETWORK_CONNECTION",))  # wait for a busy service, not for an absent one
    try:
        objects.write(name, b"")
        objects.delete(name)
    except OSError as error:
        raise UserError(f"--storage {uri}: {_advice(uri, error)}") from error


def _advice(uri: str, error: OSError) -> str:
    text, bucket = str(error), urlsplit(uri).netloc
    if "NO_SUCH_BUCKET" in text:
        return f"there is no bucket {bucket}; create it, or correct its name"
    given = bool(os.environ.get("AWS_ACCESS_KEY_ID"))
    if any(word in text for word in ("INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT", "INVALID_CLIENT", "EXPIRED_TOKEN")):
        return (
            "the credentials are refused; correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN "
            "where they are temporary), or unset them where the instance has a role"
        )
    if "ACCESS_DENIED" in text or "HTTP status 403" in text:
        if given:
            return f"these credentials may not write to {bucket}; they need to get, put, delete and list its objects"
        return (
            "no credentials were found, or not ones that may write; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or run where the instance has a role"
        )
    if is_transient(error):
        return (
            f"the object store does not answer ({_reason(error)}); check AWS_ENDPOINT_URL, AWS_REGION and the network"
        )
    return f"cannot be written ({_reason(error)})"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text.partition("AWS Error ")[2] or text)[:160]
