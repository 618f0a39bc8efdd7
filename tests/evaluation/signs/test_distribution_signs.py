"""The distribution's signs against plain counting, on known texts and on any."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fortifai_ray.evaluation.signs.corpus import distinct_n, floored_kl, ngram_kl, tail_coverage, type_token_ratio
from fortifai_ray.evaluation.signs.rows import Rows, as_rows, ngram_keys

documents = st.lists(st.lists(st.integers(0, 4), max_size=8), min_size=1, max_size=8)
LARGE = 2**30  # 3-grams of such ids do not fit into 64 bits


def make(lists: list[list[int]]) -> Rows:
    return as_rows(pa.array(lists, type=pa.list_(pa.int32())))


def count(lists: list[list[int]], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(row[i : i + n]) for row in lists for i in range(len(row) - n + 1))


@settings(deadline=None)
@given(documents, st.integers(1, 4), st.sampled_from([1, LARGE]))
def test_ngrams_are_those_within_documents(lists: list[list[int]], n: int, factor: int) -> None:
    """Keys are equal exactly where n-grams are, also of a vocabulary whose n-grams 64 bits cannot hold."""
    lists = [[token * factor % (2**31 - 1) for token in row] for row in lists]
    assert sorted(Counter(ngram_keys(make(lists), n).tolist()).values()) == sorted(count(lists, n).values())


@settings(deadline=None)
@given(documents, documents, st.integers(1, 2), st.floats(0.01, 5.0))
def test_kl_is_the_sum_over_both_corpora_ngrams(
    human: list[list[int]], synthetic: list[list[int]], n: int, smoothing: float
) -> None:
    """Direction human ‖ synthetic, pseudo-count on every n-gram of either."""
    own, other = count(human, n), count(synthetic, n)
    result = ngram_kl(make(human), make(synthetic), n, smoothing)
    if not own or not other:
        assert math.isnan(result)
        return
    grams = own.keys() | other.keys()
    p = {gram: (own[gram] + smoothing) / (own.total() + smoothing * len(grams)) for gram in grams}
    q = {gram: (other[gram] + smoothing) / (other.total() + smoothing * len(grams)) for gram in grams}
    expected = sum(p[gram] * math.log(p[gram] / q[gram]) for gram in grams)
    assert result == pytest.approx(expected, abs=1e-12)  # at most 64 terms below 10 in float64
    assert result >= -1e-12


@settings(deadline=None)
@given(documents, documents)
def test_fortifais_kl_is_its_notebooks(human: list[list[int]], synthetic: list[list[int]]) -> None:
    """Direction synthetic ‖ human, shares of 0 taken as 1e-10 in both, over a vocabulary larger than either text's."""
    own, other = (Counter(token for row in lists for token in row) for lists in (human, synthetic))
    result = floored_kl(make(synthetic).tokens, make(human).tokens)
    if not own or not other:
        assert math.isnan(result)
        return
    expected = 0.0
    for token in range(40):
        p, q = (counts[token] / counts.total() or 1e-10 for counts in (other, own))
        expected += p * math.log(p / q)
    assert result == pytest.approx(expected, abs=1e-12)


def test_fortifais_kl_sees_what_no_human_wrote_and_not_what_is_lost() -> None:
    """The other direction than ours: half of the types gone is ln 2, one token in eight that is new is 2.5 nats."""
    human = np.arange(8)
    assert floored_kl(np.arange(4), human) == pytest.approx(math.log(2), abs=1e-7)
    expected = 7 / 8 * math.log(1) + 1 / 8 * math.log(1 / 8 / 1e-10)
    assert floored_kl(np.array([0, 1, 2, 3, 4, 5, 6, 9]), human) == pytest.approx(expected, abs=1e-7)


def test_kl_of_equal_corpora_is_zero_and_a_lost_tail_raises_it() -> None:
    human = make([[0, 1, 2, 3] * 4])
    assert ngram_kl(human, human, 1, 0.5) == 0.0
    half, one = make([[0, 1] * 8]), make([[0] * 16])
    assert 0 < ngram_kl(human, half, 1, 0.5) < ngram_kl(human, one, 1, 0.5)


def test_kl_by_hand() -> None:
    """Human a, a, b; synthetic a, c; α = 1, three types: p = 3/6, 2/6, 1/6 and q = 2/5, 1/5, 2/5."""
    expected = 0.5 * math.log(0.5 / 0.4) + 1 / 3 * math.log(1 / 3 / 0.2) + 1 / 6 * math.log(1 / 6 / 0.4)
    assert ngram_kl(make([[7, 7, 9]]), make([[7, 11]]), 1, 1.0) == pytest.approx(expected, abs=1e-15)


def test_tail_coverage_by_decile_of_frequency() -> None:
    """Twenty types of frequencies 1 to 20: a decile holds two of them, the rarest first."""
    human = np.repeat(np.arange(20), np.arange(1, 21))
    synthetic = np.array([1, 2, 3, *range(10, 20), 99])
    expected = [0.5, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert tail_coverage(human, synthetic).tolist() == expected
    assert tail_coverage(human, human).tolist() == [1.0] * 10


def test_tail_coverage_breaks_no_ties() -> None:
    """Of types that are equally frequent each counts with their common share, whichever of them survive."""
    human = np.arange(30)
    for survivors in (np.arange(12), np.arange(18, 30)):
        assert tail_coverage(human, survivors) == pytest.approx([0.4] * 10, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.lists(st.integers(0, 30), max_size=40))
def test_tail_coverage_averages_to_the_share_of_all_types(human: list[int], synthetic: list[int]) -> None:
    """Deciles are tenths, also of types that do not divide by ten."""
    deciles = tail_coverage(np.array(human), np.array(synthetic, dtype=np.int64))
    assert deciles.mean() == pytest.approx(len(set(human) & set(synthetic)) / len(set(human)), abs=1e-11)
    assert ((deciles >= 0) & (deciles <= 1)).all()


@settings(deadline=None)
@given(documents, st.integers(1, 4))
def test_distinct_n_is_distinct_over_all(lists: list[list[int]], n: int) -> None:
    counted, result = count(lists, n), distinct_n(make(lists), n)
    assert math.isnan(result) if not counted else result == len(counted) / counted.total()
    if n == 1 and counted:
        assert type_token_ratio(make(lists).tokens) == result


def test_rows_come_from_slices_nulls_blocks_and_streams() -> None:
    """An Arrow slice keeps its offset to itself, a null is a row of length 0."""
    lists = pa.array([[9], [1, 2], None, [], [3]], type=pa.list_(pa.int32()))
    rows = as_rows(lists.slice(1))
    assert rows.tokens.tolist() == [1, 2, 3]
    assert rows.offsets.tolist() == [0, 2, 2, 2, 3]
    assert [b - a for a, b in pairwise(rows.without_empty().offsets)] == [2, 1]
    assert as_rows(pa.chunked_array([lists.slice(1), lists.slice(0, 1)])).tokens.tolist() == [1, 2, 3, 9]
    assert as_rows(np.arange(6).reshape(2, 3)).offsets.tolist() == [0, 3, 6]
    assert as_rows(np.arange(6)).offsets.tolist() == [0, 6]


def test_first_tokens_cut_the_last_row() -> None:
    rows = make([[1, 2], [3, 4, 5], [6]])
    assert rows.first_tokens(4).offsets.tolist() == [0, 2, 4]
    assert rows.first_tokens(5).offsets.tolist() == [0, 2, 5]
    assert rows.first_tokens(0).offsets.tolist() == [0]
    assert rows.first_tokens(99) is rows


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (np.array([[1, -1]]), "must not be negative"),
        (np.array([0.5]), "must be integers"),
        (pa.array([["a"]]), "must be lists of integer ids"),
        (pa.array([[1, None]], type=pa.list_(pa.int32())), "1 token id\\(s\\) are missing"),
    ],
)
def test_what_is_no_token_ids_is_refused(texts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_rows(texts)
