"""The contract of a study's result tables: their columns, their version, and the only functions that open them.

One name per key: a key of the recipe is a column named by its dotted path (``loss.gamma``), null where the recipe has
none; plain names are for what is no key of the recipe. A table is ``STORAGE/NAME/results/NAME.parquet``; while a sweep
runs, the rows added since are part files beside it, ``results/parts/NAME-NNNNNN.parquet``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fortifai_ray import files, metrics
from fortifai_ray.errors import UserError

if TYPE_CHECKING:
    import polars as pl

VERSION = 3  # bump when a column gets another name or meaning: older tables are refused
_VERSION_KEY = "fortifai.table_version"
_METRICS_KEY = "fortifai.metrics"  # the declarations of the columns that are metrics: a reader may lack their family

LINEAGE = "lineage"  # of an ecosystem; null in a chain of one model
WHOLES = (FIRST, LAST) = "first to collapse", "last to collapse"  # in its place: of an ecosystem as a whole
# generations.parquet, in the order of its columns; the varied keys follow the recipe's, the metrics follow the sizes.
_IDENTITY = {"chain_id": "String", "generation": "Int64", "seed": "Int64"}
_RECIPE = {
    "family.kind": "String",
    "loss.kind": "String",
    "loss.gamma": "Float64",
    "regime.kind": "String",
    "regime.synthetic_ratio": "Float64",
}
_SIZES = {
    "synthetic_ratio_realised": "Float64",
    "unit": "String",
    "human_size": "Int64",
    "synthetic_size": "Int64",
    "synthetic_size_cum": "Int64",
}
_RUN = {
    LINEAGE: "String",  # among the varied keys where a study has ecosystems
    "train_seconds": "Float64",
    "generate_seconds": "Float64",
    "evaluate_seconds": "Float64",
    "reused": "Boolean",
    "computed_seconds": "Float64",
    "world_size": "Int64",
    "ended": "String",
    "collapse_reason": "String",
    "stage": "String",
    "synthetic_stage": "String",
}
RECIPE_COLUMNS = tuple(_RECIPE)
FiUnit = Literal["generations", "synthetic", "synthetic_now"]
FI_UNITS: tuple[FiUnit, ...] = get_args(FiUnit)
"""What a fidelity interval is counted in: generations, synthetic tokens or samples consumed over all training sets up
to the onset, or those in the training set at the onset. ``chains.parquet`` has a column ``fi_UNIT`` for each."""
SECONDS = ("train_seconds", "generate_seconds", "evaluate_seconds")  # useful: first batch to last, nothing else
# Numbers of a generation that are not metrics of its model; claims may be about them too.
MEASURED_COLUMNS = (*(name for name in _SIZES if name != "unit"), *SECONDS)

_GENERATION = {"chain_id": "String", "generation": "Int64"}
_OTHERS = {
    "samples": {**_GENERATION, "row": "Int64", "prompt_text": "String", "generated_text": "String"},
    "pictures": {**_GENERATION, "png": "Binary"},
    "details": {**_GENERATION, "details": "String"},  # JSON: counts, reasons, histograms, provenance of benchmarks
}
# What names a collapse criterion in a table; null where it has none: compare as ``eq_missing`` does. A criterion that
# is outside [a, b] has a as its ``threshold`` and b as its ``threshold_high``. Any of several criteria as one is
# ``any_of`` alone: a JSON list of them, with the keys of the study file. A table without such criteria may lack these
# two columns.
_TWO_SIDED_AND_COMBINED = {"threshold_high": "Float64", "any_of": "String"}
_CRITERION = {
    "metric": "String",
    "threshold": "Float64",
    "relative_to": "String",
    "direction": "String",
    "confirm": "Int64",
    "chance": "Float64",
    **_TWO_SIDED_AND_COMBINED,
}
CRITERION_COLUMNS = tuple(_CRITERION)
_OTHERS["collapse_points"] = {  # after the keys of its cell
    **_CRITERION,
    "over": "String",
    **dict.fromkeys(("critical", "low", "high", "level"), "Float64"),
    "bound": "String",
    **dict.fromkeys(("chains_run", "generations_run", "seeds_used"), "Int64"),
    **dict.fromkeys(("ended", "evidence"), "String"),
    "audit_width": "Float64",
}
# The key of a table that grows while a sweep runs: a later row with the same key replaces an earlier one.
_KEYS = {name: ["chain_id", "generation"] for name in ("generations", "pictures", "details")}
_KEYS["samples"] = ["chain_id", "generation", "row"]


def generations_schema(varied: Iterable[str], metrics: Iterable[str]) -> dict[str, Any]:
    """The columns of ``generations.parquet`` in their order; None for the type of a varied key, which its values give.

    Args:
        varied: the study's varied keys (:func:`varied_keys`); the seed may be among them.
        metrics: the names of what its families measure.
    """
    head = {**_IDENTITY, **_RECIPE}
    keys = {key: None for key in varied if key not in head}
    return {**_types(head), **keys, **_types({**_SIZES, **dict.fromkeys(metrics, "Float64"), **_RUN})}


def table_schema(name: str) -> dict[str, Any]:
    """The columns of ``samples``, ``pictures``, ``details`` or ``collapse_points``, in their order."""
    return _types(_OTHERS[name])


def with_criterion_columns(table: pl.DataFrame) -> pl.DataFrame:
    """A table of rows under criteria with all of :data:`CRITERION_COLUMNS`: those that it may lack are null there."""
    import polars as pl

    lacking = {name: dtype for name, dtype in _TWO_SIDED_AND_COMBINED.items() if name not in table.columns}
    return table.with_columns(pl.lit(None, dtype=dtype).alias(name) for name, dtype in _types(lacking).items())


def metric_columns(columns: Iterable[str], varied: Iterable[str] = ()) -> list[str]:
    """The columns of ``generations.parquet`` that are metrics."""
    known = {*_IDENTITY, *_SIZES, *_RUN, *varied}
    return [name for name in columns if name not in known and "." not in name]


def varied_keys(study: Mapping[str, Any]) -> list[str]:
    """The keys that a study varies, as they are called in its tables.

    They are the dotted leaves of ``vary`` (a section as a value varies each key in it) and the keys that a search sets:
    those it searches, the seed and, where it optimises a ratio to the baseline, the baseline's. A study of ecosystems
    has the lineage beside them.

    Args:
        study: a study file's content, resolved; ``vary`` may hold ranges.
    """
    keys: dict[str, None] = {}
    for key, values in (study.get("vary") or {}).items():
        for value in values if isinstance(values, list) else [None]:
            keys |= dict.fromkeys(flatten({key: value}))
        if key in ("ecosystem", "ecosystem.lineages"):  # a lineage without keys of its own has no leaf
            keys["ecosystem.order"] = None
    if search := study.get("search"):
        known = study.get("baseline") or {} if search.get("kind") == "optimise" else {}
        keys |= dict.fromkeys([*known, *searched_keys(study), "seed"])
    if study.get("ecosystem") or any(key.partition(".")[0] == "ecosystem" for key in study.get("vary") or {}):
        keys[LINEAGE] = None
    return list(keys)


def baseline_columns(baseline: Any, varied: Iterable[str]) -> dict[str, Any]:
    """A study's baseline as its tables have it: of a key whose value is a section, the columns below it, and of a list
    its text. Cross entropy where the study names none.

    Args:
        varied: the study's :func:`varied_keys`.
    """
    if not isinstance(baseline, Mapping):
        return {"loss.kind": "cross_entropy"}
    known, found = {*_RECIPE, *varied}, dict[str, Any]()
    for key, value in baseline.items():
        leaves = flatten({key: value})
        found |= {one: as_text(leaf) for one, leaf in leaves.items() if one in known} or leaves
    return found


def as_text(value: Any) -> Any:
    """A list of a recipe as its column has it: a column has values of one type."""
    return json.dumps(value) if isinstance(value, list) else value


def searched_keys(study: Mapping[str, Any]) -> list[str]:
    """The keys whose values a study's search sets; none where it runs a grid."""
    over = (study.get("search") or {}).get("over") or []
    return [over] if isinstance(over, str) else list(over)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def equals(column: str, dtype: pl.DataType, value: Any) -> pl.Expr:
    """An expression: whether a column has a value of the recipe; never null, False where the types cannot be equal.

    A key that varies over numbers and words is kept as text, and equals a number by the number's text.
    """
    import polars as pl

    if value is None:
        return pl.col(column).is_null()
    if isinstance(value, bool):
        comparable = dtype == pl.Boolean
    elif isinstance(value, str):
        comparable = dtype in (pl.String, pl.Categorical, pl.Enum)
    else:
        comparable = dtype.is_numeric()
        if dtype == pl.String:
            comparable, value = True, str(value)
    return pl.col(column).eq_missing(pl.lit(value)) if comparable else pl.lit(False)


def has(columns: Mapping[str, pl.DataType], key: str, value: Any) -> pl.Expr | None:
    """As :func:`equals`, of a key of a table's ``columns``; None where they have none.

    A key has no value where none below it has one either: ``regime.weights`` is null where ``regime.weights.human`` is.
    """
    import polars as pl

    below = [column for column in columns if value is None and column.startswith(f"{key}.")]
    found = [equals(one, columns[one], value) for one in (key, *below) if one in columns]
    return pl.all_horizontal(found) if found else None


def lacks(flat: Mapping[str, Any], key: str) -> bool:
    """Whether a flat recipe has no value at a dotted key, nor below it."""
    return all(value is None for one, value in flat.items() if one == key or one.startswith(f"{key}."))


def same(value: Any, wanted: Any) -> bool:
    """Whether a value of a recipe is the one wanted; ``True`` is not 1."""
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def table_path(folder: Path, name: str) -> Path:
    """Where a study's table lies; ``folder`` is ``STORAGE/NAME``."""
    return Path(folder) / "results" / f"{name}.parquet"


def part_paths(folder: Path, name: str) -> list[Path]:
    """The part files of a table, oldest first."""
    return sorted((Path(folder) / "results" / "parts").glob(f"{name}-*.parquet"))


def _part_path(folder: Path, name: str, number: int) -> Path:
    return Path(folder) / "results" / "parts" / f"{name}-{number:06d}.parquet"


def write_table(folder: Path, name: str, table: pl.DataFrame) -> Path:
    """Write a study's table whole, with the version of this contract; returns its path."""
    return _write(table_path(folder, name), table)


def write_part(folder: Path, name: str, number: int, rows: pl.DataFrame) -> Path:
    """Write rows added to a table as its part file ``number``; returns its path."""
    return _write(_part_path(folder, name, number), rows)


def write_slices(folder: Path, name: str, slices: Iterable[pl.DataFrame]) -> Path:
    """As :func:`write_table`, from slices of the table in their order, of which one is in memory at a time."""
    path = table_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_slices(path, slices, _metadata)
    return path


def publish_part(folder: Path, name: str, number: int, *, as_table: bool = False) -> None:
    """Show readers a part file that was written under a name that begins with a dot; ``as_table``: as the table."""
    shown = table_path(folder, name) if as_table else _part_path(folder, name, number)
    _part_path(folder, f".{name}", number).replace(shown)


def read_part(folder: Path, name: str, number: int) -> pl.DataFrame:
    """The rows of one part file of a table."""
    return _read(_part_path(folder, name, number), name, None, None, set())


def remove_parts(folder: Path, name: str, numbers: Iterable[int] | None = None) -> None:
    """Remove part files of a table, all of them where no numbers are given."""
    paths = part_paths(folder, name) if numbers is None else [_part_path(folder, name, one) for one in numbers]
    for path in paths:
        path.unlink(missing_ok=True)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The content of ``results/NAME.json``: ``summary``, how the sweep ran; ``search``, how the search went.

    Raises:
        UserError: it is missing, cannot be read, or holds no mapping.
    """
    path = Path(folder) / "results" / f"{name}.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error


def latest(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    """The rows of a table that no later row of the same key replaces."""
    return rows.unique(_KEYS[name], keep="last", maintain_order=True)


def read_table(
    folder: Path,
    name: str,
    *,
    columns: Sequence[str] | None = None,
    rows: pl.Expr | None = None,
    required: Iterable[str] = (),
) -> pl.DataFrame | None:
    """A study's table with its part files merged into it; None where there is neither.

    Args:
        folder: ``STORAGE/NAME``.
        columns: read only these.
        rows: read only the rows for which this is true.
        required: columns that must be there.

    Raises:
        UserError: a file of it was written under another version of this contract, cannot be read, or lacks a column.
    """
    needed = {*required, *(columns or ())}
    for attempt in range(3):
        paths = [path for path in (table_path(folder, name), *part_paths(folder, name)) if path.is_file()]
        try:
            return _merged([_read(path, name, columns, rows, needed) for path in paths], name, columns)
        except FileNotFoundError:  # the sweep has merged a part file into the table since
            if attempt == 2:
                raise
    return None


def _merged(tables: list[pl.DataFrame], name: str, columns: Sequence[str] | None) -> pl.DataFrame | None:
    import polars as pl

    if not tables:
        return None
    table = latest(pl.concat(tables, how="diagonal_relaxed"), name) if len(tables) > 1 else tables[0]
    return table if columns is None else table.select(columns)


def _read(path: Path, name: str, columns: Sequence[str] | None, rows: pl.Expr | None, needed: set[str]) -> pl.DataFrame:
    import polars as pl

    keys = None if columns is None else list(dict.fromkeys([*_KEYS.get(name, ()), *columns]))
    try:
        return scan(path, keys, rows, needed).collect()
    except FileNotFoundError:
        raise
    except (OSError, pl.exceptions.PolarsError) as error:
        raise damaged(path, error) from error


def scan(path: Path, columns: Sequence[str] | None, rows: pl.Expr | None, needed: set[str]) -> pl.LazyFrame:
    """One file of a table, to be queried; arguments and errors as :func:`read_table` has them."""
    import polars as pl

    try:
        metadata = pl.read_parquet_metadata(path)
        if metadata.get(_VERSION_KEY) != str(VERSION):
            raise UserError(
                f"{path} was written by an older version (its columns have other names): sweep the study again; "
                "nothing is recomputed"
            )
        metrics.from_json(metadata.get(_METRICS_KEY, "[]"), str(path))
        lazy = pl.scan_parquet(path, glob=False)  # a folder's name may hold [ or *
        there = set(lazy.collect_schema())
        if missing := sorted(needed - there - _TWO_SIDED_AND_COMBINED.keys()):
            raise UserError(f"{path} lacks the columns {', '.join(missing)}: sweep the study again")
        lacking = {column: dtype for column, dtype in _TWO_SIDED_AND_COMBINED.items() if column in needed - there}
        lazy = lazy.with_columns(pl.lit(None, dtype=dtype).alias(column) for column, dtype in _types(lacking).items())
        lazy = lazy if rows is None else lazy.filter(rows)
        return lazy if columns is None else lazy.select(columns)
    except FileNotFoundError:
        raise
    except (OSError, pl.exceptions.PolarsError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UserError:
    """What is said of a table that Polars cannot read."""
    return UserError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}")


def _write(path: Path, table: pl.DataFrame) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(path, table, _metadata(table.columns))
    return path


def _metadata(columns: Sequence[str]) -> dict[str, str]:
    return {_VERSION_KEY: str(VERSION), _METRICS_KEY: metrics.to_json(columns)}


def _types(names: Mapping[str, str]) -> dict[str, Any]:
    import polars as pl

    return {column: getattr(pl, dtype) for column, dtype in names.items()}
