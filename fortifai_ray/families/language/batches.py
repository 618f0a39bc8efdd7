"""Which blocks a training worker works through in each step, and in which micro-batches."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fortifai_ray.families.language.config import TrainingConfig
from fortifai_ray.families.language.data import Blocks

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """One rank's share of a step's blocks: ``parts`` are its micro-batches, tokens (rows, block_size) and lengths
    (rows,), as many on every rank; ``targets`` counts those of all ranks."""

    parts: "list[tuple[Tensor, Tensor]]"
    targets: int


def batches(blocks: Blocks, order: np.ndarray, training: TrainingConfig, rank: int, world: int) -> Iterator[Batch]:
    """The share of each step's blocks of one ``rank`` of ``world``, in the order of ``order`` (indices of blocks)."""
    for start in range(0, len(order), training.batch_size):
        batch = order[start : start + training.batch_size]
        targets = int((blocks.lengths[batch] - 1).clip(0).sum())
        parts = min(training.gradient_accumulation, -(-len(batch) // world))
        shares = np.array_split(batch[rank::world], parts)
        yield Batch([_rows(blocks, share, batch[:1]) for share in shares], max(targets, 1))


def _rows(blocks: Blocks, share: np.ndarray, any_row: np.ndarray) -> "tuple[Tensor, Tensor]":
    """The rows of a micro-batch; where it has none, a row without targets keeps this rank in step with the others."""
    import torch

    lengths = blocks.lengths[share]
    if len(share) == 0:
        share, lengths = any_row, np.zeros(1, dtype=np.int64)
    return torch.from_numpy(blocks.tokens[share]).long(), torch.from_numpy(lengths)
