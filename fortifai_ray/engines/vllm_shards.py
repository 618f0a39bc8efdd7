"""What one of vLLM's tensor-parallel workers holds of a tensor of the checkpoint; alone, it holds all of it.

A column-parallel layer is split by its outputs (the weight's rows), a row-parallel one by its inputs (the columns), an
embedding by the vocabulary. Fused layers are split slice by slice, and of keys and values a few workers may hold the
same heads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding


def held_rows(layer: Any, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The rows that this worker's ``layer`` holds of a weight or bias whose whole is ``parts``, one below the other:
    one for each slice of a fused layer, or a single one for all of them."""
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
    """The first of the ``columns`` of a whole weight that this worker's ``layer`` holds, and the one after the last."""
    if not isinstance(layer, RowParallelLinear):
        return 0, columns
    size = columns // layer.tp_size
    return layer.tp_rank * size, (layer.tp_rank + 1) * size


def _slices(layer: ColumnParallelLinear) -> list[int]:
    """Rows of each slice of the whole weight."""
    if isinstance(layer, QKVParallelLinear):
        keys, values = layer.head_size, layer.v_head_size
        return [layer.total_num_heads * keys, layer.total_num_kv_heads * keys, layer.total_num_kv_heads * values]
    if isinstance(layer, MergedColumnParallelLinear):
        return list(layer.output_sizes)
    return [layer.output_size]
