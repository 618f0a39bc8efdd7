"""Kills, in a random order that a seed fixes: what kind, and after how many completed steps; of its kind, which one."""

import random
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field

import psutil

from .machines import Machines

# A driver's end costs its start again, a raylet's that of its workers; an engine is there in one of the studies only.
_WEIGHTS = {"trial": 6, "engine": 6, "raylet": 3, "driver": 2}
_AT_WORK = {"trial": "Trainable.train", "engine": "EngineActor.generate"}
_LONGEST_WAIT = 60.0  # seconds for a victim of the kind whose turn it is


@dataclass
class Killer:
    """Kills one thing after another, as the work goes on: a slow machine gets as many kills as a fast one."""

    machines: Machines
    seed: int
    kills: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def begin(self, steps: int, pause: float, engines: bool) -> None:
        """A study begins, of which ``steps`` are complete: ``pause`` of them, on average, lie between two kills."""
        self._kinds = [kind for kind in _WEIGHTS if engines or kind != "engine"]
        self._pause = pause
        self._choose(steps)

    def try_to_kill(self, steps: int, driver: subprocess.Popen[bytes]) -> str | None:
        """Kill the next victim if it is its turn and there is one; returns its kind."""
        if steps < self._at:
            return None
        self._since = self._since or time.monotonic()
        kind = self._kind if time.monotonic() - self._since < _LONGEST_WAIT else "trial"
        if not self._kill(kind, driver):
            return None
        self.kills[kind] += 1
        self._choose(steps)
        return kind

    def _choose(self, steps: int) -> None:
        self._kind = self._random.choices(self._kinds, [_WEIGHTS[kind] for kind in self._kinds])[0]
        self._at = steps + self._random.uniform(0.2, 1.8) * self._pause
        self._since = 0.0

    def _kill(self, kind: str, driver: subprocess.Popen[bytes]) -> bool:
        if kind == "driver":
            driver.kill()
            driver.wait()
            return True
        if kind == "raylet":
            self.machines.kill(self._random.choice(self.machines.workers))
            self.machines.join()
            return True
        victims = self.machines.processes(_AT_WORK[kind])
        if not victims:
            return False
        try:
            self._random.choice(victims).kill()
        except psutil.NoSuchProcess:
            return False
        return True
