"""Stages on a real S3 server: there whole or not at all, fetched and checked when wanted, computed once."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fortifai_ray.storage.lease import FOLDER as LEASES
from fortifai_ray.storage.store import StageKey, StageLost, StageStore, Storage

from .conftest import S3

KEY = StageKey("fit", 1, {"seed": 0})
WEIGHTS = b"\x00\x01\x02" * 100_000  # too large for a manifest


def write(folder: Path) -> dict[str, int]:
    (folder / "sub").mkdir()
    (folder / "sub" / "weights").write_bytes(WEIGHTS)
    return {"answer": 42}


def fail(folder: Path) -> dict[str, int]:
    pytest.fail("computed twice")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Elsewhere":
    return Elsewhere(tmp_path, monkeypatch)


class Elsewhere:
    """Other machines: each call opens the storage with an empty cache."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._monkeypatch, self._count = folder, monkeypatch, 0

    def store(self, storage: str, study: str | None = None) -> StageStore:
        self._count += 1
        self._monkeypatch.setenv("FORTIFAI_CACHE", str(self._folder / f"machine-{self._count}"))
        return StageStore(Storage.of(storage).for_study(study) if study else storage)


def test_a_stage_is_laid_out_as_in_a_folder(s3: S3, storage: str) -> None:
    """A stranger finds ``stages/HASH/manifest.json`` and the files that it names, as the contract says."""
    StageStore(storage).step(KEY, write)
    files = s3.files(f"{storage}/stages/{KEY.hash}")
    assert files.keys() == {"manifest.json", "sub/weights"}
    assert files["sub/weights"] == WEIGHTS
    assert json.loads(files["manifest.json"])["files"]["sub/weights"]["size"] == len(WEIGHTS)


def test_what_one_machine_computed_another_finds(s3: S3, storage: str, elsewhere: Elsewhere) -> None:
    """Its results without its files; the files when they are first wanted."""
    elsewhere.store(storage).step(KEY, write)
    store = elsewhere.store(storage)
    stage = store.step(KEY, fail)
    assert stage.outputs == {"answer": 42}
    assert stage.reused
    assert not (store.storage.folder / "stages" / KEY.hash).exists(), "nothing was fetched that nobody wanted"
    assert (stage.path / "sub" / "weights").read_bytes() == WEIGHTS
    assert store.path(KEY.hash) == stage.path


def test_what_is_known_here_costs_no_request(s3: S3, storage: str) -> None:
    """Finding a stage again is a read of the local disk."""
    StageStore(storage).step(KEY, write)
    store = StageStore(storage)
    before = s3.requests()
    stage = store.find(KEY)
    assert stage is not None
    assert stage.path.is_dir()
    assert s3.requests() == before


@pytest.mark.parametrize("study", ["mine", None])
def test_a_machine_that_knows_nothing_asks_little_of_a_finished_study(
    s3: S3, storage: str, elsewhere: Elsewhere, study: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Two requests for each stage that another machine computed, whether its use is recorded or, as by a dry run, not;
    a stage that was requested and never computed, or has gone since, is no fault."""
    keys = [StageKey("fit", 1, {"seed": seed}) for seed in range(20)]
    first = elsewhere.store(storage, "mine")
    for key in keys[1:]:
        first.step(key, write)
    first.find(keys[0])
    used = [f"stages/.uses/mine/{key.hash}" for key in keys]
    store = elsewhere.store(storage, study)
    before = s3.requests()
    store.recall("mine")
    assert s3.requests() - before <= 2 * len(keys) + 2
    before = s3.requests()
    found = [store.find(key) for key in keys[1:]]
    assert s3.requests() == before
    assert all(stage is not None and stage.outputs == {"answer": 42} for stage in found)
    assert store.find(keys[0]) is None
    before = s3.requests()
    assert store.has_all([key.hash for key in keys[1:]])
    assert s3.requests() - before <= 3
    assert not store.has_all([key.hash for key in keys])
    assert s3.files(storage).keys() >= set(used)
    assert caplog.text == ""
    other = StageKey("fit", 1, {"seed": 99})
    store.find(other)
    assert (f"stages/.uses/mine/{other.hash}" in s3.files(storage)) == (study is not None), "what is new is recorded"


def test_a_cheap_stage_is_fetched_by_its_manifest(s3: S3, storage: str, elsewhere: Elsewhere) -> None:
    """Two requests for the stage with its files, side by side with those of others; the files lie there by themselves,
    too, and where the copy inside is damaged or too large, they are fetched."""
    keys = [StageKey("cohort", 1, {"seed": seed}, cheap=True) for seed in range(3)]
    first = elsewhere.store(storage, "mine")
    for key in keys:
        first.step(key, write)
    at = f"{storage}/stages/{keys[0].hash}"
    assert s3.files(at)["sub/weights"] == WEIGHTS
    store = elsewhere.store(storage, "mine")
    before = s3.requests()
    store.recall("mine")
    for stage in map(store.find, keys):
        assert stage is not None
        assert (stage.path / "sub" / "weights").read_bytes() == WEIGHTS
        assert "inside" not in json.loads((stage.path / "manifest.json").read_text())
    assert s3.requests() - before <= 2 * len(keys) + 2
    for wrong in ("no base64", "AAAA", 7, None):
        manifest = json.loads(s3.files(at)["manifest.json"])
        s3.put(f"{at}/manifest.json", json.dumps({**manifest, "inside": {"sub/weights": wrong}}).encode())
        assert (elsewhere.store(storage).step(keys[0], fail).path / "sub" / "weights").read_bytes() == WEIGHTS


def test_the_small_files_of_any_stage_are_in_its_manifest(s3: S3, storage: str, elsewhere: Elsewhere) -> None:
    """Smallest first, as far as there is room: two requests for the manifest, and two for each file that is left."""
    sizes = {"report.json": 200, "samples.png": 60_000, "a/samples.npy": 190_000, "b/samples.npy": 200_000, "empty": 0}

    def compute(folder: Path) -> dict[str, int]:
        for name, size in sizes.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(os.urandom(size))
        return {}

    whole = elsewhere.store(storage).step(KEY, compute).path
    store = elsewhere.store(storage)
    before = s3.requests()
    stage = store.find(KEY)
    assert stage is not None
    for name in sizes:
        assert (stage.path / name).read_bytes() == (whole / name).read_bytes()
    assert s3.requests() - before == 4
    assert json.loads(s3.files(f"{storage}/stages/{KEY.hash}")["manifest.json"])["inside"].keys() == {
        *sizes.keys() - {"b/samples.npy"}
    }


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_in_the_storage_is_found(
    s3: S3, storage: str, elsewhere: Elsewhere, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """A flipped byte, a short file, a missing one: logged, set aside, and computed again when it is asked for again."""
    elsewhere.store(storage).step(KEY, write)
    at = f"{storage}/stages/{KEY.hash}/sub/weights"
    damaged = {"flip": b"\x01" + WEIGHTS[1:], "truncate": WEIGHTS[:-1]}.get(damage)
    s3.delete(at) if damaged is None else s3.put(at, damaged)
    store = elsewhere.store(storage)
    stage = store.find(KEY)
    assert stage is not None
    with caplog.at_level(logging.WARNING), pytest.raises(StageLost, match="sub/weights"):
        _ = stage.path
    assert f"stage {KEY.hash} is damaged" in caplog.text
    assert store.find(KEY) is None
    assert any(name.startswith("stages/.damaged") for name in s3.files(storage))
    again = store.step(KEY, write)
    assert not again.reused
    assert s3.files(f"{storage}/stages/{KEY.hash}")["sub/weights"] == WEIGHTS
    assert (elsewhere.store(storage).step(KEY, fail).path / "sub" / "weights").read_bytes() == WEIGHTS


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"files": {"../../planted": {}}, "outputs": {}}'])
def test_a_manifest_that_is_none(s3: S3, storage: str, elsewhere: Elsewhere, content: bytes) -> None:
    """It counts as missing, and is written anew; nor can one that was planted write outside the stage's folder."""
    elsewhere.store(storage).step(KEY, write)
    s3.put(f"{storage}/stages/{KEY.hash}/manifest.json", content)
    assert not elsewhere.store(storage).step(KEY, write).reused


def test_damage_here_is_mended_from_the_storage(s3: S3, storage: str, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped byte in the cache costs a fetch, not a computation."""
    stage = StageStore(storage).step(KEY, write)
    (stage.path / "sub" / "weights").write_bytes(b"\x01" + WEIGHTS[1:])
    again = StageStore(storage).step(KEY, fail)
    assert (again.path / "sub" / "weights").read_bytes() == WEIGHTS
    assert "is damaged: it is fetched again" in caplog.text


_DIE = """
import os, signal, sys
from fortifai_ray.storage.objects import Objects
from fortifai_ray.storage.store import StageStore
from tests.storage.test_remote_stages import KEY, write

writing = Objects.write

def die_before_the_manifest(self, name, content, patience=None):
    if name.endswith("manifest.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    writing(self, name, content, patience)

Objects.write = die_before_the_manifest
StageStore(sys.argv[1]).step(KEY, write)
"""


def test_a_torn_upload_is_no_stage(s3: S3, storage: str, elsewhere: Elsewhere) -> None:
    """Killed before the manifest: other machines compute it, this one only ends the upload; no lease is left to wait
    for on the machine of the dead."""
    here = StageStore(storage)
    victim = subprocess.run([sys.executable, "-c", _DIE, storage], cwd=Path(__file__).parents[2], check=False)
    assert victim.returncode == -signal.SIGKILL
    assert s3.files(f"{storage}/stages/{KEY.hash}").keys() == {"sub/weights"}
    assert here.step(KEY, fail).reused
    assert "manifest.json" in s3.files(f"{storage}/stages/{KEY.hash}")
    assert (elsewhere.store(storage).step(KEY, fail).path / "sub" / "weights").read_bytes() == WEIGHTS


def test_a_storage_that_was_emptied_gets_what_this_machine_still_has(s3: S3, storage: str) -> None:
    """What is known here is not believed for ever: another machine must find what this one calls finished."""
    StageStore(storage).step(KEY, write)
    for name in s3.files(storage):
        s3.delete(f"{storage}/{name}")
    assert StageStore(storage).step(KEY, fail).reused
    assert s3.files(f"{storage}/stages/{KEY.hash}").keys() == {"manifest.json", "sub/weights"}


_COMPUTE = """
import os, sys, time
from pathlib import Path
from fortifai_ray.storage.store import StageStore
from tests.storage.test_remote_stages import KEY, write

def compute(folder):
    with Path(sys.argv[2]).open("a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(1)
    return write(folder)

waited = []
stage = StageStore(sys.argv[1]).step(KEY, compute, waited.append)
print(stage.outputs["answer"], len((stage.path / "sub" / "weights").read_bytes()), bool(waited) or not stage.reused)
"""


def test_machines_that_want_one_step_take_turns(s3: S3, storage: str, tmp_path: Path) -> None:
    """Two processes on one machine and one on another: one computes, the others wait and fetch it."""
    log = tmp_path / "computed"
    caches = [tmp_path / "a", tmp_path / "a", tmp_path / "b"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _COMPUTE, storage, str(log)],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"FORTIFAI_CACHE": str(cache)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for cache in caches
    ]
    printed = [process.communicate()[0].strip() for process in processes]
    assert printed == [f"42 {len(WEIGHTS)} True"] * 3
    assert len(log.read_text().splitlines()) == 1
    assert not [name for name in s3.files(storage) if name.startswith(f"{LEASES}/")]


def test_a_step_that_fails_leaves_neither_stage_nor_lease(s3: S3, storage: str) -> None:
    """The next asking need not wait."""

    def broken(folder: Path) -> dict[str, int]:
        (folder / "half").write_text("…")
        raise RuntimeError("no")

    store = StageStore(storage)
    with pytest.raises(RuntimeError):
        store.step(KEY, broken)
    assert not [n for n in s3.files(storage) if KEY.hash in n]
    assert store.find(KEY) is None


def test_a_step_outlasts_a_busy_service(s3: S3, storage: str) -> None:
    """503 from the moment it is computed: the stage arrives all the same."""

    def compute(folder: Path) -> dict[str, int]:
        s3.control("busy-seconds", 3)
        return write(folder)

    assert not StageStore(storage).step(KEY, compute).reused
    assert s3.files(f"{storage}/stages/{KEY.hash}").keys() == {"manifest.json", "sub/weights"}


def test_threads_of_one_process_take_turns_too(s3: S3, storage: str) -> None:
    """A process may run several chains."""
    computed: list[int] = []

    def compute(folder: Path) -> dict[str, int]:
        computed.append(threading.get_ident())
        return write(folder)

    threads = [threading.Thread(target=lambda: StageStore(storage).step(KEY, compute)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1


def test_what_a_study_asks_for_is_written_down(s3: S3, storage: str) -> None:
    """For ``fortifai gc``, which runs on another machine."""
    StageStore(Storage.of(storage).for_study("quickstart")).step(KEY, write)
    assert f"stages/.uses/quickstart/{KEY.hash}" in s3.files(storage)
