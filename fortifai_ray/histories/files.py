"""Histories in files: CSV with any of the usual separators, JSON lines and Parquet; and the CSV of a Weights & Biases
chart, which has a column for each run."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from fortifai_ray.errors import UserError, in_short
from fortifai_ray.files import COMPRESSION, check_fetched, read_text, read_values
from fortifai_ray.histories.source import PLACE, RUN, Columns, said_in, series
from fortifai_ray.results.schema import flatten
from fortifai_ray.results.words import counted
from fortifai_ray.validation import hint

CSV, JSON, PARQUET = (".csv", ".tsv", ".txt"), (".jsonl", ".ndjson", ".json"), (".parquet",)
KINDS = "a .csv, .jsonl or .parquet file"
_SEPARATORS = (",", ";", "\t", "|")
_CHART = " - "  # between a run and a metric in the columns of a chart's CSV


def suffix(path: Path) -> str:
    """The suffix by which a file is read, whatever its case and packing."""
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSION else path
    return plain.suffix.lower()


def read_file(path: Path, asked: Columns) -> pl.DataFrame:
    """The rows of a file, each with its place; CSV as text, which the checks make numbers of.

    Raises:
        UserError: it cannot be read as what its name says, or it is empty.
    """
    kind = suffix(path)
    if kind in CSV:
        table = _read_csv(path)
    elif kind in JSON:
        table = _read_json(path)
    elif kind in PARQUET:
        table = _read_parquet(path)
    else:
        raise UserError(f"{path}: a history is {KINDS}, a TensorBoard or Weights & Biases folder, or mlflow:EXPERIMENT")
    if table.is_empty():
        raise UserError(f"{path}: is empty: it has no row after its header; a row per run and generation is needed")
    return _unfolded(table, asked, str(path))


def _read_csv(path: Path) -> pl.DataFrame:
    text = read_text(path, KINDS).lstrip("\n")
    if not text.strip():
        raise UserError(f"{path}: is empty: a header and a row per run and generation are needed")
    separator = _separator(text)
    header = next(csv.reader(io.StringIO(text), delimiter=separator))
    names = [name.strip() for name in header]
    if repeated := sorted({name for name in names if names.count(name) > 1 and name}):
        raise UserError(f"{path}: the header has the column {repeated[0]} twice; give each its own name")
    try:
        table = pl.read_csv(io.BytesIO(text.encode()), separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        reason = _ragged(text, separator, len(names)) or str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as CSV separated by {separator!r}: {reason}") from error
    table = table.rename(dict(zip(table.columns, [name or f"column {i}" for i, name in enumerate(names)], strict=True)))
    columns = [pl.col(name).str.strip_chars().replace("", None) for name in table.columns]
    table = table.with_columns(columns).with_row_index("\x00row", offset=1)
    one_line_each = text.rstrip("\n").count("\n") == table.height
    place = pl.format("line {}", pl.col("\x00row") + 1) if one_line_each else pl.format("row {}", "\x00row")
    table = table.with_columns(place.alias(PLACE)).drop("\x00row")
    table = table.filter(pl.any_horizontal(pl.exclude(PLACE).is_not_null()))  # empty lines
    return _with_points(table) if separator == ";" else table


def _ragged(text: str, separator: str, columns: int) -> str:
    """Which line has more values than the header has columns; empty where none has."""
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    long = next(
        (f"line {reader.line_num} has {counted(len(row), 'value')}" for row in reader if len(row) > columns), ""
    )
    return long and f"{long}, and the header {counted(columns, 'column')}"


def _separator(text: str) -> str:
    """That which stands in the header most often, outside quotation marks."""
    plain = "".join(text.partition("\n")[0].split('"')[::2])
    return max(_SEPARATORS, key=plain.count)


def _with_points(table: pl.DataFrame) -> pl.DataFrame:
    """Decimal commas, which come with semicolons, as points."""
    number = r"^[-+]?\d+,\d+([eE][-+]?\d+)?$"
    return table.with_columns(
        pl.when(pl.col(name).str.contains(number)).then(pl.col(name).str.replace(",", ".", literal=True))
        .otherwise(pl.col(name)).alias(name)
        for name in table.columns if name != PLACE
    )  # fmt: skip


def _read_json(path: Path) -> pl.DataFrame:
    return _table_of(read_values(path, KINDS), str(path))


def _table_of(values: Iterable[tuple[str, Any]], source: str) -> pl.DataFrame:
    """Mappings with their places as a table, nested keys joined by dots."""
    rows, places = [], []
    for place, value in values:
        if not isinstance(value, dict):
            raise UserError(f"{source}: {place}: a mapping of columns is needed, not {str(value)[:60]!r}")
        rows.append(flatten(value))
        places.append(place)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [series(name, [row.get(name) for row in rows]) for name in names]
    return pl.DataFrame([*columns, pl.Series(PLACE, places, dtype=pl.String)])


def _read_parquet(path: Path) -> pl.DataFrame:
    check_fetched(path)
    try:
        table = pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from error
    return _with_places(table)


def read_frame(history: Any) -> pl.DataFrame:
    """The rows of a history in memory: a Polars or pandas frame, a ``LazyFrame``, or a list of mappings. In a pandas
    frame, NaN is no value, as pandas has it.

    Raises:
        UserError: it is something else, or has no rows.
    """
    if isinstance(history, list | tuple):
        table = _table_of(((f"row {number}", row) for number, row in enumerate(history, 1)), "history")
    elif isinstance(history, pl.DataFrame | pl.LazyFrame):
        table = _with_places(history.lazy().collect())
    elif type(history).__module__.partition(".")[0] == "pandas" and hasattr(history, "columns"):
        try:
            table = _with_places(pl.from_pandas(history.rename(columns=str)))
        except Exception as error:  # of columns that hold anything
            raise UserError(f"history: the pandas frame cannot be read: {in_short(error)}") from error
    else:
        raise UserError(
            f"history: {KINDS}, a folder of runs, mlflow:EXPERIMENT, a Polars or pandas frame or a list of mappings is "
            f"needed, not {type(history).__name__}"
        )
    if table.is_empty():
        raise UserError("history: is empty: a row per run and generation is needed")
    return table


def _with_places(table: pl.DataFrame) -> pl.DataFrame:
    """The table with the places of its rows, fields of structs as columns."""
    for name, dtype in table.schema.items():
        if isinstance(dtype, pl.Struct):
            table = table.unnest(name, separator=".")
    return table.with_columns(pl.format("row {}", pl.int_range(1, pl.len() + 1)).alias(PLACE))


def _unfolded(table: pl.DataFrame, asked: Columns, source: str) -> pl.DataFrame:
    """A chart's table, a column for each run (``RUN - METRIC``), as one row for each run and step.

    The labels are read from the runs' names. Another table stays as it is.
    """
    folded = {name: _of_metric(table.columns, name) for name in asked.metrics if name not in table.columns}
    if not folded or not all(folded.values()):
        return table
    step = asked.step
    if step not in table.columns:
        raise UserError(f"{source}: --step {step}: no such column{hint(step, _plain(table.columns))}")
    runs = dict.fromkeys(run for columns in folded.values() for run in columns)
    parts = []
    for run in runs:
        values = {name: columns[run] for name, columns in folded.items() if run in columns}
        labels = {label: said_in(run, label) for label in asked.labels if label != RUN}
        part = table.select(
            step,
            *(pl.col(column).alias(name) for name, column in values.items()),
            *(pl.lit(value, dtype=pl.String).alias(name) for name, value in labels.items() if value is not None),
            pl.lit(run).alias(RUN),
            (pl.col(PLACE) + f", run {run}").alias(PLACE),
        )
        parts.append(part.filter(pl.any_horizontal(pl.col(list(values)).is_not_null())))
    long = pl.concat(parts, how="diagonal_relaxed")
    for label in (one for one in asked.labels if one not in long.columns):
        raise UserError(
            f"{source}: a column for each run, and no run's name says {label}: name runs as in '{label}=1', or export "
            f"the rows with a column {label} (the first run is {next(iter(runs))!r})"
        )
    return long


def _of_metric(columns: Iterable[str], metric: str) -> dict[str, str]:
    """The columns of a metric by run."""
    end = f"{_CHART}{metric}"
    return {name.removesuffix(end): name for name in columns if name.endswith(end)}


def _plain(columns: Iterable[str]) -> list[str]:
    return [name for name in columns if _CHART not in name and name != PLACE]
