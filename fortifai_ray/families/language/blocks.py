"""What a causal LM is trained on, in memory: training needs no more of a corpus, and neither Arrow nor a store."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Blocks:
    """Token blocks: ``tokens`` int32 of shape (blocks, block_size); the first ``lengths[i]`` of row i are text."""

    tokens: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)
