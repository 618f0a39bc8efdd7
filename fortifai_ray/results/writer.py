"""The result tables of a study, as Parquet in ``STORAGE/NAME/results/``."""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from fortifai_ray.files import write_text
from fortifai_ray.results.schema import generations_schema, table_schema, write_table
from fortifai_ray.statistics import Reference, chain_table, fidelity_table
from fortifai_ray.storage.mirror import StudyMirror
from fortifai_ray.study.study import Chain, Study

_PUSH_SECONDS = 10.0  # between two uploads of the tables while a sweep runs


class StudyResults:
    """The rows of a study as they come in, and the tables made of them. A generation told twice is kept once.

    ``chains`` are those that the tables are about, by id: the grid's, or those that a search has chosen so far.
    """

    def __init__(self, study: Study, folder: Path, mirror: StudyMirror | None = None) -> None:
        self._study = study
        self.folder = folder
        self._mirror = mirror
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        self._cohorts: dict[str, pl.DataFrame] = {}
        self._samples: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self._pictures: dict[tuple[str, int], bytes] = {}
        self._details: dict[tuple[str, int], str] = {}
        self.failed: dict[str, str] = {}
        self.chains = {} if study.settings.search else {chain.chain_id: chain for chain in study.chains}
        self._references: dict[Reference, None] = {}
        self._table: pl.DataFrame | None = None
        (folder / "results").mkdir(parents=True, exist_ok=True)
        write_text(folder / "study.yaml", yaml.safe_dump(study.resolved(), sort_keys=False, allow_unicode=True))

    @cached_property
    def metrics(self) -> list[str]:
        """What the study's families measure, each once."""
        return list(dict.fromkeys(name for chain in self._study.cells for name in chain.recipe.metrics))

    def add(
        self,
        row: Mapping[str, Any],
        samples: Iterable[Mapping[str, Any]],
        picture: bytes | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """A generation's row, its sample texts or the picture of its samples, and what no column holds."""
        key = (row["chain_id"], row["generation"])
        self._rows[key], self._table = dict(row), None
        self._samples[key] = [{"chain_id": key[0], "generation": key[1], **sample} for sample in samples]
        if picture is not None:
            self._pictures[key] = picture
        if details:
            self._details[key] = json.dumps(details)

    def add_cohort(self, cohort_id: str, rows: pl.DataFrame) -> None:
        """The rows of a cohort's chains."""
        self._cohorts[cohort_id], self._table = rows, None

    def add_chain(self, chain: Chain) -> None:
        """A chain that a search has chosen."""
        self.chains.setdefault(chain.chain_id, chain)

    def add_references(self, references: Iterable[Reference]) -> None:
        """What chains are measured against that have no baseline chain beside them."""
        self._references |= dict.fromkeys(map(tuple, references))  # type: ignore[arg-type]

    def generations(self) -> pl.DataFrame:
        """A row per chain and generation, in the order of the grid."""
        if self._table is None:
            self._table = self._generations()
        return self._table

    def _generations(self) -> pl.DataFrame:
        schema = generations_schema(self._study.varied, self.metrics)
        types = {name: dtype for name, dtype in schema.items() if dtype is not None}
        parts = [rows.cast({k: v for k, v in types.items() if k in rows.columns}) for rows in self._cohorts.values()]
        if self._rows:
            rows = list(self._rows.values())
            parts.append(pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None, strict=False))
        if not parts:
            parts = [pl.DataFrame(schema={name: dtype or pl.String for name, dtype in schema.items()})]
        table = pl.concat(parts, how="diagonal_relaxed")
        table = table.with_columns(
            pl.lit(None, dtype or pl.String).alias(name) for name, dtype in schema.items() if name not in table.columns
        )
        ids = list(self.chains)
        order = pl.DataFrame({"chain_id": ids, "_order": range(len(ids))}, schema_overrides={"chain_id": pl.String})
        return table.join(order, on="chain_id", how="left").sort("_order", "generation").select(list(schema))

    def write_generations(self) -> None:
        """Write what came in so far, so that a sweep that is killed leaves a table of what it finished."""
        write_table(self.folder, "generations", self.generations())
        samples = [sample for key in sorted(self._samples) for sample in self._samples[key]]
        write_table(self.folder, "samples", pl.DataFrame(samples, schema=table_schema("samples")))
        self._write_extra("pictures", self._pictures)
        self._write_extra("details", self._details)
        if self._mirror is not None:
            self._mirror.push(at_most_every=_PUSH_SECONDS)

    def _write_extra(self, name: str, values: Mapping[tuple[str, int], Any]) -> None:
        """A table that only some families have: a row per chain and generation."""
        if values:
            rows = [(*key, value) for key, value in sorted(values.items())]
            write_table(self.folder, name, pl.DataFrame(rows, schema=table_schema(name), orient="row"))

    def write(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Write every table; returns (chains, fidelity)."""
        self.write_generations()
        settings, study = self._study.settings, self._study
        chains = chain_table(
            self.generations(),
            settings.collapse,
            settings.baseline,
            study.varied,
            study.generations_asked,
            failed=set(self.failed),
            roster=self._roster(),
            references=self._references,
        )
        fidelity = fidelity_table(chains, study.varied, settings.baseline)
        write_table(self.folder, "chains", chains)
        write_table(self.folder, "fidelity", fidelity)
        return chains, fidelity

    def write_search(self, points: pl.DataFrame, state: Mapping[str, Any]) -> None:
        """Write what a search found: ``results/collapse_points.parquet``, and how it went, ``results/search.json``."""
        if not points.is_empty():
            write_table(self.folder, "collapse_points", points)
        write_text(self.folder / "results" / "search.json", json.dumps(state, indent=1))

    def read_search(self) -> dict[str, Any]:
        """How the last run of this study's search went; empty where there was none."""
        return self._read_json("search.json") or {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``results/summary.json``: how the sweep ran, as against what it found."""
        write_text(self.folder / "results" / "summary.json", json.dumps(summary, indent=1))

    def read_summary(self) -> dict[str, Any] | None:
        """The summary that the last run of this study left, if any."""
        return self._read_json("summary.json")

    def _read_json(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads((self.folder / "results" / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _roster(self) -> pl.DataFrame | None:
        rows = [
            {"chain_id": chain.chain_id, "seed": chain.recipe.seed, "loss.kind": chain.recipe.loss.kind, **chain.varied}
            for chain in self.chains.values()
        ]
        if not rows:
            return None
        return pl.DataFrame(rows, infer_schema_length=None, strict=False)
