"""Part 1: the tests of Triton's kernels, compiled on a GPU; in its interpreter elsewhere."""

from pathlib import Path
from typing import Any

from benchmarks.gpu.record import Record, device

TESTS = Path(__file__).resolve().parents[2] / "tests" / "losses" / "test_triton.py"
TOY = "nothing_kept or classes_that_are_masked_out or gamma_one or compacted"  # -k: a few seconds in the interpreter


class _Outcomes:
    """A plugin of pytest that records every test as it ends."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            row = {"test": report.nodeid.partition("::")[2], "outcome": report.outcome, "seconds": report.duration}
            if report.outcome == "failed":
                row["error"] = str(report.longrepr)[-2000:]
            self._record.add(**row)

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self._record.add(test="collection", outcome="failed", error=str(report.longrepr)[-2000:])


def measure(record: Record, scale: str) -> None:
    """A row a test; the goal is that all pass and the kernels' own are not skipped."""
    import pytest

    chosen = ["-k", TOY] if scale == "toy" else []
    options = ["-p", "no:cacheprovider", "--tb=short", "-W", "ignore::pytest.PytestConfigWarning"]
    code = pytest.main([str(TESTS), *options, *chosen], plugins=[_Outcomes(record)])
    passed = {row["test"].partition("[")[0] for row in record.rows if row["outcome"] == "passed"}
    ran = any(name.startswith("TestKernels") for name in passed)
    record.note(exit_code=int(code), on=device())
    record.goals({"every test of the kernels passes": int(code) == 0 and ran})
