"""Heavy libraries imported in less time, as trials and engines wait for them; and what breaks them kept out."""

import gc
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_UNUSED = (
    "sklearn"  # transformers imports it, and SciPy with it, for a way of assisted generation that nothing here uses
)

_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Within, imports run without the garbage collector, and transformers takes scikit-learn to be absent.

    Together they halve the time of ``from transformers import AutoModelForCausalLM`` (4.2 to 2.1 s of CPU after torch's
    import, a half of it each) and take a sixth off vLLM's. The collector runs hundreds of times meanwhile and finds
    nothing, as modules stay. A program that has scikit-learn keeps it, and one that has not can import it afterwards.
    """
    hidden, collecting = _UNUSED not in sys.modules, gc.isenabled()
    if hidden:
        sys.modules[_UNUSED] = None  # type: ignore[assignment]  # as the import system has it for what is absent
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        if hidden and sys.modules.get(_UNUSED) is None:
            sys.modules.pop(_UNUSED, None)


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
