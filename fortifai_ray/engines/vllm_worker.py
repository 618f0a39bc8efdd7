"""Runs inside the vLLM worker: the swap of weights or of an adapter, and the proof that it took.

vLLM's own reload succeeds with a wrong model in two ways. Where embeddings are tied, its CPU backend keeps a packed
copy of the output head that the reload does not touch. And a tensor that the checkpoint lacks causes only a warning:
the old one stays. So after each swap every parameter is compared with the file. Packed matrices cannot be read back,
but they can be probed: a one-hot input returns a column exactly, in any precision. Of an adapter whose tensors go
astray, vLLM at most logs a line, and the model answers without them: adapters are compared too.

With tensor parallelism a worker holds a share of each tensor. A column-parallel layer is split by its outputs (the
weight's rows), a row-parallel one by its inputs (the columns), an embedding by the vocabulary. Fused layers are split
slice by slice, and several workers may hold the same heads of keys and values.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.lora.utils import parse_fine_tuned_lora_name
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from fortifai_ray.engines.checkpoints import ADAPTER_CONFIG, Checkpoint, read_scale
from fortifai_ray.engines.pretrained import WeightsError

# A column contains every row of a matrix, so every fused part; a stale matrix differs in nearly all columns.
PROBED_COLUMNS = 4


class WeightSwap:
    """Added to vLLM's worker by ``worker_extension_cls``."""

    if TYPE_CHECKING:
        model_runner: Any
        reload_weights: Any

    def swap_weights(self, folder: str) -> None:
        """Replace the weights in place by those in ``folder``, and verify them.

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
        """Verify that vLLM's adapter of this ``number`` is the one in ``folder``, completely.

        Raises:
            WeightsError: it is not.
        """
        verify_adapter(self.model_runner.lora_manager._adapter_manager, number, Path(folder))


def refresh_packed_embeddings(model: nn.Module) -> None:
    """Repack the output head from the weights that its (possibly tied) embedding now holds."""
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


def match_parameters(model: nn.Module, checkpoint: Checkpoint) -> dict[str, list[str]]:
    """For each parameter of a vLLM model, the file's tensors that make it up, in order.

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
    for parameter, _ in model.named_parameters(remove_duplicate=False):  # a tied head is packed on its own
        parts = mapped.get(parameter) or mapped.get(_tied_source(model, parameter), [])
        order = next((fused[whole] for whole in fused if whole in parameter), None)
        if order is None and len(parts) == 1:
            matched[parameter] = parts
        elif order is not None and len(parts) == len(order):
            matched[parameter] = [next(name for name in parts if part in name) for part in order]
        else:
            raise WeightsError(
                f"{checkpoint.folder} lacks tensors for {parameter} of {type(model).__name__}: "
                f"it has {parts or 'none'}{f'; one each of {order} is needed' if order else ''}"
            )
    return matched


def _tied_source(model: nn.Module, parameter: str) -> str:
    """The name under which a tied output head's weights are stored; empty for any other parameter."""
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
    """Compare one parameter, as the engine uses it, with its tensors in the file.

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
    """Some columns of a packed matrix (``[rows, PROBED_COLUMNS]``): the module's and the file's.

    Rows and columns are those that this worker holds.
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
    """The columns of a weight that this worker holds; a bias is returned whole."""
    if whole.dim() < 2:
        return whole
    first, last = held_columns(module, whole.shape[1])
    return whole[:, first:last]


def _compare(held: torch.Tensor, filed: torch.Tensor, name: str, checkpoint: Checkpoint) -> None:
    filed = filed.to(device=held.device, dtype=held.dtype)
    # Subnormal numbers may be flushed to zero; all others must be equal.
    tiny = torch.finfo(held.dtype).tiny
    if held.shape != filed.shape or not torch.allclose(held, filed, rtol=0, atol=tiny):
        raise WeightsError(
            f"after loading {checkpoint.folder}, {name} does not hold the file's values"
            + ("" if torch.isfinite(filed).all() else ", which are not finite")
        )


@contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """Within the context, ``model`` consists of its own layers, without vLLM's wrappers for adapters.

    The wrappers change the names of the parameters.
    """
    wrapped = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseLayerWithLoRA)]
    try:
        for name, module in wrapped:
            model.set_submodule(name, module.base_layer)
        yield
    finally:
        for name, module in wrapped:
            model.set_submodule(name, module)


def verify_adapter(manager: Any, number: int, folder: Path) -> None:
    """Verify that each layer holds, for the adapter of this ``number``, exactly the tensors of ``folder``.

    Raises:
        WeightsError: a tensor of the file is in no layer, or differs from the layer's.
    """
    slot = manager.lora_index_to_id.index(number)
    wanted = _pairs(manager, folder)
    for name, module in manager.modules.items():
        if not hasattr(module, "n_slices"):  # the output head, never adapted
            continue
        owner, _, leaf = name.rpartition(".")
        parts = manager.packed_modules_mapping.get(leaf, [leaf])
        for slice_, part in enumerate(parts):
            down, up = wanted.pop(f"{owner}.{part}", (None, None))
            _verify_slice(module, slice_, slot, down, up, f"{owner}.{part}", folder)
    if wanted:
        raise WeightsError(f"{folder} adapts {', '.join(sorted(wanted)[:3])}, which are not layers that vLLM adapts")


def _pairs(manager: Any, folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and scaled B of each adapted layer of the file, by vLLM's name for the layer."""
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    mapper = None if mapper is None else mapper.get_rename_mapper()
    scale, dtype = read_scale(folder), manager.lora_config.lora_dtype
    halves: dict[str, dict[bool, torch.Tensor]] = {}
    for name, tensor in Checkpoint(folder).tensors():
        layer, is_down = parse_fine_tuned_lora_name(name, mapper)
        halves.setdefault(layer, {})[is_down] = tensor.to(dtype)
    return {layer: (pair[True], pair[False] * scale) for layer, pair in halves.items()}


def _verify_slice(
    module: Any, slice_: int, slot: int, down: torch.Tensor | None, up: torch.Tensor | None, name: str, folder: Path
) -> None:
    held_down, held_up = module.lora_a_stacked[slice_][slot, 0], module.lora_b_stacked[slice_][slot, 0]
    expected_down, expected_up = torch.zeros_like(held_down), torch.zeros_like(held_up)
    if down is not None and up is not None:
        first, last = held_columns(module.base_layer, down.shape[1])
        rows = held_slice(module.base_layer, slice_, up)
        expected_down[: len(down), : last - first] = down[:, first:last]
        expected_up[: len(rows), : up.shape[1]] = rows
    if not (held_down.equal(expected_down) and held_up.equal(expected_up)):
        raise WeightsError(f"after loading {folder}, {name} does not hold the adapter of {ADAPTER_CONFIG}")


def held_rows(layer: Any, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The rows that this worker's ``layer`` holds of a weight or bias, given as ``parts`` to be stacked: one for each
    slice of a fused layer, or a single one for all of them."""
    if isinstance(layer, VocabParallelEmbedding):
        indices = layer.shard_indices
        return torch.cat(list(parts))[indices.org_vocab_start_index : indices.org_vocab_end_index]
    if not isinstance(layer, ColumnParallelLinear):
        return torch.cat(list(parts))
    sizes = _slices(layer)
    if len(parts) == 1:
        parts = parts[0].split(sizes)
    return torch.cat([held_slice(layer, number, part) for number, part in enumerate(parts)])


def held_slice(layer: Any, number: int, whole: torch.Tensor) -> torch.Tensor:
    """The rows that this worker's ``layer`` holds of slice ``number`` of its weight, given ``whole``."""
    if not isinstance(layer, ColumnParallelLinear):
        return whole
    copies = layer.num_kv_head_replicas if isinstance(layer, QKVParallelLinear) and number > 0 else 1
    size = len(whole) * copies // layer.tp_size
    start = layer.tp_rank // copies * size
    return whole[start : start + size]


def held_columns(layer: Any, columns: int) -> tuple[int, int]:
    """The range of a whole weight's ``columns`` that this worker's ``layer`` holds: first, and one past the last."""
    if not isinstance(layer, RowParallelLinear):
        return 0, columns
    size = columns // layer.tp_size
    return layer.tp_rank * size, (layer.tp_rank + 1) * size


def _slices(layer: ColumnParallelLinear) -> list[int]:
    """Number of rows of each slice of the whole weight."""
    if isinstance(layer, QKVParallelLinear):
        keys, values = layer.head_size, layer.v_head_size
        return [layer.total_num_heads * keys, layer.total_num_kv_heads * keys, layer.total_num_kv_heads * values]
    if isinstance(layer, MergedColumnParallelLinear):
        return list(layer.output_sizes)
    return [layer.output_size]
