"""What a study file says of the signs of collapse."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

# What signs come to: numbers, what they were taken on, and why one is missing.


@dataclass(frozen=True)
class Signs:
    """The signs of one generation.

    Attributes:
        values: a number for each metric of :mod:`fortifai_ray.metrics` that was asked for; None where it
            could not be had.
        counts: what was scored and what was not: rows, tokens, targets.
        reasons: why a value is None, by metric.
        histograms: counts by bin, by name; the edges stand beside what fills them.
    """

    values: dict[str, float | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)

    def __or__(self, other: "Signs") -> "Signs":
        """Both together; they share no name."""
        return Signs(
            self.values | other.values,
            self.counts | other.counts,
            self.reasons | other.reasons,
            self.histograms | other.histograms,
        )


def finite(values: Mapping[str, float | None], reason: str, counts: dict[str, int]) -> Signs:
    """Signs whose numbers are all finite: what is not becomes None, for ``reason`` or for what it was."""
    known = {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
    reasons = {
        name: reason if values[name] is None else f"not finite: {values[name]}"
        for name, value in known.items()
        if value is None
    }
    return Signs(known, counts, reasons)


# Rows of token ids as two flat arrays, and the n-grams within them.


@dataclass(frozen=True)
class Rows:
    """Documents as token ids: row i is ``tokens[offsets[i] : offsets[i + 1]]``.

    Attributes:
        tokens: int32 of shape (tokens,), not negative.
        offsets: int64 of shape (rows + 1,), ascending from 0.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 of shape (rows,)."""
        return np.diff(self.offsets)

    @cached_property
    def vocabulary(self) -> int:
        """One more than the largest id; 1 for no tokens."""
        return int(self.tokens.max(initial=0)) + 1

    def first_tokens(self, count: int) -> "Rows":
        """The first ``count`` tokens, in their rows: the last of these may be cut short."""
        if count >= len(self.tokens):
            return self
        last = int(np.searchsorted(self.offsets, count, side="left"))
        return Rows(self.tokens[:count], np.append(self.offsets[:last], count))

    def between(self, first: int, last: int) -> "Rows":
        """Rows ``first`` to ``last`` (exclusive)."""
        start, stop = self.offsets[first], self.offsets[last]
        return Rows(self.tokens[start:stop], self.offsets[first : last + 1] - start)

    def take(self, items: np.ndarray) -> "Rows":
        """The rows with these numbers, in this order."""
        parts = [self.tokens[self.offsets[item] : self.offsets[item + 1]] for item in items]
        tokens = np.concatenate(parts) if parts else self.tokens[:0]
        return Rows(tokens, np.concatenate([[0], np.cumsum(self.lengths[items])]))

    def without_empty(self) -> "Rows":
        """The rows that hold a token."""
        return Rows(self.tokens, np.append(self.offsets[:-1][self.lengths > 0], len(self.tokens)))


def as_rows(texts: pa.Array | pa.ChunkedArray | np.ndarray | Rows) -> Rows:
    """Rows of Arrow lists of ids, of a matrix of blocks (blocks, block_size), or one row of a flat array.

    Raises ValueError for what is neither, or holds a negative or missing id. A null list is a row of length 0.
    """
    if isinstance(texts, Rows):
        return texts
    rows = _of_matrix(texts) if isinstance(texts, np.ndarray) else _of_lists(texts)
    if len(rows.tokens) and rows.tokens.min() < 0:
        raise ValueError(f"token ids must not be negative (got {rows.tokens.min()})")
    return rows


def _of_matrix(blocks: np.ndarray) -> Rows:
    if blocks.ndim not in (1, 2) or not np.issubdtype(blocks.dtype, np.integer):
        raise ValueError(f"ids must be integers of one or two axes (got {blocks.dtype} of shape {blocks.shape})")
    count, size = blocks.shape if blocks.ndim == 2 else (1, len(blocks))
    tokens = np.ascontiguousarray(blocks, dtype=np.int32).reshape(-1)
    return Rows(tokens, np.arange(count + 1, dtype=np.int64) * size)


def _of_lists(lists: pa.Array | pa.ChunkedArray) -> Rows:
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    kind = lists.type
    if not ((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_integer(kind.value_type)):
        raise ValueError(f"rows must be lists of integer ids (got {kind})")
    values = lists.flatten()
    if values.null_count:
        raise ValueError(f"{values.null_count} token id(s) are missing")
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    tokens = values.to_numpy().astype(np.int32, copy=False)
    return Rows(tokens, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def ngram_starts(rows: Rows, n: int) -> np.ndarray:
    """Boolean of shape (max(tokens − n + 1, 0),): whether the n tokens from here on lie within one row."""
    inside = np.ones(max(len(rows.tokens) - n + 1, 0), dtype=np.bool_)
    for before in range(1, n):
        crossing = rows.offsets[1:] - before
        inside[crossing[(crossing >= 0) & (crossing < len(inside))]] = False
    return inside


def ngram_keys(rows: Rows, n: int, vocabulary: int | None = None) -> np.ndarray:
    """A number for each n-gram within a row, in order: int64, equal exactly where the n-grams are (no hashing).

    n is 1 to 4. Keys of two corpora can be compared where both were made with the same ``vocabulary``, a bound of the
    ids, and n ≤ 2; longer n-grams of large vocabularies are numbered by what occurs in ``rows``.
    """
    base, tokens = vocabulary or rows.vocabulary, rows.tokens
    size = max(len(tokens) - n + 1, 0)
    assert 1 <= n <= 4, f"no keys for {n}-grams"
    assert base >= rows.vocabulary, f"ids up to {rows.vocabulary - 1} in a vocabulary of {base}"
    if size and base**n >= 2**63:
        keys = _named_keys(tokens, n, base)
    else:
        keys = tokens[:size].astype(np.int64)
        for place in range(1, n):
            keys *= base
            keys += tokens[place : place + size]
    return keys[ngram_starts(rows, n)]


def _named_keys(tokens: np.ndarray, n: int, base: int) -> np.ndarray:
    """Keys of 3- or 4-grams too large for 64 bits: the 2-grams (62 bits at most) are numbered densely first."""
    pairs = tokens[:-1].astype(np.int64)
    pairs *= base
    pairs += tokens[1:]
    names = np.unique(pairs, return_inverse=True)[1]
    if n == 3:
        return names[:-1] * base + tokens[2:]
    return names[:-2] * (int(names.max()) + 1) + names[2:]
