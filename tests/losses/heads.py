"""Output heads to try losses on, and how far a fused path may be from the plain one."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fortifai_ray.losses import ClippedFocal, CrossEntropy, Entropy, Focal, PointwiseLoss, TruncatedCrossEntropy
from fortifai_ray.losses.fused import LossSums, fused_linear_sums, plain_sums


class Head(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor

    def to(self, dtype: torch.dtype) -> "Head":
        tensors = (None if t is None else t.detach().to(dtype).requires_grad_() for t in self[:3])
        return Head(*tensors, self.targets)  # type: ignore[arg-type]

    def on(self, device: str) -> "Head":
        tensors = (None if t is None else t.detach().to(device).requires_grad_() for t in self[:3])
        return Head(*tensors, self.targets.to(device))  # type: ignore[arg-type]


def make_head(n: int, d: int, v: int, dtype: torch.dtype, *, bias: bool = False, seed: int = 0, scale: float = 1.0):
    random = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, v, (n,), generator=random)
    weight = torch.randn(v, d, generator=random)
    # Hidden states lean towards their targets, so that target probabilities spread over (0, 1).
    hidden = torch.randn(n, d, generator=random) + weight[targets] * torch.rand(n, 1, generator=random)
    return Head(hidden * scale, weight * scale, torch.randn(v, generator=random) if bias else None, targets).to(dtype)


def plain(head: Head, loss: Any, softcap: float | None = None) -> LossSums:
    logits = F.linear(head.hidden, head.weight, head.bias)
    return plain_sums(logits if softcap is None else softcap * torch.tanh(logits / softcap), head.targets, loss)


def fused(head: Head, loss: Any, softcap: float | None = None, **kwargs: Any) -> LossSums:
    return fused_linear_sums(head.hidden, head.weight, head.targets, loss, head.bias, softcap, **kwargs)


def gradients(sums: LossSums, head: Head) -> list[Tensor]:
    return list(torch.autograd.grad(sums.total, [tensor for tensor in head[:3] if tensor is not None]))


def term_sizes(exact: Head, loss: Any, softcap: float | None) -> tuple[list[float], float]:
    """In float64: the largest sum of absolute terms behind the total, log p and each gradient; the largest logit.

    Where p is near 1, a loss is far smaller than what a rounding of log p makes of it, which counts among the terms.
    """
    product = F.linear(exact.hidden, exact.weight, exact.bias).detach().requires_grad_()
    logits = product if softcap is None else softcap * torch.tanh(product / softcap)
    sums = plain_sums(logits, exact.targets, loss)
    (on_logits,) = torch.autograd.grad(sums.total, product)
    slope, bend = slopes(loss, sums.log_p.detach())
    slope, bend = (torch.where(sums.valid, size, 0.0) for size in (slope, bend))
    total = torch.maximum(loss(sums.log_p)[sums.valid].abs().sum(), slope.sum())
    one_hot = F.one_hot(exact.targets.clamp(min=0), product.shape[1])
    p = logits.detach().softmax(-1)
    on_logits = on_logits.abs() + slope[:, None] * (p + one_hot) + bend[:, None] * (p - one_hot).abs()
    largest = logits.abs().max()
    of_hidden, of_weight = on_logits.abs() @ exact.weight.abs(), on_logits.abs().T @ exact.hidden.abs()
    sizes = [total, largest, of_hidden.max(), of_weight.max()]
    if exact.bias is not None:
        sizes.append(on_logits.abs().sum(0).max())
    return [size.item() for size in sizes], largest.item()


def slopes(loss: Any, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[tokens]`` each: the size of the loss's derivative by log p, and of how much that changes with log p."""

    def slope(at: torch.Tensor) -> torch.Tensor:
        at = at.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(at).sum(), at)
        return found

    step = 1e-6 * log_p
    bend = torch.where(step == 0, 0.0, (slope(log_p + step) - slope(log_p)) / torch.where(step == 0, 1.0, step))
    return slope(log_p).abs(), bend.abs()


losses = st.sampled_from(
    [
        CrossEntropy(),
        TruncatedCrossEntropy(gamma=1.0),
        Focal(gamma=2.0),
        Focal(gamma=0.5, alpha=0.3),
        Focal(gamma=1.0, detach=True),
        Entropy(gamma=2.0),
    ]
)


@st.composite
def truncated(draw: st.DrawFn, head: Head, softcap: float | None) -> PointwiseLoss:
    """A loss whose threshold lies well between two targets' probabilities, so that no rounding moves a target over it.

    What "well" is, is measured: the error of log p in the dtype at hand.
    """
    exact = plain(head.to(torch.float64), CrossEntropy(), softcap).log_p
    error = (plain(head, CrossEntropy(), softcap).log_p.double() - exact).abs().max().item()
    values = exact[head.targets != -100].sort().values
    assume(len(values) >= 2)
    at = draw(st.integers(0, len(values) - 2))
    low, high = values[at].item(), values[at + 1].item()
    assume(high - low > 8 * error and low < -1e-6)
    gamma = math.exp((low + high) / 2)
    if draw(st.booleans()):
        return TruncatedCrossEntropy(gamma=gamma)
    return ClippedFocal(variant=draw(st.sampled_from(["fortifai", "intended"])), gamma=1.0, clip=1.0 - gamma)


class Case(NamedTuple):
    head: Head
    loss: PointwiseLoss
    softcap: float | None
    chunk_logits: int


@st.composite
def cases(draw: st.DrawFn, rows: int, columns: int, device: str = "cpu") -> Case:
    """A head of up to so many targets and classes, in any dtype, with padding; a loss for it; and a chunk's size."""
    n, d, v = draw(st.integers(1, rows)), draw(st.integers(1, 24)), draw(st.integers(2, columns))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    softcap = draw(st.sampled_from([None, None, 2.0, 30.0]))
    head = make_head(n, d, v, dtype, bias=draw(st.booleans()), seed=draw(st.integers(0, 999)), scale=0.6)
    padding = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    head.targets[torch.tensor(padding)] = -100
    head = head.on(device)
    loss = draw(st.one_of(losses, truncated(head, softcap)))
    return Case(head, loss, softcap, v * draw(st.integers(1, 12)) + draw(st.integers(-1, 1)))


def check_against_plain(case: Case, got: LossSums) -> None:
    """Assert that loss and gradients are as near to float64 as the plain path's.

    Tolerance: the plain path's own error, measured on the same inputs; and, since other chunks may round otherwise, two
    roundings to the dtype and a few of the accumulators' (through log p, which is as exact as its logits are), each
    relative to the sum of the sizes of the terms that make the number up.
    """
    head, loss, softcap, _ = case
    exact, dtype = head.to(torch.float64), head.hidden.dtype
    reference, expected = plain(exact, loss, softcap), plain(head, loss, softcap)
    assert torch.equal(got.valid, reference.valid)
    assert torch.equal(got.kept, reference.kept)
    sizes, largest_logit = term_sizes(exact, loss, softcap)
    accumulator = torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps
    small = 2 * torch.finfo(dtype).eps + 8 * accumulator * (1 + largest_logit)
    ours = [got.total, got.log_p, *gradients(got, head)]
    theirs = [expected.total, expected.log_p, *gradients(expected, head)]
    true = [reference.total, reference.log_p, *gradients(reference, exact)]
    for a, b, c, size in zip(ours, theirs, true, sizes, strict=True):
        assert (a.double() - c).abs().max() <= (b.double() - c).abs().max() + small * size


class Largest(TorchDispatchMode):
    """The largest tensor of floating-point numbers that any operation gives, in elements."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return out
