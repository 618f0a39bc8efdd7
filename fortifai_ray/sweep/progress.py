"""What a person sees while a sweep runs: chains, generations, the current step, the time left, and any long wait."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fortifai_ray.results.schema import LINEAGE
from fortifai_ray.storage.steps import WAITING

_LONG_WAIT = 60.0


class Board:
    """A Ray actor that jobs write their current step on, for the driver to read."""

    def __init__(self) -> None:
        self._steps: dict[str, tuple[str, float]] = {}  # the last that was written is last
        self._writes = 0
        self._written: dict[str, int] = {}  # how many writes there had been when a job last wrote
        self._faults: Counter[tuple[str, str]] = Counter()

    def write(self, job_id: str, step: str) -> None:
        """A job is now at ``step``; a text that differs in brackets alone is the same step, announced again."""
        before, since = self._steps.pop(job_id, ("", 0.0))
        same = before.partition(" (")[0] == step.partition(" (")[0]
        self._steps[job_id] = (step, since if same else time.time())
        self._writes += 1
        self._written[job_id] = self._writes

    def fault(self, job_id: str, words: str) -> int:
        """A job met a fault: how often it has met the very same."""
        self._faults[job_id, words] += 1
        return self._faults[job_id, words]

    def read(self) -> dict[str, tuple[str, float]]:
        """The current step of each job, and since when (seconds since the epoch)."""
        return dict(self._steps)

    def news(self, after: int) -> tuple[int, dict[str, tuple[str, float]]]:
        """What was written after so many writes, as :meth:`read` gives it, and how many writes there are by now: of
        thousands of jobs, few write within a second."""
        changed = itertools.takewhile(lambda job: self._written[job] > after, reversed(self._steps))
        return self._writes, {job: self._steps[job] for job in changed}


@dataclass
class JobState:
    """A job as the driver knows it: one chain, a cohort, or the chains that a search wants together."""

    label: str
    generations: int
    completed: set[Hashable] = field(default_factory=set)
    status: str = "waiting"
    step: str = ""
    since: float = field(default_factory=time.time)


class SweepProgress:
    """A live view on a terminal; elsewhere a line whenever something happens. Reads the board from a thread."""

    def __init__(self, console: Console, board: Any = None, *, open_ended: bool = False) -> None:
        self._jobs: dict[str, JobState] = {}
        self._console, self._board, self._open_ended = console, board, open_ended
        self._started, self._is_alive, self._seen = time.time(), False, 0
        self._unheard: dict[str, tuple[str, float]] = {}  # steps of jobs that are not known here
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

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        if self._console.is_terminal:
            self._live.stop()

    def add(self, job_id: str, label: str, generations: int) -> None:
        """A job that will run, or runs: a grid's are known at once, a search chooses its own as it goes."""
        with self._lock:
            self._jobs.setdefault(job_id, JobState(label, generations))

    def at(self, job_id: str, label: str, step: str) -> None:
        """A job is at a step, where no board says so."""
        self.add(job_id, label, 1)
        with self._lock:
            state = self._jobs[job_id]
            state.status, state.since = "running", state.since if state.step else time.time()
            state.step = step

    def generation(self, job_id: str, row: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """A chain completed a generation; a line shows its ``metrics``, if any are given."""
        self.completed(job_id, (row["chain_id"], row["generation"]))
        if not metrics:
            return
        shown = "  ".join(f"{name} {row[name]:,.4g}" for name in metrics if row.get(name) is not None)
        reason = f"  collapsed: {row['collapse_reason']}" if row.get("collapse_reason") else ""
        taken = "  (from the store)" if row["reused"] else ""
        lineage = f" · {row[LINEAGE]}" if row.get(LINEAGE) else ""
        self.say(f"{self._jobs[job_id].label}{lineage}  generation {row['generation']}  {shown}{reason}{taken}")

    def completed(self, job_id: str, step: Hashable) -> None:
        """A job completed a step, which is not worth a line. One that was started again repeats its steps."""
        with self._lock:
            if state := self._jobs.get(job_id):
                state.completed.add(step)
                state.status = "running"

    def finished(self, job_id: str, status: str) -> None:
        """A job ended; a chain that collapsed early leaves generations that are not needed."""
        with self._lock:
            if state := self._jobs.get(job_id):
                state.status = status
                if status != "failed":
                    state.generations = len(state.completed)

    def say(self, text: str) -> None:
        """A line above the live view."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _total(self) -> int:
        return sum(state.generations for state in list(self._jobs.values()))

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

        self._seen, steps = ray.get(self._board.news.remote(self._seen), timeout=5)
        self._is_alive |= bool(steps)
        self._unheard |= steps
        for job_id, (step, since) in list(self._unheard.items()):
            state = self._jobs.get(job_id)
            if state is None:  # of a trial that searches by itself, or announced before the driver heard of it
                continue
            del self._unheard[job_id]
            state.step, state.since = step, since
            state.status = "running" if state.status == "waiting" else state.status

    def _warn_of_waits(self, warned: dict[str, float]) -> None:
        now = time.time()
        waiting = [s for s in list(self._jobs.values()) if s.status == "running" and s.step.startswith(WAITING)]
        for state in waiting:
            if now - max(warned.get(state.label, 0.0), state.since) >= _LONG_WAIT:
                warned[state.label] = now
                self.say(f"{state.label}: {state.step}")
        idle = (
            self._board is not None
            and not self._is_alive
            and all(state.status == "waiting" for state in list(self._jobs.values()))
        )
        if idle and now - warned.get("", self._started) >= _LONG_WAIT:
            warned[""] = now
            self.say(f"no chain has started for {now - self._started:.0f} s: {_why_none_starts()}")

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("chain", "generation", "step", "for"):
            table.add_column(column, justify="right" if column == "for" else "left")
        for state in list(self._jobs.values()):
            if state.status == "running":
                shown = f"{len(state.completed)} of {state.generations}"
                table.add_row(state.label, shown, state.step, f"{max(0.0, time.time() - state.since):.0f} s")
        done = sum(len(state.completed) for state in list(self._jobs.values()))
        self._bar.update(self._task, completed=done, total=self._total(), left=self._left(done))
        return Group(table, self._bar)

    def _left(self, done: int) -> str:
        if self._open_ended:
            return f"{len(self._jobs)} chains so far"
        if not done:
            return "time left: unknown yet"
        seconds = (time.time() - self._started) * (self._total() - done) / done
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"


def _why_none_starts() -> str:
    """A chain that has its share of the machine is starting, however long that takes; one that has none waits for it.

    What is free says nothing: the shares of chains that are starting are taken already.
    """
    import ray
    from ray.util import placement_group_table

    groups = [group for group in placement_group_table().values() if group["name"].startswith("__tune")]
    waiting = [group for group in groups if group["state"] == "PENDING"]
    if not waiting or any(group["state"] == "CREATED" for group in groups):
        return "their processes are still starting"
    have, free = ray.cluster_resources(), ray.available_resources()
    (needed, *_) = waiting[0]["bundles"].values()
    shares = (f"{needed[name]:g} {name} ({have.get(name, 0):g} there, {free.get(name, 0):g} free)" for name in needed)
    return f"one needs {', '.join(shares)}, and waits until the Ray cluster has as much to give"
