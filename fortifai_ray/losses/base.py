"""What losses share: their configuration, the registry of their kinds, and what follows from a scalar function f."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from fortifai_ray.metrics import Metric
from fortifai_ray.validation import Section

if TYPE_CHECKING:  # the command line validates study files without paying for the import
    from torch import Tensor

Normaliser = Literal["valid", "kept"]

KINDS: dict[str, type["LossConfig"]] = {}
"""The losses of this package by kind: a subclass whose ``kind`` has a default registers itself."""


class LossConfig(Section):
    """A loss as a study file describes it: its kind, its numbers, and the count its sum is divided by."""

    metrics: ClassVar[tuple[Metric, ...]] = ()  # what training with this loss measures, in addition to the family's
    kind: str
    normaliser: Normaliser = Field(
        "valid",
        description="the count that the sum is divided by, once, over all workers: every target that is not padding "
        "(ForTIFAI's mean), or only the targets kept, which contribute a gradient",
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        kind = cls.model_fields["kind"].default
        if isinstance(kind, str):
            KINDS[kind] = cls

    def identity(self) -> dict[str, Any]:
        """What of this loss determines a trained model: its settings, and the source code of a user's own loss."""
        return self.model_dump(mode="json")


class PointwiseLoss(LossConfig, ABC):
    """ℓ = f(log p) of each target separately. Its gradient on the logits is f′(log p)·(onehot − softmax)."""

    @abstractmethod
    def __call__(self, log_p: "Tensor") -> "Tensor":
        """f(log p), in nats: same shape as ``log_p``. What it detaches counts as a constant in f′."""

    def kept(self, log_p: "Tensor") -> "Tensor":
        """Which targets contribute a gradient, f′(log p) ≠ 0: boolean, of the shape of ``log_p``. NaN counts as kept,
        so that it stays visible."""
        return value_and_derivative(self, log_p)[1] != 0


class SequenceLoss(LossConfig, ABC):
    """A loss of one sequence's targets together, which needs whole logits: the fused kernel does not serve it."""

    @abstractmethod
    def __call__(self, logits: "Tensor", targets: "Tensor", ignore_index: int = -100) -> "Tensor":
        """Of ``targets`` (N,) under ``logits`` (N, V): a scalar; 0, with a gradient of 0, where no target is valid."""


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
