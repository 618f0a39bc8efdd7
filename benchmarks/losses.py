"""The fused output head beside other implementations: ``python -m benchmarks.losses``.

Forward and backward of an output head and its loss, for several shapes and kept fractions: time as a ratio to
``torch.nn.functional.cross_entropy`` on logits in the same run, peak memory above inputs and gradients, and
floating-point operations. All implementations of a shape take turns, so that a change of the machine's speed affects
all of them, and medians are compared. The last line is one JSON object.

On a GPU the fused head runs with Triton kernels and, for comparison, with PyTorch operations, and the targets are those
for a GPU. "products" is the floor: the head's matrix products alone, one over all targets and two over those kept.
cut-cross-entropy and (on a GPU) Liger-Kernel take part where they are installed; neither is a dependency.
Liger is measured with its default, which sums the weight's gradient over chunks in the weight's own dtype, and with
sums in float32, as in the fused head.
"""

import argparse
import ctypes
import gc
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fortifai_ray.losses.fused import Kernel, fused_linear_sums
from fortifai_ray.losses.kinds import CrossEntropy, TruncatedCrossEntropy

SHAPES = ["4096x512x32000", "4096x2048x32000", "4096x512x128000", "4096x2048x128000"]
TIME_TARGETS = {1.0: 1.0, 0.5: 0.75, 0.2: 0.55}  # on a CPU, of cross entropy's
KEPT = {"cpu": [1.0, 0.5, 0.2], "cuda": [1.0, 0.9, 0.5, 0.2]}
REPEATS = {"cpu": 5, "cuda": 20}
BASELINE, PLAIN, CUT, FUSED, PRODUCTS = "cross_entropy", "plain", "cut_cross_entropy", "fused k=", "products k="
LIGER, LIGER_FLOAT32 = "liger", "liger, float32 sums"


class Inputs(NamedTuple):
    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    targets: Tensor  # (N,)


Case = Callable[[Inputs], Tensor]


def _addmm_flops(_: tuple[int, ...], a: tuple[int, int], b: tuple[int, int], *__: Any, **___: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _linear_flops(left: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(left) * weight[0]


FLOP_FORMULAS = {torch.ops.aten.addmm: _addmm_flops, torch.ops.mkldnn._linear_pointwise: _linear_flops}
"""For :class:`FlopCounterMode`, whose own formula fails on an addmm with an explicit output dtype, and which has none
for oneDNN's products."""


class Unavailable(Exception):
    """Why an implementation does not take part."""


def cases(
    device: str, gammas: dict[float, float], chunk_logits: int | None = None
) -> tuple[dict[str, Case], dict[str, str]]:
    """Implementations by name, and why others are missing.

    ``gammas`` has the threshold for each kept fraction; ``chunk_logits`` overrides the fused head's own choice.
    """
    available: dict[str, Case] = {
        BASELINE: lambda x: F.cross_entropy(F.linear(x.hidden, x.weight), x.targets),
        PLAIN: lambda x: _plain_tce(x, min(gammas.values())),
    }
    missing: dict[str, str] = {}
    others: dict[str, Callable[[str], Case]] = {"compiled": _compiled, CUT: _cut, LIGER: _liger}
    if device == "cuda":
        others[LIGER_FLOAT32] = partial(_liger, sums=torch.float32)
    for name, build in others.items():
        try:
            available[name] = build(device)
        except Unavailable as reason:
            missing[name] = str(reason)
    for kept, gamma in gammas.items():
        available[f"{FUSED}{kept}"] = _fused(gamma, chunk_logits)
        available[f"{PRODUCTS}{kept}"] = partial(_products, kept=kept)
        if device == "cuda":
            available[f"fused in PyTorch k={kept}"] = _fused(gamma, chunk_logits, "torch")
    return available, missing


def _products(x: Inputs, kept: float) -> Tensor:
    """The products of a pass and nothing else: a number whose own backward pass costs nothing."""
    with torch.no_grad():
        logits = x.hidden @ x.weight.T
        rows = round(kept * len(logits))
        x.hidden.grad, x.weight.grad = torch.zeros_like(x.hidden), torch.empty_like(x.weight)
        torch.mm(logits[:rows], x.weight, out=x.hidden.grad[:rows])
        torch.mm(logits[:rows].T, x.hidden[:rows], out=x.weight.grad)
    return torch.zeros((), requires_grad=True)


def _plain_tce(x: Inputs, gamma: float) -> Tensor:
    """TCE as ForTIFAI's code writes it: log-softmax of all logits, gather, mask, mean."""
    log_p = F.linear(x.hidden, x.weight).log_softmax(-1).gather(-1, x.targets[:, None]).squeeze(-1)
    keep = torch.where(log_p.exp() > gamma, 0.0, 1.0).detach()
    return (-keep * log_p).mean()


def _fused(gamma: float, chunk_logits: int | None, kernel: Kernel | None = None) -> Case:
    loss = TruncatedCrossEntropy(gamma=gamma)
    return lambda x: fused_linear_sums(*x, loss, chunk_logits=chunk_logits, kernel=kernel).mean()


def _compiled(device: str) -> Case:
    function = torch.compile(
        lambda hidden, weight, targets: F.cross_entropy(F.linear(hidden, weight), targets),
        dynamic=False if device == "cuda" else None,  # specialised for each shape
    )
    try:
        function(torch.randn(4, 3, device=device), torch.randn(5, 3, device=device), torch.zeros(4).long().to(device))
    except Exception as error:  # a compiler may be missing or fail in any way
        raise Unavailable(f"torch.compile does not work here: {str(error).splitlines()[0]}") from error
    return lambda x: function(*x)


def _cut(device: str) -> Case:
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError as error:
        raise Unavailable(f"cannot be imported: {error}") from error
    implementation = "cce" if device == "cuda" else "torch_compile"
    return lambda x: linear_cross_entropy(x.hidden, x.weight, x.targets, impl=implementation)


def _liger(device: str, sums: torch.dtype | None = None) -> Case:
    if device != "cuda":
        raise Unavailable("needs a GPU")
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        raise Unavailable(f"cannot be imported: {error}") from error
    liger = LigerFusedLinearCrossEntropyLoss(accum_dtype=sums)
    return lambda x: liger(x.weight, x.hidden, x.targets)


def make_inputs(n: int, d: int, v: int, dtype: torch.dtype, device: str) -> Inputs:
    """Random hidden states and a head that gives logits of variance 1."""
    random = torch.Generator(device).manual_seed(0)  # on the device: a CPU takes seconds for a billion numbers
    hidden, weight = (torch.randn(rows, d, generator=random, device=device) for rows in (n, v))
    targets = torch.randint(0, v, (n,), generator=random, device=device)
    return Inputs(hidden.to(dtype).requires_grad_(), weight.div_(d**0.5).to(dtype).requires_grad_(), targets)


@torch.no_grad()
def thresholds(inputs: Inputs, kept_fractions: list[float]) -> dict[float, float]:
    """γ for each kept fraction: half-way between the last target kept and the first that is not."""
    log_p = fused_linear_sums(*inputs, CrossEntropy()).log_p.double().sort().values
    gammas = {}
    for fraction in kept_fractions:
        kept = round(fraction * len(log_p))
        if kept == len(log_p):
            gammas[fraction] = 1.0
            continue
        assert log_p[kept - 1] < log_p[kept], "two targets have the same probability"
        gammas[fraction] = float(((log_p[kept - 1] + log_p[kept]) / 2).exp())
    return gammas


def _run(case: Case, inputs: Inputs) -> float:
    """Seconds of one forward and backward pass."""
    inputs.hidden.grad = inputs.weight.grad = None
    _synchronise(inputs.hidden.device)
    started = time.perf_counter()
    case(inputs).backward()
    _synchronise(inputs.hidden.device)
    return time.perf_counter() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(case: Case, inputs: Inputs) -> int | None:
    """Peak memory of a pass above its inputs and gradients; None where the system does not say."""
    inputs.hidden.grad = inputs.weight.grad = None
    gc.collect()
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in inputs[:2])
    if inputs.hidden.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _run(case, inputs)
        return torch.cuda.max_memory_allocated() - before - gradients
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # returns freed memory to the system, so that new allocations count
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmRSS")
    except OSError:
        return None
    _run(case, inputs)
    return _status("VmHWM") - before - gradients


def _status(field: str) -> int:
    """A field of Linux's ``/proc/self/status``, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def flops(case: Case, inputs: Inputs) -> int:
    """Floating-point operations of a pass's matrix products, counted by torch."""
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        _run(case, inputs)
    return counter.get_total_flops()


def measure(
    shape: str,
    kept: list[float],
    dtype: torch.dtype,
    device: str,
    repeats: int,
    chunk_logits: int | None = None,
    longest: float = math.inf,
) -> Iterator[dict[str, Any]]:
    """A row per implementation of one shape, NxDxV: medians of ``repeats`` passes, or of the three or more that begin
    within ``longest`` seconds."""
    n, d, v = (int(size) for size in shape.split("x"))
    inputs = make_inputs(n, d, v, dtype, device)
    available, missing = cases(device, thresholds(inputs, kept), chunk_logits)
    # Counting also warms up these implementations; the others are warmed up below.
    counted = {name: flops(case, inputs) for name, case in available.items() if name == BASELINE or "fused" in name}
    for name in available.keys() - counted.keys():
        try:
            _run(available[name], inputs)
        except Exception as error:  # another project's code may not fit the installed torch, and must not end the run
            missing[name] = f"fails: {str(error).splitlines()[0]}" if str(error) else f"fails: {error!r}"
            del available[name]
    seconds: dict[str, list[float]] = {name: [] for name in available}
    started = time.perf_counter()
    for turn in range(repeats):
        if turn >= 3 and time.perf_counter() - started > longest:
            break
        for name, case in available.items():
            seconds[name].append(_run(case, inputs))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    peaks = {name: peak_bytes(case, inputs) for name, case in available.items()}
    for name in available:
        peak, of_plain = peaks[name], peaks[PLAIN]
        yield {
            "shape": shape,
            "implementation": name,
            "seconds": medians[name],
            "time_ratio": medians[name] / medians[BASELINE],
            "peak_bytes": peak,
            "peak_ratio_to_plain": peak / of_plain if peak is not None and of_plain else None,
            "flop_ratio": counted[name] / counted[BASELINE] if name in counted else None,
        }
    for name, reason in missing.items():
        yield {"shape": shape, "implementation": name, "missing": reason}


def verdicts(rows: list[dict[str, Any]], device: str = "cpu") -> dict[str, bool]:
    """Whether each target is met on every shape it concerns; targets without measurements are left out."""
    met: dict[str, bool] = {}
    fused = {row["implementation"] for row in rows if row["implementation"].startswith(FUSED)}
    for kept in sorted((_kept(name) for name in fused), reverse=True):
        mine = _of(rows, f"{FUSED}{kept}")
        if device == "cpu" and kept in TIME_TARGETS:
            limit = TIME_TARGETS[kept]
            met[f"time at k={kept} at most {limit} of cross entropy's"] = all(r["time_ratio"] <= limit for r in mine)
        exact = (1 + 2 * kept) / 3
        # k is a whole number of targets over N, so it is off by at most half a target of the smallest batch.
        near = 2 / 3 * 0.5 / min(int(row["shape"].split("x")[0]) for row in mine)
        met[f"operations at k={kept} are (1 + 2k)/3"] = all(abs(r["flop_ratio"] - exact) <= near for r in mine)
    large = [row for row in rows if row["shape"].endswith("x128000") and row["implementation"] in fused]
    if large and all(row["peak_ratio_to_plain"] is not None for row in large):
        met["peak memory at V=128000 at most a tenth of the plain formula's"] = all(
            row["peak_ratio_to_plain"] <= 0.1 for row in large
        )
    if device == "cuda":
        met |= _against(CUT, rows, at_most=0.5, memory=False)
    return met | _against(LIGER, rows) | _against(LIGER_FLOAT32, rows)


def _of(rows: list[dict[str, Any]], implementation: str) -> list[dict[str, Any]]:
    """The measurements of one implementation."""
    return [row for row in rows if row["implementation"] == implementation and "missing" not in row]


def _kept(implementation: str) -> float:
    return float(implementation.removeprefix(FUSED))


def _against(other: str, rows: list[dict[str, Any]], at_most: float = 0.9, memory: bool = True) -> dict[str, bool]:
    """Whether the fused head is faster than another at k ≤ ``at_most``, and takes no more memory, on every shape."""
    theirs = {row["shape"]: row for row in _of(rows, other)}
    pairs = [(row, theirs.get(row["shape"])) for row in rows if row["implementation"].startswith(FUSED)]
    both = [(ours, their) for ours, their in pairs if their is not None]
    sparse = [(ours, their) for ours, their in both if _kept(ours["implementation"]) <= at_most]
    met: dict[str, bool] = {}
    if sparse:
        met[f"faster than {other} at k at most {at_most}"] = all(a["seconds"] < b["seconds"] for a, b in sparse)
    if both and memory:
        met[f"no more memory than {other}"] = all(a["peak_bytes"] <= b["peak_bytes"] for a, b in both)
    return met


def training_steps(kept: list[float]) -> dict[str, dict[str, float]]:
    """The effect of the head's saving on a whole training step: operations as a share of cross entropy's.

    One step of each model at 4 × 1,024 tokens is counted on torch's ``meta`` device, where nothing is computed.
    """
    import transformers

    from fortifai_ray.families.language.config import ModelConfig
    from fortifai_ray.families.language.models import model_identity

    preset = model_identity(ModelConfig(preset="llama-tiny"))
    shapes: dict[str, dict[str, Any]] = {
        "llama-tiny": {**preset["preset"], "vocab_size": preset["vocab_size"], "max_position_embeddings": 1024},
        "the shape of Llama 3.2 1B": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
    }
    shares = {}
    for name, shape in shapes.items():
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
            tokens = torch.zeros(4, 1024, dtype=torch.long)
            # An explicit mask: the model would make its own from a tensor's values, and a meta tensor has none.
            logits = model(input_ids=tokens, attention_mask=torch.zeros(4, 1, 1024, 1024), use_cache=False).logits
            F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        head = 3 * 2 * tokens.numel() * shape["hidden_size"] * shape["vocab_size"]
        step = counter.get_total_flops()
        shares[name] = {f"k={k}": 1 - head * (1 - (1 + 2 * k) / 3) / step for k in kept} | {"head": head / step}
    return shares


def _shape(text: str) -> str:
    if not re.fullmatch(r"([1-9]\d*x){2}[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text}: expected three whole numbers, e.g. {SHAPES[0]}")
    return text


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a share of the targets, above 0 and at most 1")
    return share


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, 1 or more")
    return int(text)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=_shape, default=SHAPES, metavar="NxDxV")
    parser.add_argument("--kept", nargs="+", type=_share, default=KEPT[device], metavar="K")
    parser.add_argument("--dtype", default=None, choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=_count, default=REPEATS[device])
    parser.add_argument(
        "--chunk-logits", type=_count, default=None, help="of the fused head; by default its own choice"
    )
    parser.add_argument("--threads", type=_count, default=None)
    options = parser.parse_args()
    dtype = options.dtype or ("bfloat16" if device == "cuda" else "float32")
    if options.threads:
        torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for shape in options.shapes:
        for row in measure(shape, options.kept, getattr(torch, dtype), device, options.repeats, options.chunk_logits):
            rows.append(row)
            print(_line(row), flush=True)
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    result = {"device": where, "dtype": dtype, "torch": torch.__version__, "repeats": options.repeats}
    steps = training_steps(options.kept)
    packages = _packages()
    print(json.dumps({**result, "packages": packages, "targets": verdicts(rows, device), "steps": steps, "rows": rows}))


def _packages() -> dict[str, str]:
    """Versions of the other projects that are installed."""
    versions = {}
    for package in ("triton", "liger-kernel", "cut-cross-entropy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _line(row: dict[str, Any]) -> str:
    head = f"{row['shape']:>18} {row['implementation']:<24}"
    if "missing" in row:
        return f"{head} {row['missing']}"
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:9,.0f} MiB"
    share = "" if row["peak_ratio_to_plain"] is None else f" ({row['peak_ratio_to_plain']:.3f} of plain)"
    count = "" if row["flop_ratio"] is None else f"  operations {row['flop_ratio']:.4f}"
    return f"{head} {row['seconds']:8.3f} s  {row['time_ratio']:6.3f} of cross entropy  {peak}{share}{count}"


if __name__ == "__main__":
    main()
