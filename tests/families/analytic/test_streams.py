"""Random numbers of many chains: pure functions of seed, purpose and generation."""

import numpy as np

from fortifai_ray.families.analytic.base import Streams
from fortifai_ray.seeds import derive_seed


def test_a_chain_draws_the_same_in_any_company() -> None:
    """Chains are paired by seed and batched at will: neither may change a number."""
    alone = Streams((5,), 3).normal("noise", (10, 2))
    assert np.array_equal(Streams((9, 5, 0), 3).normal("noise", (10, 2))[1], alone[0])


def test_the_first_rows_do_not_depend_on_how_many_follow() -> None:
    """Chains of different budgets share their first samples."""
    streams = Streams((1, 2), 0)
    assert np.array_equal(streams.normal("noise", (30, 3))[:, :10], streams.normal("noise", (10, 3)))
    assert np.array_equal(streams.uniform("noise", (31,))[:, :10], streams.uniform("noise", (10,)))


def test_purposes_generations_and_seeds_are_independent() -> None:
    """A stream used twice would correlate what must not be: |r| of 4,000 pairs is below 5/√4000 by chance."""
    draws = [
        streams.normal(purpose, (4_000,))[0]
        for streams in (Streams((0,), 0), Streams((0,), 1), Streams((1,), 0))
        for purpose in ("noise", "inputs")
    ]
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 5 / np.sqrt(4_000)


def test_a_fixed_design_is_the_same_in_every_generation_and_of_its_own() -> None:
    """It is drawn anew from the seed each time, and must not coincide with any one generation's fresh draw."""
    first, later = (Streams((4,), g).normal("inputs", (5,), every_generation_alike=True) for g in (-1, 7))
    assert np.array_equal(first, later)
    assert not np.array_equal(first, Streams((4,), 7).normal("inputs", (5,)))


def test_a_stream_is_philox_under_the_derived_seed() -> None:
    """Stored results can be reused only while this does not change."""
    key = derive_seed(8, "analytic", "noise", 2)
    expected = np.random.Generator(np.random.Philox(key=key)).standard_normal(6)
    assert np.array_equal(Streams((8,), 2).normal("noise", (6,))[0], expected)
