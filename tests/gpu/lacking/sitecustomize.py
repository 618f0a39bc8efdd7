"""Python imports this first in a process that has its folder on the path: such a process has few packages.

It has what a lent GPU machine has, and what ``scripts/gpu_check.sh`` brings there, each with all that it requires.
Every other package that is installed here is hidden, from imports and from ``importlib.metadata`` alike.
"""

import importlib.metadata as metadata
import os
import re
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from typing import Any

THERE = ("torch", "triton", "transformers", "peft", "accelerate", "pytest", "pytest-timeout", "pip", "setuptools")
BROUGHT = ("pydantic", "hypothesis", "liger-kernel", "cut-cross-entropy")


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]).lower()


def _with_requirements(names: Iterable[str], needs: dict[str, list[str]]) -> set[str]:
    found, open_names = set[str](), [*names]
    while open_names:
        name = open_names.pop()
        if name not in found:
            found.add(name)
            open_names += needs.get(name, [])
    return found


def _hidden() -> tuple[set[str], set[str]]:
    """The distributions that the machine lacks, and the modules at the top that are theirs alone."""
    needs = {
        _name(d.metadata["Name"]): [_name(line) for line in d.requires or () if "extra ==" not in line]
        for d in metadata.distributions()
    }
    there = _with_requirements((*THERE, *BROUGHT), needs)
    hidden = {name for name in needs if name not in there and name != "fortifai-ray"}
    modules = metadata.packages_distributions()
    return hidden, {top for top, owners in modules.items() if all(_name(owner) in hidden for owner in owners)}


class _Finder:
    """One of Python's finders, blind to what is hidden."""

    def __init__(self, finder: Any, distributions: set[str], modules: set[str]) -> None:
        self._finder, self._distributions, self._modules = finder, distributions, modules

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] not in self._modules:
            return self._finder.find_spec(name, path, target)
        vendored = [folder for folder in sys.path if folder.endswith("_vendor")]  # setuptools brings some of its own
        return PathFinder.find_spec(name, vendored, target) if vendored and path is None else None

    def find_distributions(self, *arguments: Any, **keywords: Any) -> Any:
        found = getattr(self._finder, "find_distributions", lambda *_, **__: ())(*arguments, **keywords)
        return (each for each in found if _name(each.metadata["Name"]) not in self._distributions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


if "FORTIFAI_LACKING" in os.environ:
    DISTRIBUTIONS, MODULES = _hidden()
    sys.meta_path[:] = [_Finder(finder, DISTRIBUTIONS, MODULES) for finder in sys.meta_path]
