"""Steps: the layer between the recursion and the store.

A family requests each of its steps here. A stored step comes from the store; any other is computed, once, and progress
is announced. With ``replay`` nothing is computed: :class:`NotStored` names what is missing, which is how a finished
sweep is recognised, and how a dry run counts.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fortifai_ray.storage.store import NotStored, Stage, StageFiles, StageKey, StageStore

WAITING = "waiting"  # a step's text begins with it while the chain waits for an engine or another chain


@dataclass
class Steps:
    """The steps of one chain. ``announce(text)`` receives what is being done; it is cheap and may be called often."""

    store: StageStore
    announce: Callable[[str], None] = lambda text: None
    replay: bool = False
    computed: int = 0
    reused: int = 0

    def run(self, key: StageKey, label: str, compute: Callable[[Path], Mapping[str, Any]]) -> Stage:
        """The stage of ``key``; ``label`` is the text shown while it is being computed."""

        def announced(folder: Path) -> Mapping[str, Any]:
            self.announce(label)
            return compute(folder)

        stage = self.store.find(key) if self.replay else self.store.step(key, announced, self._waiting(label))
        if stage is None:
            raise NotStored(label)
        self.computed += not stage.reused
        self.reused += stage.reused
        return stage

    def files(self, stage: Stage) -> StageFiles:
        """The files of one of the chain's stages, for a worker or an engine that may run on another node."""
        return StageFiles(stage, self.store.storage)

    def _waiting(self, label: str) -> Callable[[float], None]:
        last = [0.0]

        def waiting(seconds: float) -> None:
            if time.monotonic() - last[0] > 1.0:
                last[0] = time.monotonic()
                self.announce(f"{WAITING} for another chain to {label} ({seconds:.0f} s)")

        return waiting
