"""The fused output head against the plain one: the same numbers, less memory, exactly the work that is needed."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.losses import FLOP_FORMULAS
from fortifai_ray.losses import CrossEntropy, Focal, TruncatedCrossEntropy
from fortifai_ray.losses import fused as kernel
from fortifai_ray.losses import softmax as in_torch
from fortifai_ray.losses.fused import fused_linear_sums
from tests.losses.heads import Case, Largest, cases, check_against_plain, fused, gradients, make_head, plain


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_fused_equals_plain(data: st.DataObject) -> None:
    """Loss and gradients are as near to float64 as the plain path's, whatever the shape, dtype, padding or threshold:
    to the tolerance that :func:`check_against_plain` says."""
    case = data.draw(cases(rows=40, columns=90))
    check_against_plain(case, fused(case.head, case.loss, case.softcap, chunk_logits=case.chunk_logits))


@pytest.mark.parametrize("kept", [0, 1, 37, 80])
@pytest.mark.parametrize("chunk_rows", [30, 80])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_blocks_of_narrow_logits(
    dtype: torch.dtype, chunk_rows: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of 16 bits pass the cache a few rows at a time and are overwritten by the gradients of the rows kept;
    the weight's gradient a few at a time, in one chunk or several. Nothing is read that was overwritten."""
    n, d, v = 80, 16, 60
    monkeypatch.setattr(in_torch, "_CACHED", 7 * v)
    monkeypatch.setattr(kernel, "_CONVERTED", 11 * d)
    head = make_head(n, d, v, dtype, bias=True, scale=0.6)
    order = plain(head.to(torch.float64), CrossEntropy(), 30.0).log_p.sort().values
    bounds = [-700.0, *order.tolist(), 0.0]
    loss = TruncatedCrossEntropy(gamma=1.0 if kept == n else math.exp((bounds[kept] + bounds[kept + 1]) / 2))
    got = fused(head, loss, 30.0, chunk_logits=chunk_rows * v)
    assert got.kept.sum().item() == kept
    check_against_plain(Case(head, loss, 30.0, 0), got)


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
    value = fused(head, loss).mean(normaliser)
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
    assert fused(head, CrossEntropy()).mean().item() == pytest.approx(expected.item(), rel=1e-12)
    sums = fused(head, TruncatedCrossEntropy(gamma=0.5))
    assert sums.mean("kept").item() == pytest.approx(sums.total.item() / sums.kept.sum().item(), rel=1e-12)
    assert 0 < sums.kept.sum() < 35


def test_gradcheck() -> None:
    """The whole function against finite differences, through its second and third backward pass on one graph too."""
    head = make_head(9, 4, 7, torch.float64, bias=True)

    def value(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused_linear_sums(hidden, weight, head.targets, Focal(gamma=1.5), bias, softcap=5.0).mean()

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
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as tce:
        sums = fused(head, TruncatedCrossEntropy(gamma=gamma), chunk_logits=v * 100)
        sums.mean().backward()
    assert sums.kept.sum().item() == kept
    assert ce.get_total_flops() == 3 * 2 * n * d * v
    assert tce.get_total_flops() == 2 * d * v * (n + 2 * kept)


def test_what_needs_no_gradient_costs_nothing() -> None:
    """A frozen head takes one product less; under no_grad there is but the forward's."""
    head = make_head(64, 8, 30, torch.float32)
    one = 2 * 64 * 8 * 30
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as frozen:
        fused(head._replace(weight=head.weight.detach()), CrossEntropy()).total.backward()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        total = fused(head, CrossEntropy()).total
    assert (frozen.get_total_flops(), forward.get_total_flops()) == (2 * one, one)
    assert not total.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_never_whole_in_memory(dtype: torch.dtype) -> None:
    """No tensor is larger than a chunk's logits or the weight; the plain path's logits are."""
    n, d, v, rows = 400, 4, 300, 16
    head = make_head(n, d, v, dtype, bias=True)
    with Largest() as ours:
        fused(head, TruncatedCrossEntropy(gamma=0.3), 30.0, chunk_logits=rows * v).total.backward()
    with Largest() as theirs:
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
    """The sum over many targets passes float16's largest number; the mean, which is what is computed, does not."""
    n = 3000
    hidden = torch.full((n, 4), 30.0, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(5, 4, dtype=torch.float16, requires_grad=True)
    fused_linear_sums(hidden, weight, torch.zeros(n, dtype=torch.long), CrossEntropy()).mean().backward()
    assert weight.grad is not None
    assert weight.grad[0].tolist() == pytest.approx([-24.0] * 4, rel=1e-3)  # −(1 − 1/5)·30


def test_shapes_that_do_not_fit_are_refused() -> None:
    """By name, not by a failed product deep inside."""
    with pytest.raises(ValueError, match="shapes do not fit"):
        fused_linear_sums(torch.zeros(3, 4), torch.zeros(5, 6), torch.zeros(3, dtype=torch.long), CrossEntropy())
    with pytest.raises(ValueError, match="shapes do not fit"):
        fused_linear_sums(torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(2, dtype=torch.long), CrossEntropy())


def test_a_kernel_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An explicit request without triton is refused, never silently replaced; the default uses what is installed."""
    head = make_head(4, 3, 5, torch.float32)
    monkeypatch.delitem(sys.modules, "fortifai_ray.losses.triton_kernel", raising=False)
    monkeypatch.delattr("fortifai_ray.losses.triton_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match="needs the package triton"):
        fused(head, CrossEntropy(), kernel="triton")
    assert torch.equal(fused(head, CrossEntropy()).total, fused(head, CrossEntropy(), kernel="torch").total)
