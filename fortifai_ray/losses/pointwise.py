"""The losses that come with the platform and are functions of the target's log-probability.

Throughout, p is the probability the model gives to the target, and derivatives are with respect to log p; the gradient
on a logit z_j is then f′·(1[j is the target] − softmax(z)_j). ForTIFAI is Shabgahi et al. 2025, "ForTIFAI: Fending Off
Recursive Training Induced Failure for AI Models", and its published code (``src/losses.py``).
"""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from fortifai_ray.losses.base import PointwiseLoss

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(PointwiseLoss):
    """ℓ = −log p, the negative log-likelihood; f′ = −1."""

    kind: Literal["cross_entropy"] = "cross_entropy"

    def __call__(self, log_p: "Tensor") -> "Tensor":
        return -log_p


class TruncatedCrossEntropy(PointwiseLoss):
    """ℓ = −log p where p ≤ γ, and 0 where p > γ: targets the model is already sure of are ignored.

    f′ = −1 where p ≤ γ and exactly 0 elsewhere (ForTIFAI's TCE, ``clipped_loss`` in its code). γ = 1 is cross entropy.
    A NaN is kept, so that it is seen.
    """

    kind: Literal["tce"] = "tce"
    gamma: float

    @field_validator("gamma")
    @classmethod
    def _gamma_is_a_probability(cls, gamma: float) -> float:
        if not 0.0 < gamma <= 1.0:
            raise ValueError(f"γ is a probability in (0, 1]: {gamma} is not (1 is plain cross entropy)")
        return gamma

    def __call__(self, log_p: "Tensor") -> "Tensor":
        return (-log_p).masked_fill(log_p > math.log(self.gamma), 0.0)


class Focal(PointwiseLoss):
    """ℓ = −α(1 − p)^γ log p, the focal loss (Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5).

    f′ = −α(1 − p)^γ + αγ p (1 − p)^(γ − 1) log p; with ``detach`` the factor is a constant weight and only the first
    term is left. γ = 0 and α = 1 is cross entropy. ForTIFAI's ``focal_loss`` lets the gradient through, as here by
    default.
    """

    kind: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0.0, allow_inf_nan=False)
    alpha: float = Field(1.0, gt=0.0, allow_inf_nan=False)
    detach: bool = False

    def __call__(self, log_p: "Tensor") -> "Tensor":
        weight = _focal_factor(log_p, self.gamma)
        return -self.alpha * (weight.detach() if self.detach else weight) * log_p


class Entropy(PointwiseLoss):
    """ℓ = −α(1 − γp) log p with the weight held constant: f′ = −α(1 − γp) (ForTIFAI's ``entropy_loss``).

    For γ > 1 the weight is negative where p > 1/γ: such targets are pushed away.
    """

    kind: Literal["entropy"] = "entropy"
    gamma: float = Field(ge=0.0, allow_inf_nan=False)
    alpha: float = Field(1.0, gt=0.0, allow_inf_nan=False)

    def __call__(self, log_p: "Tensor") -> "Tensor":
        weight = self.alpha * (1.0 - self.gamma * log_p.detach().exp())
        return -weight * log_p


class ClippedFocal(PointwiseLoss):
    """A focal loss with a hard cut where its factor w = (1 − p)^γ is extreme; two variants, since ForTIFAI's code
    (``focal_clipped_loss``) differs from what its name says. c is ``clip``, 0.99 there.

    - ``fortifai``: ℓ = −α·1[w ≤ c]·log p, f′ = −α·1[w ≤ c]. It drops the *least* confident targets (w > c means p near
      0) and keeps no focal factor on the others.
    - ``intended``: ℓ = −α·w·1[w ≥ 1 − c]·log p, the focal loss without the targets that the model is sure of (w < 1 − c
      means p near 1). The weight is held constant, as in ForTIFAI's code: f′ = −α·w·1[w ≥ 1 − c].
    """

    kind: Literal["clipped_focal"] = "clipped_focal"
    variant: Literal["fortifai", "intended"]
    gamma: float = Field(2.0, gt=0.0, allow_inf_nan=False)
    alpha: float = Field(1.0, gt=0.0, allow_inf_nan=False)
    clip: float = Field(0.99, gt=0.0, lt=1.0)

    def __call__(self, log_p: "Tensor") -> "Tensor":
        weight = _focal_factor(log_p.detach(), self.gamma)
        if self.variant == "fortifai":
            return (-self.alpha * log_p).masked_fill(weight > self.clip, 0.0)
        return (-self.alpha * weight * log_p).masked_fill(weight < 1.0 - self.clip, 0.0)


def _focal_factor(log_p: "Tensor", gamma: float) -> "Tensor":
    """(1 − p)^γ, with 1 − p = −expm1(log p) so that nothing cancels near p = 1."""
    import torch

    # For γ < 1 the slope of the power at p = 1 is infinite, and 0·∞ is no number: kept a hair away from it.
    return (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma
