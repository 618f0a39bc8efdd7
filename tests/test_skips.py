"""A skip that nobody expected fails the run, however it came about, and every skip is listed with its reason."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.skips import KNOWN, Skip, skips, why_known

PROJECT = Path(__file__).resolve().parent.parent

FILE = """
import pytest
{}

def test_that_runs() -> None:
    pass
"""


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("pytest.skip('of a whole module', allow_module_level=True)", "of a whole module"),
        ("pytest.importorskip('no_such_package')", "could not import 'no_such_package'"),
        ("@pytest.mark.skip(reason='not today')\ndef test_it() -> None: ...", "not today"),
        ("@pytest.mark.skipif(True, reason='never here')\ndef test_it() -> None: ...", "never here"),
        ("def test_it() -> None:\n    pytest.skip('within a test')", "within a test"),
    ],
)
def test_a_skip_that_is_not_on_the_list_is_found(statement: str, reason: str, tmp_path: Path) -> None:
    """In pytest's own reports, not in ours: a module's, a mark's, a call's."""
    reports: list[Any] = []

    class Collect:
        def pytest_runtest_logreport(self, report: Any) -> None:
            reports.append(report)

        def pytest_collectreport(self, report: Any) -> None:
            reports.append(report)

    made = tmp_path / f"{tmp_path.name}.py"  # a name of its own: modules stay in this process
    made.write_text(FILE.format(statement))
    plugins = ["no:terminal", "no:cacheprovider", "no:xdist"]
    options = ["--import-mode", "importlib", "-c", "/dev/null", *(f"-p{plugin}" for plugin in plugins)]
    pytest.main([*options, "--rootdir", str(tmp_path), str(made)], plugins=[Collect()])
    (skip,) = skips(report for report in reports if report.skipped)
    assert reason in skip.reason
    assert skip.where == made.name
    assert why_known(skip) is None


def test_the_run_fails_and_says_why(tmp_path: Path) -> None:
    """The whole of it, with the suite's own settings: exit code 1 although every test that ran has passed."""
    made, ours = tmp_path / "test_made.py", "tests/test_skips.py::test_what_is_known_is_known_by_place_and_reason"
    made.write_text(FILE.format("@pytest.mark.skip(reason='not today')\ndef test_it() -> None: ..."))
    command = [sys.executable, "-m", "pytest", ours, str(made), "-p", "no:cacheprovider"]
    ran = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert re.search(r"^NOT KNOWN: 1 in \S+: not today$", ran.stdout, re.MULTILINE), ran.stdout
    assert "2 passed, 1 skipped" in ran.stdout
    assert ran.returncode == 1, ran.stdout


def test_what_is_known_is_known_by_place_and_reason() -> None:
    """The same reason elsewhere, and another reason in the same place, are not; expected failures are no skips."""
    here = Skip("tests/losses/test_triton.py", "needs a GPU")
    assert why_known(here)
    assert why_known(here._replace(where="tests/losses/test_fused.py")) is None
    assert why_known(here._replace(reason="could not import 'triton': No module named 'triton'")) is None
    expected = SimpleNamespace(nodeid="tests/x.py::t", longrepr=("x.py", 1, "Skipped: y"), wasxfail="")
    assert not skips([expected])
    assert all(known.because for known in KNOWN)
