"""A signal ends the program cleanly, whenever it comes: one line, 128 plus its number, and never a traceback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

PROGRAM = """
import signal, sys, time
from fortifai_ray.process.signals import answering_signals, check_signals, signals_kept, signals_wait

def say(word):
    print(word, flush=True)

def plain():
    say("ready")
    time.sleep(30)

def writing():
    with signals_wait():
        say("ready")
        time.sleep(0.7)
        say("written")
    check_signals()

def taken_over():
    with signals_kept():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        plain()

def taken_over_before():
    with signals_kept():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    plain()

def suppressing():
    while True:
        try:
            plain()
        except Exception:
            say("suppressed")

def stubborn():
    with signals_wait():
        say("ready")
        time.sleep(1.0)
        say("asked once")
        time.sleep(30)

with answering_signals():
    globals()[sys.argv[1]]()
"""


@pytest.fixture(autouse=True)
def hangups_answered() -> Iterator[None]:
    """Under `nohup` these tests ignore a hangup, and a program that they start would, too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def started(case: str, **options: object) -> "subprocess.Popen[str]":
    """The program, once it has said that it is ready."""
    run = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, case],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("case", ["plain", "writing", "taken_over", "taken_over_before", "suppressing"])
def test_a_signal_ends_the_program_with_one_line(case: str, number: signal.Signals) -> None:
    """Nothing that handles errors or signals of its own comes between; what is being written is written."""
    run = started(case)
    run.send_signal(number)
    out, err = run.communicate(timeout=20)
    assert run.returncode == 128 + number
    assert err == f"fortifai: interrupted ({number.name})\n"
    assert out == ("written\n" if case == "writing" else "")


def test_a_request_that_comes_twice_is_one_request() -> None:
    """`timeout` signals its child and then the whole group of processes."""
    run = started("writing")
    run.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=20)
    assert (run.returncode, out, err) == (143, "written\n", "fortifai: interrupted (SIGTERM)\n")


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_program_at_once(second: signal.Signals) -> None:
    """For whoever does not want to wait for what is being written."""
    run = started("stubborn")
    run.send_signal(signal.SIGTERM)
    assert run.stdout is not None
    assert run.stdout.readline() == "asked once\n"
    run.send_signal(second)
    _, err = run.communicate(timeout=20)
    assert (run.returncode, err) == (128 + second, "")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """`nohup` keeps a sweep running after the terminal is closed."""
    run = started("writing", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    run.send_signal(signal.SIGHUP)
    out, err = run.communicate(timeout=20)
    assert (run.returncode, out, err) == (0, "written\n", "")


def test_a_closed_terminal_is_not_written_to() -> None:
    """What a sweep says while it ends would raise an error there."""
    leader, terminal = os.openpty()
    run = subprocess.Popen([sys.executable, "-c", PROGRAM, "plain"], stdout=terminal, stderr=terminal)
    os.close(terminal)
    assert os.read(leader, 100).strip() == b"ready"
    run.send_signal(signal.SIGHUP)
    os.close(leader)
    assert run.wait(timeout=20) == 128 + signal.SIGHUP


def test_the_programs_caller_keeps_its_own_handlers() -> None:
    """Whoever calls the command line from Python gets Ctrl-C back (a shell's background ignores it)."""
    from fortifai_ray.process.signals import answering_signals

    of_this_process, before = signal.getsignal(signal.SIGINT), signal.default_int_handler
    signal.signal(signal.SIGINT, before)
    try:
        with answering_signals():
            assert signal.getsignal(signal.SIGINT) is not before
            with answering_signals():
                pass
            assert signal.getsignal(signal.SIGINT) is not before
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, of_this_process)
