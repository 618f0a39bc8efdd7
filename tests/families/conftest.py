"""Puts this folder on the path: `executors` is imported by the tests of several families."""

from pathlib import Path

import pytest
from executors import give_back

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before Ray itself ends
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The workers that these tests share end with the last of them: those elsewhere want the CPUs."""
    if nextitem is None or HERE not in nextitem.path.parents:
        give_back()
