"""Which files of a folder are a corpus: each once, whatever links lead to it, and none that a tool left beside them."""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fortifai_ray.errors import UserError
from fortifai_ray.files import COMPRESSION
from fortifai_ray.storage.store import USES, file_sha256

JSON = (".jsonl", ".ndjson", ".json")  # lines or an array: the content decides
TABLES = (".parquet", ".arrow")
READ = ".txt, .jsonl or .json (each also .gz or .zst), .parquet or .arrow"
_ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"}  # no texts
_TOOLS = {"__pycache__", "__MACOSX", "node_modules"}  # folders that tools leave; others of theirs are hidden
_REMEDIES = {
    "write the table as Parquet, e.g. with pandas: read_csv(…).to_parquet(…)": ".csv .tsv .xls .xlsx .feather .orc",
    "unpack it": ".bz2 .xz .lzma .lz4 .br .zip .7z .rar .tar .tgz .parquet .arrow",  # tables are packed inside
    "write its text into a .txt": ".pdf .doc .docx .odt .rtf .epub .html .htm .xml .tex",
    "name it .txt if it is plain text": ".md .text .log .rst .srt",
}
_SHOWN = 3  # names of files that were left out
_STATE, _SPLITS = "state.json", "dataset_dict.json"  # what `datasets.save_to_disk` writes of a data set, and of several


def kind(file: Path) -> str:
    """The suffix by which a file is read, whatever its case and packing; empty for what is not read."""
    plain = _unpacked(file)
    suffix = plain.suffix.lower()
    packed = plain != file
    return suffix if suffix in (".txt", *JSON) or (suffix in TABLES and not packed) else ""


def _unpacked(file: Path) -> Path:
    return file.with_suffix("") if file.suffix.lower() in COMPRESSION else file


def is_data_set(path: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote the folder."""
    return (path / _STATE).is_file() or (path / _SPLITS).is_file()


@dataclass(frozen=True)
class Found:
    """The files of a corpus, sorted; and those of its folder that are left out, by the reason."""

    files: list[Path]
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """What is left out, in words; empty where nothing is."""
        return ", ".join(f"{len(files):,} {reason} ({_names(files)})" for reason, files in self.left_out.items())


def _names(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:_SHOWN]) + (", …" if len(files) > _SHOWN else "")


def files_of(path: Path, split: str) -> Found:
    """The files of a corpus: ``path``, or what can be read of the folder; ``split`` is for saved data sets.

    Raises :class:`UserError` where there is none.
    """
    if not path.is_dir():
        if not kind(path) or not path.is_file():  # a pipe has no end to wait for
            raise UserError(f"{path}: a file {READ} is needed, or a folder of them{_remedy(path)}")
        return Found([path])
    found = _readable(_split_of(path, split))
    if not found.files:
        others = f"; it has {found.said}" if found.said else ""
        raise UserError(f"{path}: the folder has no file {READ}{others}")
    return found


def _remedy(file: Path) -> str:
    suffix = _unpacked(file).suffix.lower()
    return next((f"; {remedy}" for remedy, suffixes in _REMEDIES.items() if suffix in suffixes.split()), "")


def _split_of(folder: Path, split: str) -> Path:
    """A saved data set's folder of a split; any other folder itself."""
    if not (folder / _SPLITS).is_file():
        return folder
    splits = sorted(entry.name for entry in folder.iterdir() if (entry / _STATE).is_file())
    if split not in splits:
        raise UserError(f"{folder}: has no split {split}; corpus.split may be {' or '.join(splits) or 'none'}")
    return folder / split


def _readable(folder: Path) -> Found:
    """What can be read below a folder; of a file and its packed copy, the file; of equal files, one."""
    files: dict[Path, Path] = {}
    packed, others = list[Path](), list[Path]()
    for file in sorted(_walk(folder), key=lambda file: (file != _unpacked(file), file)):
        if file.name in _ABOUT or not _is_listed(file):
            continue
        if not kind(file):
            others.append(file)
        elif _unpacked(file) in files:
            packed.append(file)
        else:
            files[_unpacked(file)] = file
    copies = [] if is_data_set(folder) else _copies(files.values())  # a data set lists the files that it wants
    left_out = {"the same as another": copies, "packed beside the file itself": packed, "of other kinds": others}
    return Found(sorted({*files.values()}.difference(copies)), {why: found for why, found in left_out.items() if found})


def _copies(files: Iterable[Path]) -> list[Path]:
    """All but one of the files that are equal byte by byte; the one with the shortest path stays."""
    by_size = defaultdict[int, list[Path]](list)
    for file in sorted(files, key=lambda file: (len(str(file)), file)):
        by_size[file.stat().st_size].append(file)
    copies, seen = [], set[str]()
    for file in (file for size, alike in by_size.items() if size and len(alike) > 1 for file in alike):
        digest = file_sha256(file)
        if digest in seen:
            copies.append(file)
        seen.add(digest)
    return sorted(copies)


def _is_listed(file: Path) -> bool:
    """Whether a saved data set's list, if there is one, names an Arrow file: caches of its transforms lie beside."""
    state = file.parent / _STATE
    if kind(file) != ".arrow" or not state.is_file():
        return True
    try:
        listed = {entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{state}: cannot be read ({error}); save the data set again") from error
    return file.name in listed


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder but what tools leave (``.git``, ``__pycache__``): each once, by its own path if it has
    one there, else by that of a link. A folder is entered once, so that links in a circle end; what studies have
    stored is not entered.

    Raises :class:`UserError` for a link to a text that is not there.
    """
    above = (parent.stat() for parent in folder.resolve().parents)  # a link to one of them would come back here
    seen = {(found.st_dev, found.st_ino) for found in above}
    pending, links = [folder], list[Path]()
    while pending or links:
        here = pending.pop() if pending else links.pop()
        try:
            found = here.stat()
        except OSError as error:
            if not here.is_symlink():
                raise
            if kind(here):
                raise UserError(f"{here}: is a link that leads nowhere ({error.strerror}); mend or remove it") from None
            continue
        if (found.st_dev, found.st_ino) in seen:
            continue
        seen.add((found.st_dev, found.st_ino))
        if here.is_file():
            yield here
        elif here.is_dir():
            stored = os.path.isdir(here / "stages" / USES)  # False where it may not be known
            for entry in sorted(here.iterdir(), reverse=True):  # the first is taken first, off the end
                of_a_tool = entry.name.startswith(".") or entry.name in _TOOLS
                if not of_a_tool and not (stored and entry.is_dir()):
                    (links if entry.is_symlink() else pending).append(entry)
