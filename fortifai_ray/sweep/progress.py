"""What a person sees while a sweep runs: chains, generations, the step at hand, the time left, and any long wait."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fortifai_ray.storage.steps import WAITING

_LONG_WAIT = 60.0


class Board:
    """A Ray actor that chains write their current step on, for the driver to read."""

    def __init__(self) -> None:
        self._steps: dict[str, tuple[str, float]] = {}

    def write(self, chain_id: str, step: str) -> None:
        """``chain_id`` is now doing ``step``; a text that differs in brackets alone is the same step, told again."""
        before, since = self._steps.get(chain_id, ("", 0.0))
        same = before.partition(" (")[0] == step.partition(" (")[0]
        self._steps[chain_id] = (step, since if same else time.time())

    def read(self) -> dict[str, tuple[str, float]]:
        """The current step of each chain, and since when (seconds since the epoch)."""
        return dict(self._steps)


@dataclass
class ChainState:
    """One chain as the driver knows it."""

    label: str
    generations: int
    done: int = 0
    status: str = "waiting"
    step: str = ""
    since: float = field(default_factory=time.time)


class SweepProgress:
    """A live view on a terminal; elsewhere a line whenever something happens. Reads the board from a thread."""

    def __init__(
        self,
        chains: Mapping[str, tuple[str, int]],
        console: Console,
        board: Any = None,
        *,
        open_ended: bool = False,
    ) -> None:
        self._chains = {chain_id: ChainState(label, generations) for chain_id, (label, generations) in chains.items()}
        self._console, self._board, self._open_ended = console, board, open_ended
        self._started = time.time()
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._task = self._bar.add_task("generations", total=self._total(), left="")
        self._live = Live(self._render(), console=console, refresh_per_second=4, transient=True, screen=False)
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        if self._console.is_terminal:
            self._live.stop()

    def add(self, chain_id: str, label: str, generations: int) -> None:
        """Another chain, which nobody knew of before: a search chooses its chains as it goes."""
        with self._lock:
            self._chains.setdefault(chain_id, ChainState(label, generations))

    def completed(self, chain_id: str) -> None:
        """A chain completed its next generation, which is not worth a line of its own."""
        with self._lock:
            state = self._chains[chain_id]
            state.done, state.status = state.done + 1, "running"

    def generation(self, chain_id: str, row: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """A chain completed a generation."""
        with self._lock:
            state = self._chains[chain_id]
            state.done, state.status = int(row["generation"]) + 1, "running"
        shown = "  ".join(f"{name} {row[name]:,.4g}" for name in metrics if row.get(name) is not None)
        reason = f"  collapsed: {row['collapse_reason']}" if row.get("collapse_reason") else ""
        taken = "  (from the store)" if row["reused"] else ""
        self.say(f"{state.label}  generation {row['generation']}  {shown}{reason}{taken}")

    def cohort(self, cohort_id: str, label: str, chains: int) -> None:
        """A cohort is whole."""
        with self._lock:
            state = self._chains[cohort_id]
            state.done, state.status = 1, "finished"
        self.say(f"{label}  done")

    def finished(self, chain_id: str, status: str) -> None:
        """A chain ended; one that collapsed early leaves generations that are not needed."""
        with self._lock:
            state = self._chains[chain_id]
            state.status = status
            if status != "failed":
                state.generations = state.done

    def say(self, text: str) -> None:
        """A line above the live view."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _total(self) -> int:
        return sum(state.generations for state in list(self._chains.values()))

    def _watch(self) -> None:
        warned: dict[str, float] = {}
        while not self._stop.wait(0.5):
            with suppress(Exception):  # a board that is restarting costs a look, not the sweep
                self._look()
            self._warn_of_waits(warned)
            if self._console.is_terminal:
                self._live.update(self._render())

    def _look(self) -> None:
        if self._board is None:
            return
        import ray

        for chain_id, (step, since) in ray.get(self._board.read.remote(), timeout=5).items():
            state = self._chains.get(chain_id)
            if state is None:  # announced before the driver heard of it
                continue
            state.step, state.since = step, since
            state.status = "running" if state.status == "waiting" else state.status

    def _warn_of_waits(self, warned: dict[str, float]) -> None:
        now = time.time()
        waiting = [s for s in list(self._chains.values()) if s.status == "running" and s.step.startswith(WAITING)]
        for state in waiting:
            if now - max(warned.get(state.label, 0.0), state.since) >= _LONG_WAIT:
                warned[state.label] = now
                self.say(f"{state.label}: {state.step}")
        idle = all(state.status == "waiting" for state in list(self._chains.values()))
        if idle and now - warned.get("", self._started) >= _LONG_WAIT:
            warned[""] = now
            self.say(f"no chain could start for {now - self._started:.0f} s: {_resources_in_words()}")

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("chain", "generation", "step", "for"):
            table.add_column(column, justify="right" if column == "for" else "left")
        for state in list(self._chains.values()):
            if state.status == "running":
                shown = f"{state.done} of {state.generations}"
                table.add_row(state.label, shown, state.step, f"{max(0.0, time.time() - state.since):.0f} s")
        done = sum(state.done for state in list(self._chains.values()))
        self._bar.update(self._task, completed=done, total=self._total(), left=self._left(done))
        return Group(table, self._bar)

    def _left(self, done: int) -> str:
        if self._open_ended:
            return f"{len(self._chains)} chains so far"
        if not done:
            return "time left: unknown yet"
        seconds = (time.time() - self._started) * (self._total() - done) / done
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"


def _resources_in_words() -> str:
    import ray

    have, free = ray.cluster_resources(), ray.available_resources()
    return f"the Ray cluster has {have.get('CPU', 0):g} CPU(s), of which {free.get('CPU', 0):g} are free"
