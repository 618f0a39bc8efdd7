"""Heavy libraries imported in less time, as trials and engines wait for them; and what breaks them kept out."""

import gc
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# transformers imports scikit-learn for a way of assisted generation and SciPy's optimisers for a loss of object
# detection, vLLM SciPy's filters for audio: nothing here uses them, and both take their absence.
_UNUSED = ("sklearn", "scipy")

_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Within, no garbage is collected; afterwards it is, unless it was not before."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def quick_imports(*unused: str) -> Iterator[None]:
    """Within, imports run without the garbage collector, and libraries take those that nothing here needs to be absent:
    SciPy, scikit-learn, and ``unused``.

    That halves the time of ``from transformers import AutoModelForCausalLM`` (4.2 to 2 s of CPU after torch's import)
    and takes a quarter off vLLM's. The collector runs hundreds of times meanwhile and finds nothing, as modules stay;
    it leaves them out afterwards, too: half a million objects, 0.2 s each time that it looks at them all. A program
    that has one of these libraries keeps it, and one that has not can import it afterwards.
    """
    hidden, before = {*_UNUSED, *unused} - sys.modules.keys(), len(sys.modules)
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: as the import system has what is absent
    with garbage_kept():
        try:
            yield
        finally:
            for name in hidden:
                if sys.modules.get(name) is None:
                    sys.modules.pop(name, None)
            if len(sys.modules) > before:
                gc.freeze()


def hide_foreign_companions() -> None:
    """Keep libraries that do not fit a CPU build of torch from being imported, by transformers and vLLM above all.

    Their imports end with ``operator torchvision::nms does not exist`` and the like; nothing here needs them.
    """
    for name in foreign_companions():
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # as the import system has it for what is absent


def foreign_companions() -> list[str]:
    """Torch's companions that are builds for CUDA beside a CPU build of torch: vLLM asks for them, and pip then takes
    PyPI's."""
    there = [name for name in _COMPANIONS if name in sys.modules or importlib.util.find_spec(name) is not None]
    if not there:
        return []
    from importlib.metadata import PackageNotFoundError, version

    builds = dict[str, str]()
    for name in ("torch", *there):
        with suppress(PackageNotFoundError):
            builds[name] = version(name).partition("+")[2]
    return [name for name in there if builds.get("torch") == "cpu" and builds.get(name, "cpu") != "cpu"]
