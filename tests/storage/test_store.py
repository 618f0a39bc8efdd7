"""The stage store: a step is there whole or not at all, is computed once, and damage is found."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fortifai_ray.errors import UserError
from fortifai_ray.storage.store import StageKey, StageStore, canonical_hash

KEY = StageKey("fit", 1, {"seed": 0})

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def write(folder: Path) -> dict[str, int]:
    (folder / "sub").mkdir()
    (folder / "sub" / "weights").write_bytes(b"\x00\x01\x02")
    return {"answer": 42}


any_speed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on however busy a machine


@any_speed
@given(st.dictionaries(st.text(max_size=5), _json, min_size=2, max_size=4))
def test_the_hash_ignores_the_order_of_keys(value: dict[str, object]) -> None:
    """A recipe read from a file with its keys in another order is the same recipe."""
    assert canonical_hash(value) == canonical_hash(dict(reversed(value.items())))


@any_speed
@given(_json, _json)
def test_different_inputs_have_different_hashes(first: object, second: object) -> None:
    """Two steps never share a stage by mistake; 1, 1.0 and true are told apart as JSON tells them apart."""
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (canonical_hash(first) == canonical_hash(second)) == same


@settings(any_speed, max_examples=20)
@given(
    st.dictionaries(st.text("abc/", min_size=1, max_size=1).filter(lambda n: n != "/"), st.binary(max_size=50)), _json
)
def test_what_is_stored_comes_back(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], found: object
) -> None:
    """Any files and any outputs survive the way into the store and back, also from another process's view of it."""
    root = tmp_path_factory.mktemp("store")

    def compute(folder: Path) -> dict[str, object]:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return {"found": found}

    StageStore(root).step(KEY, compute)
    stage = StageStore(root).find(KEY)
    assert stage is not None
    assert stage.outputs == {"found": found}
    assert {name: (stage.path / name).read_bytes() for name in files} == files


def test_a_step_is_computed_once(tmp_path: Path) -> None:
    """The second asking takes the stage from the store, and says so."""
    first = StageStore(tmp_path).step(KEY, write)
    again = StageStore(tmp_path).step(KEY, lambda folder: pytest.fail("computed twice"))
    assert (first.reused, again.reused) == (False, True)
    assert again.outputs == {"answer": 42}


def test_a_failed_step_leaves_nothing(tmp_path: Path) -> None:
    """An exception in the middle of a step leaves neither a stage nor its half-written files."""

    def fail(folder: Path) -> dict[str, int]:
        (folder / "half").write_text("…")
        raise RuntimeError("no")

    store = StageStore(tmp_path)
    with pytest.raises(RuntimeError):
        store.step(KEY, fail)
    assert store.find(KEY) is None
    assert not list((tmp_path / "stages" / ".partial").iterdir())


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_damage_is_found_and_the_step_computed_again(tmp_path: Path, damage: str) -> None:
    """One flipped byte, a short file, a missing file or a broken manifest: never a wrong model."""
    stage = StageStore(tmp_path).step(KEY, write)
    file = stage.path / "sub" / "weights"
    if damage == "flip":
        file.write_bytes(b"\x00\x01\x03")
    elif damage == "truncate":
        file.write_bytes(b"\x00")
    elif damage == "delete":
        file.unlink()
    else:
        (stage.path / "manifest.json").write_text("{")
    store = StageStore(tmp_path)
    assert store.find(KEY) is None
    assert len(list((tmp_path / "stages" / ".damaged").iterdir())) == 1, "set aside, for whoever wants to look at it"
    assert not store.step(KEY, write).reused
    assert file.read_bytes() == b"\x00\x01\x02"


def test_two_that_want_the_same_step_take_turns(tmp_path: Path) -> None:
    """One computes, the other waits, is told so, and finds the stage."""
    computed, waited = [], []

    def slow(folder: Path) -> dict[str, int]:
        computed.append(threading.get_ident())
        time.sleep(0.5)
        return write(folder)

    def run() -> None:
        StageStore(tmp_path).step(KEY, slow, on_wait=waited.append)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1
    assert waited


_DIE = """
import sys, time
from pathlib import Path
from fortifai_ray.storage.store import StageKey, StageStore

def compute(folder):
    (folder / "half").write_text("half")
    print("in the middle", flush=True)
    time.sleep(60)

StageStore(sys.argv[1]).step(StageKey("fit", 1, {"seed": 0}), compute)
"""


def test_a_killed_process_leaves_no_stage_and_no_lock(tmp_path: Path) -> None:
    """After a `kill -9` in the middle of a step, the next asking computes it at once, from a clean folder."""
    victim = subprocess.Popen([sys.executable, "-c", _DIE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    assert victim.stdout.readline().strip() == "in the middle"
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    store = StageStore(tmp_path)
    assert store.find(KEY) is None
    stage = store.step(KEY, write)
    assert not (stage.path / "half").exists()
    assert not list((tmp_path / "stages" / ".partial").iterdir())


def test_a_storage_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    """A storage below a file, or in a folder without permission, is named in one line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"storage .*file: is a file"):
        StageStore(tmp_path / "file")


def test_what_a_power_cut_leaves_of_a_cheap_stage_is_computed_again(tmp_path: Path) -> None:
    """Its files are not forced onto the disk: names may survive without their contents, and the checksums tell."""
    key = StageKey("cohort", 1, {}, cheap=True)
    assert key.hash == StageKey("cohort", 1, {}).hash
    for emptied in ("manifest.json", "values"):
        StageStore(tmp_path).step(key, lambda folder: {"size": (folder / "values").write_bytes(b"1 2 3")})
        (tmp_path / "stages" / key.hash / emptied).write_bytes(b"")
        assert StageStore(tmp_path).find(key) is None
        assert not StageStore(tmp_path).step(key, lambda folder: {}).reused
        shutil.rmtree(tmp_path / "stages" / key.hash)
