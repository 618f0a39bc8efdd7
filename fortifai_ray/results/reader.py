"""Read a study's folder, ``STORAGE/NAME``: its file, its tables and what follows from them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from fortifai_ray.errors import UserError
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.scan import collected, scan_table
from fortifai_ray.results.schema import (
    CRITERION_COLUMNS,
    baseline_columns,
    damaged,
    read_json,
    read_table,
    searched_keys,
    table_path,
    varied_keys,
)
from fortifai_ray.statistics.chains import failed_chains
from fortifai_ray.statistics.criterion import Collapse, CollapseCriterion, criteria_of, criterion_from
from fortifai_ray.statistics.judged import Terms
from fortifai_ray.statistics.ratios import PlainBaseline
from fortifai_ray.validation import first_mistake, read_yaml

# The columns without which a table is of no use.
_REQUIRED = {
    "generations": ("chain_id", "generation", "seed"),
    "chains": (*CRITERION_COLUMNS, "chain_id", "seed", "limit", "status", "fi_generations", "fi_synthetic"),
    "fidelity": (
        *(*CRITERION_COLUMNS, "unit", "n_chains", "n_censored", "fi_median", "fi_mean", "fi_ratio"),
        *("seed_ratios", "bound"),
    ),
    "samples": ("chain_id", "generation", "row", "prompt_text", "generated_text"),
    "details": ("chain_id", "generation", "details"),
    "pictures": ("chain_id", "generation", "png"),
    "claims": ("id", "source", "kind", "statistic", "verdict"),
}
_WHAT_IS_LOST = {
    "chains": "onsets are not shown",
    "fidelity": "fidelity intervals and ratios are not shown",
    "samples": "sample texts are not shown",
    "details": "histograms are not shown",
    "pictures": "pictures of samples are not shown",
    "claims": "claims are not shown",
    "collapse_points": "what the search measured is not shown",
}
_BATCH = 1000  # chains
_LARGE = 32 << 20  # bytes of a file: a table of as many is some ten times as large in memory
_TABLES = ("generations", "chains", "fidelity", "samples", "pictures", "claims", "points")


class StudyResults:
    """One study; each table is read on first use.

    A table that cannot be read is None, and ``notes`` says so; without ``generations`` there is nothing to show.

    Attributes:
        folder: ``STORAGE/NAME``.
        study: the study file, resolved, and ``study_text``, its text.
    """

    def __init__(
        self, folder: Path, study: Mapping[str, Any], study_text: str = "", *, judge: bool = False, **tables: Any
    ) -> None:
        """With ``judge``, missing tables of chains and fidelity intervals are computed from the generations; ``tables``
        replace those in the folder."""
        self.folder, self.study, self.study_text = Path(folder), dict(study), study_text
        self._judge, self._problems = judge, dict[str, str]()
        self._read: dict[str, pl.DataFrame | None] = {}
        self.__dict__.update(tables)

    def replace(self, *, study: Mapping[str, Any] | None = None, **tables: pl.DataFrame | None) -> StudyResults:
        """These results with another study file or other tables."""
        kept = {name: self.__dict__[name] for name in _TABLES if name in self.__dict__}
        study = self.study if study is None else study
        return StudyResults(self.folder, study, self.study_text, judge=self._judge, **kept | tables)

    @property
    def name(self) -> str:
        return str(self.study.get("name") or self.folder.name)

    @property
    def baseline(self) -> dict[str, Any]:
        """The columns that make a chain a baseline chain (:func:`~fortifai_ray.results.schema.baseline_columns`)."""
        baseline = self.study.get("baseline")
        if "history" in self.study and isinstance(baseline, dict):
            return PlainBaseline(baseline)
        return baseline_columns(baseline, varied_keys(self.study))

    @property
    def terms(self) -> Terms:
        """The terms on which its chains are judged."""
        return Terms(self.criteria_asked, self.baseline, [*self.varied, "seed"], self.generations_asked)

    @property
    def search(self) -> dict[str, Any]:
        """``search`` of the study file; empty for a grid."""
        search = self.study.get("search")
        return search if isinstance(search, dict) else {}

    @property
    def searched_keys(self) -> list[str]:
        """The keys that the search sets."""
        return searched_keys(self.study)

    @cached_property
    def varied(self) -> list[str]:
        """The keys that make a cell: the varied ones except the seed and those that a search sets."""
        known = {*self.columns} - {"seed", *self.searched_keys}
        return [key for key in varied_keys(self.study) if key in known]

    @cached_property
    def generations_asked(self) -> int:
        """The study's ``generations``, the largest where it varies.

        Raises:
            UserError: the study file names no number.
        """
        vary = self.study.get("vary")
        asked = self.study.get("generations") or (vary.get("generations") if isinstance(vary, dict) else None)
        if isinstance(asked, dict):
            return int(asked.get("start", 0)) + int(asked["count"]) - 1
        if not asked:
            raise UserError(f"{self.folder / 'study.yaml'}: generations: missing; without it the horizon is unknown")
        return max(map(int, asked)) if isinstance(asked, list) else int(asked)

    @cached_property
    def generations(self) -> pl.DataFrame:
        """A row per chain and generation.

        Raises:
            UserError: the table is missing or cannot be read.
        """
        table = self.table("generations")
        if table is None:
            raise UserError(_not_found(table_path(self.folder, "generations")))
        return table

    @cached_property
    def scanned(self) -> pl.LazyFrame:
        """The generations, to be queried: a large table that nobody has read yet is read as far as each query needs it.

        Raises:
            UserError: as :attr:`generations`.
        """
        path = table_path(self.folder, "generations")
        if "generations" in self.__dict__ or not path.is_file() or path.stat().st_size < _LARGE:
            return self.generations.lazy()
        lazy = scan_table(self.folder, "generations", _REQUIRED["generations"])
        return self.generations.lazy() if lazy is None else lazy

    def ask(self, query: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.DataFrame:
        """What a query of the generations gives.

        Raises:
            UserError: the table is missing or cannot be read.
        """
        try:
            return collected(query(self.scanned))
        except pl.exceptions.PolarsError as error:
            raise damaged(table_path(self.folder, "generations"), error) from error

    @cached_property
    def columns(self) -> pl.Schema:
        """The columns of the generations, and their types."""
        return self.scanned.collect_schema()

    @cached_property
    def roster(self) -> pl.DataFrame:
        """A row per chain that has begun, in no order: ``chain_id``, ``seed``, the keys of its recipe that are columns,
        ``unit``."""
        asked = {"seed", "unit", *self.varied, *self.baseline}
        known = [name for name in self.columns if "." in name or name in asked]
        first = pl.col(known).first()
        return self.ask(lambda table: table.group_by("chain_id").agg(first)).sort("chain_id")

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many values each numeric column of the generations has."""
        numeric = [name for name, kind in self.columns.items() if kind.is_numeric()]
        return self.ask(lambda table: table.select(pl.col(numeric).count())).row(0, named=True)

    @cached_property
    def chains(self) -> pl.DataFrame | None:
        """A row per chain and criterion."""
        table = self._optional("chains", expected=not self._judge)
        return self._judged_chains() if table is None and self._judge else table

    @cached_property
    def fidelity(self) -> pl.DataFrame | None:
        """A row per cell, criterion and unit; None for a search: it places single chains, so that no value has enough
        seeds for an interval."""
        if self.search:
            return None
        table = self._optional("fidelity", expected=not self._judge)
        return self._judged_fidelity() if table is None and self._judge else table

    @cached_property
    def samples(self) -> pl.DataFrame | None:
        """Which sample texts there are (``chain_id, generation, row``), without the texts themselves."""
        families = self.roster["family.kind"] if "family.kind" in self.columns else pl.Series()
        return self._optional(
            "samples", columns=["chain_id", "generation", "row"], expected=families.eq("language").any()
        )

    @cached_property
    def details(self) -> pl.DataFrame | None:
        """Of which generations there are details (``chain_id, generation``), what no column holds, as JSON."""
        return self._optional("details", columns=["chain_id", "generation"])

    @cached_property
    def pictures(self) -> pl.DataFrame | None:
        """Which pictures there are (``chain_id, generation``), without the thousands of pictures themselves."""
        return self._optional("pictures", columns=["chain_id", "generation"])

    @cached_property
    def claims(self) -> pl.DataFrame | None:
        """The claims as last checked (:func:`fortifai_ray.claims.result.stored_claims`); None where they never were."""
        table = self._optional("claims")
        if table is None and self.study.get("claims"):
            command = f"fortifai claims {shlex.quote(str(self.folder))}"
            self._problems.setdefault("claims", f"claims have not been checked: `{command}` checks them")
        return table

    @cached_property
    def points(self) -> pl.DataFrame | None:
        """The collapse points that a search has measured so far."""
        return self._optional("collapse_points") if self.search else None

    @cached_property
    def searched(self) -> dict[str, Any]:
        """How the search went (``search.json``); empty where there was none."""
        return self._json("search", "run or resume the sweep") if self.search else {}

    @cached_property
    def summary(self) -> dict[str, Any]:
        """How the sweep ran (``summary.json``)."""
        return self._json("summary", "time, overhead and failures are not shown")

    @cached_property
    def notes(self) -> list[str]:
        """What is missing or unreadable, and what is therefore not shown."""
        notes = ["no generation has been completed: there is nothing to draw yet"] if self.roster.is_empty() else []
        for name in (*_TABLES[1:], "summary", "searched"):
            getattr(self, name)
        history = self.study.get("history")
        told = history.get("notes", []) if isinstance(history, dict) else []  # by a history of runs made elsewhere
        return [*notes, *told, *self._problems.values()]

    @property
    def unit(self) -> str:
        """What the synthetic sizes count: tokens or samples (both, where a study's families differ)."""
        units = sorted(set(self.units.values()))
        return " or ".join(units) or "units"

    @cached_property
    def units(self) -> dict[str, str]:
        """What the synthetic sizes of each cell count."""
        if "unit" not in self.columns:
            return {}
        named = (
            self.cells.name(self.roster.filter(pl.col("unit").is_not_null()))
            .filter(pl.col("cell").is_not_null())
            .unique("cell", keep="any")
        )
        return dict(named.select("cell", "unit").iter_rows())

    @cached_property
    def cells(self) -> Cells:
        """The study's cells: every combination of its varied keys but the seed."""
        table = self.roster
        if self.chains is not None:  # chains that failed before their first generation have a cell, and ecosystems too
            keys = dict.fromkeys(["chain_id", "seed", *self.varied, *self.baseline])
            unseen = self.chains.join(table, on="chain_id", how="anti")
            unseen = unseen.select(key for key in keys if key in unseen.columns)
            table = pl.concat([table, unseen], how="diagonal_relaxed")
        return Cells.of(table, self.varied, self.baseline, self.study)

    @cached_property
    def criteria_asked(self) -> list[Collapse]:
        """The criteria of the study file: one mapping or a list under ``collapse``.

        Raises:
            UserError: a criterion is not valid.
        """
        asked = self.study.get("collapse") or []
        try:
            return [criterion_from(item) for item in (asked if isinstance(asked, list) else [asked])]
        except ValidationError as error:
            key, wrong = first_mistake(error, CollapseCriterion, {})
            place = ".".join(filter(None, ("collapse", key)))
            raise UserError(f"{self.folder / 'study.yaml'}: {place}: {wrong}") from error

    @cached_property
    def criteria(self) -> list[Collapse]:
        """The collapse criteria, in the order of the tables (of the study file where there is no table).

        Raises:
            UserError: a criterion is not valid.
        """
        tables = [table for table in (self.chains, self.fidelity) if table is not None]
        return criteria_of(tables[0]) if tables else self.criteria_asked

    @cached_property
    def failed(self) -> list[str]:
        """The ids of the chains without a verdict under any criterion."""
        return [] if self.chains is None else failed_chains(self.chains)

    def table(self, name: str, required: tuple[str, ...] = ()) -> pl.DataFrame | None:
        """Any of the study's tables; None where it is missing.

        Raises:
            UserError: it cannot be read, or lacks a column.
        """
        if name not in self._read:
            self._read[name] = read_table(self.folder, name, required=(*_REQUIRED.get(name, ()), *required))
        return self._read[name]

    def batches(self, name: str) -> Iterator[pl.DataFrame]:
        """The rows of a table of texts or pictures, those of a thousand chains at a time.

        Raises:
            UserError: it cannot be read, or lacks a column.
        """
        ids = self.roster["chain_id"]
        for start in range(0, len(ids), _BATCH):
            first, *_, last = (*ids[start : start + _BATCH], *ids[start : start + _BATCH])
            chains = pl.col("chain_id").is_between(pl.lit(first), pl.lit(last))
            table = read_table(self.folder, name, rows=chains, required=_REQUIRED.get(name, ()))
            if table is not None:
                yield table

    def _optional(self, name: str, *, columns: list[str] | None = None, expected: bool = False) -> pl.DataFrame | None:
        """A table; None, and a note, where it cannot be read or is missing though ``expected``."""
        try:
            table = read_table(self.folder, name, columns=columns, required=_REQUIRED.get(name, ()))
        except UserError as error:
            self._problems[name] = f"{error}; {_WHAT_IS_LOST[name]}"
            return None
        if table is None and expected:
            self._problems[name] = f"{_not_found(table_path(self.folder, name))}; {_WHAT_IS_LOST[name]}"
        return table

    def _judged_chains(self) -> pl.DataFrame:
        if not self.criteria_asked:
            raise UserError(f"{self.folder / 'study.yaml'}: collapse: missing; no criterion says what collapse is")
        try:
            return self.terms.chains(self.scanned)
        except (ValueError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{self.folder}: its generations cannot be judged: {error}") from error

    def _judged_fidelity(self) -> pl.DataFrame:
        assert self.chains is not None
        try:
            return self.cells.first(self.terms.fidelity(self.chains))
        except (ValueError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{self.folder}: its chains cannot be judged: {error}") from error

    def _json(self, name: str, lost: str) -> dict[str, Any]:
        try:
            return read_json(self.folder, name)
        except UserError as error:
            self._problems[name] = f"{error}; {lost}"
            return {}


def open_study(folder: Path | str, *, judge: bool = False) -> StudyResults:
    """The results in ``STORAGE/NAME``.

    With ``judge``, missing tables of chains and fidelity intervals are computed from the generations.

    Raises:
        UserError: ``study.yaml`` is missing or cannot be read. A table that cannot be read raises when it is read.
    """
    path = Path(folder) / "study.yaml"
    if not path.is_file():
        raise UserError(f"{path} not found: give the directory of a study, STORAGE/NAME, as `fortifai sweep` makes it")
    study = read_yaml(path, "a study file")
    if not isinstance(study, dict):
        raise UserError(f"{path} is not a study file: a mapping with name, family, vary, … is expected")
    return StudyResults(path.parent, study, path.read_text(encoding="utf-8"), judge=judge)


def _not_found(path: Path) -> str:
    return f"{path} not found: run or resume the sweep first (`fortifai sweep FILE`)"
