"""What every loss of the target's log-probability shares: one scalar function f, and all that follows from it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from fortifai_ray.metrics import Metric

if TYPE_CHECKING:  # the command line validates study files without paying for the import
    from torch import Tensor

Normaliser = Literal["valid", "kept"]


class LossConfig(BaseModel):
    """What a study file says of a loss: its kind, its numbers, and what its sum is divided by.

    ``normaliser`` is the count that the sum over targets is divided by, once, over all workers: ``valid`` is every
    target that is not padding (ForTIFAI's mean), ``kept`` only those that contribute a gradient.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    metrics: ClassVar[tuple[Metric, ...]] = ()  # what training with it measures, beside what the family does
    kind: str
    normaliser: Normaliser = "valid"

    def identity(self) -> dict[str, Any]:
        """What of this loss determines a trained model: its settings, and the source where that is a user's own."""
        return self.model_dump(mode="json")


class PointwiseLoss(LossConfig, ABC):
    """ℓ = f(log p) of each target on its own. Its gradient on the logits is f′(log p)·(onehot − softmax)."""

    @abstractmethod
    def __call__(self, log_p: "Tensor") -> "Tensor":
        """f(log p), in nats: same shape as ``log_p``. What is detached in it counts as a constant in f′."""

    def kept(self, log_p: "Tensor") -> "Tensor":
        """Which targets contribute a gradient, f′(log p) ≠ 0: boolean, of the shape of ``log_p``. NaN counts as kept,
        so that it is seen."""
        return value_and_derivative(self, log_p)[1] != 0


def value_and_derivative(loss: Callable[["Tensor"], "Tensor"], log_p: "Tensor") -> tuple["Tensor", "Tensor"]:
    """f(log p) and f′(log p), each of the shape of ``log_p``, without a graph: the derivative by autograd.

    f is pointwise, so the gradient of its sum is f′ target by target. A function that returns constants has f′ = 0.
    """
    import torch

    with torch.enable_grad():
        point = log_p.detach().requires_grad_()
        value = loss(point)
        if not value.requires_grad:
            return value, torch.zeros_like(point)
        (derivative,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), derivative
