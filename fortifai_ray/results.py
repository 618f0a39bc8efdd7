"""The result tables of a study, as Parquet in ``STORAGE/NAME/results/``."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from fortifai_ray.families.language.family import METRICS
from fortifai_ray.fidelity import chain_table, fidelity_table
from fortifai_ray.study import Study

_GENERATION_SCHEMA: dict[str, type[pl.DataType]] = {
    "chain_id": pl.String,
    "generation": pl.Int64,
    "family": pl.String,
    "loss": pl.String,
    "gamma": pl.Float64,
    "regime": pl.String,
    "seed": pl.Int64,
    "synthetic_ratio": pl.Float64,
    "synthetic_ratio_realised": pl.Float64,
    "unit": pl.String,
    "human_size": pl.Int64,
    "synthetic_size": pl.Int64,
    "synthetic_size_cum": pl.Int64,
    **dict.fromkeys(METRICS, pl.Float64),
    "train_seconds": pl.Float64,
    "generate_seconds": pl.Float64,
    "evaluate_seconds": pl.Float64,
    "reused": pl.Boolean,
    "computed_seconds": pl.Float64,
    "world_size": pl.Int64,
    "collapse_reason": pl.String,
    "stage": pl.String,
}

_SAMPLE_SCHEMA: dict[str, type[pl.DataType]] = {
    "chain_id": pl.String,
    "generation": pl.Int64,
    "row": pl.Int64,
    "prompt_text": pl.String,
    "generated_text": pl.String,
}


class StudyResults:
    """The rows of a study as they come in, and the tables made of them. A generation told twice is kept once."""

    def __init__(self, study: Study, folder: Path) -> None:
        self._study = study
        self.folder = folder
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        self._samples: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self.failed: dict[str, str] = {}
        (folder / "results").mkdir(parents=True, exist_ok=True)
        _write_text(folder / "study.yaml", yaml.safe_dump(study.resolved(), sort_keys=False, allow_unicode=True))

    def add(self, row: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> None:
        """A generation's row and its sample texts."""
        key = (row["chain_id"], row["generation"])
        self._rows[key] = dict(row)
        self._samples[key] = [{"chain_id": key[0], "generation": key[1], **sample} for sample in samples]

    def generations(self) -> pl.DataFrame:
        """A row per chain and generation, in the order of the grid."""
        order = {chain.chain_id: index for index, chain in enumerate(self._study.chains)}
        rows = [self._rows[key] for key in sorted(self._rows, key=lambda key: (order[key[0]], key[1]))]
        varied = [key for key in self._study.varied if key not in _GENERATION_SCHEMA]
        table = pl.DataFrame(rows, schema_overrides=_GENERATION_SCHEMA, infer_schema_length=None, strict=False)
        if table.is_empty():
            table = pl.DataFrame(schema={**_GENERATION_SCHEMA, **dict.fromkeys(varied, pl.String)})
        names = list(_GENERATION_SCHEMA)
        place = names.index("synthetic_ratio")
        return table.select(*names[:place], *varied, *names[place:])

    def write_generations(self) -> None:
        """Write what came in so far, so that a sweep that is killed leaves a table of what it finished."""
        _write_table(self.generations(), self.folder / "results" / "generations.parquet")
        samples = [sample for key in sorted(self._samples) for sample in self._samples[key]]
        _write_table(pl.DataFrame(samples, schema=_SAMPLE_SCHEMA), self.folder / "results" / "samples.parquet")

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
        )
        fidelity = fidelity_table(chains, study.varied, settings.baseline)
        _write_table(chains, self.folder / "results" / "chains.parquet")
        _write_table(fidelity, self.folder / "results" / "fidelity.parquet")
        return chains, fidelity

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``results/summary.json``: how the sweep ran, as against what it found."""
        _write_text(self.folder / "results" / "summary.json", json.dumps(summary, indent=1))

    def read_summary(self) -> dict[str, Any] | None:
        """The summary that the last run of this study left, if any."""
        try:
            summary = json.loads((self.folder / "results" / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return summary if isinstance(summary, dict) else None

    def _roster(self) -> pl.DataFrame:
        rows = [
            {"chain_id": chain.chain_id, "seed": chain.recipe.seed, "loss.kind": chain.recipe.loss.kind, **chain.varied}
            for chain in self._study.chains
        ]
        return pl.DataFrame(rows, infer_schema_length=None, strict=False)


def _write_table(table: pl.DataFrame, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    table.write_parquet(partial)
    partial.replace(path)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
