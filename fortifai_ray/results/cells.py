"""The cells of a study's grid: their chains, their names and their order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from fortifai_ray.results.schema import equals, flatten, same
from fortifai_ray.results.words import printable

BASELINE: dict[str, Any] = {"loss.kind": "cross_entropy"}
_ACRONYMS = {"tce": "TCE", "vae": "VAE", "kde": "KDE", "gmm": "Gaussian mixture"}


@dataclass(frozen=True)
class Cells:
    """The cells of a study, the baseline first, then sorted by their values.

    ``labels`` maps a cell's values (as JSON) to its name; no two cells share a name.
    """

    keys: tuple[str, ...]
    labels: Mapping[str, str]
    baselines: frozenset[str]

    @classmethod
    def of(
        cls,
        table: pl.DataFrame,
        keys: Sequence[str],
        baseline: Mapping[str, Any],
        recipe: Mapping[str, Any] | None = None,
    ) -> Cells:
        """Find and name the cells of ``table`` (a row per chain or finer)."""
        marked = table.with_columns(is_baseline(table, baseline, recipe or {}).alias("__baseline"))
        if not keys:
            label = _only_label(table)
            return cls((), {"[]": label}, frozenset({label} if marked["__baseline"].any() else ()))
        unique = marked.group_by(keys, maintain_order=True).agg(pl.col("__baseline").any())
        rows = unique.rows(named=True)
        rows.sort(key=lambda row: (not row["__baseline"], [_rank(row[key]) for key in keys]))
        names = _labels([{key: row[key] for key in keys} for row in rows])
        labels = {_identity(row[key] for key in keys): name for row, name in zip(rows, names, strict=True)}
        baselines = frozenset(name for row, name in zip(rows, names, strict=True) if row["__baseline"])
        return cls(tuple(keys), labels, baselines)

    @property
    def order(self) -> list[str]:
        """The cells' names, in order."""
        return list(self.labels.values())

    def label(self, row: Mapping[str, Any]) -> str | None:
        """The name of a row's cell; None for an unknown one."""
        return self.labels.get(_identity(row.get(key) for key in self.keys)) if self.keys else self.order[0]

    def name(self, table: pl.DataFrame) -> pl.DataFrame:
        """``table`` with a column ``cell``, the name of each row's cell (null for an unknown cell)."""
        if not self.keys:
            return table.with_columns(pl.lit(self.order[0]).alias("cell"))
        if "chain_id" in table.columns:  # all rows of a chain are in one cell: name each chain once
            chains = self._named(table.select("chain_id", *self.keys).unique("chain_id", keep="any"))
            return table.drop("cell", strict=False).join(
                chains.select("chain_id", "cell"), on="chain_id", how="left", maintain_order="left"
            )
        return self._named(table)

    def _named(self, table: pl.DataFrame) -> pl.DataFrame:
        names = [self.labels.get(_identity(row)) for row in table.select(self.keys).iter_rows()]
        return table.with_columns(pl.Series("cell", names, dtype=pl.String))


def is_baseline(table: pl.DataFrame, baseline: Mapping[str, Any], recipe: Mapping[str, Any]) -> pl.Expr:
    """An expression: whether a row's chain has every value of the baseline.

    The value of a key that has no column is that of the ``recipe``, a study file's content.
    """
    condition = pl.lit(bool(baseline))
    flat = flatten(recipe)
    for key, value in baseline.items():
        if key in table.columns:
            condition &= equals(key, table.schema[key], value)
        else:
            condition &= pl.lit(same(flat.get(key), value))
    return condition


def _identity(values: Iterable[Any]) -> str:
    return json.dumps([_listed(value) for value in values], default=str)


def _listed(value: Any) -> Any:
    return value.to_list() if isinstance(value, pl.Series) else value


def _rank(value: Any) -> tuple[int, float, str]:
    """Sorts nulls first, then numbers by size, then text."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value))


def _only_label(table: pl.DataFrame) -> str:
    """The name of a study's only cell: its loss, if the table has it."""
    keys = [column for column in ("loss.kind", "loss.gamma") if column in table.columns]
    values = table.filter(pl.col("loss.kind").is_not_null()).select(keys).unique() if "loss.kind" in keys else None
    if values is None or len(values) != 1:
        return "all chains"
    return _label(values.row(0, named=True), {"kind", "gamma"}) or "all chains"


def _labels(cells: list[dict[str, Any]]) -> list[str]:
    """A short name for each cell; full dotted keys where short names would clash."""
    lasts = [key.rsplit(".", 1)[-1] for key in cells[0]] if cells else []
    unique = {last for last in lasts if lasts.count(last) == 1 or last == "kind"}
    short = [_label(cell, unique) or "default" for cell in cells]
    if len(set(short)) == len(short):
        return short
    return [", ".join(f"{key}={printable(_listed(value))}" for key, value in cell.items()) for cell in cells]


def _label(cell: Mapping[str, Any], short: set[str]) -> str:
    """``TCE γ=0.3 · accumulate``: one part per section of the recipe, null values left out."""
    sections: dict[str, list[str]] = {}
    for key, value in cell.items():
        if value is None:
            continue
        section, _, last = key.rpartition(".")
        sections.setdefault(section, []).append(_part(last if last in short else key, value))
    return " · ".join(" ".join(parts) for parts in sections.values())


def _part(key: str, value: Any) -> str:
    value = _listed(value)
    text = f"{value:g}" if isinstance(value, float) else printable(value)
    if key == "kind":
        return _ACRONYMS.get(text, text.replace("_", " "))
    if key == "gamma":
        return f"γ={text}"
    return f"{key.replace('_', ' ')}={text}"
