"""The weight swap, done inside the vLLM worker, and the proof that it took.

vLLM's own reload succeeds with a wrong model in two ways. Where embeddings are tied, its CPU backend keeps a packed
copy of the output head that the reload does not touch. And a tensor that the checkpoint lacks is only warned about:
the old one stays. So after each swap every parameter is compared with the file. Packed matrices cannot be read back,
but they can be asked: a one-hot input returns a column exactly, in any precision.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from fortifai_ray.engines.adapters import Checkpoint
from fortifai_ray.engines.base import WeightsError
from fortifai_ray.engines.vllm_lora import bare, verify_adapter
from fortifai_ray.engines.vllm_shards import held_columns, held_rows

# Each column shows every row of a matrix, so every fused part; a stale matrix differs in nearly all of them.
PROBED_COLUMNS = 4


class WeightSwap:
    """Mixed into vLLM's worker by ``worker_extension_cls``."""

    if TYPE_CHECKING:
        model_runner: Any
        reload_weights: Any

    def swap_weights(self, folder: str) -> None:
        """Replace the weights in place by those of ``folder``, and verify them.

        The caller resets the prefix cache.

        Raises:
            WeightsError: a parameter has no tensor in the folder, or does not equal it afterwards.
        """
        checkpoint = Checkpoint(Path(folder))
        model = self.model_runner.get_model()
        with bare(model):
            sources = match_parameters(model, checkpoint)
            self.reload_weights(weights_iterator=checkpoint.tensors())
            refresh_packed_embeddings(model)
            for name, parts in sources.items():
                verify_parameter(model, name, checkpoint, parts)

    def verify_adapter(self, number: int, folder: str) -> None:
        """That the adapter that vLLM knows by ``number`` is the one in ``folder``, whole.

        Raises:
            WeightsError: it is not.
        """
        verify_adapter(self.model_runner.lora_manager._adapter_manager, number, Path(folder))


def refresh_packed_embeddings(model: nn.Module) -> None:
    """Pack the output head again from the weights that its (possibly tied) embedding now holds."""
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


def match_parameters(model: nn.Module, checkpoint: Checkpoint) -> dict[str, list[str]]:
    """For each parameter of a vLLM model, the tensors of the file it is made of, in order.

    Fused parameters (query, key and value; gate and up) have several.

    Raises:
        WeightsError: a parameter, or a part of a fused one, has no tensor in the file.
    """
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    fused: dict[str, list[str]] = {}
    for part, (whole, _) in (mapper.orig_to_new_stacked if mapper else {}).items():
        fused.setdefault(whole, []).append(part)
    mapped: dict[str, list[str]] = {}
    for name in checkpoint.names:
        target = mapper.map_name(name) if mapper else name
        if target is not None:
            mapped.setdefault(target, []).append(name)
    matched = {}
    for parameter, _ in model.named_parameters(remove_duplicate=False):  # a tied head is its own module, packed apart
        parts = mapped.get(parameter) or mapped.get(_tied_source(model, parameter), [])
        order = next((fused[whole] for whole in fused if whole in parameter), None)
        if order is None and len(parts) == 1:
            matched[parameter] = parts
        elif order is not None and len(parts) == len(order):
            matched[parameter] = [next(name for name in parts if part in name) for part in order]
        else:
            raise WeightsError(
                f"{checkpoint.folder} lacks tensors for {parameter} of {type(model).__name__}: "
                f"found {parts or 'none'}{f', want one each of {order}' if order else ''}"
            )
    return matched


def _tied_source(model: nn.Module, parameter: str) -> str:
    """The name under which a tied output head's weights are stored; empty where it is not a tied head."""
    config = getattr(model, "config", None)
    if not getattr(config, "tie_word_embeddings", False) or not parameter.endswith("lm_head.weight"):
        return ""
    embeddings = (
        name
        for name, module in model.named_modules()
        if type(module) is VocabParallelEmbedding and "lm_head" not in name
    )
    return f"{next(embeddings, '')}.weight"


def verify_parameter(model: nn.Module, name: str, checkpoint: Checkpoint, parts: list[str]) -> None:
    """Compare one parameter, as the engine will use it, with its tensors in the file.

    Raises:
        WeightsError: they differ.
    """
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    packed = leaf == "weight" and hasattr(module, "cpu_linear")
    stored = getattr(module, leaf)
    if packed:
        _compare(*_packed_columns(module, checkpoint, parts, stored.dtype), name, checkpoint)
    if stored.numel():  # packing frees the original, except where an embedding still looks rows up in it
        filed = held_rows(module, [_own_columns(module, checkpoint.tensor(part)) for part in parts])
        _compare(stored[: len(filed)], filed, name, checkpoint)
    elif not packed:
        raise WeightsError(f"{name} of {type(model).__name__} is empty: its weights cannot be verified")


def _packed_columns(
    module: Any, checkpoint: Checkpoint, parts: list[str], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some columns of a packed matrix (``[rows, PROBED_COLUMNS]``): as the module holds them, as the file does.

    Rows and columns are those that this worker holds, one of several perhaps.
    """
    first, last = held_columns(module, checkpoint.shape(parts[0])[1])
    width = last - first
    start = max(0, width // 2 - PROBED_COLUMNS // 2)
    stop = min(width, start + PROBED_COLUMNS)
    inputs = torch.zeros(stop - start, width, dtype=dtype)
    inputs[torch.arange(stop - start), torch.arange(start, stop)] = 1
    held = module.quant_method.apply(module, inputs, None).T
    filed = held_rows(module, [checkpoint.columns(part, first + start, first + stop) for part in parts])
    return held[: len(filed)], filed


def _own_columns(module: nn.Module, whole: torch.Tensor) -> torch.Tensor:
    """A weight's columns that this worker holds; a bias has none."""
    if whole.dim() < 2:
        return whole
    first, last = held_columns(module, whole.shape[1])
    return whole[:, first:last]


def _compare(held: torch.Tensor, filed: torch.Tensor, name: str, checkpoint: Checkpoint) -> None:
    filed = filed.to(device=held.device, dtype=held.dtype)
    # Subnormal numbers may be flushed to zero; everything else must be the same number.
    tiny = torch.finfo(held.dtype).tiny
    if held.shape != filed.shape or not torch.allclose(held, filed, rtol=0, atol=tiny):
        raise WeightsError(
            f"after loading {checkpoint.folder}, {name} does not hold the file's values"
            + ("" if torch.isfinite(filed).all() else ", which are not finite")
        )
