"""The writer of a study's result tables: rows are appended while a sweep runs, and whole tables are left at its end."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from fortifai_ray.files import write_text
from fortifai_ray.results import schema
from fortifai_ray.results.cells import ChainNames, chains_table
from fortifai_ray.results.scan import rows_of_chains, scan_table
from fortifai_ray.statistics.chains import Reference
from fortifai_ray.statistics.judged import Terms
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.validation import dump_yaml

_CHUNK = 1000  # rows that are kept as mappings before they become columns
_SLICE = 32 << 20  # bytes: so much of a table's texts and pictures is in memory at once


class GrowingTable:
    """A table that rows are appended to: columns in memory, then part files beside the table (``results/parts/``).

    A new part file absorbs those before it that are no larger, up to 32 MiB. So N rows make at most log₂ N part files
    and one for every 16 MiB, and each row is written at most log₂ N times. The first flush replaces the table of an
    earlier sweep; what does not fit into memory until then waits in part files that no reader sees. An ``optional``
    table without rows is not written.
    """

    def __init__(self, folder: Path, name: str, columns: Mapping[str, Any], *, optional: bool = False) -> None:
        self._folder, self._name, self._columns, self._optional = folder, name, pl.Schema(columns), optional
        self._rows: list[Mapping[str, Any]] = []
        self._chunks: list[pl.DataFrame] = []
        self._pending = 0  # bytes of both, about
        self._parts: list[_Part] = []
        self._bytes = 0  # written so far
        self._begun = self._kept = False
        schema.remove_parts(folder, f".{name}")  # of a sweep that was killed

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, as mappings; keys that are no columns are left out."""
        for row in rows:
            self._rows.append(row)
            self._pending += sum(len(v) if isinstance(v, str | bytes) else 8 for v in row.values())
        if len(self._rows) >= _CHUNK:
            self._chunk()
        self._make_room()

    def extend(self, table: pl.DataFrame) -> None:
        """Append rows, as a table; columns that it lacks are null."""
        self._chunk()
        if table.schema != self._columns:  # else as it is: a query takes milliseconds, however few the rows
            table = self._in_columns(table)
        self._chunks.append(table)
        self._pending += int(table.estimated_size())
        self._make_room()

    def _in_columns(self, table: pl.DataFrame) -> pl.DataFrame:
        missing = (pl.lit(None).alias(name) for name in self._columns if name not in table.columns)
        return table.with_columns(missing).select(list(self._columns)).cast(self._columns)

    def flush(self) -> bool:
        """Write the rows appended since the last flush; returns whether there were any.

        Raises ``OSError`` where they cannot be written; the next flush tries them again.
        """
        rows = self._latest_rows()
        if not self._begun:
            self._begin(rows)
        elif not rows.is_empty():
            self._write_part(rows)
        return not rows.is_empty()

    def keep(self, table: pl.DataFrame | None = None) -> None:
        """Keep the table of an earlier sweep, or put this one in its place; nothing may have been appended."""
        if table is not None:
            schema.write_table(self._folder, self._name, table)
        self._begun = self._kept = True

    def close(self, order: pl.DataFrame | None = None) -> None:
        """Merge the part files into the table, unless it is optional and has no rows.

        Its rows are sorted by chain, in the order of ``order`` (``chain_id`` and ``place``) or of their ids, and by
        generation. They are read and written some chains at a time.
        """
        if not self.flush() and self._kept:
            return
        chains = rows_of_chains(self._folder, self._name)
        if chains is None:
            return
        schema.write_slices(self._folder, self._name, self._sorted(chains, order))
        schema.remove_parts(self._folder, self._name)
        self._parts = []

    def _sorted(self, chains: pl.DataFrame, order: pl.DataFrame | None) -> Iterator[pl.DataFrame]:
        """The whole table, sorted, in slices of whole ``chains``, each with its number of ``rows``."""
        if order is not None:
            chains = chains.join(order, on="chain_id", how="left")
        by = "chain_id" if order is None else "place"
        before = pl.col("rows").cum_sum() - pl.col("rows")
        size = self._bytes / max(1, chains["rows"].sum())
        chains = chains.sort(by).with_columns(slice=(before * size / _SLICE).floor())
        for part in chains.partition_by("slice") or [chains]:
            chosen = pl.col("chain_id").is_in(part["chain_id"].implode()) if part.height < chains.height else None
            table = schema.read_table(self._folder, self._name, rows=chosen)
            assert table is not None, "it has been flushed"
            if order is not None:
                table = table.join(part.select("chain_id", "place"), on="chain_id", how="left")
            table = table.sort(by, "generation", maintain_order=True)
            yield table.select(list(self._columns))

    def _begin(self, rows: pl.DataFrame) -> None:
        """Replace the table of an earlier sweep, by what no reader saw until now and by ``rows``."""
        schema.remove_parts(self._folder, self._name)
        if self._parts:
            self._publish()
            if not rows.is_empty():
                self._write_part(rows)
        elif self._optional and rows.is_empty():
            schema.table_path(self._folder, self._name).unlink(missing_ok=True)
        else:
            schema.write_table(self._folder, self._name, rows)
            self._written()
        self._begun = True

    def _chunk(self) -> None:
        if self._rows:
            self._chunks.append(pl.DataFrame(self._rows, schema=self._columns, strict=False))
            self._rows = []

    def _latest_rows(self) -> pl.DataFrame:
        self._chunk()
        return schema.latest(pl.concat(self._chunks or [self._columns.to_frame()]), self._name)

    def _make_room(self) -> None:
        """Write what has grown large since the last flush; where the disk is full, the next flush meets it again."""
        if self._pending > _SLICE:
            with suppress(OSError):
                self._write_part(self._latest_rows())

    def _write_part(self, rows: pl.DataFrame) -> None:
        shown = self._name if self._begun else f".{self._name}"
        number, size = (self._parts[-1].number + 1 if self._parts else 0), self._pending
        kept, merged = list(self._parts), []
        while kept and kept[-1].rows <= rows.height and kept[-1].size + size <= _SLICE:
            last = kept.pop()
            merged.append(last.number)
            size += last.size
            rows = schema.latest(pl.concat([schema.read_part(self._folder, shown, last.number), rows]), self._name)
        schema.write_part(self._folder, shown, number, rows)
        self._parts = [*kept, _Part(number, rows.height, size)]
        schema.remove_parts(self._folder, shown, merged)
        self._written()

    def _written(self) -> None:
        """What was appended is on disk."""
        self._bytes += self._pending
        self._chunks, self._pending = [], 0

    def _publish(self) -> None:
        """Make the part files that no reader saw the table, oldest rows first."""
        first, *others = self._parts
        schema.publish_part(self._folder, self._name, first.number, as_table=True)
        for part in others:
            schema.publish_part(self._folder, self._name, part.number)
        self._parts, self._begun = others, True


@dataclass(frozen=True)
class _Part:
    """A part file: its number, its rows, and about how many bytes they take in memory."""

    number: int
    rows: int
    size: int


class ResultsWriter:
    """Writes a study's folder: its file as resolved, and every result table."""

    def __init__(self, study: Study, folder: Path) -> None:
        self._study, self.folder = study, folder
        metrics = list(dict.fromkeys(name for cell in study.member_cells for name in cell.metrics))
        varied = pl.DataFrame(
            [cell.varied for cell in study.member_cells], infer_schema_length=None, strict=False
        ).schema
        types = {name: pl.String if dtype == pl.Null else dtype for name, dtype in varied.items()}
        columns = {k: v or types[k] for k, v in schema.generations_schema(study.varied, metrics).items()}
        self._generations = GrowingTable(folder, "generations", columns)
        self._others = {
            name: GrowingTable(folder, name, schema.table_schema(name), optional=name != "samples")
            for name in ("samples", "pictures", "details")
        }
        (folder / "results").mkdir(parents=True, exist_ok=True)
        write_text(folder / "study.yaml", dump_yaml(study.resolved()))

    def add_generation(
        self,
        row: Mapping[str, Any],
        samples: Iterable[Mapping[str, Any]] = (),
        picture: bytes | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """A generation's row, its sample texts or the picture of its samples, and what no column holds. A later row of
        the same chain and generation replaces an earlier one."""
        of = {"chain_id": row["chain_id"], "generation": row["generation"]}
        self._generations.append([row])
        self._others["samples"].append({**of, **sample} for sample in samples)
        self._others["pictures"].append([{**of, "png": picture}] if picture is not None else [])
        self._others["details"].append([{**of, "details": json.dumps(details, sort_keys=True)}] if details else [])

    def keep(self, generations: pl.DataFrame) -> None:
        """Keep the tables of an earlier sweep, its generations in this form."""
        for table in self._others.values():
            table.keep()
        self._generations.keep(generations)

    def add_rows(self, rows: pl.DataFrame) -> None:
        """The rows of a cohort's chains."""
        self._generations.extend(rows)

    def flush(self) -> bool:
        """Write what came since the last time, at a cost that hardly depends on what came before; returns whether there
        was anything."""
        # The generations last: whoever sees one of them sees its samples, too.
        return any([table.flush() for table in (*self._others.values(), self._generations)])

    def close(
        self, chains: Sequence[Chain], failed: Iterable[str] = (), references: Collection[Reference] = ()
    ) -> pl.LazyFrame:
        """Write every table whole; returns the generations, scanned.

        Args:
            chains: those that the tables are about, in their order: the grid's, or those that a search has chosen.
            failed: ids of chains that failed.
            references: what chains are measured against that have no baseline chain beside them.
        """
        lost = {*failed}
        failed = {one.chain_id for chain in chains if chain.chain_id in lost for one in chain.members}
        roster = chains_table(member for chain in chains for member in chain.members)
        ids = roster["chain_id"] if chains else pl.Series([], dtype=pl.String)
        self._generations.close(pl.DataFrame({"chain_id": ids, "place": pl.int_range(len(ids), eager=True)}))
        for table in self._others.values():
            table.close()
        generations = scan_table(self.folder, "generations")
        assert generations is not None, "it is written even where it is empty"
        settings, study = self._study.settings, self._study
        terms = Terms(settings.collapse, study.baseline, study.varied, study.generations_asked)
        judged = terms.chains(generations, failed=failed, roster=roster if chains else None, references=references)
        schema.write_table(self.folder, "chains", judged)
        schema.write_table(self.folder, "fidelity", ChainNames(study).cells.first(terms.fidelity(judged)))
        return generations

    def write_points(self, points: pl.DataFrame) -> None:
        """Write ``collapse_points.parquet``, unless the search has none."""
        if not points.is_empty():
            schema.write_table(self.folder, "collapse_points", points)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write ``results/NAME.json`` (:func:`fortifai_ray.results.schema.read_json`)."""
        write_text(self.folder / "results" / f"{name}.json", json.dumps(content, indent=1))
