"""Passages that held-out text shares with the training text are counted as a plain program counts them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai_ray.families.language import leaks
from fortifai_ray.families.language.leaks import RUN, shared_runs

TOKENS = st.lists(st.integers(0, 2), max_size=60).map(lambda tokens: np.array(tokens, dtype=np.int32))


@given(TOKENS, TOKENS)
def test_shares_are_those_of_a_plain_program(train: np.ndarray, held_out: np.ndarray) -> None:
    """Every run of the held-out tokens counts, also one that stands there twice."""
    known = {tuple(train[k : k + RUN]) for k in range(len(train) - RUN + 1)}
    runs = [tuple(held_out[k : k + RUN]) for k in range(len(held_out) - RUN + 1)]
    wanted = sum(run in known for run in runs) / len(runs) if runs else 0.0
    assert shared_runs(train, held_out) == pytest.approx(wanted)


def test_pieces_hide_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long text is hashed in pieces: a run across the border of two is found."""
    train = np.arange(100, dtype=np.int32)
    monkeypatch.setattr(leaks, "_PIECE", 7)
    assert shared_runs(train, train[20:60]) == 1.0
