"""What a person sees after a sweep: tables in the terminal and one HTML page that opens offline.

Both read a study's folder and nothing else. Altair, Polars and Jinja are imported on the first call, so that a command
line that only mentions reports starts at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fortifai_ray.files import write_text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_tables", "write_report"]


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


def write_report(study_dir: Path) -> Path:
    """Write ``report.html`` into the study's folder (aside, then renamed) and return its path.

    The page contains its scripts, styles and data: it opens without a network, and its content security policy
    forbids the browser to load anything.

    Raises:
        UserError: the folder holds no study, or a table cannot be read.
    """
    from fortifai_ray.report.page import render_page
    from fortifai_ray.results.reader import open_study

    page = render_page(open_study(study_dir))
    path = Path(study_dir) / "report.html"
    write_text(path, page)
    return path
