"""Files that are complete or absent: written aside, then renamed. A full disk raises ``OSError`` in every function."""

import io
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``; a reader sees all of it, or the file's previous content."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """As :func:`write_bytes`, as UTF-8."""
    write_bytes(path, text.encode())


def write_table(path: Path, table: "pl.DataFrame", metadata: dict[str, str] | None = None) -> None:
    """As :func:`write_bytes`, as Parquet with ``metadata`` for the file. Polars itself would report a full disk as a
    damaged file."""
    content = io.BytesIO()
    table.write_parquet(content, metadata=metadata)
    write_bytes(path, content.getvalue())
