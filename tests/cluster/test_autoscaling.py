"""A sweep on a cluster that has only a head: Ray's autoscaler starts the workers that the sweep needs."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from cluster.test_launch import FAMILIES, STUDY

TESTS = Path(__file__).parents[1]

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture
def environment() -> dict[str, str]:
    """An environment without the settings of this suite's own Ray; this cluster listens on this machine only."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def address(environment: dict[str, str]) -> Iterator[str]:
    """A head without CPUs that may start two workers of one CPU each."""
    with tempfile.TemporaryDirectory(prefix="grow-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "cluster.growing", folder, "2", "0"]
        with subprocess.Popen(command, cwd=TESTS, env=environment, stdin=-1, stdout=-1, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            yield process.stdout.readline().strip()
            process.stdin.close()


def test_a_sweep_brings_the_workers_that_it_can_use(address: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Six chains could use six workers, but the cluster is limited to two: the sweep plans for two and runs on them."""
    (tmp_path / "my_families.py").write_text(FAMILIES)
    (tmp_path / "launched.yaml").write_text(STUDY)
    command = [
        sys.executable,
        "-m",
        "fortifai_ray",
        "sweep",
        "launched.yaml",
        "--storage",
        "runs",
        "--address",
        address,
    ]
    swept = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert re.search(r"1 node\(s\) in the cluster, .* room for 0 of \d processes", swept.stdout)
    assert re.search(r"chain\(s\) at once on [12] CPU\(s\)", swept.stdout)
    rows = pl.read_parquet(tmp_path / "runs" / "launched" / "results" / "generations.parquet")
    assert rows.height == 6 * 8
