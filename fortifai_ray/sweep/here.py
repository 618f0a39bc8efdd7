"""A search whose chains are arrays, run by a few processes of this machine, without Ray: the start of Ray and of its
trials takes longer than most such searches.

The driver decides what is asked; a process gets the keys of a round, or of a part of one, and sends back its reports.
It lives until the search has ended, or its driver has: then its line is closed. What one of them dies of, or meets and
cannot judge, is left to Ray, which tries again, and with it whatever has no answer by then.
"""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, TypeAlias

from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.process.search_path import home_of_package, workers_environment
from fortifai_ray.storage.steps import WAITING
from fortifai_ray.storage.store import StageStore, Storage
from fortifai_ray.sweep.plan import Plan
from fortifai_ray.sweep.progress import SweepProgress
from fortifai_ray.sweep.recorder import Recorder
from fortifai_ray.sweep.reports import Reception, Runner
from fortifai_ray.sweep.work import Config, Job, Work

Line: TypeAlias = "Connection[Any, Any]"

_AHEAD = 2  # rounds that a process has got: while the driver hears of one and plans the next, it runs the other
_LOOK = 0.5  # seconds between two looks at what is to be written
_SAY = 1.0  # seconds between two lines on a cell: rounds take milliseconds, as making up such a line does


def run_here(work: Work, recorder: Recorder, progress: SweepProgress, plan: Plan) -> None:
    """Run what ``work`` asks for, until it asks no more or a fault is left to Ray."""
    reception, said = Reception(work, recorder, progress), time.monotonic()
    with _processes(work, recorder.storage, plan) as lines:
        rounds = {line: deque[Config]() for line in lines}
        try:
            while True:
                while (least := min(map(len, rounds.values()))) < _AHEAD and (asked := work.ask(len(lines))):
                    line = next(line for line in lines if len(rounds[line]) == least)
                    config, keys = asked
                    rounds[line].append(config)
                    line.send(keys)
                if not any(rounds.values()):
                    return
                for heard in wait([line for line in lines if rounds[line]], timeout=_LOOK):
                    assert isinstance(heard, Connection)  # nothing else is waited for
                    answer = heard.recv()
                    if isinstance(answer, _Waits):
                        progress.at(answer.job_id, answer.label, answer.step)
                        continue
                    if isinstance(answer, str):
                        progress.say(f"{answer}: what is left is tried on Ray")
                        return
                    reception.take("here", rounds[heard].popleft(), answer)
                recorder.flush()
                if time.monotonic() - said > _SAY:
                    reception.say_news()
                    said = time.monotonic()
        except (EOFError, ConnectionError):
            progress.say("a process of the search has died: what is left is tried on Ray")
        finally:
            reception.say_news()


@dataclass(frozen=True)
class _Waits:
    """A job waits for another process that computes its step."""

    job_id: str
    label: str
    step: str


@contextmanager
def _processes(work: Work, storage: Storage, plan: Plan) -> Iterator[list[Line]]:
    """The lines to as many processes as the plan has chains at once; their files are closed at the end, and so they."""
    threads = {name: str(plan.threads) for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")}
    path = [*home_of_package(), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **workers_environment(), **threads, "PYTHONPATH": os.pathsep.join(path)}
    lines: list[Line] = []
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(plan.chains_at_once):
            ours, theirs = Pipe()
            lines.append(ours)
            with theirs:
                command = [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"]
                started.append(_start(command, environment, theirs.fileno()))
        for line in lines:  # once all have started: each imports for a second before it reads
            with suppress(ConnectionError):  # whoever asks it for something will notice
                line.send((work, storage))
        yield lines
    finally:
        for line in lines:
            line.close()
        for process in started:
            process.terminate()
            process.wait()


def _start(command: list[str], environment: Mapping[str, str], descriptor: int) -> "subprocess.Popen[bytes]":
    """In a group of its own: a signal to this program's group must not end it in the midst of a step."""
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(
        command,
        env=environment,
        pass_fds=(descriptor,),
        process_group=0,
        stdin=nowhere,
        stdout=nowhere,
        stderr=nowhere,
    )


class _Served(Runner):
    """Runs jobs in a process of its own, and says where it waits for others."""

    def __init__(self, work: Work, storage: Storage, line: Line) -> None:
        super().__init__(work, StageStore(storage), InProcess())
        self._line = line

    def announce(self, job: Job, step: str) -> None:
        if step.startswith(WAITING):
            self._line.send(_Waits(job.id, job.label, step))


def serve(descriptor: int) -> None:
    """Answer rounds until nobody is left at the other end of the line."""
    with Connection(descriptor) as line, suppress(EOFError, ConnectionError):
        work, storage = line.recv()
        runner = _Served(work, storage, line)
        while True:
            jobs = [runner.work.job(key) for key in line.recv()]
            try:
                reports = list(runner.run_batch(jobs))
            except ConnectionError:
                return
            except Exception as error:
                from fortifai_ray.sweep.faults import in_words

                line.send(in_words(error))
            else:
                line.send(reports)
