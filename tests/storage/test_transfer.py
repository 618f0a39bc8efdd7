"""What travels between nodes: a stage is found where it is wanted, and what is written elsewhere comes back whole."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.storage import store as elsewhere
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageFiles, StageKey, StageStore, folder_here
from fortifai_ray.sweep import ray_executor
from fortifai_ray.sweep.ray_executor import written_for


@pytest.fixture
def stage_files(tmp_path: Path) -> StageFiles:
    """The files of a stage in a storage that is a folder."""

    def compute(folder: Path) -> Mapping[str, Any]:
        (folder / "model.txt").write_text("weights")
        return {}

    steps = Steps(StageStore(tmp_path / "runs"))
    return steps.files(steps.run(StageKey("fit", 1, {}), "fit", compute))


def travelled(files: StageFiles) -> StageFiles:
    """As another process finds it."""
    other: StageFiles = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(files))))  # through a client to an engine
    return other


def test_a_shared_folder_is_read_in_place(stage_files: StageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a storage that nodes share from copies and from a second look at every checksum."""
    monkeypatch.setattr(elsewhere, "StageStore", None)
    assert folder_here(travelled(stage_files)) == stage_files.path.absolute()


def test_a_storage_that_a_node_does_not_see_is_named(stage_files: StageFiles) -> None:
    """Protects a user whose cluster has a folder of that name on the head alone."""
    other = travelled(stage_files)
    stage_files.path.rename(stage_files.path.with_name("gone"))
    with pytest.raises(UserError, match=r"a node of the cluster does not see it; give a folder that all nodes see"):
        _ = other.path


def test_what_is_written_where_it_is_wanted_is_not_moved(tmp_path: Path) -> None:
    """Protects training on one node, and on nodes that share the storage, from a copy of every model."""
    with written_for(tmp_path, "no such node") as folder:
        assert folder == tmp_path


@pytest.mark.ray
def test_what_is_written_elsewhere_comes_back_whole(
    ray_instance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects a model that rank 0 wrote on another node: folders, files of several chunks, empty ones."""
    monkeypatch.setattr(ray_executor, "_CHUNK", 1000)
    content = {"config.json": b"{}", "weights/0.bin": os.urandom(5500), "weights/1.bin": os.urandom(2000), "empty": b""}
    target = tmp_path / "wanted"
    with written_for(target, this_node()) as folder:
        target.mkdir()  # too late to be seen: as on a node that does not see it at all
        (folder / "weights").mkdir()
        for name, written in content.items():
            (folder / name).write_bytes(written)
    files = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert files == content
    assert not folder.exists()


@pytest.mark.ray
def test_nothing_is_written_for_whoever_has_gone(ray_instance: str, tmp_path: Path) -> None:
    """Protects the storage from half a stage of a chain that died, and that another process computes anew."""
    target = tmp_path / "gone"
    with (
        pytest.raises(FileNotFoundError, match="the chain that model belongs to has ended"),
        written_for(target, this_node()) as folder,
    ):
        (folder / "model").write_text("weights")
    assert not target.exists()


def this_node() -> str:
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node
