"""Truncated cross entropy whose threshold follows the model: γ is set anew before each epoch."""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fortifai_ray.losses.base import LossConfig
from fortifai_ray.losses.pointwise import TruncatedCrossEntropy
from fortifai_ray.metrics import TRAINING, Metric

if TYPE_CHECKING:
    from torch import Tensor

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


class DynamicTruncatedCrossEntropy(LossConfig):
    """TCE with γ = min(1, mean + α·std) of target probabilities on a sample of the training set, at each epoch's start.

    Two variants, since ForTIFAI's code (``on_train_epoch_start`` in ``src/plt_model.py``) differs from what it says:

    - ``fortifai``: mean and standard deviation of the *batch means* of p, whose spread is far smaller than that of p
      and shrinks as batches grow; γ is then little more than the mean.
    - ``intended``: mean and standard deviation of the target probabilities themselves.

    Both are population standard deviations (ForTIFAI uses NumPy's default). Loss and gradient are those of
    :class:`TruncatedCrossEntropy` at that γ, which is held fixed through the epoch.
    """

    metrics: ClassVar[tuple[Metric, ...]] = METRICS
    kind: Literal["dynamic_tce"] = "dynamic_tce"
    variant: Literal["fortifai", "intended"]
    alpha: float = Field(1.0, ge=0.0, allow_inf_nan=False)
    sample_blocks: int = Field(64, ge=1, description="blocks of the training set, drawn anew each epoch")

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
        """The loss of one epoch."""
        return TruncatedCrossEntropy(gamma=gamma, normaliser=self.normaliser)
