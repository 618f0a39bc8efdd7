"""The cells of a study's grid: their chains, their names and their order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl

from fortifai_ray.results.schema import LINEAGE, WHOLES, flatten, has, lacks, same, searched_keys
from fortifai_ray.results.words import in_words, labels, listed

if TYPE_CHECKING:
    from fortifai_ray.study.study import Chain, Study

_LOSS = ("loss.kind", "loss.gamma")


@dataclass(frozen=True)
class Cells:
    """The cells of a study, the baseline first, then sorted by their values.

    ``labels`` maps a cell's values (as JSON) to its name; no two cells share a name. ``wholes`` are those of an
    ecosystem's first and last lineage to collapse, which have no generations of their own.
    """

    keys: tuple[str, ...]
    labels: Mapping[str, str]
    baselines: frozenset[str]
    wholes: frozenset[str] = frozenset()

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
        names = labels([{key: row[key] for key in keys} for row in rows])
        identified = {_identity(row[key] for key in keys): name for row, name in zip(rows, names, strict=True)}
        named = [*zip(rows, names, strict=True)]
        baselines = frozenset(name for row, name in named if row["__baseline"])
        wholes = frozenset(name for row, name in named if row.get(LINEAGE) in WHOLES)
        return cls(tuple(keys), identified, baselines, wholes)

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

    def first(self, table: pl.DataFrame) -> pl.DataFrame:
        """As :meth:`name`, with ``cell`` as the first column."""
        return self.name(table).select("cell", pl.exclude("cell"))

    def _named(self, table: pl.DataFrame) -> pl.DataFrame:
        names = [self.labels.get(_identity(row)) for row in table.select(self.keys).iter_rows()]
        return table.with_columns(pl.Series("cell", names, dtype=pl.String))


class ChainNames:
    """What the chains of a study are called while it runs: by the names that its report gives to their cells."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._searched = searched_keys(study.settings.model_dump(include={"search"}))

    @cached_property
    def cells(self) -> Cells:
        """The cells of the grid, whatever part of it has begun."""
        return Cells.of(
            chains_table([*self._study.member_cells, *(one for cell in self._study.cells for one in cell.wholes)]),
            self._keys,
            self._study.baseline,
            self._study.resolved(),
        )

    def named(self) -> pl.DataFrame:
        """A row for each chain of the grid: ``chain_id``, ``seed``, its loss and its varied keys as the tables have
        them, and its ``cell``. Of a search, a row for each cell."""
        return self.cells.name(chains_table(self._study.members))

    def cell(self, chain: Chain) -> str:
        """The name of a chain's cell: ``TCE γ=0.3``."""
        return self._names.get(self._identity(chain)) or in_words({key: chain.varied[key] for key in self._keys})

    def chain(self, chain: Chain) -> str:
        """The name of a chain: its cell's, the values that a search has given it, and its seed."""
        found = [in_words({key: chain.varied[key] for key in self._searched})] if self._searched else []
        return " · ".join([self.cell(chain), *found, f"seed {chain.recipe.seed}"])

    @property
    def _keys(self) -> list[str]:
        return [key for key in self._study.varied if key not in {"seed", *self._searched}]

    @cached_property
    def _names(self) -> dict[str, str]:
        """The names of the grid's cells; the baseline of what is optimised is in none of them."""
        cells = self._study.member_cells
        names = self.cells.name(chains_table(cells))["cell"]
        return {self._identity(one): name for one, name in zip(cells, names, strict=True)}

    def _identity(self, chain: Chain) -> str:
        return _identity(chain.varied[key] for key in self._keys)


def chains_table(chains: Iterable[Chain]) -> pl.DataFrame:
    """A row for each chain, in their order: ``chain_id``, its loss (which names a study's only cell), its varied keys
    as the tables have them and ``seed``. The chains of a cell have one loss, which is looked at once."""
    losses, columns = dict[int, tuple[Any, dict[str, Any]]](), dict[str, list[Any]]()
    for one in chains:
        loss = one.recipe.loss
        if id(loss) not in losses:
            flat = flatten({"loss": loss.model_dump(mode="json")})
            losses[id(loss)] = loss, {key: flat.get(key) for key in _LOSS}
        row = {"chain_id": one.chain_id, **losses[id(loss)][1], **one.varied, "seed": one.recipe.seed}
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    return pl.DataFrame({key: _as_in_tables(values) for key, values in columns.items()}, strict=False)


def _as_in_tables(values: Sequence[Any]) -> Sequence[Any]:
    """A column's values, as text where some are text: as the tables have them, and so the names of cells."""
    if not any(isinstance(value, str) for value in values):
        return values
    return [value if value is None or isinstance(value, str) else str(value) for value in values]


def is_baseline(table: pl.DataFrame, baseline: Mapping[str, Any], recipe: Mapping[str, Any]) -> pl.Expr:
    """An expression: whether a row's chain has every value of the baseline.

    The value of a key that has no column is that of the ``recipe``, a study file's content.
    """
    condition = pl.lit(bool(baseline))
    flat = flatten(recipe)
    for key, value in baseline.items():
        if (found := has(table.schema, key, value)) is not None:
            condition &= found
        else:
            condition &= pl.lit(lacks(flat, key) if value is None else same(flat.get(key), value))
    return condition


def _identity(values: Iterable[Any]) -> str:
    return json.dumps([listed(value) for value in values], default=str)


def _rank(value: Any) -> tuple[int, float, str]:
    """Sorts nulls first, then numbers by size, then text; what is judged of a whole ecosystem after its lineages."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2 + (value in WHOLES), 0.0, str(value))


def _only_label(table: pl.DataFrame) -> str:
    """The name of a study's only cell: its loss, if the table has it."""
    keys = [column for column in _LOSS if column in table.columns]
    values = table.filter(pl.col("loss.kind").is_not_null()).select(keys).unique() if "loss.kind" in keys else None
    if values is None or len(values) != 1:
        return "all chains"
    return in_words(values.row(0, named=True))
