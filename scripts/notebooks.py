"""Export the notebooks in ``analysis/``: ``python scripts/notebooks.py [--ipynb] [--offline] [-- --results FOLDER]``.

Runs each notebook and writes it as an HTML page into ``build/notebooks/``; arguments after ``--`` are passed on to all
notebooks. A page loads marimo's own scripts from the network when it is opened. With ``--offline`` they are copied
beside the pages instead, to be served by any web server (browsers refuse them from plain files): ``python -m
http.server --bind 127.0.0.1 --directory build/notebooks``. With ``--ipynb``, writes Jupyter notebooks with their
outputs. Exits with 1 if a cell raised an error.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import as_file, files
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
_AT_ONCE = 4  # notebooks that run at the same time, each in its own process
FRONT_END = "marimo"  # the folder of marimo's scripts, beside the pages
_BASE = re.compile(r'src="(https://[^"]+)/assets/index-')


def main() -> int:
    """The command."""
    given = _arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    notebooks = given.notebook or sorted((PROJECT / "analysis").glob("*.py"))
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        whole = list(pool.map(lambda notebook: export(notebook, given.out, given.ipynb, given.passed_on), notebooks))
    failed = [notebook for notebook, done in zip(notebooks, whole, strict=True) if not done]
    if given.offline and not given.ipynb:
        lay_front_end(given.out)
    for notebook in failed:
        print(f"{notebook.name}: not exported completely, see above", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", nargs="*", type=Path, help="the notebooks to export; by default all in analysis/")
    parser.add_argument(
        "--out", type=Path, default=PROJECT / "build" / "notebooks", help="the folder to write to (build/notebooks)"
    )
    parser.add_argument("--ipynb", action="store_true", help="Jupyter notebooks instead of pages")
    parser.add_argument("--offline", action="store_true", help="copy marimo's scripts beside the pages")
    own, passed_on = _split(sys.argv[1:])
    given = parser.parse_args(own)
    given.passed_on = passed_on
    return given


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments before ``--``, and those after it."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:place]), list(arguments[place + 1 :])


def export(notebook: Path, folder: Path, ipynb: bool, passed_on: Sequence[str]) -> bool:
    """Run and export one notebook; False if a cell raised an error or nothing was written."""
    target = folder / f"{notebook.stem}.{'ipynb' if ipynb else 'html'}"
    target.unlink(missing_ok=True)
    kind = ["ipynb", "--include-outputs"] if ipynb else ["html", "--no-include-code"]
    command = [sys.executable, "-m", "marimo", "export", *kind, str(notebook), "-o", str(target), "-f"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "analysis"), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run([*command, "--", *passed_on], text=True, capture_output=True, env=environment, check=False)
    print(f"{notebook.name} -> {target}" if done.returncode == 0 else done.stdout + done.stderr)
    return done.returncode == 0 and target.is_file()


def lay_front_end(folder: Path) -> None:
    """Copy marimo's scripts into ``folder`` and make its pages load them from there.

    Raises:
        SystemExit: a page does not say where it loads them from, as another version of marimo might write it.
    """
    with as_file(files("marimo") / "_static") as static:
        shutil.copytree(static, folder / FRONT_END, dirs_exist_ok=True)
    for page in folder.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        base = _BASE.search(text)
        if base is not None:
            page.write_text(text.replace(base[1], FRONT_END), encoding="utf-8")
        elif f'src="{FRONT_END}/assets/index-' not in text:
            raise SystemExit(f"{page}: does not say where it loads marimo's scripts from")


if __name__ == "__main__":
    sys.exit(main())
