"""Human samples, prepared once."""

import pytest

from fortifai_ray.families.images.config import DataConfig
from fortifai_ray.families.images.data import HumanData, prepare_data
from fortifai_ray.storage.store import StageStore


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> HumanData:
    """scikit-learn's digits, in grey."""
    return prepare_data(DataConfig(source="digits"), StageStore(tmp_path_factory.mktemp("digits")))


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> HumanData:
    """Two thousand points in five blobs."""
    return prepare_data(DataConfig(source="blobs", samples=2000), StageStore(tmp_path_factory.mktemp("blobs")))
