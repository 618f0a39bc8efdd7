"""Passages that held-out text shares with the training text are counted as a plain program counts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai_ray.families.language.ngrams import RUN, shared_runs

WORDS = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=60)
DOCUMENTS = st.lists(WORDS.map(" ".join), max_size=4)


def runs(documents: list[str]) -> list[tuple[str, ...]]:
    """Every run of a document's words, those that stand there twice, too; none that goes over its end."""
    split = [text.split() for text in documents]
    return [tuple(words[k : k + RUN]) for words in split for k in range(len(words) - RUN + 1)]


@given(DOCUMENTS, DOCUMENTS)
def test_shares_are_those_of_a_plain_program(train: list[str], held_out: list[str]) -> None:
    """The share of held-out runs, each as often as it stands there, that any training document has."""
    known, wanted = {*runs(train)}, runs(held_out)
    share = sum(run in known for run in wanted) / len(wanted) if wanted else 0.0
    assert shared_runs(train, held_out) == pytest.approx(share)


def test_words_in_another_order_are_another_text() -> None:
    """A hash that only added its words up would find every passage in every other."""
    words = [f"word{n}" for n in range(RUN + 5)]
    assert shared_runs([" ".join(words)], [" ".join(words)]) == 1.0
    assert shared_runs([" ".join(reversed(words))], [" ".join(words)]) == 0.0
    assert shared_runs([" ".join(words[:-6])], [" ".join(words)]) == 0.0
