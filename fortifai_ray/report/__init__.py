"""What a person sees after a sweep: tables in the terminal and one HTML page that opens offline.

Both read a study's folder and nothing else. Altair, Polars and Jinja are imported on the first call, so that a command
line that only mentions reports starts at once.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fortifai_ray.files import write_text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["prepare_report", "print_tables", "write_report"]


def print_tables(study_dir: Path, console: Console) -> None:
    """Print the fidelity tables, what they mean, how the sweep ran, and the claims as last checked.

    Args:
        study_dir: ``STORAGE/NAME`` as a sweep leaves it.
        console: where to print; tables fit into 100 columns and wrap in fewer.

    Raises:
        UserError: the folder holds no study, or a table cannot be read.
    """
    from fortifai_ray.claims.result import print_claims, stored_claims
    from fortifai_ray.report.tables import render_tables
    from fortifai_ray.results.reader import open_study

    results = open_study(study_dir)
    console.print(render_tables(results))
    if claims := stored_claims(results.claims):
        print_claims(claims, console)


def write_report(study_dir: Path, *, unless_same: bool = False) -> Path:
    """Write ``report.html`` into the study's folder (aside, then renamed) and return its path.

    The page contains its scripts, styles and data: it opens without a network, and its content security policy
    forbids the browser to load anything.

    Args:
        study_dir: ``STORAGE/NAME`` as a sweep leaves it.
        unless_same: leave a page as it is that this package made of the same study and tables. How the last run went
            is then still as it was.

    Raises:
        UserError: the folder holds no study, or a table cannot be read.
    """
    path, made_from = Path(study_dir) / "report.html", _made_from(Path(study_dir))
    if unless_same and made_from and f'content="{made_from}"' in _head(path):
        return path
    import pandas  # noqa: F401 - whole, before Altair meets it half imported by another thread

    from fortifai_ray.report.page import render_page
    from fortifai_ray.results.reader import open_study

    write_text(path, render_page(open_study(study_dir), made_from))
    return path


def prepare_report() -> None:
    """Do what a report takes whatever it is of, imports and its script: 3 s of CPU less in :func:`write_report`, which
    also says what is wrong with them."""
    with suppress(Exception):
        import pandas  # noqa: F401 - as there

        from fortifai_ray.report.page import vega

        vega()


def _made_from(study_dir: Path) -> str:
    """The hash of all that a page shows and is made by; "" where the folder cannot be read."""
    from polars.exceptions import PolarsError

    from fortifai_ray.results.fingerprint import fingerprint

    package = Path(__file__).parent.parent
    makers = hashlib.sha256(f"{version('altair')} {version('vl-convert-python')}".encode())
    for path in sorted([*package.rglob("*.py"), *package.glob("report/templates/*")]):
        makers.update(path.read_bytes())
    try:
        return f"{fingerprint(study_dir)}-{makers.hexdigest()[:32]}"
    except (OSError, PolarsError):
        return ""


def _head(path: Path) -> str:
    """The beginning of a page; "" where there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(4096)
    except OSError:
        return ""
