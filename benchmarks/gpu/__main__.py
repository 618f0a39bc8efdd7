"""All parts, each in a process of its own that ends at its limit: ``python -m benchmarks.gpu --out FOLDER``.

    kernels     the tests of Triton's kernels, compiled
    head        the fused output head beside cross entropy, torch.compile, Liger and cut-cross-entropy
    step        a training step of a Llama of 1B parameters, and the same under Hugging Face's Trainer with Liger
    generation  the Hugging Face engine, 256 rows at a time
    recursion   five generations of a Llama of 25M parameters under cross entropy and TCE, in the paper's regime

What a part has measured is in FOLDER/PART.json at every moment, and which goals were met; FOLDER/summary.json says how
each part ended. Without a GPU, ``--scale toy`` rehearses everything in seconds.
"""

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import Record, machine, read

LIMITS = {"kernels": 120, "head": 180, "step": 120, "generation": 60, "recursion": 300}
"""Seconds of each part, in order: what is worth most comes first, since the machine may be taken away."""
LEAST = 5  # seconds: with less left, a part is not begun
BUDGET = 570  # seconds of all parts together: one command on a lent machine has 600


def run_part(name: str, out: Path, scale: str, limit: float) -> str:
    """How a part ended: ``done``, at its limit, or how it failed. Its process group ends with it."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--scale", scale, "--alone", name]
    with (out / "log.txt").open("ab") as log:
        log.write(f"\n== {name}\n".encode())
        log.flush()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, process_group=0)
        try:
            code = process.wait(limit)
            return "done" if code == 0 else f"failed with exit code {code}: see log.txt"
        except subprocess.TimeoutExpired:
            return f"ended at its limit of {limit:.0f} s"
        finally:  # also where this process is interrupted or told to end
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also what a part has started: compilers, tests
    process.wait()


def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed without a chance to end it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run(names: Sequence[str], out: Path, scale: str, budget: float) -> dict[str, Any]:
    """Every part in turn within ``budget`` seconds; the summary, which is written after each of them."""
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    parts: dict[str, Any] = {name: {"ended": "not begun"} for name in names}
    summary = {"scale": scale, "machine": machine(), "parts": parts}
    record = Record(out / "summary.json", summary)
    for name in names:
        left = budget - (time.monotonic() - started)
        if left < LEAST:
            continue
        began = time.monotonic()
        parts[name] = {"ended": "running"}
        record.write()
        ended = run_part(name, out, scale, min(left, LIMITS[name]))
        goals = read(out / f"{name}.json").get("goals", {})
        parts[name] = {"ended": ended, "seconds": round(time.monotonic() - began, 1), "goals": goals}
        record.write()
        print(f"{name}: {ended}, {parts[name]['seconds']} s", *map(_goal, goals.items()), sep="\n  ", flush=True)
    return summary


def _goal(goal: tuple[str, bool | None]) -> str:
    name, met = goal
    return f"{'not measured' if met is None else 'met' if met else 'NOT MET'}: {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--scale", choices=["real", "toy"], default="real", help="toy: seconds, on a CPU")
    parser.add_argument("--parts", default=",".join(LIMITS), help="numbers from 1, or names, with commas between")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of all parts together")
    parser.add_argument("--alone", choices=LIMITS, help=argparse.SUPPRESS)  # one part, in this process
    options = parser.parse_args()
    if options.alone:
        _end_with(os.getppid())
        record = Record(options.out / f"{options.alone}.json", {"part": options.alone, "scale": options.scale})
        import_module(f"benchmarks.gpu.{options.alone}").measure(record, options.scale)
        return
    names = [_named(part.strip(), parser) for part in options.parts.split(",")]
    if len(set(names)) < len(names):
        parser.error(f"--parts {options.parts}: a part is named twice")
    if not 0 < options.budget < math.inf:
        parser.error(f"--budget {options.budget:g}: a number of seconds above 0 is needed")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out}: no folder can be made there ({error.strerror}); give another one")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part under way ends too
    summary = run(names, options.out, options.scale, options.budget)
    print(json.dumps(summary))


def _named(part: str, parser: argparse.ArgumentParser) -> str:
    names = list(LIMITS)
    if part.isdecimal() and 1 <= int(part) <= len(names):
        return names[int(part) - 1]
    if part not in names:
        parser.error(f"--parts {part}: there are {', '.join(f'{i} {name}' for i, name in enumerate(names, 1))}")
    return part


if __name__ == "__main__":
    main()
