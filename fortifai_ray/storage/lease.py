"""Leases by objects alone: a process that wants to compute a step writes a ticket, and looks for others' tickets.

Two that write theirs at once both see two, delete them, and try again after a random pause; object stores have
read-after-write consistency, so both can never see only their own. A holder rewrites its ticket every few seconds. A
ticket that was not rewritten for a minute, on the waiting process's own clock (no two clocks are compared), belongs to
a dead holder, and is removed. A holder that was merely slow then computes the same step as another process, whose
readers check its files against the manifest.
"""

import contextlib
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fortifai_ray.storage.objects import Objects
from fortifai_ray.storage.stage import OnWait

log = logging.getLogger(__name__)

FOLDER = "stages/.leases"
_BACK_OFF = 0.5


class Leases:
    """Leases on steps, by tickets ``stages/.leases/STEP.NODE.TICKET``.

    ``node`` names the processes that share this machine's file locks: a process that requests a lease holds the step's
    local lock, so another ticket of the same node belongs to a dead process.
    """

    def __init__(self, objects: Objects, node: str, expiry: float = 60.0, beat: float = 15.0) -> None:
        self._objects, self._node, self._expiry, self._beat = objects, node, expiry, beat
        self.on_beat: Callable[[], None] = lambda: None  # called while a lease is held

    @contextmanager
    def hold(self, step: str, on_wait: OnWait) -> Iterator[None]:
        """Hold the lease on ``step``; ``on_wait`` receives the seconds waited so far while another holds it."""
        mine = f"{FOLDER}/{step}.{self._node}.{uuid.uuid4().hex[:12]}"
        self._acquire(step, mine, on_wait)
        ended = threading.Event()
        beating = threading.Thread(target=self._beat_until, args=(mine, ended), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            with contextlib.suppress(OSError):  # it expires by itself
                self._objects.delete(mine)

    def _acquire(self, step: str, mine: str, on_wait: OnWait) -> None:
        started, watch = time.monotonic(), _Watch(self._expiry, self._beat)
        while True:
            self._objects.write(mine, b"1")
            if not self._others(step, mine, watch):
                return
            self._objects.delete(mine)
            time.sleep(random.uniform(0, _BACK_OFF))
            while self._others(step, mine, watch):
                on_wait(time.monotonic() - started)
                time.sleep(min(1.0, self._beat / 3))

    def _others(self, step: str, mine: str, watch: "_Watch") -> bool:
        """Whether there is another process's ticket; those of dead processes are removed."""
        prefix = f"{FOLDER}/{step}."
        tickets = {
            entry.name: (entry.size, entry.modified)
            for entry in self._objects.entries(FOLDER)
            if entry.name.startswith(prefix) and entry.name != mine
        }
        dead = [name for name in tickets if name.startswith(f"{prefix}{self._node}.")]
        for name in watch.expired(tickets):
            log.warning("stage %s: the process computing it on another machine has died", step)
            dead.append(name)
        for name in dead:
            self._objects.delete(name)
        return bool(tickets.keys() - set(dead))

    def _beat_until(self, mine: str, ended: threading.Event) -> None:
        count = 1
        while not ended.wait(self._beat):
            with contextlib.suppress(OSError):
                self.on_beat()
                if not self._objects.exists(mine):
                    log.warning("the lease %s was taken away: this process was too slow to renew it", mine)
                    return
                count = count % 100 + 1  # another length each time: a service's clock may tell seconds only
                self._objects.write(mine, b"1" * count, patience=self._beat)


class _Watch:
    """When each ticket was last seen to change. Silence counts only while this process was polling throughout."""

    def __init__(self, expiry: float, beat: float) -> None:
        self._expiry, self._gap = expiry, 2 * beat
        self._seen: dict[str, tuple[tuple[int, float], float]] = {}
        self._last = time.monotonic()

    def expired(self, tickets: dict[str, tuple[int, float]]) -> list[str]:
        """The tickets that have not changed for too long."""
        now = time.monotonic()
        if now - self._last > self._gap:  # the service did not answer: no holder could renew its ticket either
            self._seen = {}
        self._last = now
        self._seen = {
            name: self._seen[name] if name in self._seen and self._seen[name][0] == state else (state, now)
            for name, state in tickets.items()
        }
        return [name for name, (_, since) in self._seen.items() if now - since > self._expiry]
