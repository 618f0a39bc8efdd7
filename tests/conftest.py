"""Fixtures shared by the whole suite: one Ray instance, and where the real data lies."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fortifai_ray.metrics import METRICS
from tests.skips import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401 (hooks: every skip is listed)

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # this suite's Ray listens on loopback only
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The suite's copies of remote stages and links to checkpoints stay out of the cache of whoever runs it."""
    os.environ["FORTIFAI_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _users_metrics() -> Iterator[None]:
    """What a test's own families and benchmarks declare is not declared in the next test."""
    before = dict(METRICS.users)
    yield
    METRICS.users.clear()
    METRICS.users.update(before)


@pytest.fixture(scope="session")
def ray_instance() -> Iterator[str]:
    """The one Ray instance of the suite: two logical CPUs, never attached to somebody else's. Yields its address."""
    from tests.shared_ray import shared_ray

    with shared_ray(2) as address:
        yield address


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("FORTIFAI_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set FORTIFAI_DATA)")
    return folder
