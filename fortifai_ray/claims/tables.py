"""A study's directory as claims read it: its file and its tables, each read when a claim first asks for it."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from fortifai_ray.errors import UserError
from fortifai_ray.study.claim_statistics import Scalar, Where

# Contract columns that carry a recipe key's value even where the key does not vary.
ALIASES = {
    "family.kind": "family",
    "loss.kind": "loss",
    "loss.gamma": "gamma",
    "regime.kind": "regime",
    "regime.synthetic_ratio": "synthetic_ratio",
}
_ALIASED = {column: key for key, column in ALIASES.items()}


class Undecided(Exception):
    """A claim cannot be decided; the message says why."""


class StudyTables:
    """``STORAGE/NAME``: ``study.yaml`` and the Parquet tables under ``results/``."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.study = _read_study(self.directory / "study.yaml")

    @cached_property
    def generations(self) -> pl.DataFrame:
        """A row per chain and generation, sorted by generation.

        Raises:
            UserError: the table is missing or cannot be read: nothing of the study can then be checked.
        """
        table = self._read("generations", ("chain_id", "generation", "seed"))
        if table is None:
            path = self._path("generations")
            raise UserError(f"{path} not found: run or resume the sweep first (`fortifai sweep FILE`)")
        return table.sort("generation", maintain_order=True)

    @cached_property
    def _optional(self) -> dict[str, pl.DataFrame | None]:
        return {}

    def table(self, name: str, columns: tuple[str, ...]) -> pl.DataFrame:
        """One of the other tables.

        Raises:
            Undecided: it is not there.
            UserError: it is there and cannot be read, or lacks one of ``columns``.
        """
        if name not in self._optional:
            self._optional[name] = self._read(name, columns)
        table = self._optional[name]
        if table is None:
            raise Undecided(f"results/{name}.parquet is not there")
        return table

    @cached_property
    def varied(self) -> list[str]:
        """The varied keys but the seed: dotted columns, and undotted ones that the study's ``vary`` names."""
        vary = self.study.get("vary")
        asked = set(vary) - {"seed"} if isinstance(vary, Mapping) else set()
        return [column for column in self.generations.columns if "." in column or column in asked]

    def matches(self, table: pl.DataFrame, where: Where) -> pl.Expr:
        """An expression: the rows of ``table`` that have every value asked for.

        Raises:
            Undecided: a key that the table does not know, nor the recipe.
        """
        condition = pl.lit(True)
        for key, wanted in where.items():
            items = wanted if isinstance(wanted, list) else [wanted]
            column = next((name for name in _names(key) if name in table.columns), None)
            if column is not None:
                condition &= pl.any_horizontal(_equals(column, table.schema[column], item) for item in items)
            elif (fixed := _dotted(self.study, _ALIASED.get(key, key))) is not _MISSING:
                condition &= pl.lit(any(_same(fixed, item) for item in items))
            else:
                raise Undecided(f"there is no key {key} in the table or the recipe")
        return condition

    def criterion(self, name: int | str) -> dict[str, Any]:
        """One of the study's collapse criteria, by its place or its metric.

        Raises:
            Undecided: there is none, or several have that metric.
        """
        criteria = self.study.get("collapse") or []
        criteria = criteria if isinstance(criteria, list) else [criteria]
        found = criteria[name : name + 1] if isinstance(name, int) else [c for c in criteria if c["metric"] == name]
        if len(found) != 1:
            many = "several criteria: give its place instead" if found else "no criterion"
            raise Undecided(f"collapse has {many} for {name!r}")
        return dict(found[0])

    def _path(self, name: str) -> Path:
        return self.directory / "results" / f"{name}.parquet"

    def _read(self, name: str, columns: tuple[str, ...]) -> pl.DataFrame | None:
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            table = pl.read_parquet(path, glob=False)  # a study's name may hold [ or *
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from error
        missing = sorted(set(columns) - set(table.columns))
        if missing:
            raise UserError(f"{path} lacks the columns {', '.join(missing)}: run the sweep again")
        return table


def replaced(key: str, changes: Where) -> bool:
    """Whether putting ``changes`` into a recipe replaces ``key``: it is named, or its section gets a new kind."""
    names = {dotted for change in changes for dotted in _names(change)}
    section = key.rpartition(".")[0] or _ALIASED.get(key, key).rpartition(".")[0]
    return bool(names & set(_names(key))) or (bool(section) and f"{section}.kind" in names)


def _names(key: str) -> tuple[str, ...]:
    """What a key may be called: its dotted path, and the contract's column for it."""
    other = ALIASES.get(key) or _ALIASED.get(key)
    return (key, other) if other else (key,)


def _equals(column: str, dtype: pl.DataType, wanted: Scalar) -> pl.Expr:
    """Whether a column has a value; never a null, and False where the types cannot be equal."""
    found = pl.col(column)
    if wanted is None:
        return found.is_null()
    if isinstance(wanted, bool):
        comparable = dtype == pl.Boolean
    elif isinstance(wanted, str):
        comparable = dtype == pl.String
    else:
        comparable = dtype.is_numeric()
        if dtype == pl.String:  # a key that varies over numbers and words is kept as text
            comparable, wanted = True, str(wanted)
    return found.eq_missing(pl.lit(wanted)) if comparable else pl.lit(False)


def _same(found: Any, wanted: Scalar) -> bool:
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


_MISSING = object()


def _dotted(recipe: Mapping[str, Any], key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _read_study(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} not found: give the directory of a study, STORAGE/NAME, as `fortifai sweep` makes it")
    try:
        study = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(study, dict):
        raise UserError(f"{path} is not a study file: a mapping with name, family, vary, … is expected")
    return study
