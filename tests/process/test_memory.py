"""Memory that a training step frees is there for the next one, and goes back to the system when training ends."""

import ctypes
import resource
import threading
from collections.abc import Callable

import pytest

from fortifai_ray.process.memory import freed_memory_kept, give_back_gaps

PAGES = 40 << 8  # of a round, 4 KiB each

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's way")


def faults(call: Callable[[], None]) -> int:
    """Pages that the system had to provide during a call."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def take_and_free(megabytes: int = 1) -> None:
    """40 MiB in blocks, written and then freed together. (NumPy would ask for huge pages.)"""
    held = [b"1" * (megabytes << 20) for _ in range(40 // megabytes)]
    assert {block[-1] for block in held} == {ord("1")}


@pytest.mark.parametrize("megabytes", [1, 4, 20])
@pytest.mark.parametrize("in_thread", [False, True], ids=["main", "thread"])  # Ray trains in a thread
def test_the_next_round_takes_no_new_pages(megabytes: int, in_thread: bool) -> None:
    """But those of the allocator itself; afterwards the memory has gone back, so a round takes its pages anew."""
    counted: list[int] = []

    def work() -> None:
        with freed_memory_kept():
            take_and_free(megabytes)
            counted.append(min(faults(lambda: take_and_free(megabytes)) for _ in range(5)))
        counted.append(faults(lambda: take_and_free(megabytes)))

    thread = threading.Thread(target=work)
    (thread.start if in_thread else work)()
    if in_thread:
        thread.join()
    within, after = counted
    assert within < PAGES / 20
    assert after > PAGES / 2


def test_gaps_between_blocks_that_stay_are_given_back_when_asked() -> None:
    """Every other block of 1 MiB is freed: filled again they take no new pages, and once given back they do."""
    with freed_memory_kept():
        blocks = [bytearray(b"1" * (1 << 20)) for _ in range(80)]

        def free_and_fill(between: Callable[[], None]) -> int:
            for place in range(0, len(blocks), 2):
                blocks[place] = bytearray()
            between()
            return faults(lambda: [fill(place) for place in range(0, len(blocks), 2)].clear())

        def fill(place: int) -> None:
            blocks[place] = bytearray(b"1" * (1 << 20))

        assert min(free_and_fill(lambda: None) for _ in range(5)) < PAGES / 20
        assert free_and_fill(give_back_gaps) > PAGES / 2
