"""Output head and pointwise loss in one: logits are never whole in memory, truncated targets cost no backward work.

For ℓ = f(log p) the gradient on the logits of a target is f′(log p)·(onehot − softmax), known as soon as its own logits
are. So it is formed in the forward pass, a chunk of targets at a time, and turned into gradients of the hidden states
and the weight by two matrix products over those targets alone for which f′ ≠ 0. For a kept fraction k that is 1 + 2k
products of the head's size, where cross entropy on whole logits takes 3: (1 + 2k)/3 of its floating-point operations.

Chunking and gradients in the forward pass are those of Liger-Kernel's fused linear cross entropy (Hsu et al. 2024).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fortifai_ray.losses.base import value_and_derivative

_CHUNK_LOGITS = 2**25  # logits in memory at once: 128 MiB in float32, enough rows to keep matrix products at full speed
_WEIGHT_BLOCK = 2**24  # elements of a chunk's weight gradient formed at once ahead of a float32 sum

Function = Callable[[Tensor], Tensor]


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


def fused_linear_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss: Function,
    bias: Tensor | None = None,
    softcap: float | None = None,
    *,
    ignore_index: int = -100,
) -> Tensor:
    """The mean of a pointwise loss over the targets of a linear output head: a scalar.

    Args:
        hidden: (…, D) float32, bfloat16, float16 or float64.
        weight: (V, D), the head's, as ``torch.nn.Linear`` keeps it.
        targets: (…) integers in [0, V), or ``ignore_index`` for padding.
        loss: f, a loss of this package or any pointwise function of a tensor of log-probabilities.
        bias: (V,).
        softcap: logits z become softcap·tanh(z/softcap) (Gemma 2).

    The sum is divided by what ``loss.normaliser`` says: all valid targets, or the kept ones. Under autocast the
    products are taken in its dtype; sums over chunks, softmax and loss are float32 at least. Raises ValueError for
    shapes that do not fit. See :func:`fused_linear_sums` for the undivided sum.
    """
    sums = fused_linear_sums(hidden, weight, targets, loss, bias, softcap, ignore_index=ignore_index)
    return sums.mean(getattr(loss, "normaliser", "valid"))


def fused_linear_sums(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss: Function,
    bias: Tensor | None = None,
    softcap: float | None = None,
    *,
    ignore_index: int = -100,
    chunk_logits: int = _CHUNK_LOGITS,
) -> LossSums:
    """As :func:`fused_linear_loss`, undivided, with what a trainer wants to count. ``chunk_logits`` bounds memory: so
    many logits are formed at once (one target's at least)."""
    if hidden.shape[:-1] != targets.shape or weight.shape[1:] != hidden.shape[-1:]:
        shapes = f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets {tuple(targets.shape)}"
        raise ValueError(f"shapes do not fit (…, D), (V, D) and (…): {shapes}")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    rows = max(1, chunk_logits // weight.shape[0])
    flat, valid = targets.flatten(), targets != ignore_index
    head = _Head(loss, softcap, dtype, rows, ignore_index, torch.is_grad_enabled())
    total, log_p, kept = _FusedLinear.apply(hidden.reshape(len(flat), -1), weight, bias, flat, head)
    return LossSums(total, log_p.view(targets.shape), valid, kept.view(targets.shape))


def plain_sums(logits: Tensor, targets: Tensor, loss: Function, *, ignore_index: int = -100) -> LossSums:
    """The same from whole logits (…, V), by autograd: what the fused kernel is held against."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    valid = targets != ignore_index
    nll = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=ignore_index)
    log_p = -nll.view(targets.shape)
    total = loss(log_p).masked_fill(~valid, 0.0).sum()
    kept = (value_and_derivative(loss, log_p)[1] != 0) & valid
    return LossSums(total, log_p.detach(), valid, kept)


@dataclass(frozen=True)
class _Head:
    """What of a fused pass is no tensor."""

    loss: Function
    softcap: float | None
    dtype: torch.dtype  # of the matrix products
    rows: int  # targets a chunk
    ignore_index: int
    with_gradients: bool


class _Gradients(NamedTuple):
    """Of the sum over targets, in the dtype that sums are taken in; None where not asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


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
        # The gradients are scaled in place and given away, since a copy would be as large as the weight: a graph that
        # is kept for another backward pass forms them again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = _forward(hidden, weight, bias, targets, ctx.head, ctx.needs_input_grad[:3])[3]
        inputs = (hidden, weight, bias)
        scaled = [
            None if gradient is None or like is None else gradient.mul_(scale).to(like.dtype)
            for gradient, like in zip(gradients, inputs, strict=True)
        ]
        return (*scaled, None, None)


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: _Head, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, _Gradients]:
    """(sum of f, log p, kept, gradients of the sum); see :func:`fused_linear_loss` for shapes."""
    exact = torch.float64 if head.dtype == torch.float64 else torch.float32
    inputs = (hidden, weight, bias)
    gradients = _Gradients(
        *(
            torch.zeros_like(tensor, dtype=exact) if asked and tensor is not None else None
            for tensor, asked in zip(inputs, wanted, strict=True)
        )
    )
    log_p = torch.zeros(len(targets), dtype=exact, device=hidden.device)
    kept = torch.zeros(len(targets), dtype=torch.bool, device=hidden.device)
    total = torch.zeros((), dtype=exact, device=hidden.device)
    valid = (targets != head.ignore_index).nonzero().squeeze(1)
    with torch.autocast(hidden.device.type, enabled=False):
        chunks = _Chunks(weight.to(head.dtype), bias, head.softcap, gradients, min(head.rows, len(valid)))
        for rows in valid.split(head.rows):
            states, chosen = hidden[rows].to(head.dtype), targets[rows]
            log_softmax = chunks.log_softmax(states)
            of_targets = log_softmax.gather(1, chosen[:, None]).squeeze(1)
            value, slope = value_and_derivative(head.loss, of_targets)
            total += value.sum()
            log_p[rows], kept[rows] = of_targets, slope != 0
            if any(wanted):
                chunks.add_gradients(rows, states, chosen, slope, log_softmax)
    return total, log_p, kept, gradients


class _Chunks:
    """The head's weights, and memory for a chunk's logits that each chunk uses again: what is freed and taken anew is
    paged in anew. ``rows`` is the largest number of targets a chunk."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, softcap: float | None, gradients: _Gradients, rows: int
    ) -> None:
        exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self._weight, self._bias, self._softcap, self._gradients = weight, bias, softcap, gradients
        self._product = weight.new_empty(rows, weight.shape[0])
        self._logits = self._product if weight.dtype == exact else torch.empty_like(self._product, dtype=exact)
        self._log_softmax = torch.empty_like(self._logits)

    def log_softmax(self, states: Tensor) -> Tensor:
        """Log-probabilities of a chunk, (rows, V); its (capped) logits stay in ``_logits``."""
        product = torch.mm(states, self._weight.T, out=self._product[: len(states)])
        logits = self._logits[: len(states)]
        if logits.dtype != product.dtype:
            logits.copy_(product)
        if self._bias is not None:
            logits += self._bias
        if self._softcap is not None:
            logits.div_(self._softcap).tanh_().mul_(self._softcap)
        return torch.log_softmax(logits, -1, out=self._log_softmax[: len(states)])

    def add_gradients(self, rows: Tensor, states: Tensor, targets: Tensor, slope: Tensor, log_softmax: Tensor) -> None:
        """Add a chunk's share: two products over the targets with a slope, none where there is no such target."""
        index = slope.nonzero().squeeze(1)
        if not len(index):
            return
        cap_slope = self._cap_slope(index)  # from the logits, whose memory is about to be used for something else
        if len(index) < len(slope):
            rows, states, targets, slope = rows[index], states[index], targets[index], slope[index]
            log_softmax = torch.index_select(log_softmax, 0, index, out=self._logits[: len(index)])
        on_logits = log_softmax.exp_().mul_(-slope[:, None])
        on_logits.scatter_add_(1, targets[:, None], slope[:, None])
        if cap_slope is not None:
            on_logits *= cap_slope
        self._add_products(rows, states, on_logits)

    def _cap_slope(self, index: Tensor) -> Tensor | None:
        """The derivative of softcap·tanh(z/softcap) of some rows, from its value; None without a cap."""
        if self._softcap is None:
            return None
        return self._logits[index].div_(self._softcap).square_().neg_().add_(1.0)

    def _add_products(self, rows: Tensor, states: Tensor, on_logits: Tensor) -> None:
        of_hidden, of_weight, of_bias = self._gradients
        if of_bias is not None:
            of_bias += on_logits.sum(0)
        if on_logits.dtype != self._weight.dtype:
            on_logits = self._product[: len(rows)].copy_(on_logits)
        if of_hidden is not None:
            of_hidden[rows] = torch.mm(on_logits, self._weight).to(of_hidden.dtype)
        if of_weight is None:
            return
        if of_weight.dtype == on_logits.dtype:
            torch.addmm(of_weight, on_logits.T, states, out=of_weight)
            return
        # A chunk's product is added in float32, a part at a time; it is itself float32 where it could overflow.
        product = torch.float32 if self._weight.dtype == torch.float16 else self._weight.dtype
        block = max(1, _WEIGHT_BLOCK // of_weight.shape[1])
        for part, columns in zip(of_weight.split(block), on_logits.split(block, dim=1), strict=True):
            part += torch.mm(columns.T.to(product), states.to(product))
