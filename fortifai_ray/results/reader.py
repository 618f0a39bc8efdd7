"""Reads a study's directory: what must be there, what may be missing, and a note on whatever is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from pydantic import ValidationError

from fortifai_ray.claims.result import ClaimResult
from fortifai_ray.report.criteria import CRITERION, criteria_asked, criteria_of
from fortifai_ray.report.errors import ReportError
from fortifai_ray.results.cells import BASELINE, Cells, varied_keys
from fortifai_ray.statistics import CollapseCriterion, with_chance

# The columns that make a criterion, and what the fidelity table is read by; without them a table is no use here.
_REQUIRED = {
    "generations": {"chain_id", "generation", "seed"},
    "chains": {*CRITERION, "chain_id", "seed", "limit", "status", "fi_generations", "fi_synthetic"},
    "fidelity": {
        *CRITERION,
        "unit",
        "n_chains",
        "n_censored",
        "fi_median",
        "fi_mean",
        "fi_ratio",
        "seed_ratios",
        "bound",
    },
    "samples": {"chain_id", "generation", "row", "prompt_text", "generated_text"},
    "pictures": {"chain_id", "generation", "png"},
}
PICTURES = "pictures.parquet"
_WHAT_IS_LOST = {
    "chains": "onsets are not shown",
    "fidelity": "fidelity intervals and ratios are not shown",
    "samples": "sample texts are not shown",
    "pictures": "pictures of samples are not shown",
}
_ONLY_SOME_HAVE = ("samples", "pictures", "claims")  # that these are missing is no news, unless something says so


@dataclass(frozen=True)
class Results:
    """One study as its directory tells it; ``notes`` says what was missing or unreadable.

    ``pictures`` says which there are, without the pictures themselves: they may be thousands. ``points`` and
    ``searched`` are what a search left. Its fidelity table is not read: a search places one chain here and one there,
    and no value has the seeds for an interval.
    """

    directory: Path
    study: dict[str, Any]
    study_text: str
    generations: pl.DataFrame
    chains: pl.DataFrame | None
    fidelity: pl.DataFrame | None
    samples: pl.DataFrame | None
    pictures: pl.DataFrame | None
    claims: list[ClaimResult] | None
    summary: dict[str, Any]
    points: pl.DataFrame | None = None
    searched: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.study.get("name") or self.directory.name)

    @property
    def baseline(self) -> dict[str, Any]:
        """The dotted keys that make a chain a baseline chain: cross entropy where the study names none."""
        baseline = self.study.get("baseline")
        return dict(baseline) if isinstance(baseline, dict) else BASELINE

    @property
    def search(self) -> dict[str, Any]:
        """The study's search as the study file has it; empty where the study is a grid."""
        search = self.study.get("search")
        return search if isinstance(search, dict) else {}

    @property
    def searched_keys(self) -> list[str]:
        """The keys that the search sets."""
        over = self.search.get("over")
        return list(over) if isinstance(over, dict) else [over] if over else []

    @property
    def varied(self) -> list[str]:
        """The keys that make a cell."""
        return list(self.cells.keys)

    @property
    def unit(self) -> str:
        """What the synthetic sizes count: tokens or samples (both, where a study's families differ)."""
        units = sorted(set(self.units.values()))
        return " or ".join(units) or "units"

    @cached_property
    def units(self) -> dict[str, str]:
        """What the synthetic sizes of each cell count."""
        if "unit" not in self.generations.columns:
            return {}
        table = self.generations.filter(pl.col("unit").is_not_null()).unique("chain_id", keep="any")
        named = self.cells.name(table).filter(pl.col("cell").is_not_null()).unique("cell", keep="any")
        return dict(named.select("cell", "unit").iter_rows())

    @cached_property
    def cells(self) -> Cells:
        """The study's cells: every combination of its varied keys but the seed."""
        tables = [table for table in (self.fidelity, self.chains) if table is not None]
        vary = self.study.get("vary")
        asked = list(vary) if isinstance(vary, dict) else []
        keys = varied_keys(tables[0] if tables else self.generations, asked)
        keys = tuple(key for key in keys if key in self.generations.columns and key not in self.searched_keys)
        table = self.generations
        if self.chains is not None:  # chains that failed before their first generation have a cell, too
            unseen = self.chains.join(table, on="chain_id", how="anti").select("chain_id", "seed", *keys)
            table = pl.concat([table, unseen], how="diagonal_relaxed")
        return Cells.of(table, keys, self.baseline, self.study)

    @cached_property
    def criteria(self) -> list[CollapseCriterion]:
        """The collapse criteria, in the order of the tables (of the study file where there is no table).

        Raises:
            ReportError: a criterion there is none.
        """
        tables = [table for table in (self.chains, self.fidelity) if table is not None]
        try:
            return criteria_of(tables[0]) if tables else criteria_asked(self.study)
        except ValidationError as error:
            raise ReportError(f"{self.directory}: no valid collapse criterion: {error.errors()[0]['msg']}") from error


def load_results(study_dir: Path) -> Results:
    """Read ``STORAGE/NAME``.

    Raises:
        ReportError: ``study.yaml`` or ``results/generations.parquet`` is missing or cannot be read.
    """
    directory = Path(study_dir)
    text, study = _read_study(directory / "study.yaml")
    notes: list[str] = []
    generations = _read_table(directory / "results" / "generations.parquet", "generations")
    if generations.is_empty():
        notes.append("no generation has been completed: there is nothing to draw yet")
    language = generations["family"].eq("language").any() if "family" in generations.columns else False
    optional: dict[str, Any] = {}
    for name, lost in _WHAT_IS_LOST.items():
        try:
            columns = ["chain_id", "generation"] if name == "pictures" else None
            optional[name] = _read_table(directory / "results" / f"{name}.parquet", name, columns)
        except ReportError as error:
            optional[name] = None
            expected = name not in _ONLY_SOME_HAVE or (name == "samples" and language)
            if expected or "not found" not in str(error):
                notes.append(f"{error}; {lost}")
    for name in ("chains", "fidelity"):
        table = optional[name]
        optional[name] = None if table is None else with_chance(table)
    claims = _read_claims(directory, study, notes)
    summary = _read_summary(directory / "results" / "summary.json", notes)
    searched: dict[str, Any] = {}
    if study.get("search"):
        optional["fidelity"] = None
        searched = _read_searched(directory / "results", notes)
    return Results(
        directory, study, text, generations, **optional, claims=claims, summary=summary, notes=notes, **searched
    )


def _read_searched(folder: Path, notes: list[str]) -> dict[str, Any]:
    """What a search left; a search that has not ended may have left nothing yet."""
    found: dict[str, Any] = {}
    path = folder / "collapse_points.parquet"
    try:
        found["points"] = pl.read_parquet(path, glob=False) if path.is_file() else None
        found["searched"] = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        notes.append(f"what the search found cannot be read ({error}); run or resume the sweep")
    return found


def _read_study(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.is_file():
        raise ReportError(
            f"{path} not found: give the directory of a study, STORAGE/NAME, as `fortifai sweep` makes it"
        )
    try:
        text = path.read_text(encoding="utf-8")
        study = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReportError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(study, dict):
        raise ReportError(f"{path} is not a study file: a mapping with name, family, vary, … is expected")
    return text, study


def _read_table(path: Path, name: str, columns: list[str] | None = None) -> pl.DataFrame:
    """All of a table, or some ``columns`` of it."""
    if not path.is_file():
        raise ReportError(f"{path} not found: run or resume the sweep first (`fortifai sweep FILE`)")
    try:
        lazy = pl.scan_parquet(path, glob=False)  # a study's name may hold [ or *
        missing = sorted(_REQUIRED[name] - set(lazy.collect_schema()))
        if missing:
            raise ReportError(f"{path} lacks the columns {', '.join(missing)}")
        return (lazy.select(columns) if columns else lazy).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ReportError(f"{path} cannot be read as Parquet: {error}") from error


def _read_claims(directory: Path, study: Mapping[str, Any], notes: list[str]) -> list[ClaimResult] | None:
    """The claims as they were last checked; None where they never were."""
    path = directory / "results" / "claims.parquet"
    names = [item.name for item in fields(ClaimResult)]
    if not path.is_file():
        if study.get("claims"):
            notes.append(f"claims have not been checked: `fortifai claims {directory}` does")
        return None
    try:
        rows = pl.read_parquet(path, columns=names, glob=False).rows(named=True)
    except (OSError, pl.exceptions.PolarsError) as error:
        notes.append(f"{path} cannot be read ({error}); claims are not shown")
        return None
    return [ClaimResult(**row) for row in rows]


def _read_summary(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{path} not found; time, overhead and failures are not shown")
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path} cannot be read ({error}); time, overhead and failures are not shown")
        return {}
    return summary if isinstance(summary, dict) else {}
