"""What a causal LM is trained on, in memory: training needs no more of a corpus, and neither Arrow nor a store."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Blocks:
    """Token blocks: ``tokens`` int32 of shape (blocks, block_size); the first ``lengths[i]`` of row i are text.

    ``weights`` (blocks,) are those of a block's targets in the loss; None where all are alike.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)
