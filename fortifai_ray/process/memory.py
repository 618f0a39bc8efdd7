"""Memory that a process frees and soon needs again."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST_KEPT = 32 << 20  # bytes: the most that glibc lets _MMAP_THRESHOLD be
_NEVER = (1 << 31) - 1


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, memory that is freed stays with the process, and goes back to the system at the end.

    A training step frees its activations and takes as much again a moment later. glibc gives freed memory at the top of
    its heap back each time, and the system then clears every page anew: 7,000 page faults a step of the preset
    llama-tiny, 4 to 7% of its time. Blocks over 32 MiB go back nevertheless: kept, they would leave gaps. Where the C
    library is another one, nothing is changed.
    """
    library = ctypes.CDLL(None)
    if not all(hasattr(library, name) for name in ("mallopt", "malloc_trim")):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_TRIM_THRESHOLD, 0)
        _free_a_block(library)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_KEPT)  # where glibc's own rule ends up
        give_back_gaps()


def give_back_gaps() -> None:
    """Give free memory between blocks that stay back to the system, once: after a first training step an optimiser's
    moments lie among what the step freed, and what the next one takes does not fill all gaps."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(ctypes.c_size_t(0))


def _free_a_block(library: ctypes.CDLL) -> None:
    """Take and free a block, upon which glibc shortens this thread's heap: malloc_trim does so for the main thread's
    alone."""
    library.malloc.restype = ctypes.c_void_p
    library.free(ctypes.c_void_p(library.malloc(ctypes.c_size_t(1 << 20))))
