"""Reading the safetensors of a Hugging Face folder, tensor by tensor or slice by slice."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.engines.base import WeightsError
from fortifai_ray.storage.transfer import StageFiles

if TYPE_CHECKING:
    import torch
    from torch import nn


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
        """``tensor(name)[:, start:stop]`` without reading the rest."""
        return self._files[name].get_slice(name)[:, start:stop]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())


# A LoRA adapter as a folder of its own, in PEFT's format: safetensors, and a configuration that names its model.
#
# The model's folder stands beside the adapter's, under the name that the configuration gives: so stages do in a store,
# wherever that is moved. A folder without such a configuration holds a whole model.

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of every tensor's name in such a file


@dataclass(frozen=True)
class AdapterFiles(StageFiles):
    """The folder of an adapter's stage, for a process on any node: with it comes that of its model, ``base``."""

    base: StageFiles

    @property
    def path(self) -> Path:
        """The adapter's folder on this node, its model's beside it. Raises as :class:`StageFiles` does."""
        _ = self.base.path  # fetched, where it was not here
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
        WeightsError: the configuration names no folder that stands there.
    """
    if not is_adapter(folder):
        return folder
    name = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(name, str) or Path(name).name != name or not (folder.parent / name).is_dir():
        raise WeightsError(f"{folder / ADAPTER_CONFIG}: its model, {name}, does not stand beside {folder.name}")
    return folder.parent / name


def read_scale(folder: Path) -> float:
    """What the product of an adapter's matrices is multiplied by: alpha over rank."""
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return config["lora_alpha"] / config["r"]


def adapter_parameters(model: "nn.Module") -> "dict[str, nn.Parameter]":
    """The adapters' parameters of a model that PEFT adapted, by their names in an adapter's file."""
    return {
        _PREFIX + name.replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }


def put_adapter(model: Any, folder: Path) -> Any:
    """Adapt ``model``, a Hugging Face model, in place by the adapter in ``folder``; returns PEFT's hold on it.

    Raises:
        WeightsError: the file's tensors are not those that its configuration asks for.
    """
    import torch
    from peft import LoraConfig, LoraModel
    from safetensors.torch import load_file

    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False  # which a file always asks for, and which would freeze what is to be gone on with
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
    """The causal LM in ``folder``, or the one of its adapter with that merged in, on the CPU and in evaluation mode.

    Args:
        folder: a Hugging Face folder of safetensors, or an adapter's.
        dtype: of the weights; ``auto`` is the file's own. An adapter is merged in float32 and rounded once.

    Raises:
        WeightsError: the adapter does not fit its model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    base = whole_model(folder)
    if base == folder:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    if dtype == "auto":
        dtype = AutoConfig.from_pretrained(base).dtype or torch.float32
    model = merge_adapter(model, folder)
    return model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype).eval()
