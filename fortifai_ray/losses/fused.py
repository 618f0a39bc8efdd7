"""Output head and pointwise loss in one: logits are never whole in memory, truncated targets cost no backward work.

For ℓ = f(log p) the gradient on the logits of a target is f′(log p)·(onehot − softmax), known as soon as its own logits
are. So the forward pass computes it, a chunk of targets at a time, and turns it into gradients of the hidden states and
the weight by two matrix products over only those targets for which f′ ≠ 0. For a kept fraction k that is 1 + 2k
products of the head's size, where cross entropy on whole logits takes 3: (1 + 2k)/3 of its floating-point operations.

There is one algorithm with two back ends for a chunk of logits: PyTorch's operations
(:mod:`fortifai_ray.losses.softmax`) and, on a GPU, Triton kernels (:mod:`fortifai_ray.losses.triton_kernel`).

Chunking and gradients in the forward pass are those of Liger-Kernel's fused linear cross entropy (Hsu et al. 2024).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fortifai_ray.losses.derivative import value_and_derivative
from fortifai_ray.losses.products import product
from fortifai_ray.losses.softmax import ChunkSoftmax, LogSoftmax, NarrowSoftmax, WideSoftmax

_CHUNK_LOGITS = 2**25  # logits in memory at once: 128 MiB in float32, enough rows to keep matrix products at full speed
_NARROW_CHUNK_LOGITS = 2**27  # the same on a CPU in 16 bits: 256 MiB, which is what 2**25 take with their softmax
_CONVERTED = 2**21  # elements that change their dtype at once on a CPU: 4 and 8 MiB, which stay in the cache

Function = Callable[[Tensor], Tensor]
Kernel = Literal["torch", "triton"]
_MakeSoftmax = Callable[[Tensor, Tensor | None, float | None, int], ChunkSoftmax]


class LossSums(NamedTuple):
    """A loss over targets, not yet divided by any count. All but ``total`` have the shape of the targets."""

    total: Tensor
    """Sum of f(log p) over valid targets: a scalar, and the only part with a graph."""
    log_p: Tensor
    """log p of each target, at least float32; 0 where it is padding."""
    valid: Tensor
    """Boolean: not padding."""
    kept: Tensor
    """Boolean: valid, and f′ ≠ 0."""

    def mean(self, normaliser: str = "valid") -> Tensor:
        """The total over this process's own count of ``valid`` or ``kept`` targets; 0 where there is none."""
        return self.total / getattr(self, normaliser).sum().clamp_min(1)


def fused_linear_sums(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss: Function,
    bias: Tensor | None = None,
    softcap: float | None = None,
    *,
    ignore_index: int = -100,
    chunk_logits: int | None = None,
    kernel: Kernel | None = None,
) -> LossSums:
    """A pointwise loss over the targets of a linear output head, undivided, with the counts that a trainer needs.

    Args:
        hidden: (…, D) float32, bfloat16, float16 or float64.
        weight: (V, D), the head's, as ``torch.nn.Linear`` keeps it.
        targets: (…) integers in [0, V), or ``ignore_index`` for padding.
        loss: f, a loss of this package or any pointwise function of a tensor of log-probabilities.
        bias: (V,).
        softcap: logits z become softcap·tanh(z/softcap) (Gemma 2).
        chunk_logits: bounds memory: the number of logits formed at once (at least one target's).
        kernel: the back end; by default Triton on a GPU, where the package triton is installed, and PyTorch elsewhere.

    Under autocast the products are computed in its dtype; sums over chunks, softmax and loss in float32 or wider.
    Raises ValueError for shapes that do not fit, and where ``kernel="triton"`` is requested but not available.
    """
    if hidden.shape[:-1] != targets.shape or weight.shape[1:] != hidden.shape[-1:]:
        shapes = f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets {tuple(targets.shape)}"
        raise ValueError(f"shapes do not fit (…, D), (V, D) and (…): {shapes}")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    softmax = _softmax_on(hidden.device, dtype, kernel)
    if chunk_logits is None:
        chunk_logits = _chunk_logits(weight, dtype)
    rows = max(1, chunk_logits // weight.shape[0])
    flat, valid = targets.flatten(), targets != ignore_index
    head = _Head(loss, softcap, dtype, rows, ignore_index, torch.is_grad_enabled(), softmax)
    total, log_p, kept = _FusedLinear.apply(hidden.reshape(len(flat), -1), weight, bias, flat, head)
    return LossSums(total, log_p.view(targets.shape), valid, kept.view(targets.shape))


def plain_sums(logits: Tensor, targets: Tensor, loss: Function, *, ignore_index: int = -100) -> LossSums:
    """The same from whole logits (…, V), by autograd: the reference for the fused kernel."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    valid = targets != ignore_index
    nll = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=ignore_index)
    log_p = -nll.view(targets.shape)
    total = loss(log_p).masked_fill(~valid, 0.0).sum()
    kept = (value_and_derivative(loss, log_p)[1] != 0) & valid
    return LossSums(total, log_p.detach(), valid, kept)


def _softmax_on(device: torch.device, dtype: torch.dtype, kernel: Kernel | None) -> _MakeSoftmax:
    """The back end for tensors on ``device`` and products of ``dtype``."""
    wide = WideSoftmax if torch.is_grad_enabled() else LogSoftmax
    in_torch = NarrowSoftmax if dtype.itemsize == 2 else wide
    if kernel == "torch" or (kernel is None and device.type != "cuda"):
        return in_torch
    try:
        import fortifai_ray.losses.triton_kernel as triton_kernel
    except ImportError as error:
        if kernel is None:
            return in_torch
        raise ValueError(f"kernel='triton' needs the package triton: {error}") from error
    if not triton_kernel.serves(device):
        raise ValueError(f"kernel='triton' needs tensors on a GPU, not on {device} (or TRITON_INTERPRET=1, for tests)")
    return triton_kernel.TritonSoftmax


def _chunk_logits(weight: Tensor, dtype: torch.dtype) -> int:
    """How many logits to form at once.

    Each chunk reads and writes the weight's whole gradient, in float32 where products are 16 bits wide. For a GPU of
    800 TFLOP/s and 5 TB/s that is as much time as the chunk's products at about 200 targets (by arithmetic, not
    measured), and for a core with matrix units some 600. So chunks must be larger: as many logits as the weight has
    elements, as many targets as D. The back ends for 16 bits keep next to nothing beside them, so they take half the
    memory of that float32 gradient, and no higher a peak where the weight is 16 bits wide too, since the backward pass
    then holds the gradient in both widths.
    """
    if dtype.itemsize != 2:
        return _CHUNK_LOGITS
    return max(_NARROW_CHUNK_LOGITS if weight.device.type == "cpu" else _CHUNK_LOGITS, weight.numel())


@dataclass(frozen=True)
class _Head:
    """The settings of a fused pass."""

    loss: Function
    softcap: float | None
    dtype: torch.dtype  # of the matrix products
    rows: int  # targets a chunk
    ignore_index: int
    with_gradients: bool
    softmax: _MakeSoftmax


class _Gradients(NamedTuple):
    """Of the sum over targets; None where not needed. The weight's and the bias's are sums over chunks."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def add(self, rows: Tensor, states: Tensor, weight: Tensor, on_logits: Tensor) -> None:
        """Add a chunk's contribution: targets ``rows`` with hidden states ``states`` (k, D) and the gradient on their
        logits (k, V). Two products, none where k = 0."""
        if not len(rows):
            return
        if self.bias is not None:
            for part in _parts(on_logits, self.bias.dtype):
                self.bias.add_(part.sum(0, dtype=self.bias.dtype))
        if self.hidden is not None:
            self.hidden[rows] = product(on_logits, weight.T)
        if self.weight is not None:
            _add_product(self.weight, on_logits, states)


def _zero_gradients(inputs: Sequence[Tensor | None], wanted: Sequence[bool], head: _Head, chunks: int) -> _Gradients:
    """Each in the narrowest dtype that loses nothing: a product's own where nothing is added to it. (Of float16 the
    weight's could overflow before it is scaled; Triton's back end adds products that were never rounded.)"""
    exact = torch.float64 if head.dtype == torch.float64 else torch.float32
    alone = chunks == 1 and head.dtype == torch.bfloat16 and head.softmax is NarrowSoftmax
    dtypes = (head.dtype, head.dtype if alone else exact, exact)
    return _Gradients(
        *(
            torch.zeros_like(tensor, dtype=dtype) if needed and tensor is not None else None
            for tensor, needed, dtype in zip(inputs, wanted, dtypes, strict=True)
        )
    )


def _add_product(to: Tensor, on_logits: Tensor, states: Tensor) -> None:
    """Add ``on_logits.T @ states`` to ``to`` (V, D), which may be of a wider dtype than both."""
    if to.dtype == on_logits.dtype:
        torch.addmm(to, on_logits.T, states, out=to)
        return
    if to.is_cuda and torch.cuda.get_device_capability(to.device) >= (8, 0):
        torch.addmm(to, on_logits.T, states, out_dtype=to.dtype, out=to)
        return
    # A chunk's product is added in float32, a part at a time; it is itself float32 where it could overflow.
    product = torch.float32 if on_logits.dtype == torch.float16 else on_logits.dtype
    parts = _parts(to, on_logits.dtype)
    for part, columns in zip(parts, on_logits.split(len(parts[0]), dim=1), strict=True):
        part += torch.mm(columns.T.to(product), states.to(product))


def _scaled(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient times a number, in ``dtype``. ``gradient`` may be overwritten."""
    if gradient.dtype == dtype:
        return gradient.mul_(scale)
    if gradient.dtype.itemsize < dtype.itemsize:
        return gradient.to(dtype).mul_(scale)
    scaled = torch.empty_like(gradient, dtype=dtype)
    for to, part in zip(_parts(scaled, gradient.dtype), _parts(gradient, dtype), strict=True):
        to.copy_(part * scale)
    return scaled


def _parts(tensor: Tensor, other: torch.dtype) -> tuple[Tensor, ...]:
    """The rows of a tensor that meets another dtype, so many at a time that the conversions stay in a CPU's cache."""
    if tensor.dtype == other or tensor.is_cuda:
        return (tensor,)
    return tensor.split(max(1, _CONVERTED * len(tensor) // max(1, tensor.numel())))


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: _Head
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = [head.with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        total, log_p, kept, ctx.gradients = _forward(hidden, weight, bias, targets, head, wanted)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.head = head
        ctx.mark_non_differentiable(log_p, kept)
        return total, log_p, kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        # The gradients are scaled in place and handed over, since a copy would be as large as the weight: a graph that
        # is kept for another backward pass computes them again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = _forward(hidden, weight, bias, targets, ctx.head, ctx.needs_input_grad[:3])[3]
        inputs = (hidden, weight, bias)
        scaled = [
            None if gradient is None or like is None else _scaled(gradient, scale, like.dtype)
            for gradient, like in zip(gradients, inputs, strict=True)
        ]
        return (*scaled, None, None)


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: _Head, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, _Gradients]:
    """(sum of f, log p, kept, gradients of the sum); see :func:`fused_linear_sums` for shapes."""
    exact = torch.float64 if head.dtype == torch.float64 else torch.float32
    log_p = torch.zeros(len(targets), dtype=exact, device=hidden.device)
    kept = torch.zeros(len(targets), dtype=torch.bool, device=hidden.device)
    total = torch.zeros((), dtype=exact, device=hidden.device)
    valid = (targets != head.ignore_index).nonzero().squeeze(1)
    gradients = _zero_gradients((hidden, weight, bias), wanted, head, math.ceil(len(valid) / head.rows))
    with torch.autocast(hidden.device.type, enabled=False):
        weight = weight.to(head.dtype)
        softmax = head.softmax(weight, bias, head.softcap, min(head.rows, len(valid)))
        for rows in valid.split(head.rows):
            states, chosen = hidden[rows].to(head.dtype), targets[rows]
            torch.mm(states, weight.T, out=softmax.logits[: len(rows)])
            of_targets = softmax.log_p(chosen)
            value, slope = value_and_derivative(head.loss, of_targets)
            total += value.sum()
            log_p[rows], kept[rows] = of_targets, slope != 0
            if any(wanted):
                order, on_logits = softmax.gradients(chosen, slope)
                if len(order) < len(rows):
                    rows, states = rows[order], states[order]
                gradients.add(rows, states, weight, on_logits)
    return total, log_p, kept, gradients
