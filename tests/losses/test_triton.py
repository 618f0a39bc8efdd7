"""The fused output head's Triton back end: the same numbers as PyTorch's, from two kernels.

On a GPU the tests run compiled. Elsewhere Triton's interpreter runs the same kernels on the CPU; it must be chosen
before Triton is first imported, so one test here runs the others in a process of its own.
"""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.losses import FLOP_FORMULAS
from fortifai_ray.losses import CrossEntropy, Focal, TruncatedCrossEntropy
from fortifai_ray.losses.fused import LossSums
from tests.losses.heads import Case, Head, Largest, cases, check_against_plain, fused, gradients, make_head, plain

pytest.importorskip("triton")

from fortifai_ray.losses import triton_kernel
from fortifai_ray.losses.triton_kernel import compact_order

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = triton_kernel.serves(torch.device(DEVICE))
EXAMPLES = 60 if DEVICE == "cuda" else 25  # nearly each is compiled anew there: up to a second; here it is interpreted


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several blocks, the last of them in part."""
    monkeypatch.setattr(triton_kernel, "BLOCK", 16)


def on_triton(head: Head, loss: Callable[[Tensor], Tensor], softcap: float | None = None, **options: int) -> LossSums:
    return fused(head, loss, softcap, kernel="triton", **options)


@pytest.mark.skipif(RUNS, reason="they run here")
def test_the_kernels_in_the_interpreter() -> None:
    """All of :class:`TestKernels` passes, and none of it is skipped."""
    command = [sys.executable, "-m", "pytest", f"{__file__}::TestKernels", "-p", "no:cacheprovider"]
    root, environment = Path(__file__).resolve().parents[2], {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^\d\d passed in", ran.stdout, re.MULTILINE), ran.stdout


@pytest.mark.skipif(triton_kernel.INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("kernel", ["_log_p_kernel", "_gradient_kernel"])
def test_kernels_compile(kernel: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To machine code of NVIDIA GPUs that need not be there: what the interpreter lets pass, the compiler may not."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(triton_kernel, kernel)
    constants = {"SOFTCAP": 30.0, "BLOCK": triton_kernel.BLOCK}
    types = {"logits": "*bf16", "bias": "*bf16", "targets": "*i64", "order": "*i64", "columns": "i32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in function.arg_names}
    compiled = triton.compile(
        ASTSource(function, signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options=triton_kernel.LAUNCH,
    )
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    assert f".target sm_{capability}" in compiled.asm["ptx"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), max_size=40))
def test_the_kept_rows_are_compacted_in_place(kept: list[bool]) -> None:
    """Each kept row gets one of the first places, and none is moved to a place that another is yet read from."""
    order = compact_order(torch.tensor(kept, dtype=torch.bool)).tolist()
    rows = [row for row, keep in enumerate(kept) if keep]
    assert sorted(order) == rows
    assert all(place == row for place, row in enumerate(order) if row < len(rows))
    assert all(order[place] == place for place in range(len(rows)) if kept[place])


@pytest.mark.skipif(RUNS, reason="they are served here")
def test_tensors_on_a_cpu_are_refused_by_name_and_never_served_by_default() -> None:
    """Triton may be installed where there is no GPU."""
    head = make_head(4, 3, 5, torch.float32)
    with pytest.raises(ValueError, match="tensors on a GPU, not on cpu"):
        on_triton(head, CrossEntropy())
    assert torch.equal(fused(head, CrossEntropy()).total, fused(head, CrossEntropy(), kernel="torch").total)


@pytest.mark.skipif(not RUNS, reason="these run in the interpreter's own process")
class TestKernels:
    """On a GPU, or in the interpreter."""

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.data())
    def test_triton_equals_plain_and_torch(self, data: st.DataObject) -> None:
        """Loss and gradients as near to float64 as the plain path's, whatever the shape, dtype, padding, threshold or
        block; the kept targets are those of the PyTorch back end, and log p is its to a few roundings."""
        case: Case = data.draw(cases(rows=16, columns=90, device=DEVICE))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton_kernel, "BLOCK", data.draw(st.sampled_from([16, 64, 8192])))
            got = on_triton(case.head, case.loss, case.softcap, chunk_logits=case.chunk_logits)
        check_against_plain(case, got)
        torch_sums = fused(case.head, case.loss, case.softcap, chunk_logits=case.chunk_logits, kernel="torch")
        assert torch.equal(got.kept, torch_sums.kept)
        rounding = torch.finfo(got.log_p.dtype).eps * (1 + torch_sums.log_p.abs())
        assert bool(((got.log_p - torch_sums.log_p).abs() <= 40 * rounding).all())

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_truncated_and_padded_rows_are_exactly_zero(self, dtype: torch.dtype, small_blocks: None) -> None:
        """Not small: zero. And the rows that are kept are not."""
        head = make_head(24, 16, 60, dtype, scale=0.5)
        head.targets[::7] = -100
        head = head.on(DEVICE)
        sums = on_triton(head, TruncatedCrossEntropy(gamma=0.2), chunk_logits=60 * 8)
        hidden, _ = gradients(sums, head)
        assert 0 < sums.kept.sum() < sums.valid.sum() < 24
        assert not hidden[~sums.kept].any()
        assert bool(hidden[sums.kept].any(dim=1).all())

    @pytest.mark.parametrize("gamma", [1e-12, 0.3])
    def test_nothing_kept(self, gamma: float) -> None:
        """A batch whose targets are all truncated, or all padding: loss 0, and gradients that are exactly 0."""
        head = make_head(6, 8, 20, torch.float32, bias=True).on(DEVICE)
        if gamma == 0.3:
            head.targets.fill_(-100)
        sums = on_triton(head, TruncatedCrossEntropy(gamma=gamma))
        assert sums.total.item() == 0.0
        assert not any(gradient.any() for gradient in gradients(sums, head))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_gamma_one_truncates_no_target_however_sure(self, dtype: torch.dtype) -> None:
        """log p never rounds to above 0, where γ = 1 lies: TCE is then cross entropy to the bit."""
        head = make_head(20, 16, 50, dtype, scale=2.0).on(DEVICE)
        one, ce = on_triton(head, TruncatedCrossEntropy(gamma=1.0)), on_triton(head, CrossEntropy())
        assert one.log_p.max() > -1e-6
        assert bool((one.log_p <= 0.0).all())
        assert bool(one.kept.all())
        assert torch.equal(one.total, ce.total)
        assert all(torch.equal(a, b) for a, b in zip(gradients(one, head), gradients(ce, head), strict=True))

    def test_gradcheck(self, small_blocks: None) -> None:
        """The whole function against finite differences, with a bias and a cap."""
        head = make_head(2, 2, 4, torch.float64, bias=True).on(DEVICE)

        def value(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return on_triton(Head(hidden, weight, bias, head.targets), Focal(gamma=1.5), 5.0).mean()

        assert torch.autograd.gradcheck(value, head[:3])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_the_cap_over_its_whole_range(self, dtype: torch.dtype) -> None:
        """From logits far below the cap to logits far above it, of both signs: log p and its derivative."""
        sizes = torch.logspace(-6, 2, 33, dtype=torch.float64)
        weight = torch.cat([-sizes, sizes])[:, None]
        head = Head(torch.ones(8, 1), weight, None, torch.arange(8) * 9).to(dtype).on(DEVICE)
        exact = head.to(torch.float64)
        ours, theirs = on_triton(head, CrossEntropy(), 3.0), plain(exact, CrossEntropy(), 3.0)
        close = 20 * torch.finfo(dtype).eps
        assert torch.allclose(ours.log_p.double(), theirs.log_p, rtol=close, atol=0.0)
        (got,), (expected,) = (gradients(sums, h)[1:] for sums, h in ((ours, head), (theirs, exact)))
        assert torch.allclose(got.double(), expected, rtol=close, atol=close)

    def test_a_loss_with_one_slope_everywhere_and_a_bias_with_gaps(self) -> None:
        """Autograd may give the slope as one number of stride 0, and a bias may be a column: neither is misread."""
        head = make_head(7, 4, 11, torch.float64).on(DEVICE)
        bias = torch.linspace(-1.0, 1.0, 22, dtype=torch.float64, device=DEVICE).view(11, 2)[:, 0].requires_grad_()
        head = head._replace(bias=bias)
        for ours, theirs in zip(
            gradients(on_triton(head, torch.Tensor.clone), head),
            gradients(fused(head, torch.Tensor.clone, kernel="torch"), head),
            strict=True,
        ):
            assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)

    def test_classes_that_are_masked_out(self, small_blocks: None) -> None:
        """A bias of −∞ over the whole first block: the other classes' numbers are those of the PyTorch back end."""
        head = make_head(5, 4, 40, torch.float32, bias=True)
        assert head.bias is not None
        head.bias.data[:20] = -math.inf
        head.targets.copy_(20 + head.targets % 20)
        head = head.on(DEVICE)
        ours, theirs = on_triton(head, CrossEntropy()), fused(head, CrossEntropy(), kernel="torch")
        assert bool(ours.log_p.isfinite().all())
        assert torch.allclose(ours.log_p, theirs.log_p, rtol=1e-5)
        for a, b in zip(gradients(ours, head), gradients(theirs, head), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)

    def test_what_is_wrong_is_seen(self) -> None:
        """NaN in a hidden state, and a target that is no class, give NaN at that target alone; both count as kept."""
        head = make_head(4, 3, 6, torch.float32)
        head.hidden.data[1, 0] = math.nan
        head.targets[2] = 6
        sums = on_triton(head.on(DEVICE), TruncatedCrossEntropy(gamma=0.9))
        assert sums.log_p.isnan().tolist() == [False, True, True, False]
        assert bool(sums.kept[1:3].all())
        assert bool(sums.total.isnan())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_work_and_memory_are_those_of_the_kept_rows(self, dtype: torch.dtype) -> None:
        """(1 + 2k)/3 of cross entropy's operations, exactly; no tensor larger than a chunk's logits or the weight."""
        n, d, v, rows = 24, 4, 60, 8
        head = make_head(n, d, v, dtype, bias=True, scale=0.4).on(DEVICE)
        order = fused(head, CrossEntropy(), kernel="torch").log_p.sort().values.tolist()
        loss = TruncatedCrossEntropy(gamma=math.exp((order[8] + order[9]) / 2))
        with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter, Largest() as largest:
            sums = on_triton(head, loss, chunk_logits=rows * v)
            sums.total.backward()
        assert sums.kept.sum().item() == 9
        assert counter.get_total_flops() == 2 * d * v * (n + 2 * 9)
        assert largest.elements <= max(rows * v, v * d, n * d)

    def test_under_autocast_the_products_are_bfloat16_and_the_gradients_float32(self) -> None:
        """As the PyTorch back end under the same autocast, to bfloat16's rounding of the gradient on the logits."""
        head = make_head(20, 16, 50, torch.float32, scale=0.5).on(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16):
            ours, theirs = on_triton(head, CrossEntropy()), fused(head, CrossEntropy(), kernel="torch")
        for got, expected in zip(gradients(ours, head), gradients(theirs, head), strict=True):
            assert got.dtype == torch.float32
            assert (got - expected).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * expected.abs().max()

    def test_float16_gradients_do_not_overflow_before_they_are_scaled(self) -> None:
        """The sum over many targets passes float16's largest number; the mean, which is what is computed, does not."""
        n, scale = 24, 4000.0
        hidden = torch.full((n, 4), scale, dtype=torch.float16, device=DEVICE, requires_grad=True)
        weight = torch.zeros(5, 4, dtype=torch.float16, device=DEVICE, requires_grad=True)
        targets = torch.zeros(n, dtype=torch.long, device=DEVICE)
        on_triton(Head(hidden, weight, None, targets), CrossEntropy()).mean().backward()
        assert weight.grad is not None
        assert n * 0.8 * scale > torch.finfo(torch.float16).max > 0.8 * scale
        assert weight.grad[0].tolist() == pytest.approx([-0.8 * scale] * 4, rel=1e-3)  # −(1 − 1/5)·scale


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
def test_on_a_gpu_it_is_the_default() -> None:
    """The public function takes it unasked, and says the same as the PyTorch back end."""
    head = make_head(300, 64, 1000, torch.bfloat16).on(DEVICE)
    value = fused(head, CrossEntropy()).mean()
    assert torch.equal(value, on_triton(head, CrossEntropy()).mean())
    assert value.item() == pytest.approx(fused(head, CrossEntropy(), kernel="torch").mean().item(), rel=1e-5)
