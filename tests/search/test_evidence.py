"""What answers rule out, and the likely curve that guides the search."""

import numpy as np
import pytest
from scipy.stats import binom

from fortifai_ray.search.curve import curve_posterior
from fortifai_ray.search.evidence import evidence, threshold, votes


def test_chance_hardly_ever_rules_out_the_boundary() -> None:
    """400 curves that jump from 0 to just one half at place 30 and stay there, 300 chains each, near the boundary or
    anywhere: the worst that a curve can do. What is left holds the boundary as often as the level says."""
    rng, streams, boundary = np.random.default_rng(0), 400, 30
    held = 0
    for stream in range(streams):
        places = rng.integers(0, 101, 300) if stream % 2 else rng.integers(25, 40, 300)
        fell = rng.random(300) < np.where(places < boundary, 0.0, 0.5)
        counts = [np.bincount(places[fell == one], minlength=101).astype(float) for one in (True, False)]
        span = evidence(*counts, step=0.5).span(threshold(0.9))
        held += span is not None and span[0] < boundary <= span[1]
    assert held >= binom.ppf(0.001, streams, 0.90)


def test_few_chains_of_a_steep_curve_settle_it() -> None:
    """9 survivors at 40 and 9 collapses at 41 leave nothing else; 8 do not, and no answer anything."""
    survivals, collapses = np.zeros(101), np.zeros(101)
    assert evidence(collapses, survivals, 0.5).span(threshold(0.9)) == (-1, 101)
    survivals[40] = collapses[41] = 9
    assert evidence(collapses, survivals, 0.5).span(threshold(0.9)) == (40, 41)
    survivals[40] = collapses[41] = 8
    assert evidence(collapses, survivals, 0.5).span(threshold(0.9)) == (-1, 101)


def test_both_sides_are_judged_alike() -> None:
    """The key turned round and collapse exchanged for survival: the same evidence, from the other side."""
    rng = np.random.default_rng(1)
    collapses, survivals = rng.integers(0, 4, (2, 3, 50)).astype(float)
    one, other = evidence(collapses, survivals, 0.4), evidence(survivals[:, ::-1], collapses[:, ::-1], 0.4)
    np.testing.assert_allclose(one.above, other.below[:, ::-1])
    np.testing.assert_allclose(one.below, other.above[:, ::-1])


def test_a_seed_has_one_vote() -> None:
    """However many of its chains were run."""
    answers = [(3, 0, True), (4, 0, False), (5, 1, True)]
    collapses, survivals = votes(answers, np.arange(2, 6))
    assert collapses.tolist() == [0, 0.5, 0, 1]
    assert survivals.tolist() == [0, 0, 0.5, 0]


@pytest.mark.parametrize("shares", [(0.0, 1.0), (0.3, 1.0), (0.0, 0.6), (0.4, 0.6)])
def test_the_likely_curve_has_floors_and_ceilings(shares: tuple[float, float]) -> None:
    """A step at place 50 with 200 chains at places on either side: three standard errors and a level's width off, at
    most; it never falls, and crosses one half where the step is."""
    collapses, survivals = np.zeros(101), np.zeros(101)
    for share, at in zip(shares, ((10, 30, 48), (52, 70, 90)), strict=True):
        collapses[list(at)], survivals[list(at)] = 200 * share, 200 * (1 - share)
    curve = curve_posterior(collapses, survivals)
    assert (np.diff(curve.mean) >= -1e-9).all()
    assert (np.diff(curve.crossed) >= -1e-9).all()
    assert 48 <= np.interp(0.5, curve.crossed, np.arange(101)) <= 52
    for share, at in zip(shares, (30, 70), strict=True):
        assert abs(curve.mean[at] - share) <= 3 * 0.5 / np.sqrt(600) + 0.05
