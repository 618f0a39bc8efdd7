"""The signals that ask this program to end: Ctrl-C; SIGTERM from `timeout`, `docker stop`, Slurm or a spot node that is
taken away; SIGHUP from a closed terminal.

All of them stop it in the same way: what is finished is written, one line says how to go on, and the exit code is 128
plus the signal's number. A second one ends it at once. The standard library alone is imported here: a signal may come
while the rest is being imported.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TUNE = "TUNE_DISABLE_SIGINT_HANDLER"
_TWICE = 0.5  # seconds: `timeout` signals its child and then the whole group; that is one request
_STARTS = 0.2  # seconds of CPU that an interpreter takes at most until it comes here; 0.03 to 0.06, as a rule


class Stopped(BaseException):
    """A signal asked this program to end. No ``Exception``: nothing that handles errors may take it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted ({signal.Signals(number).name})")
        self.code = 128 + number


class _State:
    """Of this process: which signals it answers, whether they wait, the first that came, with its time (s), and when
    the program began, where it is this one (seconds since the epoch)."""

    def __init__(self) -> None:
        self.answered: set[int] = set()
        self.began: float | None = None
        self.waits = 0
        self.asked: int | None = None
        self.since = 0.0
        self.terminals: list[int] = []  # asked beforehand: one that was closed is none any more


_state = _State()


@contextmanager
def answering_signals() -> Iterator[None]:
    """Answer the signals as this module says, and end the program where :class:`Stopped` comes out of the block.

    A signal that is ignored stays so (`nohup`). Does nothing within another such block, or off the main thread.
    """
    with _answered() as first:
        if first:
            _state.began = time.time() - min(time.process_time(), _STARTS)
        try:
            yield
        except Stopped as stopped:
            if not first:
                raise
            print(f"fortifai: {stopped}", file=sys.stderr, flush=True)
            sys.exit(stopped.code)


@contextmanager
def passing_signals_on() -> Iterator[None]:
    """Answer the signals within a program that is not this one: what asks it to end ends the block as this module says,
    and then goes to whatever the program does of such a signal. By default, SIGINT is :class:`KeyboardInterrupt`.

    Does nothing within another block, or off the main thread.
    """
    asked = None
    with _answered() as first:
        try:
            yield
        except Stopped:
            if not first:
                raise
        asked = _state.asked if first else None
    if asked is not None:
        signal.raise_signal(asked)
        raise KeyboardInterrupt  # where the program's own handler returned, or came for another signal


@contextmanager
def _answered() -> Iterator[bool]:
    """Have this module's handler for the signals, and theirs again afterwards; False where it is there already, or
    cannot be."""
    if _state.answered or threading.current_thread() is not threading.main_thread():
        yield False
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    # A handler from outside Python cannot be put back: its signal stays with it.
    _state.answered = {n for n, handler in before.items() if handler is not None and handler != signal.SIG_IGN}
    _state.asked, _state.waits = None, 0
    _state.terminals = [stream for stream in (0, 1, 2) if os.isatty(stream)]
    tune = os.environ.get(_TUNE)
    os.environ[_TUNE] = "1"
    for number in _state.answered:
        signal.signal(number, _answer)
    try:
        yield True
    finally:
        for number in _state.answered:
            signal.signal(number, before[number])
        _state.answered, _state.began = set(), None
        if tune is None:
            del os.environ[_TUNE]


def program_began() -> float | None:
    """When the command that this process runs was given (seconds since the epoch); None in a program that uses the
    package.

    The process itself may be older: a shell's last command, or one after ``exec``, takes the shell's place. So it is
    the time at which the command answers signals, less the CPU that its interpreter took to come there.
    """
    return _state.began


def check_signals() -> None:
    """Raise :class:`Stopped` where a signal has come that waits."""
    if _state.asked is not None:
        raise Stopped(_state.asked)


def exit_code() -> int:
    """Of a program that was interrupted: by a signal that is answered here, or by Ctrl-C."""
    return 128 + (_state.asked or signal.SIGINT)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Within, a signal only becomes known to :func:`check_signals`: what is being written is written whole."""
    _state.waits += 1
    try:
        yield
    finally:
        _state.waits -= 1


@contextmanager
def signals_kept() -> Iterator[None]:
    """Nobody who works within takes over the signals that are answered here.

    Ray's handlers in Python end the processes that this one depends on; its handler in C++, which Python does not see,
    prints a backtrace and aborts, and is undone as the block ends.
    """
    original = signal.signal

    def register(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number in _state.answered else original(number, handler)

    signal.signal = register  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = original
        for number in _state.answered:
            signal.signal(number, _answer)


def _answer(number: int, frame: Any) -> None:
    now = time.monotonic()
    if _state.asked is not None:
        if now - _state.since > _TWICE:
            _end_at_once(number)
        return
    _state.asked, _state.since = number, now
    if number == signal.SIGHUP:
        _let_go_of_the_terminal()
    if not _state.waits:
        raise Stopped(number)


def _end_at_once(number: int) -> None:
    """Ray's processes end with this one: the kernel sees to it."""
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the cursor, which a live view hides
    os._exit(128 + number)


def _let_go_of_the_terminal() -> None:
    """It is gone: what is printed would raise an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in _state.terminals:
        os.dup2(nowhere, stream)
