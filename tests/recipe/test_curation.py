"""Curation: the right items are kept, as many as were asked for, in the order in which they were written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import TypeAdapter, ValidationError

from fortifai_ray.recipe.curation import Curation, NoCuration, Surplexity, Verifier, select

SCORES = np.array([-1.0, -5.0, -2.0, -9.0, -0.5])


def test_a_verifier_keeps_the_likeliest() -> None:
    """The three of highest log-likelihood, in the order in which they were written."""
    assert select(SCORES, 3, Verifier(), 0.0).tolist() == [0, 2, 4]


def test_a_verifier_may_keep_what_is_typical() -> None:
    """Those closest to the human median, on both sides of it."""
    assert select(SCORES, 2, Verifier(select="typical"), -4.0).tolist() == [1, 2]


def test_surplexity_keeps_what_surprises() -> None:
    """The two of lowest log-likelihood under the model that wrote them (Gambetta et al. 2024)."""
    assert select(SCORES, 2, Surplexity(), 0.0).tolist() == [1, 3]


@given(arrays(np.float64, (3, 12), elements=st.floats(-50, 0)), st.integers(0, 12))
def test_each_chain_is_curated_by_its_own_scores(scores: np.ndarray, count: int) -> None:
    """A chain's choice does not depend on the chains beside it, and holds `count` distinct items in order."""
    together = select(scores, count, Verifier(select="typical"), np.array([-1.0, -10.0, -30.0]))
    alone = [select(row, count, Verifier(select="typical"), t) for row, t in zip(scores, (-1, -10, -30), strict=True)]
    assert together.tolist() == [one.tolist() for one in alone]
    assert all(np.all(np.diff(row) > 0) for row in together)


@given(st.floats(0.01, 1.0), st.integers(0, 10**6))
def test_enough_is_generated(keep: float, size: int) -> None:
    """What is asked for leaves at least `size` units when the share `keep` of it remains."""
    assert Verifier(keep=keep).to_generate(size) * keep >= size * (1 - 1e-12)
    assert NoCuration().to_generate(size) == size


@pytest.mark.parametrize(
    "content", [{"kind": "verifier", "keep": 0.0}, {"kind": "surplexity", "keep": 1.5}, {"kind": "none", "keep": 0.5}]
)
def test_a_share_that_makes_no_sense_is_refused(content: dict[str, object]) -> None:
    """Nothing kept, more than all kept, and a share where nothing is curated."""
    with pytest.raises(ValidationError):
        TypeAdapter(Curation).validate_python(content)
