"""How long chains take on a machine or a cluster, as discrete events.

Chains wait in one line for a place, as many as run at once. In its place a chain trains and scores on the place's
device, and the engines with the fewest calls, each on a device of its own or on a trainer's, write its corpora. Jobs
that meet on a device slow each other down evenly. (If they took turns, whole steps at a time, a shared GPU would seem
to be idle for a fifth of the time in which it is.)
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

Then = Callable[[], None]


class Generation(NamedTuple):
    """Seconds of one generation's steps, each with a device to itself."""

    train: float
    evaluate: float
    generate: float


@dataclass(frozen=True)
class Setting:
    """What chains run on: the number of the device of each place and each engine; how many jobs a device serves at full
    speed (1 for a GPU, the cores of a machine without); over how many engines a chain's calls are spread; the seconds
    until trainers and engines are ready; and those after each generation, in which stages are stored, calls made and
    the next step begun."""

    places: Sequence[int]
    engines: Sequence[int]
    capacity: int
    engines_at_once: int
    start: float
    between: float


@dataclass(frozen=True)
class Outcome:
    """``wall`` in seconds; then shares of time: trainers and engines at work, devices idle, and each device idle while
    chains waited for a place (all the time, if none ever waited)."""

    wall: float
    trainers: float
    engines: float
    idle: float
    warm_idle: Sequence[float]


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._events, self._entered = list[tuple[float, int, Then]](), 0

    def after(self, seconds: float, call: Then) -> None:
        self._entered += 1  # what happens at the same time happens in this order
        heapq.heappush(self._events, (self.now + seconds, self._entered, call))

    def run(self) -> None:
        while self._events:
            self.now, _, call = heapq.heappop(self._events)
            call()


class _Device:
    """Serves all its jobs at once, each at the same speed."""

    def __init__(self, clock: _Clock, capacity: int) -> None:
        self._clock, self._capacity = clock, capacity
        self._jobs: list[tuple[float, Then]] = []  # seconds left, and what follows
        self._busy, self._since, self._changes = 0.0, 0.0, 0

    def serve(self, seconds: float, then: Then) -> None:
        self.busy()
        self._jobs.append((seconds, then))
        self._changed()

    def busy(self) -> float:
        """Seconds of its whole capacity so far."""
        gone, self._since = self._clock.now - self._since, self._clock.now
        if self._jobs:
            served = gone * min(len(self._jobs), self._capacity)
            self._busy += served / self._capacity
            self._jobs = [(left - served / len(self._jobs), then) for left, then in self._jobs]
        return self._busy

    def _changed(self) -> None:
        """Others come or go: each job's end is another time."""
        self._changes += 1
        if self._jobs:
            left, slowed = min(left for left, _ in self._jobs), max(1.0, len(self._jobs) / self._capacity)
            self._clock.after(max(0.0, left) * slowed, partial(self._end, self._changes))

    def _end(self, changes: int) -> None:
        if changes == self._changes:
            self.busy()
            _, then = self._jobs.pop(min(range(len(self._jobs)), key=lambda place: self._jobs[place][0]))
            self._changed()
            then()


class _Sweep:
    def __init__(self, chains: Sequence[Sequence[Generation]], setting: Setting) -> None:
        self.clock, self._setting, self._line = _Clock(), setting, deque(chains)
        numbers = sorted({*setting.places, *setting.engines})
        self.devices = {number: _Device(self.clock, setting.capacity) for number in numbers}
        self.calls = [0 for _ in setting.engines]
        self.looks: list[tuple[float, list[float]]] = []  # the time, and how long each device has been busy
        self.clock.after(setting.start, self.look)
        for number in setting.places:
            self.clock.after(setting.start, partial(self._enter, self.devices[number]))

    def look(self) -> None:
        self.looks.append((self.clock.now, [device.busy() for device in self.devices.values()]))

    def _enter(self, place: _Device) -> None:
        if self._line:
            self._step(iter(self._line.popleft()), place)
            if not self._line:
                self.look()  # from here on, places become free

    def _step(self, generations: Iterator[Generation], place: _Device) -> None:
        if (generation := next(generations, None)) is None:
            self._enter(place)
            return
        following = partial(self.clock.after, self._setting.between, partial(self._step, generations, place))
        place.serve(generation.train + generation.evaluate, partial(self._write, generation.generate, following))

    def _write(self, seconds: float, then: Then) -> None:
        parts = min(self._setting.engines_at_once, len(self.calls))
        left = list(range(parts))

        def written(engine: int) -> None:
            self.calls[engine] -= 1
            left.pop()
            if not left:
                then()

        for _ in range(parts):
            engine = min(range(len(self.calls)), key=self.calls.__getitem__)
            self.calls[engine] += 1
            self.devices[self._setting.engines[engine]].serve(seconds / parts, partial(written, engine))
        if not parts:
            then()


def simulate(chains: Sequence[Sequence[Generation]], setting: Setting) -> Outcome:
    """Run ``chains``, each the generations that it computes, in their order."""
    sweep = _Sweep(chains, setting)
    sweep.clock.run()
    sweep.look()
    wall, (begun, before), (drained, after) = sweep.clock.now, sweep.looks[0], sweep.looks[-2]
    if drained <= begun:
        drained, after = sweep.looks[-1]
    trained = sum(one.train + one.evaluate for chain in chains for one in chain)
    written = sum(one.generate for chain in chains for one in chain)
    return Outcome(
        wall=wall,
        trainers=trained / (len(setting.places) * wall),
        engines=written / (len(setting.engines) * wall) if setting.engines else 0.0,
        idle=1 - sum(sweep.looks[-1][1]) / (len(sweep.devices) * wall),
        warm_idle=[1 - (b - a) / (drained - begun) for a, b in zip(before, after, strict=True)],
    )
