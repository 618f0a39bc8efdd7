"""The fused output head against the plain one: the same numbers, less memory, exactly the work that is needed."""

import math
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fortifai_ray.losses import (
    ClippedFocal,
    CrossEntropy,
    Entropy,
    Focal,
    PointwiseLoss,
    TruncatedCrossEntropy,
)
from fortifai_ray.losses.fused import LossSums, fused_linear_loss, fused_linear_sums, plain_sums


class Head(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor

    def to(self, dtype: torch.dtype) -> "Head":
        tensors = (None if t is None else t.detach().to(dtype).requires_grad_() for t in self[:3])
        return Head(*tensors, self.targets)  # type: ignore[arg-type]


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
    """In float64: the largest sum of absolute terms behind the total, log p and each gradient; the largest logit."""
    product = F.linear(exact.hidden, exact.weight, exact.bias).detach().requires_grad_()
    logits = product if softcap is None else softcap * torch.tanh(product / softcap)
    sums = plain_sums(logits, exact.targets, loss)
    (on_logits,) = torch.autograd.grad(sums.total, product)
    total = loss(sums.log_p)[sums.valid].abs().sum()
    largest = logits.abs().max()
    of_hidden, of_weight = on_logits.abs() @ exact.weight.abs(), on_logits.abs().T @ exact.hidden.abs()
    sizes = [total, largest, of_hidden.max(), of_weight.max()]
    if exact.bias is not None:
        sizes.append(on_logits.abs().sum(0).max())
    return [size.item() for size in sizes], largest.item()


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


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_fused_equals_plain(data: st.DataObject) -> None:
    """Loss and gradients are as near to float64 as the plain path's, whatever the shape, dtype, padding or threshold.

    Tolerance: the plain path's own error, measured on the same inputs; and, since other chunks may round otherwise, two
    roundings to the dtype and a few of the accumulators' (through log p, which is as exact as its logits are), each
    relative to the sum of the sizes of the terms that make the number up.
    """
    n, d, v = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 24)), data.draw(st.integers(2, 90))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    softcap = data.draw(st.sampled_from([None, None, 2.0, 30.0]))
    head = make_head(n, d, v, dtype, bias=data.draw(st.booleans()), seed=data.draw(st.integers(0, 999)), scale=0.6)
    padding = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    head.targets[torch.tensor(padding)] = -100
    loss = data.draw(st.one_of(losses, truncated(head, softcap)))
    chunk = v * data.draw(st.integers(1, 12)) + data.draw(st.integers(-1, 1))

    exact = head.to(torch.float64)
    reference, expected = plain(exact, loss, softcap), plain(head, loss, softcap)
    got = fused(head, loss, softcap, chunk_logits=chunk)
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_truncated_and_padded_rows_are_exactly_zero(dtype: torch.dtype) -> None:
    """Not small: zero. And the rows that are kept are not."""
    head = make_head(50, 16, 60, dtype, scale=0.5)
    head.targets[::7] = -100
    sums = fused(head, TruncatedCrossEntropy(gamma=0.2), chunk_logits=60 * 8)
    hidden, _ = gradients(sums, head)
    assert 0 < sums.kept.sum() < sums.valid.sum() < 50
    assert not hidden[~sums.kept].any()
    assert bool(hidden[sums.kept].any(dim=1).all())


@pytest.mark.parametrize("normaliser", ["valid", "kept"])
@pytest.mark.parametrize("gamma", [1e-12, 0.3])
def test_nothing_kept(gamma: float, normaliser: str) -> None:
    """A batch whose targets are all truncated, or all padding: loss 0, and gradients that are there and exactly 0."""
    head = make_head(12, 8, 20, torch.float32, bias=True)
    if gamma == 0.3:
        head.targets.fill_(-100)
    loss = TruncatedCrossEntropy(gamma=gamma, normaliser=normaliser)
    value = fused_linear_loss(head.hidden, head.weight, head.targets, loss, head.bias)
    value.backward()
    assert value.item() == 0.0
    for tensor in head[:3]:
        assert tensor is not None
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


def test_gamma_one_is_cross_entropy_to_the_bit() -> None:
    """Value and gradients, in float64."""
    head = make_head(30, 8, 40, torch.float64)
    one, ce = fused(head, TruncatedCrossEntropy(gamma=1.0)), fused(head, CrossEntropy())
    assert torch.equal(one.total, ce.total)
    assert all(torch.equal(a, b) for a, b in zip(gradients(one, head), gradients(ce, head), strict=True))


def test_the_mean_is_over_what_the_normaliser_counts() -> None:
    """Valid targets (as torch's own cross entropy), or kept ones."""
    head = make_head(40, 8, 30, torch.float64)
    head.targets[:5] = -100
    expected = F.cross_entropy(head.hidden @ head.weight.T, head.targets)
    assert fused_linear_loss(head.hidden, head.weight, head.targets, CrossEntropy()).item() == pytest.approx(
        expected.item(), rel=1e-12
    )
    sums = fused(head, TruncatedCrossEntropy(gamma=0.5))
    loss = TruncatedCrossEntropy(gamma=0.5, normaliser="kept")
    value = fused_linear_loss(head.hidden, head.weight, head.targets, loss)
    assert value.item() == pytest.approx(sums.total.item() / sums.kept.sum().item(), rel=1e-12)
    assert 0 < sums.kept.sum() < 35


def test_gradcheck() -> None:
    """The whole function against finite differences, through its second and third backward pass on one graph too."""
    head = make_head(9, 4, 7, torch.float64, bias=True)

    def value(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused_linear_loss(hidden, weight, head.targets, Focal(gamma=1.5), bias, softcap=5.0)

    assert torch.autograd.gradcheck(value, head[:3])


def test_a_graph_that_is_kept_gives_the_same_again() -> None:
    """Gradients are given away scaled in place, so a second pass must not meet them scaled."""
    head = make_head(20, 8, 30, torch.float32)
    total = fused(head, TruncatedCrossEntropy(gamma=0.5)).total
    first = torch.autograd.grad(total * 3.0, head[:2], retain_graph=True)
    second = torch.autograd.grad(total * 3.0, head[:2])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kept", [0, 1, 103, 256, 511, 512])
def test_the_floating_point_operations_are_one_plus_two_k_thirds_of_cross_entropys(kept: int) -> None:
    """Exactly, as torch counts them: one product over all targets, two over the kept ones, and no other."""
    n, d, v = 512, 24, 100
    head = make_head(n, d, v, torch.float32, scale=0.4)
    order = plain(head, CrossEntropy()).log_p.sort().values
    bounds = [-math.inf, *order.tolist(), 0.0]
    gamma = 1.0 if kept == n else max(math.exp((max(bounds[kept], -700.0) + bounds[kept + 1]) / 2), 1e-300)
    with FlopCounterMode(display=False) as ce:
        F.cross_entropy(F.linear(head.hidden, head.weight), head.targets).backward()
    with FlopCounterMode(display=False) as tce:
        sums = fused(head, TruncatedCrossEntropy(gamma=gamma), chunk_logits=v * 100)
        sums.mean().backward()
    assert sums.kept.sum().item() == kept
    assert ce.get_total_flops() == 3 * 2 * n * d * v
    assert tce.get_total_flops() == 2 * d * v * (n + 2 * kept)


def test_what_needs_no_gradient_costs_nothing() -> None:
    """A frozen head takes one product less; under no_grad there is but the forward's."""
    head = make_head(64, 8, 30, torch.float32)
    one = 2 * 64 * 8 * 30
    with FlopCounterMode(display=False) as frozen:
        fused(head._replace(weight=head.weight.detach()), CrossEntropy()).total.backward()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        total = fused(head, CrossEntropy()).total
    assert (frozen.get_total_flops(), forward.get_total_flops()) == (2 * one, one)
    assert not total.requires_grad


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation gives, in elements."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_never_whole_in_memory(dtype: torch.dtype) -> None:
    """No tensor is larger than a chunk's logits or the weight; the plain path's logits are."""
    n, d, v, rows = 400, 4, 300, 16
    head = make_head(n, d, v, dtype, bias=True)
    with _Largest() as ours:
        fused(head, TruncatedCrossEntropy(gamma=0.3), 30.0, chunk_logits=rows * v).total.backward()
    with _Largest() as theirs:
        plain(head, TruncatedCrossEntropy(gamma=0.3), 30.0).total.backward()
    assert ours.elements <= max(rows * v, v * d, n * d)
    assert theirs.elements == n * v


def test_under_autocast_the_products_are_bfloat16_and_the_gradients_float32() -> None:
    """As near to float32 as the plain path under the same autocast, whose products are bfloat16 too."""
    head = make_head(60, 16, 50, torch.float32, scale=0.5)
    exact = gradients(plain(head, CrossEntropy()), head)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fused(head, CrossEntropy(), chunk_logits=50 * 16), plain(head, CrossEntropy())
    for got, expected, true in zip(gradients(ours, head), gradients(theirs, head), exact, strict=True):
        assert got.dtype == torch.float32
        error, allowed = (got - true).abs().max(), (expected - true).abs().max()
        assert 0 < error <= allowed + 3 * torch.finfo(torch.bfloat16).eps * true.abs().max()


def test_float16_gradients_do_not_overflow_before_they_are_scaled() -> None:
    """The sum over many targets passes float16's largest number; the mean, which is asked for, does not."""
    n = 3000
    hidden = torch.full((n, 4), 30.0, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(5, 4, dtype=torch.float16, requires_grad=True)
    fused_linear_loss(hidden, weight, torch.zeros(n, dtype=torch.long), CrossEntropy()).backward()
    assert weight.grad is not None
    assert weight.grad[0].tolist() == pytest.approx([-24.0] * 4, rel=1e-3)  # −(1 − 1/5)·30


def test_shapes_that_do_not_fit_are_refused() -> None:
    """By name, not by a failed product deep inside."""
    with pytest.raises(ValueError, match="shapes do not fit"):
        fused_linear_loss(torch.zeros(3, 4), torch.zeros(5, 6), torch.zeros(3, dtype=torch.long), CrossEntropy())
    with pytest.raises(ValueError, match="shapes do not fit"):
        fused_linear_loss(torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(2, dtype=torch.long), CrossEntropy())
