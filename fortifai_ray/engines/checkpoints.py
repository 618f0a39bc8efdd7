"""The contents of a model's folder: a whole Hugging Face model, or a LoRA adapter of the model in a folder beside it.

An adapter is in PEFT's format: safetensors, and a configuration that names its model. The model's folder is beside the
adapter's, under that name, as stages are in a store, wherever the store is moved. A folder without such a configuration
holds a whole model.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.engines.pretrained import WeightsError, causal_config, load_network, read_json
from fortifai_ray.storage.store import StageFiles

if TYPE_CHECKING:
    import torch
    from torch import nn

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of every tensor's name in such a file
# Keys of a config.json that do not change what the network computes, or that the call itself determines.
_TRIVIA = frozenset(
    {
        "_name_or_path",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


class Checkpoint:
    """The tensors of a folder's ``*.safetensors``, opened lazily.

    Raises:
        WeightsError: the folder holds no safetensors.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise WeightsError(f"{folder} holds no *.safetensors: not a checkpoint that can be loaded")
        self.folder = folder
        self._files: dict[str, Any] = {}
        for file in files:
            handle = safe_open(file, framework="pt")
            self._files.update(dict.fromkeys(handle.keys(), handle))

    @property
    def names(self) -> list[str]:
        return list(self._files)

    def tensors(self) -> "Iterator[tuple[str, torch.Tensor]]":
        for name, handle in self._files.items():
            yield name, handle.get_tensor(name)

    def tensor(self, name: str) -> "torch.Tensor":
        return self._files[name].get_tensor(name)

    def columns(self, name: str, start: int, stop: int) -> "torch.Tensor":
        """``tensor(name)[:, start:stop]``, without reading the rest."""
        return self._files[name].get_slice(name)[:, start:stop]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())


@dataclass(frozen=True)
class AdapterFiles(StageFiles):
    """The folder of an adapter's stage, for a process on any node, together with that of its model, ``base``."""

    base: StageFiles

    @property
    def path(self) -> Path:
        """The adapter's folder on this node, with its model's beside it. Raises as :class:`StageFiles` does."""
        _ = self.base.path  # fetches it where necessary
        return self.stage.path

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_base, (StageFiles(self.stage, self.storage), self.base)


def _with_base(adapter: StageFiles, base: StageFiles) -> AdapterFiles:
    return AdapterFiles(adapter.stage, adapter.storage, base)


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter instead of a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def whole_model(folder: Path) -> Path:
    """The folder of the whole model: ``folder``, or the one beside it that its adapter belongs to.

    Raises:
        WeightsError: the configuration cannot be read, or names no folder beside it.
    """
    if not is_adapter(folder):
        return folder
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or Path(name).name != name or not (folder.parent / name).is_dir():
        raise WeightsError(
            f"{folder / ADAPTER_CONFIG}: its model, {name}, is not beside {folder.name}; put its folder there under "
            "that name, or merge the adapter into it (PEFT: merge_and_unload, then save_pretrained)"
        )
    return folder.parent / name


def read_scale(folder: Path) -> float:
    """The factor of the product of an adapter's matrices: alpha over rank."""
    config = read_json(folder / ADAPTER_CONFIG)
    return config["lora_alpha"] / config["r"]


def adapter_parameters(model: "nn.Module") -> "dict[str, nn.Parameter]":
    """The adapter parameters of a model adapted by PEFT, by their names in an adapter's file."""
    return {
        _PREFIX + name.replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }


@contextmanager
def layers_as_named(model: Any) -> Iterator[None]:
    """While PEFT adds adapters to ``model``: targets are its layers as they are named, and nothing else.

    By a model's configuration, PEFT would read the names of an older architecture's expert layers into them, and adapt
    the experts' tensors.
    """
    config = vars(model).pop("config")
    try:
        yield
    finally:
        model.config = config


def put_adapter(model: Any, folder: Path) -> Any:
    """Adapt ``model``, a Hugging Face model, in place by the adapter in ``folder``; returns PEFT's wrapper.

    Raises:
        WeightsError: the file's tensors are not those of its configuration.
    """
    import torch
    from peft import LoraConfig, LoraModel
    from safetensors.torch import load_file

    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False  # always set in a file; it would freeze weights that training may continue
    with layers_as_named(model):
        adapted = LoraModel(model, config, "default")
    places, tensors = adapter_parameters(model), load_file(folder / ADAPTER_WEIGHTS)
    wrong = places.keys() ^ tensors.keys() | {
        n for n, p in places.items() if n in tensors and p.shape != tensors[n].shape
    }
    if wrong:
        raise WeightsError(f"{folder / ADAPTER_WEIGHTS} lacks or does not fit {', '.join(sorted(wrong)[:3])}")
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(tensors[name])
    return adapted


def merge_adapter(model: Any, folder: Path) -> Any:
    """``model`` with the adapter in ``folder`` added to its weights: an ordinary model again.

    Raises:
        WeightsError: see :func:`put_adapter`.
    """
    return put_adapter(model, folder).merge_and_unload()


def load_causal_lm(folder: Path, dtype: "torch.dtype | str") -> Any:
    """The causal LM in ``folder``, its adapter merged if it is one, on the CPU and in evaluation mode.

    Args:
        folder: a Hugging Face folder of safetensors, or an adapter's.
        dtype: of the weights; ``auto`` is the file's own. An adapter is merged in float32 and rounded once.

    Raises:
        WeightsError: see :func:`load_network`; or the adapter does not fit its model.
    """
    import torch

    base = whole_model(folder)
    if base == folder:
        return load_network(folder, dtype)
    model = merge_adapter(load_network(base, torch.float32), folder)
    if dtype == "auto":
        dtype = causal_config(base).dtype or torch.float32
    return model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype).eval()


def load_for_scoring(folder: Path, dtype: "torch.dtype | str", threads: int) -> Any:
    """:func:`load_causal_lm` on the GPU if there is one, else on the CPU with so many threads of torch."""
    import torch

    torch.set_num_threads(threads)
    return load_causal_lm(folder, dtype).to("cuda" if torch.cuda.is_available() else "cpu")


def architecture(folder: Path) -> str:
    """A hash of a network's architecture: its ``config.json`` without the keys that do not affect it.

    Missing keys count as their defaults, so a hub's terse file agrees with what training saved from it.

    Raises:
        FileNotFoundError: ``folder`` has no ``config.json``.
        WeightsError: see :func:`causal_config`.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    config = _without_trivia(causal_config(folder).to_dict())
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _without_trivia(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in _TRIVIA}
    return {key: _without_trivia(value) if isinstance(value, dict) else value for key, value in kept.items()}
