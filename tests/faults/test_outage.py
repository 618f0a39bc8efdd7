"""An object store that answers 503 to everything in the middle of a study: the study waits, and goes on."""

import json
from io import BytesIO
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pyarrow import fs
from storage.conftest import S3

from .studies import SOAK, clocks_left_out, start, wait_for, write_study

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]


@pytest.mark.parametrize("seconds", [4, pytest.param(60, id="soak", marks=SOAK)])
def test_a_study_outlasts_an_outage(s3: S3, storage: str, tmp_path: Path, undisturbed: Path, seconds: int) -> None:
    """Trials and driver meet it; the tables are those of a study in a folder, and no step was computed twice.

    On a Ray of its own, whose workers inherit the way to the server.
    """
    study, arguments = write_study(tmp_path, "[0]"), ("--set", "resources.num_cpus=1")
    running = start(study, storage, *arguments)
    wait_for(lambda: len(manifests(s3, storage)) > 2, running)
    before = s3.refused()
    s3.control("busy-seconds", seconds)
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == 0, printed
    assert s3.refused() > before, "nothing was asked while nothing was answered"
    summary = json.loads(s3.files(f"{storage}/faults/results")["summary.json"])
    assert summary["stages_computed"] == len(manifests(s3, storage)) - 1, "the data were prepared before"
    content = s3.files(f"{storage}/faults/results")["generations.parquet"]
    whole = pl.read_parquet(undisturbed / "faults" / "results" / "generations.parquet").filter(seed=0)
    assert_frame_equal(clocks_left_out(pl.read_parquet(BytesIO(content))), clocks_left_out(whole), check_exact=True)


def manifests(s3: S3, storage: str) -> set[str]:
    """The stages that are complete."""
    selector = fs.FileSelector(f"{storage.removeprefix('s3://')}/stages", recursive=True, allow_not_found=True)
    return {info.path for info in s3.filesystem().get_file_info(selector) if info.base_name == "manifest.json"}
