"""Files: what users bring is read as it comes or refused in one line; what is written here is complete or absent.

A full disk raises ``OSError`` in every function that writes.
"""

import io
import itertools
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fortifai_ray.errors import UserError

if TYPE_CHECKING:
    import polars as pl

LFS_POINTER = b"version https://git-lfs"  # begins the file that stands for one that Git LFS has not fetched
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}  # by suffix, in pyarrow's words
_ROW_GROUP = 1 << 14  # rows of a large table that are read together: few chains' samples do not cost the reading of all
_OTHER_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_PACKED = {b"\x1f\x8b": "packed by gzip (.gz)", b"\x28\xb5\x2f\xfd": "packed by zstd (.zst)"}
_KINDS = {
    type(None): "null",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
}
_JSON = (ValueError, RecursionError)  # what json raises: also for numbers of 4300 digits, and for deep nesting


def read_text(path: Path, what: str) -> str:
    """A user's text file, unpacked if its name ends in .gz or .zst; ``what`` it should be is for messages.

    It is UTF-8. A byte-order mark is no part of the text; a line ends with a line feed, however it ends in the file.

    Raises :class:`UserError`, with the line where there is one.
    """
    content = _content(path, what)
    _check_start(path, content[:64])
    for mark, name in _OTHER_MARKS:
        if content.startswith(mark):
            raise UserError(f"{path}: is {name} text, by its byte-order mark; save it as UTF-8")
    if 4 * content.count(b"\x00", 0, 4096) > min(len(content), 4096):  # in UTF-16, English is half zero bytes
        raise UserError(f"{path}: more than a quarter is zero bytes, so it is UTF-16 or no text; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{content[error.start]:02x}, {error.reason}"
        raise UserError(f"{path}: line {line}: is not UTF-8 text ({byte}); save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _content(path: Path, what: str) -> bytes:
    compression = COMPRESSION.get(path.suffix.lower())
    try:
        if compression is None:
            return path.read_bytes()
        import pyarrow as pa

        with pa.input_stream(str(path), compression=compression) as stream:
            return bytes(stream.read())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); give {what}") from error


def check_fetched(path: Path) -> None:
    """Raise :class:`UserError` for a pointer of Git LFS in the place of a user's file, and for a name or content that
    do not fit."""
    try:
        with path.open("rb") as file:
            _check_start(path, file.read(64))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def lfs_pointer(path: Path) -> str:
    """What is said of a file that begins with :data:`LFS_POINTER`."""
    return f"is a pointer of Git LFS, not the file itself: run `git lfs pull` in {path.parent}"


def _check_start(path: Path, start: bytes) -> None:
    if start.startswith(LFS_POINTER):
        raise UserError(f"{path}: {lfs_pointer(path)}")
    for mark, name in _PACKED.items():
        if start.startswith(mark):
            raise UserError(f"{path}: is {name}, which its name does not say: name it so")


def read_values(path: Path, what: str) -> Iterator[tuple[str, Any]]:
    """The values of a file of JSON lines, or of a JSON array, each with its place in the file (``line 3``, ``item 3``).

    The content decides: a first line that is not a whole value begins an array, or one value over several lines. Empty
    lines are skipped. Only a line feed ends a line: U+2028, U+0085 and their like may stand in a string as they are.

    Raises :class:`UserError`, with the line.
    """
    text = read_text(path, what)
    numbered = enumerate(text.split("\n"), 1)
    lines = [(number, line.lstrip("\ufeff")) for number, line in numbered if line.strip()]  # joined files leave marks
    whole = _whole(path, text, lines) if lines else None
    if isinstance(whole, list):
        yield from ((f"item {number}", item) for number, item in enumerate(whole, 1))
    elif whole is not None:
        yield f"line {lines[0][0]}", whole
    else:
        for number, line in lines:
            yield f"line {number}", _parse(path, line, number)


def _whole(path: Path, text: str, lines: list[tuple[int, str]]) -> Any:
    """The value of a file that holds one array, or one value over several lines; None where each line is a value."""
    opening = lines[0][1].strip()
    try:
        value = json.loads(opening)
        return value if len(lines) == 1 and isinstance(value, list) else None
    except _JSON:
        pass
    try:
        return json.loads(text)
    except _JSON:
        return _parse(path, text, 1) if opening == "{" or opening.startswith("[") else None


def _parse(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except _JSON as error:
        if isinstance(error, json.JSONDecodeError):
            line, reason = line + error.lineno - 1, f"{error.msg}, character {error.colno}"
        else:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
        raise UserError(
            f"{path}: line {line}: is not valid JSON ({reason}); a JSON value on each line, or one array, is needed"
        ) from None


def check_text(value: Any, at: str, right: str = "strings alone are read") -> None:
    """Raise :class:`UserError`, beginning with ``at`` and ending with ``right``, for what is not a string of whole
    characters: JSON can hold one half of a surrogate pair, which no encoding and no tokenizer takes."""
    if not isinstance(value, str):
        raise UserError(f"{at} is {_KINDS.get(type(value), type(value).__name__)}, not text; {right}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}, character {error.start + 1}"
        raise UserError(f"{at} holds half a surrogate pair ({half}); mend or remove that row") from None


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written to ``path``; a reader sees all of it, or the file's previous content."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write ``content`` to ``path`` as :func:`written` does."""
    with written(path) as file:
        file.write(content)


class _Told(io.RawIOBase):
    """Hands on to a file what Polars writes, which would report a full disk as a damaged file; keeps the error."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise


def write_text(path: Path, text: str) -> None:
    """As :func:`write_bytes`, as UTF-8."""
    write_bytes(path, text.encode())


def write_table(path: Path, table: "pl.DataFrame", metadata: dict[str, str] | None = None) -> None:
    """As :func:`write_bytes`, as Parquet with ``metadata`` for the file."""
    content = io.BytesIO()
    table.write_parquet(content, metadata=metadata)
    write_bytes(path, content.getbuffer())


def write_slices(
    path: Path, slices: Iterable["pl.DataFrame"], metadata: Callable[[Sequence[str]], dict[str, str]]
) -> None:
    """As :func:`write_table`, from slices of a table, one in memory at a time.

    ``metadata`` makes the file's metadata of its columns. There is at least one slice.
    """
    import polars as pl

    first, *others = itertools.islice(slices := iter(slices), 2)
    if not others:
        write_table(path, first, metadata(first.columns))
        return
    aside = path.with_name(f".{path.name}.slices")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    aside.mkdir()
    try:
        parts = list[Path]()
        for part in itertools.chain([first, *others], slices):
            parts.append(aside / f"{len(parts):06d}.parquet")
            write_table(parts[-1], part)
        whole = pl.concat([pl.scan_parquet(file, glob=False) for file in parts])
        with written(path) as file:
            told: Any = _Told(file)
            try:
                whole.sink_parquet(told, metadata=metadata(first.columns), row_group_size=_ROW_GROUP)
            except pl.exceptions.PolarsError:
                raise told.error or OSError(f"{path} cannot be written") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
