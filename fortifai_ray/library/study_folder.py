"""A study that has run: its tables, its report, and the checkpoints and corpora of its chains."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path, PosixPath, WindowsPath
from typing import TYPE_CHECKING, Any

import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import table_schema

if TYPE_CHECKING:
    from fortifai_ray.library.chain_files import ChainFiles
    from fortifai_ray.storage.location import Storage

_FIRST = ("cell", "unit", "fi_median", "fi_ratio")
_LAST = ("fi_ratio_low", "fi_ratio_high", "n_chains", "n_censored")
_HEIGHT = 900  # pixels of a report in a notebook
_WIDTH = 100  # characters of the tables in a notebook


class ReportPage(PosixPath if isinstance(Path(), PosixPath) else WindowsPath):  # type: ignore[misc]
    """The path of a report; it shows itself in a notebook, in a frame that may run the page's own script alone."""

    def _repr_html_(self) -> str:
        page = html.escape(self.read_text(encoding="utf-8"))
        style = f"width:100%;height:{_HEIGHT}px;border:0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{page}"></iframe>'


class StudyFolder:
    """A study's folder, ``STORAGE/NAME``: what a sweep or :func:`~fortifai_ray.analyse` left there. Tables are read
    when they are asked for, and kept.

    Attributes:
        folder: the folder on this machine; of a study on an object store, its copy.
        name: the study's name.
        study: the study file as resolved: a mapping.
        failed: of a sweep in this process, the chains that failed: their last error by chain id.
        unfinished: of a sweep in this process that was interrupted, the ids of the chains that it left.
    """

    def __init__(
        self,
        results: StudyResults,
        storage: Storage,
        failed: Mapping[str, str] | None = None,
        unfinished: Sequence[str] = (),
    ) -> None:
        self._results, self._storage = results, storage
        self.failed, self.unfinished = dict(failed or {}), list(unfinished)

    @property
    def folder(self) -> Path:
        return self._results.folder

    @property
    def name(self) -> str:
        return self._results.name

    @property
    def study(self) -> dict[str, Any]:
        return self._results.study

    @property
    def generations(self) -> pl.DataFrame:
        """A Polars frame, a row per chain and generation: ``cell``, the name of its cell, ``chain_id, generation,
        seed``, the varied keys by their dotted paths, sizes, every metric.

        Raises:
            UserError: the table is missing or cannot be read.
        """
        return self._results.cells.first(self._results.generations)

    @property
    def chains(self) -> pl.DataFrame:
        """A Polars frame, a row per chain and criterion: ``cell``, its onset, status and fidelity intervals.

        Raises:
            UserError: the table is missing or cannot be read.
        """
        return self._results.cells.first(self._needed("chains", self._results.chains))

    @property
    def fidelity(self) -> pl.DataFrame:
        """A Polars frame, a row per cell, criterion and unit: fidelity intervals, and ratios to the baseline with their
        intervals. Empty where the study searches.

        What one looks for comes first and last: Polars prints the four columns at each end.

        Raises:
            UserError: the table is missing or cannot be read.
        """
        if self._results.search:
            return pl.DataFrame()
        table = self._results.cells.first(self._needed("fidelity", self._results.fidelity))
        return table.select(*_FIRST, pl.exclude(*_FIRST, *_LAST), *_LAST)

    @property
    def collapse_points(self) -> pl.DataFrame:
        """A Polars frame, a row per ``cell`` and criterion of a search: the ``critical`` value of the searched key, its
        interval and how it was found. Empty where nothing was searched."""
        points = self._results.points
        if points is None:
            return pl.DataFrame(schema={"cell": pl.String, **table_schema("collapse_points")})
        return self._results.cells.first(points)

    @property
    def claims(self) -> pl.DataFrame:
        """A Polars frame, a row per claim of the study as it was last checked: its verdict, the measured value and its
        interval. Empty where the study makes none."""
        from fortifai_ray.claims.result import claims_table

        claims = self._results.claims
        return claims_table([]) if claims is None else claims

    @property
    def conclusions(self) -> list[str]:
        """What can be concluded, and what cannot, as the report has it: a line for each criterion, and under it its
        sentences, which begin with a dash."""
        from fortifai_ray.report.tables import conclusion_lines

        return conclusion_lines(self._results)

    @property
    def notes(self) -> list[str]:
        """What is missing in the folder or cannot be read, a sentence each."""
        return self._results.notes

    def report(self) -> ReportPage:
        """Write ``report.html``, unless it is there and says the same, and return its path, which shows the page in a
        notebook.

        Raises:
            UserError: a table cannot be read.
        """
        from fortifai_ray.report import write_report

        return ReportPage(write_report(self.folder, unless_same=True))

    def chain(self, which: str | Mapping[str, Any] | None = None, seed: int | None = None) -> ChainFiles:
        """One chain: its rows, its checkpoints and its corpora.

        Args:
            which: its ``chain_id`` or the beginning of it; or its cell, by name (``"TCE γ=0.3"``) or by values of
                columns (``{"loss.kind": "tce"}``), the seed's among them.
            seed: its seed; needed where several chains of the cell have run.

        Raises:
            UserError: no chain answers to it, or several do.
        """
        from fortifai_ray.export.source import Stages
        from fortifai_ray.library.chain_files import ChainFiles
        from fortifai_ray.library.given import whole
        from fortifai_ray.results.chain import find_chain

        chain_id = cell = None
        if isinstance(which, str):
            ids = self._results.generations["chain_id"].str.starts_with(which.lower())
            chain_id, cell = (which, None) if ids.any() else (None, which)
        elif isinstance(which, Mapping):
            values = {key: value for key, value in which.items() if key != "seed"}
            cell = ", ".join(f"{key}={'null' if value is None else value}" for key, value in values.items()) or None
            seed = which.get("seed", seed)
        elif which is not None:
            raise UserError(f"chain: an id, a cell's name or a mapping of columns is needed, not {which!r}")
        found = find_chain(self._results, chain_id, cell=cell, seed=None if seed is None else whole(seed, "seed"))
        return ChainFiles(found, Stages(self._storage))

    def _needed(self, name: str, table: pl.DataFrame | None) -> pl.DataFrame:
        if table is None:
            why = next((note for note in self.notes if f"{name}.parquet" in note), f"{name}.parquet is missing")
            raise UserError(f"{self.folder}: {why}")
        return table

    def __repr__(self) -> str:
        return f"<study {self.name} in {self.folder}>"

    def _repr_html_(self) -> str:
        """The tables and sentences that the terminal shows, in a notebook."""
        import io

        from rich.console import Console

        from fortifai_ray.report.tables import render_tables

        console = Console(record=True, file=io.StringIO(), width=_WIDTH, force_jupyter=False)
        console.print(render_tables(self._results))
        return console.export_html(inline_styles=True, code_format='<pre style="line-height:1.2">{code}</pre>')
