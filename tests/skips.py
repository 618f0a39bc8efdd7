"""Which tests may be skipped, and why: the suite's summary lists each skip, and one that is not known fails the run.

A skip hides what broke: a package that fell out of the lock, a system package that CI no longer installs. What
``make setup`` installs is therefore no reason to skip.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Known(NamedTuple):
    """A skip that may be: in files that match ``where``, for a reason that matches ``reason``; and why it may."""

    where: str
    reason: str
    because: str


KNOWN = (
    Known(r"tests/(faults|storage)/.*", r"takes minutes: make soak runs it", "`make soak` runs it"),
    Known(r"tests/faults/test_disk\.py", r"no file system can be mounted here", "needs root and mount(2)"),
    Known(r"tests/(report|analysis)/.*", r"chromium is not installed.*", "a system package, which CI installs"),
    Known(r"tests/cluster/.*", r"PostgreSQL is not installed.*", "a system package, which CI installs"),
    Known(r"tests/families/language/test_texts\.py", r"root may read everything", "runs as any other user"),
    Known(r"tests/families/analytic/test_batches\.py", r"its weights are no counts", "a family's case does not apply"),
    Known(r"tests/(test_doctor|losses/test_benchmark)\.py", r"needs /proc|this system does not tell.*", "Linux alone"),
    Known(r"tests/.*", r"no real data at .*", "real texts, which are no part of the project (FORTIFAI_DATA)"),
    Known(r"tests/engines/test_fetch\.py", r"SmolLM2-135M is not here.*", "98 MB, by `make smollm2`"),
    Known(r"tests/.*", r"SmolLM2-135M is not here.*", "a real model, which `make smollm2` fetches"),
    Known(r"tests/losses/test_triton\.py", r"needs a GPU", "`scripts/gpu_check.sh` runs it on one"),
    Known(
        r"tests/losses/test_triton\.py",
        r"these run in the interpreter's own process",
        "test_the_kernels_in_the_interpreter runs them there",
    ),
    Known(
        r"tests/losses/test_triton\.py",
        r"they run here|they are served here|the interpreter compiles nothing",
        "on a GPU, and in the interpreter's own process",
    ),
)


class Skip(NamedTuple):
    where: str
    """The file, from the project's root, with forward slashes."""
    reason: str


def why_known(skip: Skip) -> str | None:
    """What the list says of a skip; None where it is not on it."""
    matches = (k for k in KNOWN if re.fullmatch(k.where, skip.where) and re.fullmatch(k.reason, skip.reason))
    return next((known.because for known in matches), None)


def skips(reports: Iterable[Any]) -> Counter[Skip]:
    """The skips among pytest's reports, of tests or of whole modules, and how often each occurs.

    Expected failures are none of them.
    """
    found = Counter[Skip]()
    for report in reports:
        if not hasattr(report, "wasxfail"):
            text = report.longrepr[2] if isinstance(report.longrepr, tuple | list) else str(report.longrepr)
            where = str(report.nodeid).partition("::")[0]
            found[Skip(where, text.removeprefix("Skipped: ").strip())] += 1
    return found


def _of(config: pytest.Config) -> Counter[Skip]:
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    collected = skips(reporter.stats.get("skipped", ())) if reporter else Counter[Skip]()
    root = Path(config.rootpath)
    return Counter({Skip(_from_root(skip.where, root), skip.reason): count for skip, count in collected.items()})


def _from_root(where: str, root: Path) -> str:
    path = Path(where)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run with a skip that is not on the list has failed."""
    if hasattr(session.config, "workerinput"):  # a process of pytest-xdist: its reports reach the first one
        return
    if any(why_known(skip) is None for skip in _of(session.config)) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Each skip with its reason; those that nobody expected last."""
    found = _of(config)
    if not found:
        return
    terminalreporter.section("skipped, and why")
    unknown = [skip for skip in found if why_known(skip) is None]
    for skip in [*(skip for skip in found if skip not in unknown), *unknown]:
        line = f"{found[skip]} in {skip.where}: {skip.reason}"
        because = why_known(skip)
        terminalreporter.write_line(f"{line} ({because})" if because else f"NOT KNOWN: {line}")
    if unknown:
        terminalreporter.write_line("The run fails: install what is missing, or add it to tests/skips.py")
