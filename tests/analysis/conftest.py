"""What the notebooks' tests share: running one in this process, exporting all of them, and a browser for the pages."""

import functools
import http.server
import importlib.util
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair as alt
import pytest

from .browser import Browser, started
from .studies import ANALYSIS, PROJECT, Definitions, Run, compute_study


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, where it is installed."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with started(chromium, tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All notebooks exported by the script, with marimo's own scripts beside them."""
    folder = tmp_path_factory.mktemp("notebooks")
    command = [sys.executable, str(PROJECT / "scripts" / "notebooks.py"), "--out", str(folder), "--offline"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def served(exported: Path) -> Iterator[str]:
    """The exported pages on a web server of this machine: its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    handler = functools.partial(Quiet, directory=str(exported))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _shown(output: Any) -> str:
    """A cell's output as text: HTML, or a chart's specification."""
    return output.to_json() if isinstance(output, alt.TopLevelMixin) else getattr(output, "text", str(output))


@pytest.fixture
def run_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a notebook as ``python analysis/NAME.py -- arguments`` does, in this process: what its cells show, as HTML
    and in print, and what they define."""

    def run(name: str, *arguments: str) -> tuple[str, Definitions]:
        path = ANALYSIS / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), "--", *arguments])
        spec = importlib.util.spec_from_file_location(f"notebook_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        outputs, definitions = module.app.run()
        shown = [_shown(output) for output in outputs if output is not None]
        return "\n".join([*shown, "printed:", capsys.readouterr().out]), definitions

    return run


@pytest.fixture(scope="session")
def discrete_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A discrete distribution under two regimes and two sizes, five seeds: not what the notebooks ship with."""
    return compute_study(
        tmp_path_factory.mktemp("storage"),
        family={"kind": "discrete", "outcomes": 12, "probabilities": "zipf"},
        generations=20,
        vary={
            "regime.synthetic_ratio": [0.5, 0.9, 1.0],
            "samples_per_generation": [20, 60],
            "seed": {"count": 5},
        },
        regime={"kind": "mixed", "synthetic_ratio": 1.0},
        collapse=[
            {"metric": "heterozygosity", "threshold": 0.8, "direction": "below", "relative_to": "own_generation_0"},
            {"metric": "support", "threshold": 0.5, "direction": "below", "relative_to": "own_generation_0"},
        ],
        baseline={"samples_per_generation": 20},
    )
