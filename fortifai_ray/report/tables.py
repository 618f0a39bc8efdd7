"""The report's tables as rows of text, for the terminal and the page alike, and their rendering in the terminal."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fortifai_ray.report.search import search_tables
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import FI_UNITS, LINEAGE
from fortifai_ray.results.words import count, counted, duration, fi_unit, in_words, number, printable, ratio
from fortifai_ray.statistics.conclusions import Conclusions, conclusions
from fortifai_ray.statistics.criterion import Collapse, criterion_rows
from fortifai_ray.statistics.ecosystems import of_human_data
from fortifai_ray.statistics.order import onset_orders

MOST_CELLS = 24  # per criterion in the terminal; the page has them all
MOST_CONCLUSIONS = 8  # in the terminal
MOST_OUTCOMES = 12  # failed chains in the terminal
MOST_ORDERED = 12  # cells with a line of their own in an order table; more are counted together
HEADINGS = ("cell", "chains", "censored", "FI in", "FI median", "FI mean", "FI ratio")


class FidelityRow(NamedTuple):
    """A line of the fidelity table: one cell in one unit. ``first`` marks a cell's first line."""

    cell: str
    chains: str
    censored: str
    unit: str
    median: str
    mean: str
    ratio: str
    first: bool

    @property
    def texts(self) -> tuple[str, ...]:
        """The line's columns, in the order of ``HEADINGS``."""
        return self[:-1]


def cell_rows(results: StudyResults, criterion: Collapse) -> list[dict[str, Any]]:
    """The rows of ``fidelity.parquet`` under one criterion, each with its ``cell``.

    Cells are in the study's order, and generations come before the synthetic sizes.
    """
    if results.fidelity is None:
        return []
    place = {cell: index for index, cell in enumerate(results.cells.order)}
    rows = results.cells.name(results.fidelity.filter(criterion_rows(criterion))).to_dicts()
    known = [row for row in rows if row["cell"] is not None]
    return sorted(known, key=lambda row: (place[row["cell"]], FI_UNITS.index(row["unit"])))


def median_intervals(results: StudyResults, criterion: Collapse) -> dict[str, float | None]:
    """The median fidelity interval of each cell in generations; None where it is not reached."""
    rows = cell_rows(results, criterion)
    return {row["cell"]: row["fi_median"] for row in rows if row["unit"] == "generations"}


def fidelity_rows(results: StudyResults, criterion: Collapse) -> list[FidelityRow]:
    """The lines of one criterion's fidelity table."""
    lines = cell_rows(results, criterion)
    before = [None, *(line["cell"] for line in lines)]
    return [_fidelity_row(results, line, line["cell"] != last) for line, last in zip(lines, before, strict=False)]


def _fidelity_row(results: StudyResults, line: dict[str, Any], first: bool) -> FidelityRow:
    generations = line["unit"] == "generations"
    write = number if generations else count
    censored = line["n_censored"] or 0
    failed = line.get("n_failed") or 0
    median, mean = line["fi_median"], line["fi_mean"]
    # A mean of intervals cut at the horizon can only understate: with censored chains it is a lower bound.
    mark = "≥" if censored and mean is not None else ""
    return FidelityRow(
        cell=line["cell"],
        chains=f"{line['n_chains']:,}" + (f" (+{failed:,} failed)" if failed else ""),
        censored=f"{censored:,}",
        unit=_short_unit(line["unit"], results.units.get(line["cell"], results.unit)),
        median="not reached" if median is None and censored else write(median),
        mean=mark + write(mean),
        ratio=ratio(line, line["cell"] in results.cells.baselines),
        first=first,
    )


def _short_unit(unit: str, counted: str) -> str:
    """A unit as the table's column has room for it; the legend says it whole."""
    return {"generations": unit, "synthetic": counted, "synthetic_now": f"{counted} at onset"}[unit]


class Order(NamedTuple):
    """Counts of one cell's chains by which of two criteria they met first: the first, the second, a tie, or open."""

    cell: str
    first: int
    second: int
    tie: int
    open: int

    @property
    def texts(self) -> tuple[str, ...]:
        """The line's columns: the cell and four counts, the first two with their share of all chains."""
        total = sum(self[1:])
        shares = [f"{part:,} of {total:,} ({number(100 * part / total)} %)" for part in (self.first, self.second)]
        return (self.cell, *shares, f"{self.tie:,}", f"{self.open:,}")


class OrderTable(NamedTuple):
    """Two criteria in short words, and the order of their onsets by cell."""

    first: str
    second: str
    rows: list[Order]

    @property
    def headings(self) -> tuple[str, ...]:
        return ("cell", f"{self.first} first", f"{self.second} first", "at once", "undecided")


def order_tables(results: StudyResults) -> list[OrderTable]:
    """A table for each pair of the study's criteria (:func:`~fortifai_ray.statistics.order.onset_orders`).

    A criterion is named in short words, and in full where the short words of two criteria would be the same.
    """
    chains, short = results.chains, Counter(criterion.short_words for criterion in results.criteria)
    if chains is None:
        return []
    names = {c: c.words if short[c.short_words] > 1 else c.short_words for c in results.criteria}
    pairs = combinations(results.criteria, 2)
    return [OrderTable(names[a], names[b], _orders(results, chains, a, b)) for a, b in pairs]


def _orders(results: StudyResults, chains: pl.DataFrame, a: Collapse, b: Collapse) -> list[Order]:
    named = results.cells.name(chains.filter(criterion_rows(a))).select("chain_id", "cell")
    both = onset_orders(chains, a, b).join(named, on="chain_id").filter(pl.col("cell").is_not_null())
    cells = results.cells.order
    if len(cells) > MOST_ORDERED:
        cells = [f"all {len(cells)} cells"]
        both = both.with_columns(pl.lit(cells[0]).alias("cell"))
    counts = Counter(both.select("cell", "order").iter_rows())
    rows = [Order(cell, *(counts[cell, kind] for kind in ("first", "second", "tie", "open"))) for cell in cells]
    return [row for row in rows if any(row[1:])]


def legend(results: StudyResults) -> list[str]:
    """What the fidelity table's words and marks mean, with the table's own level."""
    baseline = ", ".join(in_words({key: value}) for key, value in results.baseline.items())
    if not results.cells.baselines:
        baseline += "; not in this study"
    table = results.fidelity
    units = [unit for unit in FI_UNITS if table is not None and unit in table["unit"]]
    levels = table["level"].drop_nulls().unique().to_list() if table is not None and "level" in table.columns else []
    level = f"{100 * levels[0]:g}% " if len(levels) == 1 else ""
    return [
        *_of_ecosystems(results),
        "FI (fidelity interval): how long a chain stays faithful, up to the crossing its criterion describes, in "
        f"{', in '.join(fi_unit(unit, results.unit) for unit in units)}. Median by Kaplan–Meier; mean of the FI cut at "
        "the horizon that all compared cells reach. Censored: the chain ended before it collapsed.",
        f"Ratio: FI over the baseline's ({baseline}), paired by seed: the geometric mean; where chains are censored, a "
        "log-normal model's estimate from all of them, or, of 30 pairs or more, that of the median pair. [low, high] "
        f"is its {level}interval over seeds, given from three pairs on that are not all alike; without one, the single "
        "seeds' ratios are listed. ≥ or ≤: a bound, as too few of a side's chains collapsed. (pairs: ≥ or ≤): "
        "the bound that the pairs give without the model; undetermined: too few pairs have a known ratio.",
    ]


def _of_ecosystems(results: StudyResults) -> list[str]:
    """What the rows of whole ecosystems are about, where there are any."""
    if not results.cells.wholes:
        return []
    apart = results.roster.filter(pl.col("chain_id").is_in(of_human_data(results.scanned)))
    names = apart[LINEAGE].unique().sort().to_list()
    without = f": not {' and '.join(names)}, which {'trains' if len(names) == 1 else 'train'} on none" * bool(names)
    return [
        "First to collapse, last to collapse: of an ecosystem's lineages, the one that collapses first and the one "
        f"that collapses last. Lineages that train on synthetic data count{without}."
    ]


def concluded(results: StudyResults) -> list[Conclusions]:
    """What can and what cannot be concluded under each criterion, a sentence each."""
    if results.fidelity is None or results.chains is None:
        return []
    found = conclusions(results.fidelity, results.chains, results.cells.label)
    return [Conclusions(printable(one.criterion), [printable(line) for line in one.sentences]) for one in found]


def conclusion_lines(results: StudyResults, most: int | None = None) -> list[str]:
    """:func:`concluded` as lines: one for each criterion, and under it its sentences, which begin with a dash. Beyond
    ``most`` sentences, the last line says how many are left out."""
    lines, left = list[str](), most
    found = concluded(results)
    for criterion, sentences in found:
        shown = sentences if left is None else sentences[:left]
        lines += [f"Under {criterion}:", *(f"- {one}" for one in shown)] if shown else []
        left = None if left is None else left - len(shown)
    more = 0 if most is None else sum(len(one.sentences) for one in found) - most
    return [*lines, f"… and {counted(more, 'further sentence')} in report.html"] if more > 0 else lines


def facts(results: StudyResults) -> list[tuple[str, str]]:
    """How the last run that computed anything went, from the study's summary: (name, value).

    Its wall time is that up to the tables, which the report can know: what it takes itself, and MLflow, come after.
    """
    summary = dict(results.summary.get("last_computed") or results.summary)
    summary |= summary.get("told") or {}
    writers: dict[str, tuple[str, Callable[[Any], str]]] = {
        "wall_seconds": ("wall, up to the tables" if summary.get("told") else "wall", duration),
        "useful_seconds": ("useful work", duration),
        "chains_at_once": ("chains at once", number),
        "overhead": ("overhead", number),
        "engine_starts": ("engine starts", number),
        "engine_kind": ("engine", printable),
        "stages_computed": ("stages computed", number),
        "stages_reused": ("stages reused", number),
    }
    lines = [(name, write(summary[key])) for key, (name, write) in writers.items() if summary.get(key) is not None]
    modes = Counter(str(chain["training_mode"]) for chain in _chains(results) if chain.get("training_mode"))
    if results.summary.get("last_computed"):
        lines.append(("in the last run", "nothing computed"))
    if modes:
        lines.append(("training", ", ".join(f"{printable(mode)} ({n} chains)" for mode, n in modes.items())))
    return lines


def outcomes(results: StudyResults) -> list[tuple[str, str]]:
    """Chains that failed, or collapsed for a reason of their own (NaN loss, empty corpus): (which, what happened);
    those of which the same is to be said, together."""
    told: dict[str, list[str]] = defaultdict(list)
    for chain in _chains(results):
        if chain.get("reason"):
            what = f"{chain.get('status')}: {printable(chain['reason'])}"
            told[what].append(printable(chain.get("label") or chain.get("chain_id")))
    more = {what: f" and {counted(len(labels) - 1, 'other chain')}" for what, labels in told.items() if labels[1:]}
    return [(labels[0] + more.get(what, ""), what) for what, labels in told.items()]


def render_tables(results: StudyResults) -> Group:
    """Everything the terminal shows, as one Rich renderable. Tables that are cut short say where the rest is."""
    parts: list[Table | Text] = []
    for criterion in results.criteria if results.fidelity is not None else []:
        parts += _fidelity_table(results, criterion)
    for search in search_tables(results, draw=False):
        words = ("cell", "point", "ended")
        parts.append(_table("collapse point: ", search.title, search.headings, search.rows, left=words))
        parts += [Text(note + "\n", style="dim") for note in search.notes]
    for order in order_tables(results):
        headings = ("cell", "the former", "the latter", *order.headings[3:])
        rows = [row.texts for row in order.rows]
        parts.append(_table("crossed first: ", f"{order.first}, or {order.second}", headings, rows, left=("cell",)))
    if results.fidelity is not None and results.criteria:
        parts += [Text(line, style="dim") for line in legend(results)]
    parts += [Text(line) for line in conclusion_lines(results, most=MOST_CONCLUSIONS)]
    if lines := facts(results):
        parts.append(Text("\n" + " · ".join(f"{name} {value}" for name, value in lines)))
    ended = outcomes(results)
    warnings = [f"{label}: {what}" for label, what in ended[:MOST_OUTCOMES]]
    if len(ended) > MOST_OUTCOMES:
        left = len(ended) - MOST_OUTCOMES
        warnings.append(f"chains ended for {left:,} more reasons: results/summary.json lists them all")
    warnings += [f"note: {printable(note)}" for note in results.notes]
    return Group(*parts, *(Text(warning, style="yellow") for warning in warnings))


def _fidelity_table(results: StudyResults, criterion: Collapse) -> list[Table | Text]:
    """A criterion's fidelity table, and a line that says where to read the cells that do not fit."""
    rows = fidelity_rows(results, criterion)
    starts = [index for index, row in enumerate(rows) if row.first]
    shown = rows if len(starts) <= MOST_CELLS else rows[: starts[MOST_CELLS]]
    texts = [row.texts if row.first else ("", "", "", *row.texts[3:]) for row in shown]
    title, left = f"collapse: {criterion.words}", ("cell", "FI in", "FI ratio")
    table = _table(f"{printable(results.name)} ", title, HEADINGS, texts, left=left, whole=("FI in", "FI mean"))
    more = len(starts) - MOST_CELLS
    cut = f"… and {more} further cells: results/fidelity.parquet and report.html list them all\n"
    return [table, Text(cut, "yellow")] if more > 0 else [table]


def _table(
    bold: str,
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[str],
    whole: Collection[str] = (),
) -> Table:
    """A table without a frame: the columns in ``left`` hold words, others numbers; those in ``whole`` never wrap."""
    heading = Text.assemble((bold, "bold"), printable(title))
    table = Table(title=heading, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in headings:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold", no_wrap=name in whole)
    for row in rows:
        table.add_row(*(Text(printable(text)) for text in row))
    return table


def _chains(results: StudyResults) -> list[dict[str, Any]]:
    chains = results.summary.get("chains")
    return [chain for chain in chains if isinstance(chain, dict)] if isinstance(chains, list) else []
