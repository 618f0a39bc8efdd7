"""Repetition's signs against definitions written out, and self-BLEU against NLTK's."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fortifai_ray.evaluation.signs import repetition
from fortifai_ray.evaluation.signs.repetition import (
    compression_ratio,
    duplicate_share,
    longest_repeated_spans,
    self_bleu,
)
from fortifai_ray.evaluation.signs.rows import Rows, as_rows

documents = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=8)


def make(lists: list[list[int]]) -> Rows:
    return as_rows(pa.array(lists, type=pa.list_(pa.int32())))


def slow_longest(row: list[int]) -> int:
    for length in range(len(row) - 1, 0, -1):
        spans = [tuple(row[i : i + length]) for i in range(len(row) - length + 1)]
        if len(set(spans)) < len(spans):
            return length
    return 0


@settings(deadline=None)
@given(documents)
def test_longest_repeated_span_is_that_of_trying_all(lists: list[list[int]]) -> None:
    assert longest_repeated_spans(make(lists)).tolist() == [slow_longest(row) for row in lists]


def test_longest_repeated_span_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is compared at once, a row longer than a chunk among it: the same spans."""
    random = np.random.default_rng(0)
    lists = [random.integers(0, 6, size=size).tolist() for size in (40, 0, 7, 90, 1, 2, 30, 30)]
    expected = [slow_longest(row) for row in lists]
    for chunk in (1, 32, 64, 1000):
        monkeypatch.setattr(repetition, "_CHUNK", chunk)
        assert longest_repeated_spans(make(lists)).tolist() == expected


def test_longest_repeated_span_of_known_texts() -> None:
    """Of one token m − 1; of a planted copy its length; of all different tokens 0."""
    planted = [*range(10, 60), *range(100, 140), *range(10, 60)]
    lists = [[5] * 300, list(range(300)), planted, [1, 2] * 50]
    assert longest_repeated_spans(make(lists)).tolist() == [299, 0, 50, 98]


def nltk_self_bleu(lists: list[list[int]]) -> float:
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    smoothing = bleu.SmoothingFunction().method1
    scores = [
        bleu.sentence_bleu(lists[:i] + lists[i + 1 :], row, smoothing_function=smoothing) for i, row in enumerate(lists)
    ]
    return sum(scores) / len(scores)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=2, max_size=6))
def test_self_bleu_is_nltks(lists: list[list[int]]) -> None:
    """Clipping by the best reference, the nearest length (the shorter of two), smoothing: all of NLTK's."""
    assert self_bleu(make(lists)) == pytest.approx(nltk_self_bleu(lists), abs=1e-12)


def test_self_bleu_of_known_texts() -> None:
    """1 for copies; 0 for documents without a token in common; nothing to compare for one."""
    assert self_bleu(make([[1, 2, 3, 4, 5]] * 3)) == pytest.approx(1.0, abs=1e-12)
    assert self_bleu(make([[1, 2, 3, 4], [5, 6, 7, 8]])) == 0.0
    assert math.isnan(self_bleu(make([[1, 2, 3]])))


@settings(deadline=None)
@given(documents)
def test_duplicate_share_counts_copies(lists: list[list[int]]) -> None:
    expected = 1 - len({tuple(row) for row in lists}) / len(lists)
    assert duplicate_share(make(lists)) == pytest.approx(expected, abs=1e-15)


def test_duplicates_of_a_part_of_the_rows() -> None:
    """Rows of a larger buffer are compared by their own bytes."""
    rows = make([[1], [1, 2], [1, 2], [3]])
    assert duplicate_share(rows.between(1, 4)) == pytest.approx(1 / 3)
    assert math.isnan(duplicate_share(make([])))


def test_compression_ratio_of_known_texts() -> None:
    """Uniform ids of 8 bits cannot be written in under 8 of their 32: at most 4, but more than 2. Copies shrink."""
    random = np.random.default_rng(0).integers(0, 256, size=(1000, 100), dtype=np.int32)
    assert 2.0 < compression_ratio(as_rows(random)) <= 4.0
    assert compression_ratio(as_rows(np.repeat(random[:10], 100, axis=0))) > 100
    assert math.isnan(compression_ratio(make([])))
