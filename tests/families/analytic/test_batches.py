"""A chain's numbers do not depend, to the last bit, on which others it is computed with."""

from typing import Any

import numpy as np
import pytest

from fortifai_ray.families.analytic.base import Streams
from fortifai_ray.families.analytic.weighting import fit_with_loss
from fortifai_ray.losses import TruncatedCrossEntropy

from .loops import FAMILIES

SEEDS = (11, 3, 8, 0, 2)
CHAIN = 1
N = 33  # no multiple of a vector register's width


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("loss", [None, TruncatedCrossEntropy(gamma=0.7)], ids=["cross_entropy", "tce"])
def test_one_chain_alone_equals_itself_among_others(name: str, loss: TruncatedCrossEntropy | None) -> None:
    """Three generations, everything that comes out of them; the batch's samples in a memory layout of their own."""
    family = FAMILIES[name]
    together, alone = Streams(SEEDS, -1), Streams((SEEDS[CHAIN],), -1)
    many, one = family.human(N, together), family.human(N, alone)
    for g in range(3):
        scattered = np.asfortranarray(many)
        models = [
            fit_with_loss(family, data, loss, g) if loss else (family.fit(data), None) for data in (scattered, one)
        ]
        (of_many, kept), (of_one, kept_of_one) = models
        assert all(_same(of_many[key][CHAIN], of_one[key][0]) for key in of_one)
        assert loss is None or kept[CHAIN] == kept_of_one[0]
        scores, scores_of_one = family.evaluate(of_many, scattered), family.evaluate(of_one, one)
        assert tuple(scores) == tuple(metric.name for metric in family.metrics)
        for metric, values in scores.items():
            assert values.shape == (len(SEEDS),)
            assert values[CHAIN] == scores_of_one[metric][0], metric
        likelihood = family.log_likelihood(of_many, scattered)
        assert np.array_equal(likelihood[CHAIN], family.log_likelihood(of_one, one)[0])
        assert np.array_equal(
            family.log_likelihood(family.truth(), scattered)[CHAIN], family.log_likelihood(family.truth(), one)[0]
        )
        many = family.generate(of_many, N, Streams(SEEDS, g))
        one = family.generate(of_one, N, Streams((SEEDS[CHAIN],), g))
        assert np.array_equal(many[CHAIN], one[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_samples_do_not_depend_on_how_many_follow(name: str) -> None:
    """Chains with other budgets are paired on the samples that they share."""
    family, streams = FAMILIES[name], Streams((4, 9), 2)
    assert np.array_equal(family.human(N, streams)[:, :20], family.human(20, streams))
    model = family.fit(family.human(N, streams))
    assert np.array_equal(family.generate(model, N, streams)[:, :20], family.generate(model, 20, streams))


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_count_samples(name: str) -> None:
    """A sample of weight 2 is two samples, and one of weight 0 none: the fit is the same to rounding.

    Not the unbiased covariance, whose reliability weights are no counts.
    """
    family = FAMILIES[name]
    if "unbiased" in name or "adaptive" in name:  # the adaptive ridge depends on the number of rows
        pytest.skip("its weights are no counts")
    data = family.human(40, Streams((6, 7), 0))
    counts = np.tile([1.0, 2.0, 0.0, 1.0], 10)
    weighted = family.fit(data, np.tile(counts, (2, 1)))
    repeated = family.fit(np.repeat(data, counts.astype(int), axis=1))
    points = family.human(15, Streams((1, 2), 0))
    ours, theirs = (family.log_likelihood(model, points) for model in (weighted, repeated))
    if name == "kde":  # its bandwidth follows Σw²
        weighted["bandwidth"] = repeated["bandwidth"]
        ours = family.log_likelihood(weighted, points)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6 if "gmm" in name else 1e-9)


def _same(one: Any, other: Any) -> bool:
    """Whether two chains' parts of a model are equal to the last bit: arrays, or tuples of them."""
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return np.array_equal(one, other)
