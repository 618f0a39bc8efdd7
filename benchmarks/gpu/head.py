"""Part 2: the fused output head beside other implementations, in time, memory and share of what the card can do.

Operations are those of the matrix products: (2 + 4k)·N·D·V for the fused head at a kept fraction k, as counted, and
6·N·D·V for the others, whatever they skip. Two cuBLAS products of that size, hidden·weightᵀ and gradientᵀ·hidden, say
what rate can be had.
"""

import statistics
import time
from functools import partial

import torch

from benchmarks.gpu.record import Record, device, peak_flops, synchronise
from benchmarks.losses import FUSED, make_inputs, verdicts
from benchmarks.losses import measure as measure_shape

# V = 128,256 (Llama 3) first: if the machine is taken away, the most usual head has been measured.
SHAPES = {
    "real": [f"8192x{d}x{v}" for v in (128_256, 32_000, 262_144) for d in (2048, 4096)],
    "toy": ["64x32x256", "64x48x256"],
}
KEPT = [1.0, 0.9, 0.5, 0.2]
REPEATS = {"real": 20, "toy": 2}
LONGEST = 8.0  # seconds in which a shape's passes begin
SHARE = 0.7  # of the two products' rate


def measure(record: Record, scale: str) -> None:
    """A row per shape and implementation; a shape that fails says why."""
    for shape in SHAPES[scale]:
        record.attempt(partial(_measure, record, shape, REPEATS[scale]), shape=shape)
        record.goals(goals(record))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _measure(record: Record, shape: str, repeats: int) -> None:
    where = device()
    dtype = torch.bfloat16 if where == "cuda" else torch.float32
    n, d, v = (int(size) for size in shape.split("x"))
    peak, rate = peak_flops(), products_rate(n, d, v, dtype, repeats)
    record.add(shape=shape, implementation="two products", flops_per_second=rate, share_of_peak=peak and rate / peak)
    for row in measure_shape(shape, KEPT, dtype, where, repeats, longest=LONGEST):
        if "missing" not in row:
            share = row["flop_ratio"] if row["implementation"].startswith("fused") else 1.0
            reached = 6 * n * d * v * share / row["seconds"]
            row |= {"flops_per_second": reached, "share_of_products": reached / rate}
            row["share_of_peak"] = peak and reached / peak
        record.add(**row)


def products_rate(n: int, d: int, v: int, dtype: torch.dtype, repeats: int) -> float:
    """Operations a second of the two products, one after the other: the median of ``repeats``."""
    inputs = make_inputs(n, d, v, dtype, device())
    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()
    logits, gradient = hidden.new_empty(n, v), torch.empty_like(weight)
    seconds = []
    for turn in range(repeats + 2):
        synchronise()
        started = time.perf_counter()
        torch.mm(hidden, weight.T, out=logits)
        torch.mm(logits.T, hidden, out=gradient)
        synchronise()
        if turn >= 2:
            seconds.append(time.perf_counter() - started)
    return 4 * n * d * v / statistics.median(seconds)


def goals(record: Record) -> dict[str, bool | None]:
    """Those of ``benchmarks.losses``, and the share of what two products reach, at each kept fraction."""
    measured = [row for row in record.rows if "seconds" in row]
    found: dict[str, bool | None] = dict(verdicts(measured, "cuda")) if measured else {}
    for name in ("faster than liger at k at most 0.9", "faster than cut_cross_entropy at k at most 0.5"):
        found.setdefault(name, None)
    found.setdefault("no more memory than liger", None)
    for kept in KEPT:
        shares = [row["share_of_products"] for row in measured if row["implementation"] == f"{FUSED}{kept}"]
        name = f"at k={kept} at least {SHARE:.0%} of the rate of two products of that size"
        found[name] = all(share >= SHARE for share in shares) if shares else None
    return found if device() == "cuda" else dict.fromkeys(found)  # they are goals for a GPU
