"""The one sentence with which a report begins: what the study found, with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from fortifai_ray.report.search import search_tables
from fortifai_ray.report.tables import cell_rows, concluded
from fortifai_ray.results.cells import Cells
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import LINEAGE, WHOLES
from fortifai_ray.results.words import counted, in_words, key_words, number, printable, ratio
from fortifai_ray.statistics.conclusions import lasts_longer, verdict
from fortifai_ray.statistics.criterion import Collapse
from fortifai_ray.statistics.ecosystems import of_human_data

UNTOLD = ("baseline", "not determined")  # in the column of ratios to the baseline's critical value
MOST_NAMED = 3  # cells of one verdict, those furthest from 1 first
MOST_LINEAGES = 2  # with a sentence of their own
MOST_EXTREME = 2  # cells in which most, and in which fewest, of the chains collapse


def headline(results: StudyResults) -> tuple[str, str]:
    """A sentence, and how its figures are to be read; two empty texts where nothing has been measured.

    A grid is told by the fidelity-interval ratios under its first criterion, a search by what it found.
    """
    tables = search_tables(results, draw=False)
    if not tables:
        return _ratios(results)
    return (_best if results.search["kind"] == "optimise" else _critical)(results, tables[0].rows)


def _ratios(results: StudyResults) -> tuple[str, str]:
    if results.fidelity is None or results.chains is None or not results.criteria:
        return "", ""
    criterion = results.criteria[0]
    rows = [row for row in cell_rows(results, criterion) if row["unit"] == "generations"]
    rows = _asked(results, rows) if LINEAGE in results.varied else rows
    told = [row for row in rows if not row["is_baseline"] and row["fi_ratio"] is not None]
    reading = _reading(criterion, len(results.criteria) - 1)
    if not told:
        first = concluded(results)[0].sentences[0]
        at_once = all(row["fi_median"] == 0 for row in rows)  # then it measures no collapse, as the first line says
        return (first[:1].upper() + first[1:] if at_once else _collapses(rows) or first), reading
    baselines = sorted(results.cells.baselines)
    baseline = baselines[0] if len(baselines) == 1 else in_words(results.baseline)
    if LINEAGE in results.varied:
        said = _lineages(results, rows)
    else:
        said = _one(told[0], baseline) if len(rows) == 2 else _several(told, rows, baseline)
    pairs = sorted({row["n_pairs"] for row in told})
    basis = counted(pairs[0], "pair") if len(pairs) == 1 else f"{pairs[0]:,} to {pairs[-1]:,} pairs"
    if all(row["fi_ratio_low"] is None and row["fi_ratio_high"] is None for row in told):
        return printable(said), f"Ratios of fidelity intervals, from {basis} of chains. {reading}"
    level = f"{100 * told[0]['level']:g}%"
    picked = f" Each of {len(told)} intervals is its own cell's: the ratio furthest from 1 is flattered by chance."
    reading += picked if len(told) > 1 else ""
    return printable(said), f"Ratios of fidelity intervals, with {level} intervals, from {basis} of chains. {reading}"


def _asked(results: StudyResults, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the lineages whose ratios the study claims something about, in the claims' order; where it claims
    nothing of them, of every lineage that trains on synthetic data, and not of ecosystems as a whole."""
    claimed: dict[Any, None] = {}
    for claim in results.study.get("claims") or ():
        if claim["statistic"]["kind"] == "fi_ratio":
            names = claim.get("where", {}).get(LINEAGE)
            claimed |= dict.fromkeys(names if isinstance(names, list) else [names])
    own = [row for name in claimed for row in rows if row[LINEAGE] == name]
    if any(row["fi_ratio"] is not None and not row["is_baseline"] for row in own):
        return own
    apart = results.roster.filter(pl.col("chain_id").is_in(of_human_data(results.scanned)))
    left_out = {*results.cells.wholes, *results.cells.name(apart)["cell"]}
    return [row for row in rows if row["cell"] not in left_out]


def _lineages(results: StudyResults, rows: Sequence[dict[str, Any]]) -> str:
    """A sentence on each of the first lineages: how long it stays faithful in one ecosystem, and in the baseline's."""
    assert results.fidelity is not None
    keys = [key for key in results.varied if key != LINEAGE]
    ecosystems = Cells.of(results.fidelity, keys, results.baseline, results.study)
    baselines = sorted(ecosystems.baselines)
    baseline = f"with {baselines[0] if len(baselines) == 1 else in_words(results.baseline)}"
    told = [row | {"cell": ecosystems.label(row)} for row in rows if not row["is_baseline"]]
    names = list(dict.fromkeys(row[LINEAGE] for row in told))
    said, shared = list[str](), None
    for name in names[:MOST_LINEAGES]:
        own = [row for row in told if row[LINEAGE] == name and row["fi_ratio"] is not None]
        who = f"the {name.partition(' ')[0]} lineage to collapse" if name in WHOLES else f"lineage {name}"
        if len(own) == 1:
            times, found = f"{ratio(own[0], is_baseline=False)} times as long", verdict(own[0])
            if said and shared == own[0]["cell"]:
                said[-1] += f"; {who} {times} ({found})"
            else:
                said.append(f"{who} stays faithful {times} with {own[0]['cell']} as {baseline} ({found})")
            shared = own[0]["cell"]
            continue
        parts = [
            f"stays faithful {how} with {_named(cells)} than {baseline}"
            for longer, how in ((True, "longer"), (False, "less long"))
            if (cells := [row for row in own if lasts_longer(row) is longer])
        ]
        if alike := [row for row in own if lasts_longer(row) is None]:
            parts.append(f"cannot be told apart with {_named(alike)} and {baseline}")
        said.append(f"{who} {'; it '.join(parts) or 'has no ratio to the baseline'}")
    if len(names) > MOST_LINEAGES:
        said.append(f"{counted(len(names) - MOST_LINEAGES, 'further lineage')} in the table")
    return ". ".join(f"{one[:1].upper()}{one[1:]}" for one in said) + "."


def _collapses(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many chains of each cell collapse, and when; "" where no chain has a verdict."""
    rows = [row for row in rows if row["n_chains"]]
    shown = sorted(rows, key=lambda row: row["n_censored"] / row["n_chains"])
    if len(rows) > 2 * MOST_EXTREME:
        shown = [*shown[:MOST_EXTREME], *shown[-MOST_EXTREME:]]
    said = []
    for row in shown:
        collapsed = row["n_chains"] - row["n_censored"]
        when = "" if row["fi_median"] is None else f", half of them after {number(row['fi_median'])} generations"
        share = {0: "none", row["n_chains"]: "all"}.get(collapsed, f"{collapsed:,}")
        said.append(f"{row['cell']}: {share} of {counted(row['n_chains'], 'chain')}{when}")
    more = f"; {counted(len(rows) - len(shown), 'further cell')} between these" if len(rows) > len(shown) else ""
    return printable(f"Collapsed, {'; '.join(said)}{more}.") if said else ""


def _one(row: Mapping[str, Any], baseline: str) -> str:
    return f"{row['cell']} stays faithful {ratio(row, is_baseline=False)} times as long as {baseline}: {verdict(row)}."


def _several(told: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Cells by verdict, then those that the baseline cannot be told from, then those without a ratio."""
    parts = []
    for longer, verb in ((True, "longer than"), (False, "less long than")):
        cells = [row for row in told if lasts_longer(row) is longer]
        if cells:
            parts.append(f"{_named(cells)} {'stay' if len(cells) > 1 else 'stays'} faithful {verb} {baseline}")
    if alike := [row for row in told if lasts_longer(row) is None]:
        parts.append(f"{_named(alike)} cannot be told from {'it' if parts else baseline}")
    if missing := sum(not row["is_baseline"] for row in rows) - len(told):
        parts.append(f"{counted(missing, 'cell')} {'have' if missing > 1 else 'has'} no ratio")
    return "; ".join(parts) + "."


def _named(cells: Sequence[Mapping[str, Any]]) -> str:
    ranked = sorted(cells, key=lambda row: -abs(math.log(row["fi_ratio"])) if row["fi_ratio"] > 0 else -math.inf)
    names = [f"{row['cell']} ({ratio(row, is_baseline=False)})" for row in ranked[:MOST_NAMED]]
    if len(cells) > MOST_NAMED:
        names.append(counted(len(cells) - MOST_NAMED, "further cell"))
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _reading(criterion: Collapse, others: int) -> str:
    below = f"; {others} further {'criterion' if others == 1 else 'criteria'} below" if others else ""
    return f"Collapse: {printable(criterion.words)}{below}."


def _critical(results: StudyResults, rows: Sequence[tuple[str, ...]]) -> tuple[str, str]:
    said = [_point(*row[:4]) for row in sorted(rows, key=lambda row: row[1] == UNTOLD[1])[:MOST_NAMED]]
    said += [counted(len(rows) - MOST_NAMED, "further cell")] if len(rows) > MOST_NAMED else []
    over, level = key_words(results.search["over"]), 100 * float(results.search.get("level", 0.9))
    text = f"Half of the chains collapse at a critical {over}: {'; '.join(said)}."
    return printable(text), f"{level:g}% intervals. {_reading(results.criteria[0], len(results.criteria) - 1)}"


def _point(cell: str, critical: str, interval: str, over_baseline: str) -> str:
    found = f"{cell} {critical}{f' [{interval}]' if interval else ''}"
    return found if over_baseline in UNTOLD else f"{found}, {over_baseline} times the baseline's"


def _best(results: StudyResults, rows: Sequence[tuple[str, ...]]) -> tuple[str, str]:
    point, ratio_text, interval, pairs = rows[0]
    found = f"{ratio_text} [{interval}]" if interval else ratio_text
    tried = counted(len(results.searched["points"]), "point")
    text = f"The largest ratio to the baseline is {found}, at {point} ({pairs} pairs)."
    return printable(text), f"The best of {tried} is flattered by chance: run it again with other seeds."
