"""Which part of a whole tensor a worker's layer holds.

With tensor parallelism a worker holds a share of each tensor. A column-parallel layer is split by its outputs (the
weight's rows), a row-parallel one by its inputs (the columns), an embedding by the vocabulary. Fused layers are split
slice by slice, and several workers may hold the same heads of keys and values.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding


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
