"""What the faults share: the study left alone, and a Ray cluster of several nodes on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from storage.conftest import s3, s3_server, storage  # noqa: F401 (an object store that can be out of order)

from .clusters import RayCluster, ray_cluster
from .studies import sweep, write_study


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_instance: str) -> Path:
    """The storage of the study that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    sweep(write_study(folder), folder / "runs", "--address", ray_instance)
    return folder / "runs"


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    """A head without CPUs and two workers, of which nodes may be killed."""
    with ray_cluster(2) as started:
        yield started
