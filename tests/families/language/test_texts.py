"""A corpus's files are read as they are meant, or refused in one line that names the file and the place.

What is trained on must be the text that the user has, each document once: no ``str()`` of a null or a list, no copy of
a file that a link or a notebook left behind.
"""

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import CorpusConfig
from fortifai_ray.families.language.texts import Documents, read_documents

TWO = ["one", "two"]
ROWS = "".join(json.dumps({"text": text}) + "\n" for text in TWO)
CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
SHARED = [{"from": "human", "value": "Why?"}]


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zst(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content))


def texts(*values: Any) -> bytes:
    return lines(*({"text": value} for value in values))


def read(path: Path, **settings: Any) -> Documents:
    return read_documents(CorpusConfig(path=str(path), **settings))


SERVED: dict[str, tuple[str, bytes, list[str]]] = {
    "paragraphs": ("a.txt", b"one\nstill one\n\ntwo", ["one\nstill one", "two"]),
    "a byte-order mark": ("a.txt", b"\xef\xbb\xbfone\n\ntwo", TWO),
    "Windows' line ends": ("a.txt", b"one\r\nstill one\r\n\r\ntwo", ["one\nstill one", "two"]),
    "an old Mac's line ends": ("a.txt", b"one\r\rtwo", TWO),
    "blank lines of spaces": ("a.txt", b"\n\n  \none\n \t\n\n\ntwo\n\n", TWO),
    "other separators inside": ("a.txt", "one\x0b\x0c\u2028\u0085\n\ntwo".encode(), ["one\x0b\x0c\u2028\u0085", "two"]),
    "a NUL": ("a.txt", b"one\x00\n\ntwo", ["one\x00", "two"]),
    "packed text": ("a.txt.gz", gzip.compress(b"one\n\ntwo"), TWO),
    "capital suffixes": ("A.TXT", b"one\n\ntwo", TWO),
    "JSON lines": ("a.jsonl", texts(*TWO), TWO),
    "without a last line feed": ("a.jsonl", texts(*TWO).rstrip(), TWO),
    "empty lines between": ("a.jsonl", b"\n" + texts(*TWO).replace(b"\n", b"\n \n"), TWO),
    "JSON with a byte-order mark": ("a.jsonl", b"\xef\xbb\xbf" + texts(*TWO), TWO),
    "two files with marks, joined": ("a.jsonl", b"\xef\xbb\xbf" + texts("one") + b"\xef\xbb\xbf" + texts("two"), TWO),
    "JSON with Windows' line ends": ("a.jsonl", texts(*TWO).replace(b"\n", b"\r\n"), TWO),
    "line separators in strings": ("a.jsonl", texts("one\u2028\u2029\u0085", "two"), ["one\u2028\u2029\u0085", "two"]),
    "whole surrogate pairs": ("a.jsonl", b'{"text": "\\ud83d\\ude00"}\n{"text": "two"}', ["\U0001f600", "two"]),
    "an escaped NUL": ("a.jsonl", b'{"text": "o\\u0000ne"}\n{"text": "two"}', ["o\x00ne", "two"]),
    "packed lines": ("a.jsonl.gz", gzip.compress(texts(*TWO)), TWO),
    "lines packed in two parts": ("a.jsonl.gz", gzip.compress(texts("one")) + gzip.compress(texts("two")), TWO),
    "zstd": ("a.jsonl.zst", zst(texts(*TWO)), TWO),
    "capitals, packed": ("A.JSONL.GZ", gzip.compress(texts(*TWO)), TWO),
    "an array on one line": ("a.jsonl", json.dumps([{"text": text} for text in TWO]).encode(), TWO),
    "an array over lines": ("a.json", json.dumps([{"text": text} for text in TWO], indent=1).encode(), TWO),
    "an array that begins with its first row": ("a.json", b'[{"text": "one"},\n{"text": "two"}]', TWO),
    "lines in .json": ("a.json", texts(*TWO), TWO),
    "a packed array": ("a.json.zst", zst(json.dumps(TWO).encode()), TWO),
    "lines that are strings": ("a.jsonl", lines(*TWO), TWO),
    "an array of strings": ("a.json", lines(TWO), TWO),
    "nulls": ("a.jsonl", texts(None, "one", None, "two"), TWO),
    "NaN": ("a.jsonl", b'{"text": NaN}\n' + texts(*TWO), TWO),
    "empty and blank texts": ("a.jsonl", texts("", "one", " \n\t", "two"), TWO),
    "further columns of any type": ("a.jsonl", lines(*({"id": [1], "text": text} for text in TWO)), TWO),
    "documents twice": ("a.jsonl", texts("one", "two", "one"), ["one", "two", "one"]),
}


@pytest.mark.parametrize("case", SERVED)
def test_it_is_read(case: str, tmp_path: Path) -> None:
    """Each way to write the same two documents gives these documents, alone and in a folder."""
    name, content, expected = SERVED[case]
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name).texts == expected
    assert read(tmp_path).texts == expected


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "null alone": ("a.jsonl", texts(None, None, ""), r"holds 0 document\(s\) beside 2 null, 1 empty;"),
    "nothing": ("a.txt", b"", r"holds 0 document\(s\); at least 2 that differ"),
    "one document": ("a.txt", b"one paragraph", r"holds 1 document\(s\); at least 2"),
    "one document many times": ("a.jsonl", texts(*["one"] * 9), r"holds 9 document\(s\), all the same"),
    "a number": ("a.jsonl", texts("one", 2), "line 2: text is a number, not text"),
    "true": ("a.jsonl", texts(True), "line 1: text is a truth value, not text"),
    "a list": ("a.jsonl", b"\n" + texts(["one"]), "line 2: text is a list, not text"),
    "a mapping": ("a.jsonl", texts("one", {"en": "two"}), "line 2: text is a mapping, not text"),
    "a list in a line": ("a.jsonl", lines(["one"], ["two"]), "line 1: the row is a list, not text"),
    "a number in an array": ("a.json", lines(["one", 3]), "item 2: the row is a number"),
    "a missing column": ("a.jsonl", lines({"id": 1, "content": "x"}), r"line 1: has no column text; .*id, content"),
    "a later one missing": ("a.jsonl", texts("one") + lines({"title": "x"}), r"line 2: has no column text; .*: title"),
    "a nested one": ("a.jsonl", lines({"id": 1, "data": {"text": "x"}}), r"no column text; .*: id, data\.text\)"),
    "no columns": ("a.jsonl", lines({}), r"line 1: has no column text; .*: none"),
    "a chat": ("a.jsonl", texts(CHAT), "line 1: text is a chat, a list of turns, not text; .*apply_chat_template"),
    "chats beside": ("a.jsonl", lines({"messages": CHAT}), r"has no column text; .* messages: .*apply_chat_template"),
    "ShareGPT's chats": ("a.jsonl", lines({"conversations": SHARED}), "conversations: write each chat as one string"),
    "half a surrogate pair": ("a.jsonl", texts("one") + b'{"text": "a \\ud83d b"}', r"line 2: text holds half .*ud83d"),
    "broken JSON": ("a.jsonl", texts("one") + b'{"text": "two\n', "line 2: is not valid JSON"),
    "broken first": ("a.jsonl", b'{"text": "one\n{"text": "two"}\n', "line 1: is not valid JSON"),
    "a broken array": ("a.json", b'[\n{"text": "one"},\n{"text": }\n]', "line 3: is not valid JSON"),
    "an array that was cut": ("a.json", b'[\n{"text": "one"},\n{"text": "two"}', "line 3: is not valid JSON"),
    "JSON that nests too deeply": ("a.jsonl", b"[" * 100_000, "line 1: is not valid JSON"),
    "UTF-16": ("a.txt", "one\n\ntwo".encode("utf-16"), "is UTF-16 text, by its byte-order mark; save it as UTF-8"),
    "UTF-32": ("a.txt", "one\n\ntwo".encode("utf-32"), "is UTF-32 text"),
    "UTF-16 without a mark": ("a.jsonl", texts(*TWO).decode().encode("utf-16-le"), "zero bytes, so it is UTF-16"),
    "Latin-1": ("a.txt", "one\n\nzwölf".encode("latin-1"), "line 3: is not UTF-8 text .byte 0xf6"),
    "Latin-1 in JSON": ("a.jsonl", texts("one", "zwölf").decode().encode("latin-1"), "line 2: is not UTF-8 text"),
    "gzip that was cut": ("a.jsonl.gz", gzip.compress(texts(*map(str, range(999))))[:99], "cannot be read .*runcated"),
    "no gzip": ("a.txt.gz", b"one\n\ntwo", "cannot be read"),
    "zstd that was cut": ("a.txt.zst", zst(b"one\n\ntwo" * 99)[:20], "cannot be read"),
    "no Parquet": ("a.parquet", b"PAR1 and then no more", "cannot be read as Parquet .*; write or fetch it again"),
    "an empty Parquet file": ("a.parquet", b"", "cannot be read as Parquet"),
    "no Arrow": ("a.arrow", b"ARROW1", "cannot be read as Arrow .*; write or fetch it again"),
    "a pointer of Git LFS": ("a.txt", LFS, "is a pointer of Git LFS, not the file itself: run `git lfs pull`"),
    "a pointer to a table": ("a.parquet", LFS, "is a pointer of Git LFS"),
    "a pointer to Arrow": ("a.arrow", LFS, "is a pointer of Git LFS"),
    "gzip by another name": (
        "a.jsonl",
        gzip.compress(texts(*TWO)),
        "by gzip .*, which its name does not say",
    ),
    "zstd by another name": ("a.json", zst(texts(*TWO)), "is packed by zstd"),
    "zero bytes at the end": ("a.jsonl", texts(*["one"] * 9) + b"\x00" * 20, "line 10: is not valid JSON"),
    "another suffix": ("a.pdf", b"one", r"a file .txt, .jsonl or .json .* is needed, .*; write its text into a .txt"),
    "packed otherwise": ("a.txt.xz", b"one", "is needed, .*; unpack it"),
    "CSV": ("a.csv", b"text\none", r"is needed, .*; write the table as Parquet"),
    "a packed table": ("a.parquet.gz", b"one", "is needed, .*; unpack it"),
    "no suffix": ("a", b"one", "is needed, or a folder of them$"),
    "an array and a line": ("a.jsonl", lines([{"text": "one"}], {"text": "two"}), "line 1: .* it is the whole file"),
    "a huge number": ("a.jsonl", b'{"id": ' + b"9" * 5000 + b"}", "is not valid JSON .a number has too many digits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused(case: str, tmp_path: Path) -> None:
    """One line with the file, and the line where there is one."""
    name, content, message = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read(tmp_path / name)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


TABLES: dict[str, tuple[pa.Array, list[str] | str]] = {
    "strings": (pa.array(TWO), TWO),
    "large strings": (pa.array(TWO, pa.large_string()), TWO),
    "views": (pa.array(TWO, pa.string_view()), TWO),
    "a dictionary": (pa.array(["one", "two", "one"]).dictionary_encode(), ["one", "two", "one"]),
    "nulls": (pa.array([None, "one", None, "two"]), TWO),
    "nested": (pa.array([{"text": "one"}, None, {"text": None}, {"text": "two"}]), TWO),
    "NaN alone": (pa.array([float("nan")] * 2), r"holds 0 document\(s\) beside 2 null"),
    "all null": (pa.nulls(3), r"holds 0 document\(s\) beside 3 null"),
    "bytes": (pa.array([b"one", b"two"]), "row 1: .* is bytes, not text"),
    "numbers": (pa.array([None, 1]), "row 2: .* is a number, not text"),
    "lists": (pa.array([["one"], ["two"]]), "row 1: .* is a list, not text"),
    "chats": (pa.array([CHAT]), "row 1: .* is a chat"),
    "a struct without it": (pa.array([{"body": "one"}]), r"row 1: has no column text\.text"),
    "dates": (pa.array([1, 2], pa.date32()), "row 1: .* is date, not text"),
    "bytes that are no UTF-8": (pa.array([b"one", b"\xff"]).view(pa.string()), "row 2: .* not UTF-8"),
}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".stream.arrow"])
@pytest.mark.parametrize("case", TABLES)
def test_tables(case: str, suffix: str, tmp_path: Path) -> None:
    """Any column of strings is read from Parquet and Arrow's two formats; a row that is none is named, over batches."""
    column, expected = TABLES[case]
    file = tmp_path / f"a{suffix}"
    table = pa.table({"id": pa.array(range(len(column))), "text": column})
    if suffix == ".parquet":
        pq.write_table(table, file, row_group_size=1)
    else:
        make = pa.ipc.new_stream if "stream" in suffix else pa.ipc.new_file
        with make(str(file), table.schema) as out:
            out.write_table(table, max_chunksize=1)
    name = "text.text" if "nested" in case or "struct" in case else "text"
    if isinstance(expected, list):
        assert read(file, text_column=name).texts == expected
    else:
        with pytest.raises(UserError, match=expected) as refused:
            read(file, text_column=name)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("column", ["data.text", "data.0", "x.y"])
def test_a_missing_column_of_a_table_names_those_that_it_has(column: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "body": ["one"], "messages": [CHAT]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"a\.parquet: has no column {column}; .*: id, body, messages\); messages: "):
        read(tmp_path / "a.parquet", text_column=column)


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ({"data": {"text": "one"}}, "data.text", "one"),
        ({"a": {"b": {"c": "one"}}}, "a.b.c", "one"),
        ({"data.text": "one"}, "data.text", "one"),
        ({"data": {"text": None}}, "data.text", None),
        ({"data": None}, "data.text", None),
        ({"data": "one"}, "data.text", r"line 3: has no column data.text; .*: data\)"),
        ({"data": {"body": "one"}}, "data.text", r"line 3: has no column data.text; .*: data\.body\)"),
        ({"data": [{"text": "one"}]}, "data.text", r"line 3: has no column data.text"),
    ],
)
def test_nested_columns(row: dict[str, Any], column: str, expected: str | None, tmp_path: Path) -> None:
    """Dots lead into mappings; a column of that very name comes first; a null on the way is a null."""
    (tmp_path / "a.jsonl").write_bytes(lines({column: "y"}, {column: "z"}, row))
    if expected is None or not expected.startswith("line"):
        assert read(tmp_path, text_column=column).texts == ["y", "z"] + [expected] * (expected is not None)
    else:
        with pytest.raises(UserError, match=expected):
            read(tmp_path, text_column=column)


def _link(path: Path, to: str) -> None:
    path.symlink_to(to)


def _text(path: Path, content: str | None = None) -> None:
    """The two rows where no content is given, with blank lines that make the file differ from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ROWS + "\n" * len(str(path)) if content is None else content)


FOLDERS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "hidden files": (lambda at: _text(at / ".b.jsonl"), 1),
    "macOS's shadows": (lambda at: (at / "._a.jsonl").write_bytes(b"\x00\x05\x16\x07"), 1),
    "a notebook's checkpoints": (lambda at: _text(at / ".ipynb_checkpoints" / "a-checkpoint.jsonl"), 1),
    "a repository": (lambda at: _text(at / ".git" / "x.txt"), 1),
    "Python's cache": (lambda at: _text(at / "__pycache__" / "z.jsonl"), 1),
    "what macOS packs": (lambda at: _text(at / "__MACOSX" / "z.jsonl"), 1),
    "JavaScript's packages": (lambda at: _text(at / "b" / "node_modules" / "c" / "z.json"), 1),
    "an equal file": (lambda at: shutil.copy(at / "a.jsonl", at / "a copy.jsonl"), 1),
    "an equal file below": (lambda at: (_text(at / "b" / "c.jsonl"), shutil.copy(at / "a.jsonl", at / "b")), 2),
    "other suffixes": (lambda at: _text(at / "README.md"), 1),
    "an empty file": (lambda at: _text(at / "b.txt", ""), 1),
    "a folder with a file's name": (lambda at: _text(at / "b.txt" / "c.jsonl"), 2),
    "folders": (lambda at: _text(at / "b" / "c" / "d.jsonl"), 2),
    "the same file by a link": (lambda at: _link(at / "b.jsonl", "a.jsonl"), 1),
    "the same file by a hard link": (lambda at: os.link(at / "a.jsonl", at / "b.jsonl"), 1),
    "the folder in itself": (lambda at: _link(at / "b", "."), 1),
    "a circle": (lambda at: (_text(at / "b" / "c.jsonl"), _link(at / "b" / "d", "..")), 2),
    "a link to what is above": (lambda at: (_text(at.parent / "x.txt", "three"), _link(at / "b", "..")), 1),
    "a circle of two links": (lambda at: (_link(at / "b", "c"), _link(at / "c", "b")), 1),
    "a folder by two links": (
        lambda at: (_text(at.parent / "x" / "c.jsonl"), _link(at / "b", "../x"), _link(at / "c", "../x")),
        2,
    ),
    "a file elsewhere": (lambda at: (_text(at.parent / "x.jsonl"), _link(at / "b.jsonl", "../x.jsonl")), 2),
    "a link to nothing of interest": (lambda at: _link(at / "b.bak", "nowhere"), 1),
    "a packed copy beside": (lambda at: (at / "a.jsonl.gz").write_bytes(gzip.compress(ROWS.encode())), 1),
    "another packed file": (lambda at: (at / "b.jsonl.gz").write_bytes(gzip.compress(ROWS.encode())), 2),
    "what studies have stored": (
        lambda at: (_text(at / "runs/stages/.uses/s/x"), _text(at / "runs/stages/x/manifest.json", "{}")),
        1,
    ),
    "what describes a data set": (lambda at: _text(at / "dataset_info.json", "{}"), 1),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_gives_each_file_once(case: str, tmp_path: Path) -> None:
    """Beside a file of two documents lies something else: how many files are read, none of them twice."""
    folder = tmp_path / "texts"
    _text(folder / "a.jsonl")
    make, files = FOLDERS[case]
    make(folder)
    documents = read(folder)
    assert documents.files - (case == "an empty file") == files
    assert documents.texts == TWO * files


def test_a_folder_that_is_hidden_or_a_link_itself(tmp_path: Path) -> None:
    """What is named is read, whatever its name."""
    _text(tmp_path / ".texts" / "a.jsonl")
    _link(tmp_path / "link", ".texts")
    assert read(tmp_path / ".texts").texts == read(tmp_path / "link").texts == TWO


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: _text(at / "a.pdf"), r"the folder has no file .txt, .*; it has 1 of other kinds \(a.pdf\)"),
        (lambda at: _text(at / ".a.txt"), "the folder has no file"),
        (lambda at: _link(at / "b.txt", "nowhere"), r"b\.txt: is a link that leads nowhere"),
        (lambda at: _link(at / "b.txt", "b.txt"), r"b\.txt: is a link that leads nowhere"),
        (lambda at: _text(at / "notes.json", '{"by": "me"}'), r"notes\.json: line 1: has no column text"),
    ],
)
def test_a_folder_is_refused(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    """A folder with nothing to read, or with something that only looks like it."""
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("", "path here: give a text file, or a folder"),
        (" ", "path here"),
        ("nowhere", r"nowhere \(looked for from .*; a data set of the .* hub is named under corpus.dataset"),
        ("Salesforce/wikitext", "corpus.dataset"),
        ("x" * 5000, "xxx"),
        ("x\x00y", "looked for"),
        ("nowhere/a.txt", r"a\.txt \(looked for from [^ ]*/\) "),
        ("a/b/nowhere.txt", r"nowhere\.txt \(looked for from [^ ]*/\)"),
        ("nowhere/*.txt", "patterns are not expanded: give the folder"),
        ("a[0-9].txt", "patterns are not expanded"),
        ("https://a.b/c.txt", r"an address \(https://a.b/c.txt\): download it"),
        ("s3://bucket/c.txt", "download it and give the file or its folder"),
        ("~/nowhere.txt", r"/nowhere\.txt \(looked"),
        ("~no such user/a.txt", "such home as in ~no such user"),
    ],
)
def test_a_path_to_nothing_is_refused(path: str, right: str) -> None:
    """Not the current folder, and no traceback for a name that no file can have; what it was taken for is said."""
    with pytest.raises(ValidationError, match=f"there is no .*{right}"):
        CorpusConfig(path=path)


def test_the_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell sees a study file; a file whose very name begins with ~ comes first."""
    monkeypatch.setenv("HOME", str(tmp_path))
    _text(tmp_path / "a.jsonl")
    assert read(Path("~/a.jsonl")).texts == TWO
    monkeypatch.chdir(tmp_path)
    _text(Path("~/a.jsonl"), texts("three", "four").decode())
    assert read(Path("~/a.jsonl")).texts == ["three", "four"]


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """It would be waited for."""
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a file .* is needed"):
        read(tmp_path / "a.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("place", ["a.txt", "b"])
def test_what_may_not_be_read_is_refused(place: str, tmp_path: Path) -> None:
    """A file or a folder without permission is named, not left out."""
    _text(tmp_path / "a.txt", "one\n\ntwo")
    _text(tmp_path / "b" / "c.txt", "three")
    (tmp_path / place).chmod(0)
    try:
        with pytest.raises(UserError, match=f"{place}: cannot be read"):
            read(tmp_path)
    finally:
        (tmp_path / place).chmod(0o700)


WIKI = [" = A = \n", "", " Text of A . \n", " = = Part = = \n", " More . \n", " = B = \n", " Text of B . \n"]


def test_saved_data_sets(tmp_path: Path) -> None:
    """`save_to_disk`'s folders: one split, the files that it lists alone, WikiText's lines joined to articles."""
    for split, rows in {"train": WIKI, "test": ["x", "y"]}.items():
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        for name in ("data-00000-of-00001.arrow", "cache-1234.arrow"):
            with pa.ipc.new_stream(str(folder / name), pa.schema({"text": pa.string()})) as out:
                out.write_table(pa.table({"text": rows}))
        _text(folder / "state.json", json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
        _text(folder / "dataset_info.json", "{}")
    _text(tmp_path / "saved" / "dataset_dict.json", '{"splits": ["train", "test"]}')
    articles = ["".join(WIKI[:5]), "".join(WIKI[5:])]
    assert read(tmp_path / "saved").texts == read(tmp_path / "saved" / "train").texts == articles
    assert read(tmp_path / "saved", split="test").texts == ["x", "y"]
    with pytest.raises(UserError, match=r"has no split dev; corpus\.split may be test or train"):
        read(tmp_path / "saved", split="dev")


def test_a_hub_data_set_follows_the_same_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nulls are left out, other types refused by row, a missing column names the columns; here of local files."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    table = {"text": ["one", None, "two"], "id": [None, 7, 8], "data": [{"text": "x"}, None, {"text": "y"}]}
    pq.write_table(pa.table(table), folder / "train.parquet")

    def hub(column: str) -> Documents:
        return read_documents(CorpusConfig(dataset=str(folder), text_column=column))

    assert (hub("text").texts, hub("text").null) == (TWO, 1)
    assert hub("data.text").texts == ["x", "y"]
    with pytest.raises(UserError, match=r"corpus\.dataset: .*: row 2: id is a number, not text"):
        hub("id")
    with pytest.raises(UserError, match=r"has no column body; .*: text, id, data\)"):
        hub("body")
    with pytest.raises(UserError, match=r"corpus\.dataset: .* cannot be loaded: "):
        read_documents(CorpusConfig(dataset=str(tmp_path / "nowhere")))


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    """Nulls and empty texts; the blank lines between paragraphs are neither."""
    (tmp_path / "a.jsonl").write_bytes(texts(None, "one", "", None, "two", " "))
    (tmp_path / "b.txt").write_text("\n\n\nthree\n\n\n")
    documents = read(tmp_path)
    assert (documents.null, documents.empty, documents.files) == (2, 2, 2)
    assert documents.left_out() == "2 null, 2 empty"


def test_files_that_are_not_read_are_said(tmp_path: Path) -> None:
    """Each by its reason, some by name; what describes a data set and what is hidden are no texts."""
    _text(tmp_path / "a.jsonl")
    assert read(tmp_path).files_left_out == ""
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "a copy.jsonl")
    (tmp_path / "a.jsonl.gz").write_bytes(b"")
    for name in ("c.csv", "d.bak", "e", "f.pdf", ".g", "dataset_info.json"):
        (tmp_path / name).touch()
    assert read(tmp_path).files_left_out == (
        "1 the same as another (a copy.jsonl), 1 packed beside the file itself (a.jsonl.gz), "
        "4 of other kinds (c.csv, d.bak, e, …)"
    )


@given(st.lists(st.text(alphabet="ab\x00\x01", min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_corpora_that_differ_have_hashes_that_differ(documents: list[str], data: st.DataObject) -> None:
    """Also where a document contains the NUL that parts others: any other way to cut the same characters."""
    joined = "\x00".join(documents)
    cuts = data.draw(st.lists(st.integers(0, len(joined)), max_size=3).map(sorted))
    for other in (
        joined.split("\x00"),
        [joined],
        [joined[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)],
    ):
        others = [text for text in other if text]
        assert (Documents(others).hash == Documents(documents).hash) == (others == documents)


def test_the_hash_of_ordinary_text_stays() -> None:
    """That of the documents joined by NUL: stores that users have stay valid."""
    letters = random.Random(0).choices("abc é", k=40)
    assert Documents(["".join(letters), "two"]).hash == _joined("".join(letters), "two")
    assert Documents(["a\x00b", "two"]).hash not in (_joined("a\x00b", "two"), _joined("a", "b", "two"))


def _joined(*documents: str) -> str:
    import hashlib

    return hashlib.sha256("\x00".join(documents).encode()).hexdigest()
