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


BEGINS = """
import sys, time
from fortifai_ray.process.signals import answering_signals, passing_signals_on, program_began
with passing_signals_on() if "package" in sys.argv else answering_signals():
    with answering_signals():
        print(program_began(), time.time())
"""
SHELL = "i=0; while [ $i -lt 60000 ]; do i=$((i + 1)); done; sleep 0.3; date +%s.%N"  # time of its own, and a moment
OLDER = (
    "import os, sys, time; sum(range(10_000_000)); print(time.time(), flush=True); os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param([], id="program"),
        pytest.param(["bash", "-c", f'{SHELL}; "$0" "$@"'], id="last-command"),
        pytest.param(["bash", "-c", f'{SHELL}; exec "$0" "$@"'], id="exec"),
        pytest.param(["bash", "-c", f'{SHELL}; bash -c \'exec "$0" "$@"\' "$0" "$@"'], id="exec-twice"),
        pytest.param([sys.executable, "-c", OLDER], id="python-before"),
    ],
)
def test_a_command_begins_when_it_is_given(before: list[str]) -> None:
    """Not when the shell did whose place it takes: what that did is no part of a sweep's time."""
    earliest = time.time()
    command = [*before, sys.executable, "-c", BEGINS]
    *said, last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    began, told = map(float, last.split())
    earliest = float(said[0]) if said else earliest
    assert earliest - 0.2 < began < told < time.time()  # 0.2: of its CPU, what may have been the shell's


def test_a_program_that_uses_the_package_is_no_command() -> None:
    """Its sweeps are counted from their call: it may be hours old."""
    run = subprocess.run([sys.executable, "-c", BEGINS, "package"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("None ")
