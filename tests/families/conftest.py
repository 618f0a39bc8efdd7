"""Puts this folder on the path: `executors` is imported by the tests of several families."""

from collections.abc import Iterator

import pytest
from executors import give_back


@pytest.fixture(scope="module", autouse=True)
def _no_workers_left() -> Iterator[None]:
    yield
    give_back()
