"""What a loss means to a family that is fitted in closed form: weights of its samples, and a second fit.

A pointwise loss is f(log p), and its gradient is f′(log p) times that of log p: an optimiser
gives each target the weight −f′(log p). A density has no scale on which 0.9 would be likely, so p is replaced by the
rank u in (0, 1] of the sample's likelihood among the training samples, under the model just fitted, and the fit is
repeated with the weights −f′(log u). Cross entropy is weight 1. TCE omits the samples whose likelihood lies above the
γ-quantile. On densities that *inflates* the variance: the likeliest samples lie in the middle. For a Gaussian at
γ = 0.9 the central tenth is omitted, and the variance of the rest is 1.11 times as large, in each generation. So a
criterion that looks for shrinking never fires: such studies need a two-sided one (``direction: outside``), the KL
divergence or the Wasserstein distance to the truth.

Where a family has probabilities, as n-gram models, the loss acts on these (:meth:`AnalyticFamily.loss_weights`).
"""

import numpy as np

from fortifai_ray.families.analytic.base import AnalyticFamily, Array, Model
from fortifai_ray.losses import CrossEntropy, PointwiseLoss, TruncatedCrossEntropy, value_and_derivative
from fortifai_ray.losses.base import LossConfig


def fit_with_loss(
    family: AnalyticFamily, data: Array, loss: LossConfig, generation: int = 0, given: Array | None = None
) -> tuple[Model, Array]:
    """Each chain's model under a loss, and the share of its samples (B,) that the loss does not omit.

    ``given`` (B, n) are the regime's weights, which those of the loss multiply. A chain with no sample left has no
    gradient: it keeps the first fit.

    Raises:
        ValueError: the loss is not pointwise, follows the course of training, or pushes samples away.
    """
    model = family.fit(data, given, generation)
    if isinstance(loss, CrossEntropy):
        return model, np.ones(len(data))
    own = family.loss_weights(model, data, loss)
    if own is None:
        of_loss = sample_weights(loss, likelihood_rank(family.log_likelihood(model, data)))
        kept = (of_loss != 0).mean(-1)
    else:
        of_loss, kept = own
    weights = of_loss if given is None else of_loss * given.reshape(*given.shape, *[1] * (of_loss.ndim - 2))
    some = (weights != 0).reshape(len(data), -1).any(-1)
    if some.any() and not (of_loss == 1).all():
        again = family.fit(np.ascontiguousarray(data)[some], weights[some], generation)
        for name, values in again.items():
            model[name] = model[name].copy()
            model[name][some] = values
    return model, kept


def likelihood_rank(log_likelihood: Array) -> Array:
    """(B, n) u in (0, 1]: one more than the number of a chain's samples that are less likely, over n. Ties share the
    lowest rank."""
    # A chain at a time: SciPy's rankdata takes a tenth of a millisecond for a few numbers, and a second to import.
    ranks = [np.searchsorted(np.sort(own), own) + 1 for own in log_likelihood]
    return np.stack(ranks) / log_likelihood.shape[1]


def sample_weights(loss: LossConfig, rank: Array) -> Array:
    """−f′(log u) of each sample, of the shape of ``rank``."""
    if not isinstance(loss, PointwiseLoss):
        raise ValueError(f"loss.kind: {loss.kind} gives single samples no weight: on densities, use a pointwise loss")
    if isinstance(loss, TruncatedCrossEntropy):  # known without torch
        return (rank <= loss.gamma).astype(np.float64)
    import torch

    weights = -value_and_derivative(loss, torch.from_numpy(np.log(rank)))[1].numpy()
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError(
            f"loss.kind: {loss.kind} gives some samples the weight {weights.min():.3g}, and a density is fitted with"
            " weights of 0 or more"
        )
    return weights + 0.0  # no negative zeros
