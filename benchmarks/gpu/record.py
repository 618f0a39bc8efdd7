"""What is measured, on disk at every moment; and the card that it was measured on."""

import json
import math
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""Dense bfloat16 operations a second of NVIDIA's cards, from their data sheets, by a part of their names."""
PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "pydantic", "liger-kernel", "cut-cross-entropy")


class Record:
    """A part's results as one JSON file, whole after every change: a process may be killed at any moment."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content
        self.write()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was measured so far."""
        return self.content.setdefault("rows", [])

    def add(self, **row: Any) -> None:
        """Record a measurement."""
        self.rows.append(row)
        self.write()
        print(json.dumps(_finite(row)), flush=True)

    def note(self, **values: Any) -> None:
        """Record what holds for the whole part."""
        self.content |= values
        self.write()

    def goals(self, goals: dict[str, bool | None]) -> None:
        """Record which goals are met by what was measured so far; None: not measured."""
        self.note(goals=goals)

    def attempt(self, measure: Callable[[], None], **what: Any) -> bool:
        """Run ``measure``; where it fails (out of memory, another project's code), record why and go on."""
        try:
            measure()
        except Exception as error:
            text = str(error).strip() or repr(error)
            self.add(**what, failed=f"{type(error).__name__}: {text.splitlines()[0][:300]}")
            import traceback

            traceback.print_exc()
            return False
        return True

    def write(self) -> None:
        """Write aside, then rename."""
        aside = self.path.with_suffix(".aside")
        aside.write_text(json.dumps(_finite(self.content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(aside, self.path)


def _finite(value: Any) -> Any:
    """``value`` for JSON, which knows neither infinity nor NaN."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path) -> dict[str, Any]:
    """A part's results; empty where it recorded none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def machine() -> dict[str, Any]:
    """The card, its peak by the data sheet, and the versions of what computes. Takes none of the card's memory."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"device": device_name(), "peak_flops": peak_flops(), "cuda": torch.version.cuda, "versions": versions}


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()}, {sys.platform})"


def peak_flops() -> float | None:
    """Dense bfloat16 operations a second by the data sheet; None for a device that is not listed."""
    name = device_name()
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(reset: bool = False) -> int | None:
    """Most bytes of the card's memory that tensors took since the last reset; None without a card."""
    import torch

    if not torch.cuda.is_available():
        return None
    if reset:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()
