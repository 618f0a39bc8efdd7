"""``fortifai gc`` on an object store: what other machines believe and do counts."""

from pathlib import Path

import pytest

from fortifai_ray.storage.gc import collect, plan_gc
from fortifai_ray.storage.lease import FOLDER as LEASES
from fortifai_ray.storage.store import RUNNING, StageKey, StageStore, Storage

from .conftest import S3

KEYS = [StageKey("fit", 1, {"seed": seed}) for seed in range(4)]


def write(folder: Path) -> dict[str, int]:
    (folder / "weights").write_bytes(b"\x00" * 1000)
    return {}


def stored(s3: S3, storage: str) -> list[int]:
    files = s3.files(f"{storage}/stages")
    return [seed for seed, key in enumerate(KEYS) if f"{key.hash}/manifest.json" in files]


@pytest.fixture
def filled(s3: S3, storage: str) -> str:
    """Two studies that have ended, and a stage that nobody needs."""
    for name, keys in (("one", KEYS[:2]), ("two", KEYS[1:3])):
        store = StageStore(Storage.of(storage).for_study(name))
        for key in keys:
            store.step(key, write)
        s3.put(f"{storage}/{name}/study.yaml", f"name: {name}\n".encode())
        s3.delete(f"{storage}/stages/.uses/{name}/{RUNNING}")  # as if its last sign of life were ten minutes old
    StageStore(storage).step(KEYS[3], write)
    return storage


def test_what_no_study_needs_goes(s3: S3, filled: str) -> None:
    """With its files, here and in this machine's cache."""
    plan = plan_gc(filled, min_age=0)
    assert [removal.kind for removal in plan.removals] == ["fit"]
    assert list(plan_gc(filled).removals) == [], "it is too young"
    assert len(collect(plan).removals) == 1
    assert stored(s3, filled) == [0, 1, 2]
    assert not any(name.startswith(f"stages/{KEYS[3].hash}/") for name in s3.files(filled))
    assert not (Storage.of(filled).folder / "stages" / KEYS[3].hash).exists()


def test_another_machine_does_not_believe_in_what_has_gone(
    s3: S3, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knew the stage, and looks again; having the files, it brings them back instead of computing them."""
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "another"))
    stage = StageStore(filled).find(KEYS[3])
    assert stage is not None
    assert stage.path.is_dir()
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "cache"))
    collect(plan_gc(filled, min_age=0))
    assert stored(s3, filled) == [0, 1, 2]
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "another"))
    assert StageStore(filled).step(KEYS[3], lambda folder: pytest.fail("computed twice")).reused
    assert stored(s3, filled) == [0, 1, 2, 3]


def test_what_runs_elsewhere_stays(s3: S3, filled: str) -> None:
    """A study heard of within ten minutes, and a step under a lease, whoever was asked for."""
    StageStore(Storage.of(filled).for_study("two"))
    s3.put(f"{filled}/{LEASES}/{KEYS[3].hash}.another-machine.1", b"1")
    plan = plan_gc(filled, ["one"], min_age=0)
    assert (plan.kept, plan.running) == (["one", "two"], ["two"])
    assert list(plan.removals) == []
