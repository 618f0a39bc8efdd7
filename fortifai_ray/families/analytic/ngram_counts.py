"""Counts of n-grams, what they make probable, and documents drawn from them: of one chain, as sorted arrays.

A context of k − 1 tokens is a number in base V + 1, its last token the lowest digit; V stands before a document's first
token. An n-gram is its context's number times V plus its last token.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Whole = npt.NDArray[np.int64]
Real = npt.NDArray[np.float64]


class Level(NamedTuple):
    """The n-grams of one length, by ascending number: m of them, in k contexts."""

    codes: Whole  # (m,)
    counts: Real  # (m,) above 0: sums of the weights of the tokens
    steps: Real  # (m,) cumulative counts
    contexts: Whole  # (k,)
    starts: Whole  # (k + 1,) where the n-grams of each context begin
    totals: Real  # (k,) counts in all

    @property
    def followers(self) -> Whole:
        """(k,) How many different tokens follow each context."""
        return np.diff(self.starts)

    def context_of_each(self) -> Whole:
        """(m,) The place of each n-gram's context."""
        return np.repeat(np.arange(len(self.contexts)), self.followers)


Counts = tuple[Level, ...]
"""Of n-grams of 1, 2, … tokens."""


def contexts_of(documents: npt.NDArray[Any], order: int, size: int) -> list[Whole]:
    """For k = 1 to ``order``, the number of the k − 1 tokens before each token of ``documents`` (n, L)."""
    rows, length = documents.shape
    padded = np.full((rows, order - 1 + length), size, dtype=np.int64)
    padded[:, order - 1 :] = documents
    found = [np.zeros((rows, length), dtype=np.int64)]
    for back in range(1, order):
        start = order - 1 - back
        found.append(found[-1] + padded[:, start : start + length] * (size + 1) ** (back - 1))
    return found


def shorter(context: Whole, order: int, size: int) -> list[Whole]:
    """As :func:`contexts_of`, of contexts of ``order`` − 1 tokens."""
    return [context % (size + 1) ** back for back in range(order)]


def count(documents: npt.NDArray[Any], order: int, size: int, weights: Real | None = None) -> Counts:
    """The n-grams of ``documents`` (n, L) of up to ``order`` tokens of 0 to ``size`` − 1; ``weights`` (n, L) are those
    of the tokens."""
    tokens = documents.ravel().astype(np.int64)
    given = None if weights is None else weights.ravel()
    return tuple(_level(own.ravel() * size + tokens, given, size) for own in contexts_of(documents, order, size))


def _level(codes: Whole, weights: Real | None, size: int) -> Level:
    if weights is None:
        unique, times = np.unique(codes, return_counts=True)
        counts = times.astype(np.float64)
    else:
        unique, places = np.unique(codes, return_inverse=True)
        counts = np.bincount(places, weights, len(unique)).astype(np.float64)
        unique, counts = unique[counts > 0], counts[counts > 0]
    contexts, starts = np.unique(unique // size, return_index=True)
    steps = np.cumsum(counts)
    totals = np.add.reduceat(counts, starts) if len(starts) else np.zeros(0)
    return Level(unique, counts, steps, contexts, np.append(starts, len(unique)), totals)


def find(known: Whole, wanted: Whole) -> tuple[Whole, npt.NDArray[np.bool_]]:
    """The place of each of ``wanted`` in the sorted ``known``, and whether it is there."""
    if not len(known):
        return np.zeros(wanted.shape, dtype=np.int64), np.zeros(wanted.shape, dtype=bool)
    places = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return places, known[places] == wanted


def probabilities(counts: Counts, contexts: Sequence[Whole], tokens: Whole, size: int, smoothed: bool) -> Real:
    """p of each of ``tokens`` after its context, for each length of which ``contexts`` has an array.

    A context that nothing has followed leaves it to the next shorter one. ``smoothed`` is Witten and Bell's method C
    (1991; Chen and Goodman 1998, equation 18): after h, followed c(h) times by T(h) different tokens, p(w | h) =
    (c(hw) + T(h)·p(w | shorter h))/(c(h) + T(h)), from 1/V; else p(w | h) = c(hw)/c(h), which may be 0.
    """
    p = np.full(tokens.shape, 1.0 / size)
    for level, context in zip(counts, contexts, strict=True):
        place, known = find(level.contexts, context)
        ngram, seen = find(level.codes, context * size + tokens)
        if not len(level.codes):
            continue
        times = np.where(seen, level.counts[ngram], 0.0)
        lent = level.followers[place] if smoothed else 0.0
        p = np.where(known, (times + lent * p) / (level.totals[place] + lent), p)
    return p


def write(counts: Counts, uniforms: Real, size: int, smoothed: bool) -> npt.NDArray[np.int32]:
    """Documents (n, L) drawn token by token from the probabilities of :func:`probabilities`, by inversion of
    ``uniforms`` (n, L)."""
    rows, length = uniforms.shape
    order = len(counts)
    text = np.full((rows, order - 1 + length), size, dtype=np.int64)
    powers = (size + 1) ** np.arange(order - 1)[::-1]
    for place in range(length):
        whole = text[:, place : place + order - 1] @ powers
        text[:, place + order - 1] = _next(counts, whole, uniforms[:, place], size, smoothed)
    return text[:, order - 1 :].astype(np.int32)


def _next(counts: Counts, whole: Whole, uniforms: Real, size: int, smoothed: bool) -> Whole:
    """(n,) The next token after each context of the longest length."""
    chosen, left = np.empty(len(whole), dtype=np.int64), np.arange(len(whole))
    for back in range(len(counts) - 1, -1, -1):
        level = counts[back]
        place, takes = find(level.contexts, whole[left] % (size + 1) ** back)
        own = uniforms[left]
        if smoothed and len(level.codes):  # the rest of the uniform decides what is below
            share = level.totals[place] / (level.totals[place] + level.followers[place])
            below = takes & (own >= share)
            own = np.where(below, (own - share) / (1 - share), np.where(takes, own / share, own))
            uniforms[left], takes = own, takes & ~below
        place, rows = place[takes], left[takes]
        if len(rows):
            first = level.starts[place]
            target = level.steps[first] - level.counts[first] + own[takes] * level.totals[place]
            found = np.searchsorted(level.steps, target, side="right")
            chosen[rows] = level.codes[found.clip(first, level.starts[place + 1] - 1)] % size
        left = left[~takes]
        if not len(left):
            return chosen
    chosen[left] = (uniforms[left] * size).astype(np.int64).clip(max=size - 1)
    return chosen


def capped(level: Level, largest: float) -> Real:
    """(m,) p(w | h) of each n-gram, no larger than ``largest`` as far as a context's tokens allow: what lies above goes
    to the context's other tokens in proportion, and all are alike where even that leaves too much."""
    place, sizes = level.context_of_each(), level.followers
    p = level.counts / level.totals[place]
    high = p > largest
    while True:
        used = largest * np.add.reduceat(high.astype(np.float64), level.starts[:-1])
        free = np.add.reduceat(np.where(high, 0.0, p), level.starts[:-1])
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.where(high, largest, p * ((1 - used) / free)[place])
        more = ~high & (scaled > largest)
        if not more.any():
            break
        high |= more
    alike = (sizes * largest <= 1.0)[place]
    return np.where(alike, 1.0 / sizes[place], scaled)
