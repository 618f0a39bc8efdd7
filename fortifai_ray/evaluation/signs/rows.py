"""Rows of token ids as two flat arrays, and the n-grams within them."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from fortifai_ray.seeds import generator

Texts: TypeAlias = pa.Array | pa.ChunkedArray | np.ndarray


@dataclass(frozen=True)
class Rows:
    """Documents as token ids: row i is ``tokens[offsets[i] : offsets[i + 1]]``.

    Attributes:
        tokens: (tokens,) int32, not negative.
        offsets: (rows + 1,) int64, ascending from 0.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, item: int) -> np.ndarray:
        return self.tokens[self.offsets[item] : self.offsets[item + 1]]

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
        parts = [self[item] for item in items]
        tokens = np.concatenate(parts) if parts else self.tokens[:0]
        return Rows(tokens, np.concatenate([[0], np.cumsum(self.lengths[items])]))

    def without_empty(self) -> "Rows":
        """The rows that hold a token."""
        return Rows(self.tokens, np.append(self.offsets[:-1][self.lengths > 0], len(self.tokens)))


def as_rows(texts: Texts) -> Rows:
    """Rows from Arrow lists of ids, from a matrix of blocks (blocks, block_size), or a single row from a flat array.

    A null list is a row of length 0. Raises ValueError for any other type and for a negative or missing id.
    """
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


def draw(items: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """``count`` of the items, drawn by the seed, in their order; all of them if there are no more."""
    if len(items) <= count:
        return items
    return np.sort(generator(seed, purpose).choice(items, count, replace=False))


def ngram_starts(rows: Rows, n: int) -> np.ndarray:
    """(max(tokens − n + 1, 0),) bool: whether the n tokens from this position on lie within one row."""
    inside = np.ones(max(len(rows.tokens) - n + 1, 0), dtype=np.bool_)
    for before in range(1, n):
        crossing = rows.offsets[1:] - before
        inside[crossing[(crossing >= 0) & (crossing < len(inside))]] = False
    return inside


def ngram_keys(rows: Rows, n: int, vocabulary: int | None = None) -> np.ndarray:
    """An int64 key for each n-gram within a row, in order: two keys are equal exactly if the n-grams are (no hashing).

    n is 1 to 4. Keys of two corpora are comparable if both were made with the same ``vocabulary``, a bound of the ids,
    and n ≤ 2; longer n-grams of large vocabularies are numbered by their occurrence in ``rows``.
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
    """Keys of 3- or 4-grams that exceed 64 bits: the 2-grams (62 bits at most) are first numbered densely."""
    pairs = tokens[:-1].astype(np.int64)
    pairs *= base
    pairs += tokens[1:]
    names = np.unique(pairs, return_inverse=True)[1]
    if n == 3:
        return names[:-1] * base + tokens[2:]
    return names[:-2] * (int(names.max()) + 1) + names[2:]
