"""The losses of this package: functions of the target's log-probability, and Lovász. To add one, write its class here.

Throughout, p is the probability the model gives to the target, and derivatives are with respect to log p; the gradient
on a logit z_j is then f′·(1[j is the target] − softmax(z)_j). ForTIFAI is Shabgahi et al. 2025, "ForTIFAI: Fending Off
Recursive Training Induced Failure for AI Models", and its published code (``src/losses.py``).
"""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from fortifai_ray.errors import UserError
from fortifai_ray.losses.base import LossConfig, PointwiseLoss, SequenceLoss
from fortifai_ray.metrics import TRAINING, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from fortifai_ray.losses.fused import LossSums

METRICS = (
    Metric(
        "gamma_last_epoch",
        "probability",
        "the threshold that was set for the generation's last epoch",
        "Shabgahi et al. 2025, ForTIFAI",
        title="threshold γ of the last epoch",
        group=TRAINING,
    ),
)
"""Of the losses that set their threshold during training."""


class CrossEntropy(PointwiseLoss):
    """ℓ = −log p, the negative log-likelihood; f′ = −1."""

    kind: Literal["cross_entropy"] = "cross_entropy"

    def __call__(self, log_p: "Tensor") -> "Tensor":
        return -log_p


class TruncatedCrossEntropy(PointwiseLoss):
    """ℓ = −log p where p ≤ γ, and 0 where p > γ: targets that the model is already sure of are ignored.

    f′ = −1 where p ≤ γ and exactly 0 elsewhere (ForTIFAI's TCE, ``clipped_loss`` in its code). A NaN is kept, so that
    it stays visible.
    """

    kind: Literal["tce"] = "tce"
    gamma: float = Field(description="threshold γ, a probability in (0, 1]; 1 is cross entropy")

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

    f′ = −α(1 − p)^γ + αγ p (1 − p)^(γ − 1) log p, of which ``detach`` leaves only the first term. ForTIFAI's
    ``focal_loss`` lets the gradient through, as here by default.
    """

    kind: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0.0, allow_inf_nan=False, description="exponent γ; 0 (with α = 1) is cross entropy")
    alpha: float = Field(1.0, gt=0.0, allow_inf_nan=False, description="scale α")
    detach: bool = Field(False, description="hold the factor (1 − p)^γ constant in the gradient")

    def __call__(self, log_p: "Tensor") -> "Tensor":
        weight = _focal_factor(log_p, self.gamma)
        return -self.alpha * (weight.detach() if self.detach else weight) * log_p


class Entropy(PointwiseLoss):
    """ℓ = −α(1 − γp) log p with the weight held constant: f′ = −α(1 − γp) (ForTIFAI's ``entropy_loss``)."""

    kind: Literal["entropy"] = "entropy"
    gamma: float = Field(ge=0.0, allow_inf_nan=False, description="γ; above 1, targets with p > 1/γ are pushed away")
    alpha: float = Field(1.0, gt=0.0, allow_inf_nan=False, description="scale α")

    def __call__(self, log_p: "Tensor") -> "Tensor":
        weight = self.alpha * (1.0 - self.gamma * log_p.detach().exp())
        return -weight * log_p


class ClippedFocal(PointwiseLoss):
    """A focal loss with a hard cut where its factor w = (1 − p)^γ is extreme; two variants, since ForTIFAI's code
    (``focal_clipped_loss``) differs from what its name says.

    - ``fortifai``: ℓ = −α·1[w ≤ c]·log p, f′ = −α·1[w ≤ c]; w > c means p near 0.
    - ``intended``: ℓ = −α·w·1[w ≥ 1 − c]·log p; w < 1 − c means p near 1. The weight is held constant, as in ForTIFAI's
      code: f′ = −α·w·1[w ≥ 1 − c].
    """

    kind: Literal["clipped_focal"] = "clipped_focal"
    variant: Literal["fortifai", "intended"] = Field(
        description="fortifai: drop the targets with w > c, the least confident, and keep no focal factor on the "
        "others; intended: a focal loss that drops the targets with w < 1 − c, of which the model is sure"
    )
    gamma: float = Field(2.0, gt=0.0, allow_inf_nan=False, description="exponent γ of w")
    alpha: float = Field(1.0, gt=0.0, allow_inf_nan=False, description="scale α")
    clip: float = Field(0.99, gt=0.0, lt=1.0, description="the cut c; 0.99 in ForTIFAI's code")

    def __call__(self, log_p: "Tensor") -> "Tensor":
        weight = _focal_factor(log_p.detach(), self.gamma)
        if self.variant == "fortifai":
            return (-self.alpha * log_p).masked_fill(weight > self.clip, 0.0)
        return (-self.alpha * weight * log_p).masked_fill(weight < 1.0 - self.clip, 0.0)


class DynamicTruncatedCrossEntropy(LossConfig):
    """TCE with γ = min(1, mean + α·std) of target probabilities on a sample of the training set, at each epoch's start.

    Two variants, since ForTIFAI's code (``on_train_epoch_start`` in ``src/plt_model.py``) differs from what it says.
    Both take population standard deviations (ForTIFAI uses NumPy's default). Loss and gradient are those of
    :class:`TruncatedCrossEntropy` at that γ, which is held fixed through the epoch.
    """

    metrics: ClassVar[tuple[Metric, ...]] = METRICS
    kind: Literal["dynamic_tce"] = "dynamic_tce"
    variant: Literal["fortifai", "intended"] = Field(
        description="mean and std of p's batch means (fortifai), whose spread is far smaller and shrinks as batches "
        "grow, so that γ is little more than the mean; or of p itself (intended)"
    )
    alpha: float = Field(1.0, ge=0.0, allow_inf_nan=False, description="standard deviations α above the mean")
    sample_blocks: int = Field(64, ge=1, description="blocks of the training set, drawn anew each epoch")

    def sums(self, logits: "Tensor", targets: "Tensor") -> "LossSums":
        """Raises UserError: γ is set from the training set."""
        raise UserError(
            "dynamic_tce sets γ at each epoch's start, which is the training loop's to do: give it .at(gamma)"
        )

    def threshold(self, batches: Sequence["Tensor"]) -> float:
        """γ from target probabilities, one tensor of shape (targets,) per batch.

        NaN where one of them is NaN; 1, which truncates nothing, where there is no target at all.
        """
        import torch

        batches = [batch.double() for batch in batches if batch.numel()]
        if not batches:
            return 1.0
        values = torch.stack([b.mean() for b in batches]) if self.variant == "fortifai" else torch.cat(batches)
        gamma = float(values.mean() + self.alpha * values.std(correction=0))
        return gamma if math.isnan(gamma) else min(1.0, max(gamma, sys.float_info.min))

    def at(self, gamma: float) -> TruncatedCrossEntropy:
        """The loss of one epoch, with this γ."""
        return TruncatedCrossEntropy(gamma=gamma, normaliser=self.normaliser)


class LovaszSoftmax(SequenceLoss):
    """The mean, over the classes c present, of the Lovász extension of the Jaccard loss at the errors of class c.

    For class c the errors are m_i = |1[y_i = c] − p_i(c)|; sorted in decreasing order, the loss of the class is
    Σ_i m_i·(J_i − J_{i−1}), where J_i is the Jaccard loss of having the i worst targets wrong; its gradient on m_i is
    J_i − J_{i−1} (Berman, Triki and Blaschko 2018, "The Lovász-Softmax loss", equations 9 to 11 and algorithm 1).

    It needs whole softmax vectors and mixes targets, so the fused kernel does not serve it. Training computes it for
    each sequence separately and weights it by the sequence's targets, so that the number of workers changes nothing.
    (ForTIFAI's trainer takes it over a whole batch and does not shift the labels: it scores position t on token t.)
    """

    kind: Literal["lovasz"] = "lovasz"
    normaliser: Literal["valid"] = Field("valid", description="divides by every target that is not padding")

    def __call__(self, logits: "Tensor", targets: "Tensor", ignore_index: int = -100) -> "Tensor":
        import torch

        valid = targets != ignore_index
        logits, targets = logits[valid], targets[valid]
        if not len(targets):
            return logits.sum()
        present = targets.unique()
        foreground = (targets[:, None] == present).to(logits.dtype)
        errors = (foreground - logits.softmax(-1)[:, present]).abs()
        errors, order = errors.sort(dim=0, descending=True)
        foreground = foreground.gather(0, order)
        intersection = foreground.sum(0) - foreground.cumsum(0)
        union = foreground.sum(0) + (1.0 - foreground).cumsum(0)
        jaccard = 1.0 - intersection / union
        steps = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        return (errors * steps).sum(0).mean()


def _focal_factor(log_p: "Tensor", gamma: float) -> "Tensor":
    """(1 − p)^γ, with 1 − p = −expm1(log p) so that nothing cancels near p = 1."""
    import torch

    # For γ < 1 the slope of the power at p = 1 is infinite, and 0·∞ is no number: kept a hair away from it.
    return (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma
