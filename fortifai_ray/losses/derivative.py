"""The value and the derivative of a scalar function, elementwise: what the losses and the fused head both rest on."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
