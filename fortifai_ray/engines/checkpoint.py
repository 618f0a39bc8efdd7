"""Reading the safetensors of a Hugging Face folder, tensor by tensor or slice by slice."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.engines.base import WeightsError

if TYPE_CHECKING:
    import torch


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
