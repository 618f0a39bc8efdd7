"""One chain of a study, found by what a person calls it: its id or the beginning of it, or its cell and its seed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import RECIPE_COLUMNS
from fortifai_ray.validation import hint

_SHOWN = 8  # chains that a message lists
_TERM = re.compile(r"\s*([\w.]+)\s*=\s*([^,]+?)\s*(?:,|$)")


@dataclass(frozen=True)
class ChainResults:
    """One chain of a study.

    Attributes:
        study: the study that it belongs to.
        chain_id: the hash of its recipe.
        cell: the name of its cell.
        rows: its rows of ``generations.parquet``, by ascending generation.
    """

    study: StudyResults
    chain_id: str
    cell: str
    rows: pl.DataFrame

    @property
    def seed(self) -> int:
        return int(self.rows["seed"][0])

    @property
    def varied(self) -> dict[str, Any]:
        """The values of the keys that the study varies or searches, the seed's too; without those that it lacks."""
        keys = dict.fromkeys((*self.study.varied, *self.study.searched_keys, "seed"))
        row = self.rows.row(0, named=True)
        return {key: row[key] for key in keys if row.get(key) is not None}

    def having(self, column: str) -> list[dict[str, Any]]:
        """The rows that have a ``column``: ``stage``, a model, or ``synthetic_stage``, a corpus.

        The one stage of all generations of a chain without corpora is its cohort's table of metrics, and no model.
        """
        rows = [row for row in self.rows.rows(named=True) if row.get(column) is not None]
        of_cohort = len(rows) > 1 and len({row[column] for row in rows}) == 1
        return [] if of_cohort and all(row.get("synthetic_stage") is None for row in rows) else rows

    def at(self, generation: int | None, column: str) -> dict[str, Any]:
        """The row of a generation that has a ``column``: ``stage``, its model, or ``synthetic_stage``, its corpus.

        Without a number it is the last one that has; of corpora, the last that a later generation was trained on, if
        there is one: a chain's last generation writes only what is looked at and measured.

        Raises:
            UserError: there is no such generation, or it has none.
        """
        rows = self.rows.rows(named=True)
        having = self.having(column)
        numbers = [row["generation"] for row in having]
        said = f"; those with one: {_listed(map(str, numbers))}" if numbers else ""
        what = "checkpoint" if column == "stage" else "corpus"
        if generation is None and having:
            whole = [row for row in having if row.get("ended") is None] if column == "synthetic_stage" else []
            return (whole or having)[-1]
        for row in rows:
            if row["generation"] == generation and (having or row.get(column) is None):
                if row.get(column) is not None:
                    return row
                reason = f" ({row['collapse_reason']})" if row.get("collapse_reason") else ""
                raise UserError(f"{self.name}: generation {generation} has no {what}{reason}{said}")
        if not having:
            kind = rows[0].get("family.kind") or "this family"
            raise UserError(
                f"{self.name}: no {what} is stored for it: what a chain of {kind} has measured is in "
                "results/generations.parquet, and that is all there is"
            )
        raise UserError(f"{self.name}: there is no generation {generation}{said}")

    @property
    def name(self) -> str:
        """For people: the study, the cell and the seed."""
        return f"{self.study.name}, {self.cell}, seed {self.seed}"


def find_chain(
    study: StudyResults, chain_id: str | None = None, *, cell: str | None = None, seed: int | None = None
) -> ChainResults:
    """The one chain of a study that answers to all that is given.

    Args:
        study: its study.
        chain_id: its id, or the beginning of it.
        cell: its cell's name as tables and charts show it (``TCE γ=0.3``; ``tce gamma=0.3`` will do), or values of
            columns, ``loss.kind=tce, loss.gamma=0.3``.
        seed: its seed.

    Raises:
        UserError: no chain answers to it, or several do; names those that are nearest.
    """
    chains = study.cells.name(study.generations.unique("chain_id", keep="first", maintain_order=True))
    if chains.is_empty():
        raise UserError(f"{study.folder}: no generation has been completed: there is no chain yet")
    left = chains
    if chain_id is not None:
        left = chains.filter(pl.col("chain_id").str.starts_with(chain_id.lower()))
        if left.is_empty():
            raise UserError(f"{study.folder}: there is no chain {chain_id}{hint(chain_id, chains['chain_id'])}")
    if cell is not None:
        left = _of_cell(left, cell, study)
    if seed is not None:
        seeds = left["seed"].to_list()
        left = left.filter(seed=seed)
        if left.is_empty():
            raise UserError(f"{study.folder}: there is no seed {seed} (there is {_listed(map(str, sorted({*seeds})))})")
    if left.height > 1:
        rows = [f"{row['chain_id']} ({row['cell']}, seed {row['seed']})" for row in left.rows(named=True)]
        raise UserError(
            f"{study.folder}: {len(rows)} chains answer to this: {_listed(rows)}; give the id of one, as "
            f"{study.folder}/{left['chain_id'][0]}, or its cell and its seed"
        )
    row = left.row(0, named=True)
    of_chain = study.generations.filter(chain_id=row["chain_id"]).sort("generation")
    return ChainResults(study, row["chain_id"], row["cell"], of_chain)


def _of_cell(chains: pl.DataFrame, cell: str, study: StudyResults) -> pl.DataFrame:
    labels = {label: _plain(label) for label in study.cells.order}
    for label, plain in labels.items():
        if _plain(cell) == plain:
            return chains.filter(cell=label)
    terms = _TERM.findall(cell)
    if not terms or _TERM.sub("", cell).strip():
        raise UserError(f"{study.folder}: there is no cell {cell!r}{hint(cell, study.cells.order)}")
    known = [key for key in dict.fromkeys((*study.varied, *study.searched_keys, *RECIPE_COLUMNS)) if key in chains]
    short = {name.rpartition(".")[2]: name for name in reversed(known)}
    for key, value in terms:
        name = key if key in known else short.get(key)
        if name is None:
            raise UserError(f"{study.folder}: --cell {cell}: no chain has a key {key}{hint(key, [*short, *known])}")
        values = chains[name].to_list()
        chains = chains.filter([_is(one, value) for one in values])
        if chains.is_empty():
            there = _listed(dict.fromkeys("null" if one is None else str(one) for one in values))
            raise UserError(f"{study.folder}: --cell {cell}: no chain has {name}={value} (there is {there})")
    return chains


def _is(value: Any, text: str) -> bool:
    if value is None or isinstance(value, bool):
        return text.lower() == {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text


def _plain(label: str) -> str:
    """A label without what is hard to type."""
    return re.sub(r"[\s·,_]+", "", label.casefold().replace("γ", "gamma"))


def _listed(words: Iterable[str]) -> str:
    shown: Sequence[str] = list(words)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
