"""What must lie in a checkpoint's folder: a configuration, and one complete set of safetensors.

Only the heads of the files are read, without torch and without transformers: a few milliseconds.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fortifai_ray.engines.checkpoints import ADAPTER_CONFIG
from fortifai_ray.engines.pretrained import WeightsError, check_content, read_json
from fortifai_ray.errors import in_short

CONFIG = "config.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_FLOATS = ("F64", "F32", "F16", "BF16")
_WEIGHT = re.compile(r"\.weight$|\bexperts\.")  # other tensors may be buffers: masks, positions
_CONVERT = (
    "load it with transformers where you trust it, and save it with save_pretrained(FOLDER), which writes safetensors"
)
_OTHER_FORMATS = {
    ".bin": f"PyTorch's pickles, which can run code and are not read; {_CONVERT}",
    ".pt": f"PyTorch's pickles, which can run code and are not read; {_CONVERT}",
    ".pth": f"PyTorch's pickles, which can run code and are not read; {_CONVERT}",
    ".ckpt": f"pickles, which can run code and are not read; {_CONVERT}",
    ".pkl": f"pickles, which can run code and are not read; {_CONVERT}",
    ".h5": f"TensorFlow's weights; {_CONVERT}",
    ".msgpack": f"Flax's weights; {_CONVERT}",
    ".onnx": "an ONNX graph, which cannot be trained; fetch the model's own safetensors",
}


class Tensor(NamedTuple):
    """A tensor of a file, as its head describes it. ``dtype`` is safetensors' name, such as BF16."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def check_folder(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint's folder, by name, once it holds what it must.

    Raises:
        WeightsError: there is no such folder; its configuration is missing, no JSON or that of a quantised model; it
            is an adapter's; its weights are missing, in another format, not complete or more than one set.
    """
    if not folder.is_dir():
        raise WeightsError(_no_folder(folder))
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors") and file.is_file())
    stats = [file.stat() for file in files]
    return _checked(
        folder, tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True))
    )


def _no_folder(path: Path) -> str:
    """What to say of a path to something else, or to nothing."""
    needed = "a folder with config.json, *.safetensors and a tokenizer is needed"
    if not path.is_file():
        beside = path.with_name(f"{path.name}.gguf")
        hint = f"; {beside} is to be named whole" if path.name and beside.is_file() else ""
        return f"there is no folder {path}{hint}"
    if path.suffix in _OTHER_FORMATS:
        return f"{path} is a file of {_OTHER_FORMATS[path.suffix]}"
    check_content(path)
    if path.suffix in (".safetensors", ".json", ".model"):
        return f"{path} is one file of a checkpoint: give the folder that holds it, {path.parent}"
    return f"{path} is a file, and no GGUF (it does not begin with these letters): {needed}, or a GGUF"


@lru_cache(maxsize=16)  # a study's recipes are validated one by one, and nearly all share one model
def _checked(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> Mapping[str, Tensor]:
    if (folder / ADAPTER_CONFIG).is_file():
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        raise WeightsError(
            f"{folder} holds a LoRA adapter ({ADAPTER_CONFIG}), no whole model: merge it into its model, {base} (PEFT: "
            "merge_and_unload, then save_pretrained), and give the merged folder"
        )
    _check_config(folder)
    return read_heads(weight_files(folder))


def _check_config(folder: Path) -> None:
    path = folder / CONFIG
    if not path.is_file():
        other = _other_format(folder)
        raise WeightsError(
            f"{folder} has no config.json: a Hugging Face checkpoint folder is needed"
            + (f"; it has {other}" if other else "")
        )
    config = read_json(path)
    chosen = config.get("transformers_weights")
    if chosen not in (None, WHOLE, INDEX):
        raise WeightsError(
            f"{path}: transformers_weights: {chosen} is not read; name the file {WHOLE}, and remove this key"
        )


def weight_files(folder: Path) -> list[Path]:
    """The files of safetensors that transformers reads: one whole file, or the shards that an index names.

    Raises:
        WeightsError: there is none, or there are two sets; the index and the shards do not fit each other.
    """
    names = {file.name for file in folder.glob("*.safetensors")}
    shards = {name for name in names if _SHARD.fullmatch(name)}
    indexed = (folder / INDEX).is_file()
    if WHOLE in names and (indexed or shards):
        other = INDEX if indexed else min(shards)
        raise WeightsError(
            f"{folder} holds its weights twice, in {WHOLE} and in shards ({other}): remove one of the two"
        )
    if WHOLE in names:
        return [folder / WHOLE]
    if indexed:
        return _indexed(folder, names, shards)
    if shards:
        raise WeightsError(
            f"{folder / INDEX} is missing: it says which tensors are in which of the {len(shards)} shards"
        )
    raise WeightsError(f"{folder} has no weights: {_instead(folder, names)}")


def is_complete(folder: Path) -> bool:
    """Whether a folder, such as a hub's cache, holds all its weights; what is not complete may be fetched yet."""
    try:
        return bool(weight_files(folder))
    except WeightsError:
        return False


def _instead(folder: Path, names: set[str]) -> str:
    """What is there in the place of weights that transformers reads."""
    if names:
        return f"{min(names)} is not read; the file must be named {WHOLE}"
    other = _other_format(folder)
    return "*.safetensors is needed" + (f"; it has {other}" if other else "")


def _other_format(folder: Path) -> str:
    ggufs = sorted(file.name for file in folder.iterdir() if file.suffix.lower() == ".gguf")
    if ggufs:
        which = "a GGUF is" if len(ggufs) == 1 else f"one of these {len(ggufs)} GGUFs is"
        return f"{', '.join(ggufs[:3])}: {which} to be named itself, as {folder / ggufs[0]}"
    files = sorted(
        file for file in folder.iterdir() if file.suffix in _OTHER_FORMATS and "training_args" not in file.name
    )
    return f"{files[0].name}: {_OTHER_FORMATS[files[0].suffix]}" if files else ""


def _indexed(folder: Path, names: set[str], shards: set[str]) -> list[Path]:
    """The shards that the index names, once each tensor is in the one that it says."""
    index = folder / INDEX
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise WeightsError(f"{index} has no weight_map of tensors to files: a complete checkpoint is needed")
    wanted = set(placed.values())
    missing = sorted(wanted - names)
    if missing:
        raise WeightsError(
            f"{folder} lacks {len(missing)} of the {len(wanted)} files that {INDEX} names ({missing[0]}): fetch the "
            "whole checkpoint again"
        )
    files = [folder / name for name in sorted(wanted)]
    held = {name: tensor.file.name for name, tensor in read_heads(files).items()}
    stale = f"{INDEX} is not of these files: fetch or save the whole checkpoint again"
    for name in sorted(placed.keys() | held.keys()):
        if name not in held:
            raise WeightsError(f"{folder} lacks the tensor {name}, which {placed[name]} should hold; {stale}")
        if name not in placed:
            raise WeightsError(
                f"{folder / held[name]} holds the tensor {name}, of which the index knows nothing; {stale}"
            )
        if placed[name] != held[name]:
            raise WeightsError(f"{folder}: {name} is in {held[name]}, not in {placed[name]}; {stale}")
    if shards - wanted:
        raise WeightsError(f"{folder} also holds {min(shards - wanted)}, which the index does not name; {stale}")
    return files


def read_heads(files: list[Path]) -> dict[str, Tensor]:
    """The tensors of files of safetensors, by name.

    Raises:
        WeightsError: a file is not complete, holds nothing or quantised weights; a tensor is in two files.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read_head(file).items():
            if name in found:
                raise WeightsError(
                    f"{file.parent}: the tensor {name} is in two files, {found[name].file.name} and {file.name}; "
                    "fetch or save the whole checkpoint again"
                )
            small = tensor.dtype.startswith("F") and tensor.dtype not in _FLOATS
            if small or (tensor.dtype not in _FLOATS and _WEIGHT.search(name)):
                raise WeightsError(
                    f"{file}: {name} is quantised ({tensor.dtype}), and quantised weights cannot be trained; give the "
                    "model that it was made from"
                )
            found[name] = tensor
    return found


def _read_head(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    check_content(file)
    try:
        with safe_open(file, framework="np") as content:
            parts = {name: content.get_slice(name) for name in sorted(content.keys())}
            tensors = {name: Tensor(part.get_dtype(), tuple(part.get_shape()), file) for name, part in parts.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read ({in_short(error)}): a complete checkpoint is needed") from None
    if not tensors:
        raise WeightsError(f"{file} is empty: a complete checkpoint is needed")
    return tensors


@lru_cache(maxsize=16)
def hub_heads(name: str, revision: str | None) -> Mapping[str, Tensor]:
    """The tensors of a hub's model, by name, from the first bytes of its files; none where they cannot be had: without
    a network, or for a model without safetensors (which the hub may make when they are first asked for)."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        found = HfApi().get_safetensors_metadata(name, revision=revision)
    except Exception:  # of many kinds, none of which says anything of the model
        return {}
    files = found.files_metadata.items()
    return {
        tensor: Tensor(str(info.dtype), tuple(info.shape), Path(file))
        for file, head in files
        for tensor, info in head.tensors.items()
    }
