"""Inside the vLLM worker: its layers without adapters, with adapters, and which part of a whole tensor each holds.

With tensor parallelism a worker holds a share of each tensor. A column-parallel layer is split by its outputs (the
weight's rows), a row-parallel one by its inputs (the columns), an embedding by the vocabulary. Fused layers are split
slice by slice, and several workers may hold the same heads of keys and values.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

    Of an adapter whose tensors go astray, vLLM at most logs a line, and the model answers without them.

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
    sizes = slices(layer)
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


def slices(layer: ColumnParallelLinear) -> list[int]:
    """Number of rows of each slice of the whole weight."""
    if isinstance(layer, QKVParallelLinear):
        keys, values = layer.head_size, layer.v_head_size
        return [layer.total_num_heads * keys, layer.total_num_kv_heads * keys, layer.total_num_kv_heads * values]
    if isinstance(layer, MergedColumnParallelLinear):
        return list(layer.output_sizes)
    return [layer.output_size]
