"""Near-duplicates leave and nothing else does: against the exact Jaccard similarity of all pairs."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from fortifai_ray.recipe.curation import Curation, Deduplicate
from fortifai_ray.recipe.curation.deduplicate import shingles


def kept(texts: Sequence[str], **settings: float) -> list[int]:
    return Deduplicate(**settings)._first_of_each(texts).tolist()


def words(seed: int, count: int) -> list[str]:
    return [f"w{number}" for number in np.random.default_rng(seed).integers(0, 2000, count)]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a b c d e f", "a b c d e f"], [0]),
        (["a b c d e f", "a  b\nc d e f "], [0]),  # words are compared, not the space between them
        (["a b c d e f", "f e d c b a"], [0, 1]),
        (["", "", "a"], [0, 2]),
        (["a b", "a b", "a b c"], [0, 2]),  # shorter than a shingle: one shingle
        ([], []),
        (["x"] * 5, [0]),
    ],
)
def test_by_hand(texts: list[str], expected: list[int]) -> None:
    assert kept(texts) == expected


@pytest.mark.parametrize(("threshold", "shingle"), [(0.8, 5), (0.5, 3), (1.0, 1)])
def test_against_all_pairs(threshold: float, shingle: int) -> None:
    """A hundred texts, each followed by copies with a share of the words changed at the end. No pair of what is kept is
    four standard errors of a MinHash of 512 hashes above the threshold, and nothing leaves that is as far below."""
    texts = []
    for seed in range(100):
        base = words(seed, 60)
        texts += [
            " ".join([*base[: 60 - changed], *words(1000 + seed * 9 + changed, changed)])
            for changed in (0, 0, 2, 12, 40)
        ]
    sets = [set(shingles(text, shingle)) for text in texts]

    def jaccard(one: int, two: int) -> float:
        return len(sets[one] & sets[two]) / len(sets[one] | sets[two])

    error = 4 * np.sqrt(threshold * (1 - threshold) / 512)
    passed = kept(texts, threshold=threshold, shingle=shingle, permutations=512)
    groups = [[place for place in passed if place // 5 == group] for group in range(100)]
    alike = [jaccard(one, two) for group in groups for one, two in itertools.combinations(group, 2)]
    assert sum(value >= threshold + error for value in alike) <= 2  # pairs that no band of hashes proposes
    for place in sorted(set(range(500)) - set(passed)):
        assert max(jaccard(place, other) for other in groups[place // 5] if other < place) > threshold - error - 1e-12
    assert {5 * group for group in range(100)} <= set(passed)


def test_documents_of_tokens_are_texts_of_numbers() -> None:
    """What an n-gram model wrote, as arrays: the same rows pass as of the same text."""
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 30, (60, 40)).astype(np.float64)
    rows[1::3] = rows[::3]
    rows[2::3, :38] = rows[::3, :38]
    texts = [" ".join(str(int(token)) for token in row) for row in rows]
    assert Deduplicate(shingle=3)._first_of_each(rows).tolist() == kept(texts, shingle=3) == list(range(0, 60, 3))


def test_the_first_of_near_duplicates_stays_and_chains_do_not_follow() -> None:
    """A text that is like one that left, but not like one that stayed, stays."""
    base = words(0, 40)
    texts = [" ".join(base[start : start + 30]) for start in (0, 3, 6)]  # neighbours share 24 of 28 shingles' worth
    assert kept(texts, threshold=0.75, permutations=1024) == [0, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.0},
        {"threshold": 1.01},
        {"shingle": 0},
        {"shingle": 2.5},
        {"permutations": 8},
        {"permutations": 2000},
        {"keep": 0.0},
        {"ngram": 5},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Curation).validate_python({"kind": "deduplicate", **wrong})
