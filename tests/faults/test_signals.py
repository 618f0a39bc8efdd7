"""A sweep that `timeout` ends, in a folder full of traps, with a TMPDIR that is too long for a socket."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from traps import BEFORE_THE_PROGRAM, set_traps

from .studies import HALVES, completed, wait_for

_STUDY = """
name: stopped
family: {kind: "my_halves:Halves"}
samples_per_generation: 20
generations: 2
vary: {family.slow: [false, true]}
collapse: {metric: spread, relative_to: absolute, threshold: 0.01, direction: below}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder full of traps, with a study and its user's family."""
    set_traps(tmp_path)
    for name in BEFORE_THE_PROGRAM:
        (tmp_path / f"{name}.py").unlink(missing_ok=True)
        (tmp_path / name / "__init__.py").unlink(missing_ok=True)
    (tmp_path / "my_halves.py").write_text(HALVES.format(key="slow", first="time.sleep(60 * self.slow)"))
    (tmp_path / "stopped.yaml").write_text(_STUDY)
    long(tmp_path).mkdir()
    return tmp_path


def sweep(folder: Path) -> "subprocess.Popen[str]":
    """The sweep in a group of processes that it does not lead, as `timeout` starts it."""
    command = f"trap : TERM; '{sys.executable}' -m fortifai_ray sweep stopped.yaml --storage runs; exit $?"
    return subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(long(folder)), "MLFLOW_TRACKING_URI": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def long(folder: Path) -> Path:
    return folder / ("long" * 25)


def left_behind(session: int) -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if p.status() != psutil.STATUS_ZOMBIE and os.getsid(p.pid) == session]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_sweep_that_its_whole_group_is_asked_to_end(folder: Path) -> None:
    """Exit code 143 and one line; the tables hold what was finished, and Ray's processes are gone."""
    running = sweep(folder)
    wait_for(lambda: len(completed(folder / "runs")) >= 1, running)
    os.killpg(running.pid, signal.SIGTERM)
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == 143, printed
    assert printed.splitlines()[-1] == "interrupted: the same command resumes from here"
    assert "Traceback" not in printed
    assert "SIGTERM received" not in printed
    assert not left_behind(running.pid)
    assert (folder / "runs" / "stopped" / "results" / "chains.parquet").is_file()
    assert not [
        link for link in Path("/tmp").glob("fortifai-*") if link.is_symlink() and link.resolve() == long(folder)
    ]
