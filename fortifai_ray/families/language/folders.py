"""Which files of a folder are a corpus: each once, whatever links lead to it, and none that a tool left beside them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from fortifai_ray.errors import UserError
from fortifai_ray.files import COMPRESSION
from fortifai_ray.storage.store import USES

JSON = (".jsonl", ".ndjson", ".json")  # lines or an array: the content decides
TABLES = (".parquet", ".arrow")
READ = ".txt, .jsonl or .json (each also .gz or .zst), .parquet or .arrow"
_ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"}  # no texts
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


def files_of(path: Path, split: str) -> list[Path]:
    """The files of a corpus, sorted: ``path``, or what can be read of the folder; ``split`` is for saved data sets.

    Raises :class:`UserError` where there is none.
    """
    if not path.is_dir():
        if not kind(path) or not path.is_file():  # a pipe has no end to wait for
            raise UserError(f"{path}: a file {READ} is needed, or a folder of them")
        return [path]
    files = _readable(_split_of(path, split))
    if not files:
        raise UserError(f"{path}: the folder has no file {READ}")
    return files


def _split_of(folder: Path, split: str) -> Path:
    """A saved data set's folder of a split; any other folder itself."""
    if not (folder / _SPLITS).is_file():
        return folder
    splits = sorted(entry.name for entry in folder.iterdir() if (entry / _STATE).is_file())
    if split not in splits:
        raise UserError(f"{folder}: has no split {split}; corpus.split may be {' or '.join(splits) or 'none'}")
    return folder / split


def _readable(folder: Path) -> list[Path]:
    """What can be read below a folder; of a file and its packed copy, the file."""
    files: dict[Path, Path] = {}
    for file in sorted(_walk(folder), key=lambda file: (file != _unpacked(file), file)):
        if kind(file) and file.name not in _ABOUT and _is_listed(file):
            files.setdefault(_unpacked(file), file)
    return sorted(files.values())


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
    """The files below a folder but hidden ones (``.git``, ``.ipynb_checkpoints``): each once, by its own path if it has
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
                if not entry.name.startswith(".") and not (stored and entry.is_dir()):
                    (links if entry.is_symlink() else pending).append(entry)
