"""n-grams that two texts share: their hash, and what of the held-out text a model is trained on all the same.

A passage that stands in both parts makes a model look better than it is, by as much as it can recite. Whole documents
are kept apart by the split; this counts the shorter passages that two documents share, as n-gram overlap is counted
for the large models (Brown et al. 2020, appendix C, with runs of 13 words).
"""

from collections.abc import Iterable, Sequence

import numpy as np

RUN = 13  # words, parted by white space
MANY = 0.05  # share of the held-out runs from which on a user is warned
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def shared_runs(train: Iterable[str], held_out: Sequence[str]) -> float:
    """Share of the held-out documents' runs of 13 words that stand in a training document, too; 0 where there is none.

    Runs are told apart by a hash of 64 bits: of 10⁷ held-out runs and 10⁸ in training, none is taken for another in
    9,999 of 10,000 texts. Cost: a look-up per word, some 0.3 s per million.
    """
    numbers: dict[str, int] = {}

    def runs(text: str) -> np.ndarray:
        words = np.array([numbers.setdefault(word, len(numbers)) for word in text.split()], dtype=np.uint64)
        return hash_ngrams(words, RUN)

    every = [runs(text) for text in held_out]
    wanted, counts = np.unique(np.concatenate(every or [np.empty(0, np.uint64)]), return_counts=True)
    if not len(wanted):
        return 0.0
    found = np.zeros(len(wanted), dtype=bool)
    for text in train:
        hashed = runs(text)
        places = np.minimum(np.searchsorted(wanted, hashed), len(wanted) - 1)
        found[places[wanted[places] == hashed]] = True
    return float(counts[found].sum() / counts.sum())


def hash_ngrams(tokens: np.ndarray, n: int, document: np.ndarray | None = None) -> np.ndarray:
    """A hash of the n-gram at each position (polynomial, modulo 2**64): uint64 of shape (max(0, tokens − n + 1),).

    With ``document``, a number for each position, it is that of (document, n-gram).
    """
    count = max(0, len(tokens) - n + 1)
    value = np.zeros(count, np.uint64) if document is None else document[:count].astype(np.uint64)
    for shift in range(n):
        value = value * _MULTIPLIER + tokens[shift : shift + count].astype(np.uint64) + np.uint64(1)
        value ^= value >> np.uint64(29)
    return value


def ngrams_of_rows(tokens: np.ndarray, row: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The hash of each n-gram that lies within one row, and the row's number.

    Args:
        tokens: (tokens,) of all rows, one after the other.
        row: (tokens,) the row of each, ascending.
    """
    start, end = row[: max(0, len(row) - n + 1)], row[n - 1 :]
    inside = start == end
    return hash_ngrams(tokens, n)[inside], start[inside]
