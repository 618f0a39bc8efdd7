"""What of the held-out text a model is trained on all the same.

A passage that stands in both parts makes a model look better than it is, by as much as it can recite. Whole documents
are kept apart by the split; this counts the shorter passages that two documents share, as n-gram overlap is counted
for the large models (Brown et al. 2020, appendix C, with runs of 13).
"""

import numpy as np

RUN = 13  # tokens
MANY = 0.05  # share of the held-out runs from which on a user is warned
_PIECE = 1 << 22  # tokens hashed at a time
_BASE = np.uint64(0x9E3779B97F4A7C15)


def shared_runs(train: np.ndarray, held_out: np.ndarray) -> float:
    """Share of the held-out text's runs of 13 tokens that stand in the training text, too; 0 where there is no run.

    Args:
        train: token ids, of shape (tokens,).
        held_out: token ids, of shape (tokens,).

    Each run is told by a hash of 64 bits: of 10⁸ runs on each side, 5 in 10⁴ texts take one for another. The cost is a
    sort of the held-out runs and one search in them per training token: 2 s for 10⁷ tokens.
    """
    wanted, counts = np.unique(_hash(held_out), return_counts=True)
    if not len(wanted):
        return 0.0
    found = np.zeros(len(wanted), dtype=bool)
    for start in range(0, max(0, len(train) - RUN + 1), _PIECE):
        hashed = _hash(train[start : start + _PIECE + RUN - 1])
        places = np.minimum(np.searchsorted(wanted, hashed), len(wanted) - 1)
        found[places[wanted[places] == hashed]] = True
    return float(counts[found].sum() / counts.sum())


def _hash(tokens: np.ndarray) -> np.ndarray:
    """A hash of every run of :data:`RUN` tokens: uint64 of shape (max(0, tokens − RUN + 1),)."""
    count = max(0, len(tokens) - RUN + 1)
    hashed = np.zeros(count, dtype=np.uint64)
    for place in range(RUN):
        mixed = (tokens[place : place + count].astype(np.uint64) + np.uint64(1)) * _BASE
        hashed = (hashed ^ (mixed ^ (mixed >> np.uint64(29)))) * _BASE  # wraps round at 64 bits
        hashed ^= hashed >> np.uint64(32)
    return hashed
