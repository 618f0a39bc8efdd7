"""Folders of links to the files of several stages, as a checkpoint with its tokenizer: in the cache, so that a study
that is only read stays as it is.

A folder lasts as long as its stage: those whose stages are gone are removed by ``fortifai gc``, and whenever another is
made.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fortifai_ray.errors import UserError
from fortifai_ray.storage.location import cache_root

_FOLDER = "checkpoints"


def links_folder(stage: Path) -> Path:
    """The folder of links for a stage, made where it is missing.

    Raises:
        UserError: no folder can be made.
    """
    remove_dead_links()
    name = f"{stage.name}-{hashlib.sha256(str(stage).encode()).hexdigest()[:8]}"
    for root in _roots():
        with suppress(OSError):
            (root / name).mkdir(parents=True, exist_ok=True)
            if os.access(root / name, os.W_OK):
                return root / name
    raise UserError(f"{cache_root()}: no folder can be made in it for links to a checkpoint; set FORTIFAI_CACHE")


def link(file: Path, to: Path) -> None:
    """A link to a file; a copy on a disk without links."""
    if to.is_symlink() and to.resolve() == file.resolve():
        return
    to.unlink(missing_ok=True)
    try:
        to.symlink_to(file)
    except OSError:
        shutil.copyfile(file, to)


def remove_dead_links(gone: Collection[str] = ()) -> int:
    """Remove the folders whose stage is gone, by its hash or because a link of theirs leads nowhere; returns how many.

    One that another user may not have removed stays.
    """
    removed = 0
    for folder in (one for root in _roots() if root.is_dir() for one in root.iterdir()):
        dead = folder.name.partition("-")[0] in gone or any(not file.exists() for file in folder.iterdir())
        if dead:
            shutil.rmtree(folder, ignore_errors=True)
            removed += not folder.exists()
    return removed


def _roots() -> tuple[Path, Path]:
    return cache_root() / _FOLDER, Path(tempfile.gettempdir()) / f"fortifai-{os.getuid()}" / _FOLDER
