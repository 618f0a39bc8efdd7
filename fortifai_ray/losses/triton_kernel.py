"""The softmax of a chunk of logits in two Triton kernels: the fused output head's back end on a GPU.

The matrix products stay with cuBLAS. One kernel reads a chunk's logits once, in the dtype of the product, and computes
log p of the targets; PyTorch then computes f and f′ on a vector, so a user's own loss works unchanged. The other kernel
reads the rows with f′ ≠ 0 once more and writes f′·(onehot − softmax) over the first rows of the same memory, so that
the kept rows are contiguous for the two products of the backward pass and the logits are never copied.

Verified: both kernels in Triton's interpreter on a CPU (``TRITON_INTERPRET=1``), against float64 and beside the PyTorch
back end; and that Triton 3.7 compiles them for NVIDIA GPUs of compute capability 8.0, 9.0 and 10.0, with no register
spilled. Not verified, for want of a GPU: the numbers of the compiled code, and any speed. Where there is a GPU,
``tests/losses/test_triton.py`` runs compiled, and ``python -m benchmarks.gpu`` measures.

The running maximum and sum are those of the online softmax (Milakov and Gimelshein 2018, algorithm 3); writing the
gradient over the logits is Liger-Kernel's (Hsu et al. 2024).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether this module's kernels run in Triton's interpreter, on any device: set at the time of its import."""

BLOCK = 8192  # columns a program holds at once: 32 to a thread, half as many of float64, so that registers suffice
# Multiplications and additions are not fused into one rounding: the interpreter, which is tested against, fuses none.
LAUNCH: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}


def serves(device: torch.device) -> bool:
    """Whether these kernels accept tensors on ``device``."""
    return INTERPRETED or device.type == "cuda"


class TritonSoftmax:
    """A chunk's softmax by Triton kernels: see :class:`fortifai_ray.losses.softmax.ChunkSoftmax`.

    A target outside [0, V) has log p = NaN: the loss shows it, and no memory outside the logits is read.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, softcap: float | None, rows: int) -> None:
        exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self._bias, self._softcap = None if bias is None else bias.contiguous(), softcap
        self.logits = weight.new_empty(rows, weight.shape[0])
        self._log_p, self._peak, self._log_sum = (weight.new_empty(rows, dtype=exact) for _ in range(3))
        self._block = min(BLOCK * 4 // exact.itemsize, triton.next_power_of_2(weight.shape[0]))

    def log_p(self, targets: Tensor) -> Tensor:
        """As :meth:`ChunkSoftmax.log_p`; leaves ``logits`` as they are."""
        rows = len(targets)
        with torch.cuda.device_of(self.logits):
            _log_p_kernel[(rows,)](
                self.logits,
                self._bias,
                targets,
                self._log_p,
                self._peak,
                self._log_sum,
                self.logits.shape[1],
                SOFTCAP=self._softcap,
                BLOCK=self._block,
                **LAUNCH,
            )
        return self._log_p[:rows]

    def gradients(self, targets: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`ChunkSoftmax.gradients`, in the dtype of ``logits`` and in their memory."""
        order, columns = compact_order(slope != 0), self.logits.shape[1]
        if len(order):
            with torch.cuda.device_of(self.logits):
                _gradient_kernel[(len(order), triton.cdiv(columns, self._block))](
                    self.logits,
                    self._bias,
                    targets,
                    order,
                    slope.contiguous(),  # a derivative that is one number everywhere has a stride of 0
                    self._peak,
                    self._log_sum,
                    columns,
                    SOFTCAP=self._softcap,
                    BLOCK=self._block,
                    **LAUNCH,
                )
        return order, self.logits[: len(order)]


def compact_order(kept: Tensor) -> Tensor:
    """For each of the first k places, the row to be moved there, so that the k rows ``kept`` (n,) fill them: (k,).

    A kept row among the first k stays where it is; the others go to the places of rows that are not kept. So no row is
    both read for one place and written for another, and all moves may happen at once, in any order.
    """
    rows = kept.nonzero().squeeze(1)
    places = len(rows)
    stays = kept[:places]
    # The i-th free place takes the i-th kept row of those that do not stay, which come last among the kept.
    movers = rows[stays.sum() + (~stays).cumsum(0) - 1]
    return torch.where(stays, torch.arange(places, device=kept.device), movers)


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    """tanh to a few roundings, relative to its size: near 0 by its continued fraction, (7, 6), elsewhere by exp."""
    square = x * x
    above = 135135.0 + square * (17325.0 + square * (378.0 + square))
    below = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.25, x * above / below, tl.where(x < 0.0, -far, far))


@triton.jit
def _load_logits(
    start: tl.tensor, bias: tl.tensor, offsets: tl.tensor, inside: tl.tensor, like: tl.tensor, SOFTCAP: tl.constexpr
) -> tl.tensor:
    """Logits with their bias, over the cap where there is one, in the dtype that ``like`` points to; 0 outside."""
    logits = tl.load(start + offsets, mask=inside, other=0.0).to(like.dtype.element_ty)
    if bias is not None:
        logits += tl.load(bias + offsets, mask=inside, other=0.0).to(like.dtype.element_ty)
    if SOFTCAP is not None:
        logits = _tanh(logits / SOFTCAP)
    return logits


@triton.jit
def _log_p_kernel(
    logits: tl.tensor,
    bias: tl.tensor,
    targets: tl.tensor,
    log_p: tl.tensor,
    peaks: tl.tensor,
    log_sums: tl.tensor,
    columns: tl.tensor,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A program a row: its largest logit, the logarithm of its sum of exponentials above that, log p of its target."""
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * columns
    # Not −∞, which less itself is no number: a first block of logits may be −∞ as a whole.
    peak = tl.full((), -3.0e38, dtype=log_p.dtype.element_ty)
    total = tl.zeros([BLOCK], dtype=log_p.dtype.element_ty)
    for first in range(0, columns, BLOCK):
        offsets = first + tl.arange(0, BLOCK)
        inside = offsets < columns
        z = _load_logits(start, bias, offsets, inside, log_p, SOFTCAP)
        if SOFTCAP is not None:
            z *= SOFTCAP
        z = tl.where(inside, z, float("-inf"))
        larger = tl.maximum(peak, tl.max(z, 0))
        total = total * tl.exp(peak - larger) + tl.exp(z - larger)
        peak = larger
    log_sum = tl.log(tl.sum(total, 0))
    target = tl.load(targets + row)
    known = (target >= 0) & (target < columns)
    z = _load_logits(start, bias, target, known, log_p, SOFTCAP)
    if SOFTCAP is not None:
        z *= SOFTCAP
    value = tl.where(known, (z - peak) - log_sum, float("nan"))
    tl.store(log_p + row, tl.where(value > 0.0, 0.0, value))  # a rounding above 0 would be above every threshold
    tl.store(peaks + row, peak)
    tl.store(log_sums + row, log_sum)


@triton.jit
def _gradient_kernel(
    logits: tl.tensor,
    bias: tl.tensor,
    targets: tl.tensor,
    order: tl.tensor,
    slopes: tl.tensor,
    peaks: tl.tensor,
    log_sums: tl.tensor,
    columns: tl.tensor,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A program a block of a row: f′·(onehot − softmax) of row ``order[place]``, written to row ``place``."""
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(order + place)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < columns
    z = _load_logits(logits + row * columns, bias, offsets, inside, slopes, SOFTCAP)
    cap_slope = 1.0
    if SOFTCAP is not None:
        cap_slope = 1.0 - z * z
        z *= SOFTCAP
    softmax = tl.exp((z - tl.load(peaks + row)) - tl.load(log_sums + row))
    onehot = tl.where(offsets == tl.load(targets + row), 1.0, 0.0)
    gradient = tl.load(slopes + row) * (onehot - softmax) * cap_slope
    tl.store(logits + place * columns + offsets, gradient.to(logits.dtype.element_ty), mask=inside)
