"""What a loss means on a density: weights by the likelihood's rank, and a second fit."""

import numpy as np
import pytest

from fortifai_ray.families.analytic import Discrete, Gaussian
from fortifai_ray.families.analytic.base import Streams
from fortifai_ray.families.analytic.weighting import fit_with_loss, likelihood_rank, sample_weights
from fortifai_ray.losses import (
    CrossEntropy,
    DynamicTruncatedCrossEntropy,
    Entropy,
    Focal,
    LovaszSoftmax,
    TruncatedCrossEntropy,
)


def test_tce_leaves_out_what_lies_above_the_quantile() -> None:
    """The issue's definition, sample by sample: of 10, γ = 0.7 leaves out the 3 nearest to the mean; fitted again."""
    data = Gaussian().human(10, Streams((0, 1), 0))
    model, kept = fit_with_loss(Gaussian(), data, TruncatedCrossEntropy(gamma=0.7))
    assert kept.tolist() == [0.7, 0.7]
    for chain in range(2):
        samples = data[chain, :, 0]
        far = samples[np.argsort(np.abs(samples - samples.mean()))[3:]]
        assert model["mean"][chain, 0] == pytest.approx(far.mean(), rel=1e-12)
        assert model["covariance"][chain, 0, 0] == pytest.approx(far.var(), rel=1e-12)


def test_ranks_are_in_zero_to_one_and_ties_share_the_lowest() -> None:
    """Ties at the top are no likelier than each other: were they ranked 1, a uniform distribution would lose all."""
    ranks = likelihood_rank(np.array([[3.0, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0], [-np.inf, 0.0, np.inf, 1.0]]))
    assert ranks.tolist() == [[0.75, 0.25, 0.5, 0.75], [0.25] * 4, [0.25, 0.5, 1.0, 0.75]]


def test_cross_entropy_and_a_threshold_of_one_change_nothing() -> None:
    """γ = 1 is cross entropy, to the last bit."""
    data = Gaussian().human(9, Streams((3,), 0))
    plain = Gaussian().fit(data)
    for loss in (CrossEntropy(), TruncatedCrossEntropy(gamma=1.0)):
        model, kept = fit_with_loss(Gaussian(), data, loss)
        assert kept.tolist() == [1.0]
        assert all(np.array_equal(model[name], plain[name]) for name in plain)


def test_a_chain_without_samples_left_keeps_its_first_fit() -> None:
    """γ below 1/n leaves nothing: no gradient, so nothing moves."""
    data = Gaussian().human(9, Streams((3,), 0))
    model, kept = fit_with_loss(Gaussian(), data, TruncatedCrossEntropy(gamma=0.05))
    assert kept.tolist() == [0.0]
    assert np.array_equal(model["mean"], Gaussian().fit(data)["mean"])


def test_a_smooth_loss_weighs_by_its_derivative() -> None:
    """Focal, γ = 2: −f′(log u) = (1 − u)² − 2u(1 − u) log u; the likeliest sample has weight 0."""
    rank = np.array([[0.25, 0.5, 0.75, 1.0]])
    expected = (1 - rank) ** 2 - 2 * rank * (1 - rank) * np.log(rank)
    np.testing.assert_allclose(sample_weights(Focal(gamma=2.0), rank), expected, rtol=1e-9, atol=1e-12)
    data = np.array([[[0.0], [1.0], [1.0], [1.0], [2.0]]])
    model, kept = fit_with_loss(Discrete(outcomes=3), data, Focal(gamma=2.0))
    assert kept.tolist() == [1.0]
    assert 0.2 < model["probabilities"][0, 0] < 0.6  # rare outcomes gain


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (LovaszSoftmax(), "pointwise"),
        (DynamicTruncatedCrossEntropy(variant="intended"), "pointwise"),
        (Entropy(gamma=1.5), "weights of 0 or more"),
    ],
)
def test_losses_without_weights_are_refused(loss: object, reason: str) -> None:
    """No weight of a sample by itself, or a negative one: said, with the key."""
    with pytest.raises(ValueError, match=rf"loss\.kind: .*{reason}"):
        fit_with_loss(Gaussian(), Gaussian().human(9, Streams((3,), 0)), loss)
