"""Training losses as functions of the target's log-probability.

Every loss here is pointwise, ℓ = f(log p_target), so it is written once on a tensor of log-probabilities and knows
nothing of models, logits or padding. A loss is also its own configuration: ``{kind: tce, gamma: 0.3}`` in a study
file is this module's :class:`TruncatedCrossEntropy`.
"""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:  # the command line validates study files without paying for the import
    from torch import Tensor


class CrossEntropy(BaseModel):
    """ℓ = −log p, the negative log-likelihood; df/dlog p = −1."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["cross_entropy"] = "cross_entropy"

    def __call__(self, log_p: "Tensor") -> "Tensor":
        """Loss per target, in nats: same shape as ``log_p``."""
        return -log_p

    def kept(self, log_p: "Tensor") -> "Tensor":
        """Which targets contribute: a boolean tensor of the shape of ``log_p`` (here all of them)."""
        return log_p.new_ones(log_p.shape).bool()


class TruncatedCrossEntropy(BaseModel):
    """ℓ = −log p where p ≤ γ, and 0 where p > γ: targets the model is already sure of are ignored.

    The gradient is that of cross entropy on the kept targets and exactly zero on the others (Shabgahi et al. 2025,
    "ForTIFAI: Fending Off Recursive Training Induced Failure for AI Models", equation of TCE). γ = 1 is cross entropy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["tce"] = "tce"
    gamma: float

    @field_validator("gamma")
    @classmethod
    def _gamma_is_a_probability(cls, gamma: float) -> float:
        if not 0.0 < gamma <= 1.0:
            raise ValueError(f"γ is a probability in (0, 1]: {gamma} is not (1 is plain cross entropy)")
        return gamma

    def __call__(self, log_p: "Tensor") -> "Tensor":
        """Loss per target, in nats: same shape as ``log_p``; exactly zero, gradient included, where p > γ."""
        return (-log_p).masked_fill(~self.kept(log_p), 0.0)

    def kept(self, log_p: "Tensor") -> "Tensor":
        """Which targets contribute: a boolean tensor of the shape of ``log_p``. A NaN is kept, so that it is seen."""
        return ~(log_p > math.log(self.gamma))


Loss = Annotated[CrossEntropy | TruncatedCrossEntropy, Field(discriminator="kind")]
