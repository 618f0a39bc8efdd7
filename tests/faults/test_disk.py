"""A full disk: one line, nothing torn, and the same command goes on once there is room."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .studies import assert_same_tables, completed, start, sweep, write_study

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_costs_no_finished_step(
    small_disk: Path, tmp_path: Path, undisturbed: Path, ray_instance: str
) -> None:
    """The sweep ends with what to do about it, and no traceback; with more room it ends with the tables of one that
    never lacked any, and no finished step is computed twice."""
    study = write_study(tmp_path)
    storage, arguments = small_disk / "runs", ("--address", ray_instance)
    running = start(study, storage, *arguments)
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == 1, printed
    assert printed.rstrip().splitlines()[-1].startswith("fortifai: no space left"), printed
    assert "Traceback" not in printed, printed
    kept = completed(storage)
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    sweep(study, storage, *arguments)
    assert kept.items() <= completed(storage).items()
    assert_same_tables(storage, undisturbed)
