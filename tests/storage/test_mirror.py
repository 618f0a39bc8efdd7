"""A study's results on the object store: what changed goes there, and comes back whole."""

from pathlib import Path

import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.mirror import StudyMirror, opened_study

from .conftest import S3


def fill(folder: Path) -> None:
    (folder / "results").mkdir(parents=True)
    (folder / ".engine").mkdir()
    (folder / "study.yaml").write_text("name: tiny\n")
    (folder / "results" / "chains.parquet").write_bytes(b"PAR1")
    (folder / "results" / ".chains.parquet.123").write_bytes(b"half")
    (folder / ".engine" / "config.json").write_text("{}")


def test_only_what_changed_goes_up(s3: S3, storage: str) -> None:
    """Everything once, then what was written since; scratch and half-written files never."""
    mirror = StudyMirror(Storage.of(storage), "tiny")
    fill(mirror.folder)
    assert mirror.push() == 2
    assert s3.files(f"{storage}/tiny").keys() == {"study.yaml", "results/chains.parquet"}
    before = s3.requests()
    assert mirror.push() == 0
    assert s3.requests() == before
    (mirror.folder / "report.html").write_text("<html>")
    assert mirror.push() == 1
    assert s3.files(f"{storage}/tiny")["report.html"] == b"<html>"


def test_a_part_file_that_was_merged_is_gone_everywhere(s3: S3, storage: str) -> None:
    """A sweep merges part files into their table: none stays on the storage, or on a machine that fetched it before."""
    mirror = StudyMirror(Storage.of(storage), "tiny")
    fill(mirror.folder)
    part = mirror.folder / "results" / "parts" / "generations-000000.parquet"
    part.parent.mkdir()
    part.write_bytes(b"PAR1")
    mirror.push()
    assert "results/parts/generations-000000.parquet" in s3.files(f"{storage}/tiny")
    part.unlink()
    mirror.push()
    assert s3.files(f"{storage}/tiny").keys() == {"study.yaml", "results/chains.parquet"}
    part.write_bytes(b"an earlier fetch")
    assert StudyMirror(Storage.of(storage), "tiny").fetch()
    assert not part.exists()
    assert (mirror.folder / "results" / "chains.parquet").exists()


def test_a_push_on_the_way_waits_its_turn_and_forgives(
    s3: S3, storage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables are written after each generation: they go up now and then, and an outage only delays them."""
    monkeypatch.setattr("fortifai_ray.storage.objects._ATTEMPTS", 1)
    mirror = StudyMirror(Storage.of(storage), "tiny")
    fill(mirror.folder)
    monkeypatch.setattr(mirror._objects, "_patience", 0.1)
    s3.control("busy", 1000)
    assert mirror.push(at_most_every=60) == 0
    assert "could not be uploaded" in caplog.text
    with pytest.raises(OSError, match="SLOW_DOWN"):
        mirror.push()
    s3.control("busy", 0)
    assert mirror.push(at_most_every=60) == 0, "a minute has not passed"
    assert mirror.push() == 2


def test_a_study_comes_back_on_another_machine(
    s3: S3, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``fortifai report s3://…/tiny`` reads the tables there, and what it writes goes back."""
    mirror = StudyMirror(Storage.of(storage), "tiny")
    fill(mirror.folder)
    mirror.push()
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "another"))
    with opened_study(Path(f"{storage}/tiny")) as folder:
        assert (folder / "results" / "chains.parquet").read_bytes() == b"PAR1"
        (folder / "report.html").write_text("<html>")
    assert s3.files(f"{storage}/tiny")["report.html"] == b"<html>"


def test_a_study_that_is_not_there(s3: S3, storage: str) -> None:
    """One line; and a folder needs no mirror."""
    with pytest.raises(UserError, match="there is no study there"), opened_study(f"{storage}/tiny"):
        pass
    with opened_study("runs/tiny") as folder:
        assert folder == Path("runs/tiny")


def test_in_a_folder_there_is_nothing_to_carry(tmp_path: Path) -> None:
    """The same calls, and no work."""
    mirror = StudyMirror(Storage.of(tmp_path), "tiny")
    assert not mirror.fetch()
    fill(mirror.folder)
    assert mirror.push() == 0
    assert mirror.fetch()
