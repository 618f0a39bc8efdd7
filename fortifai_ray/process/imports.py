"""Heavy libraries imported in less time: trials, engines and the doctor wait for torch, transformers and vLLM."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_UNUSED = (
    "sklearn"  # transformers imports it, and SciPy with it, for a way of assisted generation that nothing here uses
)


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
