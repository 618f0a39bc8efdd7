"""Pieces of Python tried in another process: a broken build may crash or hang, and must not take this one along."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fortifai_ray.process import imports

_MARK = "\x1e"  # begins a line of answers, which no library prints
# Runs the pieces that come by standard input, and tells after each what it printed last.
_RUNNER = """
import contextlib, io, json, os, sys
hide_foreign_companions()
with quick_imports():
    for code in json.load(sys.stdin):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(code, {})
        print("\\n\\x1e" + json.dumps((output.getvalue().strip().splitlines() or [""])[-1]), flush=True)
os._exit(0)  # how libraries end is of no interest, and takes time
"""
_QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Answer(NamedTuple):
    """What a piece printed last, and its error in one line ("" for none)."""

    text: str
    error: str


def probe(code: str, seconds: float, *arguments: str) -> Answer:
    """One piece alone, with ``arguments`` as its ``sys.argv``; see :func:`probes`."""
    return probes({"": code}, seconds, *arguments)[""]


def probes(codes: Mapping[str, str], seconds: float, *arguments: str) -> dict[str, Answer]:
    """Run pieces of Python one after the other in one process, so that none imports again what another has.

    One that fails, crashes or is not done after ``seconds`` is blamed alone: those after it get another process. They
    start no engine, send no telemetry and print nothing on this process's terminal.
    """
    answers, left = dict[str, Answer](), dict(codes)
    while left:
        texts, error = _run(list(left.values()), seconds, arguments)
        names = list(left)
        answers |= {name: Answer(text, "") for name, text in zip(names, texts, strict=False)}
        if len(texts) < len(names):
            answers[names[len(texts)]] = Answer("", error)
        left = {name: left[name] for name in names[len(texts) + 1 :]}
    return answers


def _run(codes: Sequence[str], seconds: float, arguments: Sequence[str]) -> tuple[list[str], str]:
    """The answers of the pieces that were completed, and what kept the next one from it."""
    program = f"{Path(imports.__file__).read_text(encoding='utf-8')}\n{_RUNNER}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            input=json.dumps(codes).encode(),
            capture_output=True,
            timeout=seconds,
            env=os.environ | _QUIET,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return _answers(late.stdout or b""), f"no answer after {seconds:g} s"
    said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
    return _answers(done.stdout), said[-1] if done.returncode >= 0 else f"ended by signal {-done.returncode}"


def _answers(output: bytes) -> list[str]:
    lines = output.decode(errors="replace").split("\n")  # splitlines() would divide at the mark
    return [json.loads(line.removeprefix(_MARK)) for line in lines if line.startswith(_MARK)]
