"""``scripts/notebooks.py``: pages, Jupyter notebooks, and a cell that raises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .studies import ANALYSIS, PROJECT

RAISES = """import marimo
app = marimo.App()


@app.cell
def broken():
    1 / 0
    return


if __name__ == "__main__":
    app.run()
"""


def export(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "scripts" / "notebooks.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_cell_that_raises_fails_the_export(tmp_path: Path) -> None:
    """A notebook with an error must not pass for exported."""
    notebook = tmp_path / "broken.py"
    notebook.write_text(RAISES, encoding="utf-8")
    done = export(str(notebook), "--out", str(tmp_path))
    assert done.returncode == 1
    assert "division by zero" in done.stdout
    assert "broken.py: not exported completely" in done.stderr


def test_a_jupyter_notebook_has_the_cells_and_their_outputs(tmp_path: Path, discrete_study: Path) -> None:
    """``--ipynb``, with arguments passed on to the notebook."""
    pytest.importorskip("nbformat")
    notebook = str(ANALYSIS / "phase_diagram.py")
    done = export(notebook, "--ipynb", "--out", str(tmp_path), "--", "--results", str(discrete_study))
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "phase_diagram.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in written["cells"] for output in cell.get("outputs", [])]
    assert "second" in json.dumps(outputs)
    assert any("phase.plane(" in "".join(cell["source"]) for cell in written["cells"])
