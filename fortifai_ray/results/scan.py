"""Tables of millions of rows, queried where they lie: of a single file, no more is in memory than a query needs."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from fortifai_ray.results.schema import part_paths, read_table, scan, table_path


def scan_table(folder: Path, name: str, required: Iterable[str] = ()) -> pl.LazyFrame | None:
    """As :func:`~fortifai_ray.results.schema.read_table`, to be queried; while a sweep adds part files, the whole is
    read. A query may raise what Polars does."""
    path = table_path(folder, name)
    if part_paths(folder, name) or not path.is_file():
        table = read_table(folder, name, required=required)
        return None if table is None else table.lazy()
    return scan(path, None, None, {*required})


def collected(query: pl.LazyFrame) -> pl.DataFrame:
    """The result of a query, batch by batch; in the order of the table where the query keeps that."""
    return query.collect(engine="streaming")


def rows_of_chains(folder: Path, name: str) -> pl.DataFrame | None:
    """``chain_id`` and ``rows``, their number in all files of a table; None where there is no file."""
    paths = [path for path in (table_path(folder, name), *part_paths(folder, name)) if path.is_file()]
    if not paths:
        return None
    ids = pl.concat([pl.scan_parquet(path, glob=False).select("chain_id") for path in paths])
    return collected(ids.group_by("chain_id").agg(rows=pl.len()))
