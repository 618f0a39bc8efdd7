"""The soak's own eyes: each of its checks finds what it is there to find."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from fortifai_ray.storage.local import LocalStages
from fortifai_ray.storage.store import StageKey, StageStore

from .audit import Watch, assert_same_results, left_locked, leftovers
from .studies import SoakStudy

KEY = StageKey("fit", 1, {"seed": 0})


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """One completed step."""
    StageStore(tmp_path).step(KEY, lambda folder: {"answer": 42})
    return tmp_path


def test_a_step_that_is_computed_again_is_seen(storage: Path) -> None:
    """By its manifest, which is another file then."""
    watch = Watch(storage)
    assert watch.look() == 1
    kept = storage / "kept"  # so that the new manifest cannot get the old one's place on the disk
    shutil.move(storage / "stages" / KEY.hash, kept)
    StageStore(storage).step(KEY, lambda folder: {"answer": 42})
    with pytest.raises(AssertionError, match=KEY.hash):
        watch.look()


def test_a_step_that_is_lost_is_seen(storage: Path) -> None:
    """A finished step must not vanish either."""
    watch = Watch(storage)
    watch.look()
    shutil.rmtree(storage / "stages" / KEY.hash)
    with pytest.raises(AssertionError, match=KEY.hash):
        watch.look()


def test_what_is_held_or_left_is_named(storage: Path) -> None:
    """Locks while they are held, and whatever lies half-written or set aside."""
    assert left_locked(storage) == leftovers(storage) == []
    with LocalStages(storage / "stages", str(storage)).lock(KEY.hash, lambda seconds: None):
        assert left_locked(storage) == [KEY.hash]
    assert left_locked(storage) == []
    (storage / "stages" / ".partial" / "half").mkdir()
    (storage / "stages" / ".damaged" / "bad").mkdir(parents=True)
    assert leftovers(storage) == ["stages/.partial/half", "stages/.damaged/bad"]


@pytest.mark.parametrize("name", ["generations", "chains", "fidelity"])
def test_a_number_that_differs_is_seen(tmp_path: Path, name: str) -> None:
    """In any table; what a clock measured may differ."""
    study = SoakStudy("images", tmp_path, chains=2, pause=1.0, engines=False)
    one, other = tmp_path / "one", tmp_path / "other"
    for storage, changed in ((one, ""), (other, name)):
        results = storage / "images" / "results"
        results.mkdir(parents=True)
        for table in ("generations", "chains", "fidelity"):
            values = [0.1, 0.2 + (1e-15 if table == changed else 0.0)]
            seconds = [float(len(str(storage))), 1.0]
            frame = {"chain_id": ["a", "b"], "value": values, "train_seconds": seconds, "reused": [changed == "", True]}
            pl.DataFrame(frame).write_parquet(results / f"{table}.parquet")
    assert assert_same_results(study, one, one) == 6
    with pytest.raises(AssertionError):
        assert_same_results(study, one, other)
