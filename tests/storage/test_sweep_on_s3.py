"""A whole study on an object store, by the command line: swept, found again, reported, mended and cleaned up."""

import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from .conftest import S3

STUDY = """
name: tiny
family: {kind: gaussian}
samples_per_generation: 50
generations: 6
vary: {seed: [0, 1, 2], regime: [{kind: replace}, {kind: accumulate}]}
collapse: {metric: trace_ratio, threshold: 0.5, direction: below}
"""

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]


class Machines:
    """Machines that share nothing but the storage: each command runs on the one that it names."""

    def __init__(self, folder: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self.storage, self._monkeypatch = folder, storage, monkeypatch
        self._study = folder / "tiny.yaml"
        self._study.write_text(STUDY)

    def run(self, machine: str, *arguments: str) -> str:
        """Run ``fortifai`` to its end; returns what it printed, errors and log included."""
        self._monkeypatch.setenv("FORTIFAI_CACHE", str(self._folder / machine))
        command = [sys.executable, "-m", "fortifai_ray", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def sweep(self, machine: str) -> str:
        """Sweep the study."""
        return self.run(machine, "sweep", str(self._study), "--storage", self.storage)


def test_a_study_on_an_object_store(s3: S3, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tables from every machine; what one computed no other computes; a flipped byte costs its step alone,
    where the manifest does not have the file inside."""
    machines = Machines(tmp_path, storage, monkeypatch)

    def files() -> dict[str, bytes]:
        return s3.files(f"{storage}/tiny")

    def computed() -> int:
        return int(json.loads(files()["results/summary.json"])["stages_computed"])

    def table() -> pl.DataFrame:
        columns = pl.exclude("reused", "computed_seconds", "train_seconds", "generate_seconds", "evaluate_seconds")
        return pl.read_parquet(BytesIO(files()["results/generations.parquet"])).select(columns)

    printed = machines.sweep("first")
    assert "MLflow" in printed
    assert "cannot hold its database" in printed
    assert {"study.yaml", "report.html", "results/chains.parquet", "results/fidelity.parquet"} <= files().keys()
    assert computed() == 2
    rows = table()
    assert rows.height == 6 * 6

    machines.sweep("second")
    assert computed() == 0
    assert_frame_equal(table(), rows)
    assert "trace ratio" in machines.run("third", "report", f"{storage}/tiny")

    at = f"{storage}/stages/{rows['stage'][0]}"
    stored = s3.files(at)
    content = bytearray(stored["generations.parquet"])
    content[len(content) // 2] ^= 1
    s3.put(f"{at}/generations.parquet", bytes(content))
    s3.put(f"{at}/manifest.json", json.dumps({**json.loads(stored["manifest.json"]), "inside": {}}).encode())
    assert f"stage {rows['stage'][0]} is damaged" in machines.sweep("fourth")
    assert computed() == 1
    assert_frame_equal(table(), rows)

    def stages() -> set[str]:
        return {name for name in s3.files(f"{storage}/stages") if not name.startswith(".")}

    before = stages()
    assert "Removed from" in machines.run("fourth", "gc", storage, "--min-age", "0")
    assert stages() == before
    assert not any("/.damaged/" in name for name in s3.files(storage)), "what was set aside is removed"
