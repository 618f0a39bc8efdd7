"""The documents of a corpus: text, JSON and tables in files and folders, data sets, what another study's chain wrote.

A document is a string. A null is left out and counted; anything else is refused with its file and line or row, since
its ``str()`` would be trained on like text. This imports neither torch nor Ray.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.errors import UserError, in_short
from fortifai_ray.evaluation.benchmarks.local_data import ARTICLE, split_articles
from fortifai_ray.families.language import folders
from fortifai_ray.families.language.config import CorpusConfig
from fortifai_ray.families.language.folders import Found
from fortifai_ray.families.language.written import read_written
from fortifai_ray.files import check_fetched, check_text, read_text, read_values
from fortifai_ray.validation import leaves

if TYPE_CHECKING:
    import pyarrow as pa

Row = tuple[str, Any]  # its place in its file (line 3, item 3, row 3), and what it holds

_HEADING = 4  # words: a paragraph of fewer is a heading or a number, which many topics have
_WHAT = "a file that can be read"
_CHATS = {"messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns"}
_TURNS = ({"role", "content"}, {"from", "value"})
_RIGHT = "corpus.text_column must name strings (nulls are left out)"
_RENDER = "write each chat as one string, e.g. by its tokenizer's apply_chat_template, and name that column"


@dataclass(frozen=True)
class Documents:
    """A corpus's documents, in a fixed order, none of them blank; how many were null or empty; from how many files,
    and which others were not read, in words."""

    texts: list[str]
    null: int = 0
    empty: int = 0
    files: int = 0
    files_left_out: str = ""

    @property
    def hash(self) -> str:
        """SHA-256 of the documents: two corpora that differ have two.

        NUL parts the documents; where a document contains one, each is preceded by its length instead.
        """
        digest = hashlib.sha256()
        if any("\x00" in text for text in self.texts):
            for content in map(str.encode, self.texts):
                digest.update(len(content).to_bytes(8, "big") + content)
            return f"lengths:{digest.hexdigest()}"
        for number, text in enumerate(self.texts):
            digest.update(b"\x00" * (number > 0) + text.encode())
        return digest.hexdigest()

    def after(self, others: "Documents") -> "Documents":
        """Both, as what is said of a corpus."""
        said = ", ".join(filter(None, (others.files_left_out, self.files_left_out)))
        counts = (others.null + self.null, others.empty + self.empty, others.files + self.files)
        return Documents([*others.texts, *self.texts], *counts, said)

    def left_out(self, copies: int = 0) -> str:
        """What was left out, in words, with ``copies`` of held-out documents; empty where nothing was."""
        counts = ((self.null, "null"), (self.empty, "empty"), (copies, "copies of held-out ones"))
        return ", ".join(f"{count:,} {name}" for count, name in counts if count)


def read_validation(config: CorpusConfig, corpus: Documents) -> Documents | None:
    """The held-out documents where they are a text of their own; None where they are a share of the corpus.

    Raises :class:`UserError` as :func:`read_documents`, and where the corpus is that very text.
    """
    given = config.validation
    if given is None:
        return None
    other: dict[str, Any] = {"split": given.split}
    if given.path is not None:
        other = dict.fromkeys(("source", "dataset", "written_by", "name")) | {"path": given.path}
    try:
        found = read_documents(config.model_copy(update=other))
    except UserError as error:
        raise UserError(str(error).replace("corpus", "corpus.validation", 1)) from None
    if set(found.texts) >= set(corpus.texts):
        raise UserError(f"corpus.validation: {given.path or given.split}: the corpus is the same text; give another")
    return found


def read_documents(config: CorpusConfig) -> Documents:
    """The corpus as whole documents.

    Raises :class:`UserError`, with the file and the line or row, for what cannot be read or is no text, and for fewer
    documents that differ than are needed: two, so that one can be held out, or one beside a validation text.
    """
    where, files = config.path or config.dataset or config.source or "the text written", Found([])
    found: list[str | None]
    if config.source == "pydoc":
        found = [*_read_pydoc()]
    elif config.path is not None:
        found, files = _read_path(Path(config.path), config)
    elif config.written_by is not None:
        found = list(read_written(config.written_by))
    else:
        found = _read_hub(config)
    texts = [text for text in found if text is not None]
    null = len(found) - len(texts)
    if config.dataset is not None or (config.path is not None and folders.is_data_set(Path(config.path))):
        texts = _join_articles(texts)
    kept = [text for text in texts if text.strip()]
    documents = Documents(kept, null, len(texts) - len(kept), len(files.files), files.said)
    different = len(set(kept))
    if different < (least := 2 if config.validation is None else 1):
        count = f"{len(kept)} document(s)" + (", all the same" if len(kept) > 1 else "")
        left_out = f" beside {documents.left_out()}" if documents.left_out() else ""
        raise UserError(
            f"corpus: {where} holds {count}{left_out}; "
            + ("at least 2 that differ are needed, so that one can be held out" if least == 2 else "one is needed")
        )
    return documents


def _read_pydoc() -> Iterator[str]:
    """Python's own documentation, a document per topic, in the order of their names.

    A fifth of it stands in two topics or more, whole sections at a time. Each paragraph stays in the longest topic that
    has it, so that no held-out topic is known from training on another; a topic of which nothing is left is left out.
    """
    from pydoc_data.topics import topics

    seen, kept = set[tuple[str, ...]](), dict[str, str]()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = re.split(r"\n\s*\n", topics[name])
        said = [tuple(text.split()) for text in paragraphs]
        kept[name] = "\n\n".join(text for text, words in zip(paragraphs, said, strict=True) if words not in seen)
        seen.update(words for words in said if len(words) >= _HEADING)
    yield from (kept[name] for name in sorted(kept) if len(kept[name].split()) >= 2 * _HEADING)


def _read_path(path: Path, config: CorpusConfig) -> tuple[list[str | None], Found]:
    try:
        found = folders.files_of(path, config.split)
        return [text for file in found.files for text in _read_file(file, config.text_column)], found
    except UserError as error:
        raise UserError(f"corpus.path: {error}") from error
    except OSError as error:
        raise UserError(f"corpus.path: {error.filename or path}: cannot be read ({error.strerror or error})") from error


def _read_file(file: Path, column: str) -> Iterator[str | None]:
    suffix = folders.kind(file)
    if suffix == ".txt":
        yield from _split(read_text(file, _WHAT))
        return
    rows = read_values(file, _WHAT) if suffix in folders.JSON else _read_table(file, suffix, column)
    for place, row in rows:
        yield _text(row, column, f"{file}: {place}")


def _split(text: str) -> list[str]:
    """A document per article in WikiText, else one per paragraph."""
    articles = split_articles(text)
    pieces = articles if len(articles) > 1 else re.split(r"\n\s*\n", text)
    return [piece for piece in pieces if piece.strip()]


def _text(row: Any, column: str, at: str) -> str | None:
    """A row's text; None for null and NaN. Raises :class:`UserError` for anything else."""
    value = _field(row, column, at) if isinstance(row, Mapping) else row
    if value is None or (isinstance(value, float) and value != value):
        return None
    name = column if isinstance(row, Mapping) else "the row"
    if _is_chat(value):
        raise UserError(f"{at}: {name} is a chat, a list of turns, not text; {_RENDER} in corpus.text_column")
    in_array = isinstance(value, list) and not isinstance(row, Mapping)
    right = "an array of rows is read where it is the whole file" if in_array else _RIGHT
    check_text(value, f"{at}: {name}", right)
    return str(value)


def _is_chat(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and any(turn <= first.keys() for turn in _TURNS)


def _field(row: Mapping[str, Any], column: str, at: str) -> Any:
    """A column's value: that of its own name, or of the nested fields that its dots separate."""
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or name not in value:
            raise _missing(column, [*leaves(row)], at)
        value = value[name]
    return value


def _missing(column: str, columns: Sequence[str], at: str) -> UserError:
    shown = ", ".join(map(str, columns[:20])) + (", …" if len(columns) > 20 else "") if columns else "none"
    chats = f"; {min(chat)}: {_RENDER}" if (chat := _CHATS.intersection(columns)) else ""
    return UserError(f"{at}: has no column {column}; name the text's in corpus.text_column (there are: {shown}){chats}")


def _read_table(file: Path, suffix: str, column: str) -> Iterator[Row]:
    """The rows of a table's text column. Raises :class:`UserError` for a file that is damaged or lacks the column."""
    import pyarrow as pa

    check_fetched(file)
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(file) as table:
                top = _top(column, table.schema_arrow.names, str(file))
                yield from _rows(table.iter_batches(columns=[top]), top, str(file))
        else:
            with _open_arrow(file) as batches:
                top = _top(column, batches.schema.names, str(file))
                yield from _rows(batches, top, str(file))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{file}: cannot be read as {suffix[1:].capitalize()} ({in_short(error)}); write or fetch it again"
        ) from error


def _open_arrow(file: Path) -> Any:
    """Arrow's two formats: the stream that `datasets` saves, and the file."""
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(str(file))
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(str(file))
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        return pa.RecordBatchReader.from_batches(reader.schema, batches)


def _top(column: str, columns: Sequence[str], at: str) -> str:
    """The table's column that holds a text column, which may be nested in it."""
    top = column if column in columns else column.partition(".")[0]
    if top not in columns:
        raise _missing(column, columns, at)
    return top


def _rows(batches: "Iterable[pa.RecordBatch | pa.Table]", top: str, at: str) -> Iterator[Row]:
    number = 0
    for batch in batches:
        column = batch.column(top)
        try:
            values = column.to_pylist()
        except UnicodeDecodeError:
            raise UserError(f"{at}: row {number + _first_bad(column)}: its text is not UTF-8") from None
        for number, value in enumerate(values, number + 1):  # noqa: B020 (it goes on from batch to batch)
            yield f"row {number}", {top: value}


def _first_bad(column: "pa.Array") -> int:
    for number, value in enumerate(column, 1):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return number
    return len(column)


def _read_hub(config: CorpusConfig) -> list[str | None]:
    try:
        import datasets
    except ImportError as error:
        raise UserError("corpus.dataset: the package `datasets` is needed (pip install datasets)") from error
    where = f"corpus.dataset: {config.dataset} ({config.name})"
    try:
        rows = datasets.load_dataset(config.dataset, config.name, split=config.split)
    except Exception as error:  # the hub's client raises dozens of kinds; each means that the data set is not available
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{where} cannot be loaded: {reason}") from error
    top = _top(config.text_column, rows.column_names, where)
    batches = rows.with_format("arrow").iter(batch_size=1000)
    return [_text(row, config.text_column, f"{where}: {place}") for place, row in _rows(batches, top, where)]


def _join_articles(lines: list[str]) -> list[str]:
    """Join WikiText, a row per line in its data set, into articles; other data sets are unchanged."""
    if not any(ARTICLE.fullmatch(line.rstrip("\n")) for line in lines):
        return lines
    documents: list[list[str]] = [[]]
    for line in lines:
        if ARTICLE.fullmatch(line.rstrip("\n")):
            documents.append([])
        documents[-1].append(line)
    return ["".join(lines) for lines in documents]
