"""A linear layer's matrix products, in float32 on a CPU by oneDNN where PyTorch has it.

On an AMD EPYC oneDNN does 100 to 112 GFLOP/s a core where MKL, which ``torch.mm`` calls, does 82 to 101. (Of a weight's
gradient, whose factors are read down their columns, MKL does more.) The results are the same up to rounding.
"""

import torch
from torch import Tensor


def product(left: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left @ weight.T + bias``: (n, O) of (n, D), (O, D) and (O,). ``weight`` may be a transposed view. No graph."""
    if _by_onednn(left, weight):
        return torch.ops.mkldnn._linear_pointwise(left, weight, bias, "none", [], "")
    return left @ weight.T if bias is None else torch.addmm(bias, left, weight.T)


def product_plus(left: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    """``left @ weight.T + other``, in one: (n, O) of (n, D), (O, D) and (n, O). No graph."""
    if _by_onednn(left, weight):
        return torch.ops.mkldnn._linear_pointwise.binary(left, other, weight, None, "add")
    return torch.addmm(other, left, weight.T)


def _by_onednn(left: Tensor, weight: Tensor) -> bool:
    alike = left.dtype == weight.dtype == torch.float32 and left.device.type == weight.device.type == "cpu"
    return alike and left.numel() > 0 and _HAS_ONEDNN


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
