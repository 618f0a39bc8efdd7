"""What a study's tables allow one to conclude, and what they do not, in sentences, criterion by criterion."""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import polars as pl

from fortifai_ray.results.schema import FI_UNITS
from fortifai_ray.results.words import fi_unit
from fortifai_ray.statistics.criterion import criteria_of, criterion_rows
from fortifai_ray.statistics.ratios import MIN_PAIRS

_LEAST = {"exact": "", "lower": "at least ", "upper": "at most "}
_IN = {unit: f"in {fi_unit(unit, 'data')}" for unit in FI_UNITS}
Name = Callable[[Mapping[str, Any]], str | None]


class Conclusions(NamedTuple):
    """What one criterion's rows show: the criterion in words, and a sentence for each finding."""

    criterion: str
    sentences: list[str]


def conclusions(fidelity: pl.DataFrame, chains: pl.DataFrame, name: Name | None = None) -> list[Conclusions]:
    """What the tables show, criterion by criterion, and what they cannot show.

    Args:
        fidelity: as :func:`~fortifai_ray.statistics.fidelity.fidelity_table` returns it.
        chains: as :func:`~fortifai_ray.statistics.chains.chain_table` returns it.
        name: the name of the cell of a row of ``fidelity``; by default its ``cell``, or else its keys.

    Returns:
        Plain sentences. For each criterion, if so: chains without a verdict, no collapse, collapse at generation 0
        everywhere, chains followed for different lengths, no baseline, one chain a cell. Then each cell's ratio with
        its interval, its bound and its test, or why there is none.
    """
    if chains.is_empty():
        return [Conclusions("any criterion", ["no chain has a result: nothing can be concluded."])]
    found = []
    for criterion in criteria_of(chains):
        cells, own = fidelity.filter(criterion_rows(criterion)), chains.filter(criterion_rows(criterion))
        found.append(Conclusions(criterion.words, [*_about(cells, own, name or _keys)]))
    return found


def _about(cells: pl.DataFrame, chains: pl.DataFrame, name: Name) -> Iterator[str]:
    """The sentences of one criterion."""
    judged = chains.filter(pl.col("status") != "failed")
    if lost := chains.height - judged.height:
        yield (
            f"{lost} of {chains.height} chains have no verdict (they failed, or their reference is missing) and are "
            "left out; if collapse made them fail, the rest look better than they should."
        )
    if judged.is_empty():
        yield "no chain has a verdict: nothing can be concluded."
        return
    collapsed = judged.filter(pl.col("status") == "collapsed")
    if collapsed.is_empty():
        yield _nothing_collapsed(judged)
        return
    yield from _lengths(judged)
    if collapsed.height == judged.height and (collapsed["onset"] == 0).all():
        yield (
            f"all {judged.height} chains meet it at generation 0, before any synthetic data: it does not measure "
            "collapse, and there is no ratio. Choose a threshold further from generation 0."
        )
        return
    yield from _comparisons(cells, name)


def _nothing_collapsed(judged: pl.DataFrame) -> str:
    known = judged.select(low=pl.col("fi_generations").min(), high=pl.col("fi_generations").max()).row(0, named=True)
    pending = (judged["status"] == "unconfirmed").sum()
    note = f" {pending} of them ended in a crossing that nothing confirmed." if pending else ""
    return (
        f"none of {judged.height} chains collapsed within the {_span(known['low'], known['high'])} generations for "
        f"which they are known to be faithful.{note} Which cell lasts longer is unknown. Run more generations, or "
        "choose a threshold nearer to generation 0."
    )


def _lengths(judged: pl.DataFrame) -> Iterator[str]:
    """Chains that are known to be faithful for different lengths."""
    ends = judged.filter("censored")["fi_generations"].to_list()
    if ends and min(ends) != max(ends):
        yield (
            f"censored chains are known to be faithful for different lengths ({_span(min(ends), max(ends))} "
            "generations). Medians and tests account for that, and means are restricted to the time known in all "
            "compared cells."
        )


def _comparisons(cells: pl.DataFrame, name: Name) -> Iterator[str]:
    """Each cell against the baseline, or why there is nothing to compare."""
    of_generations = cells.filter(pl.col("unit") == "generations")
    others = of_generations.filter(~pl.col("is_baseline"))
    if not of_generations["is_baseline"].any():
        yield (
            "there is no baseline cell, so there are no ratios and no tests, only the fidelity intervals of the "
            f"{others.height} cell{_s(others.height)}. Add the baseline's loss to what varies."
        )
        return
    if others.is_empty():
        count = of_generations.height
        all_of_them = "the baseline is the only cell" if count == 1 else f"all {count} cells are baselines"
        yield f"{all_of_them}: there is nothing to compare {'it' if count == 1 else 'them'} with."
        return
    most = of_generations["n_chains"].max()
    if most == 1:
        yield (
            "there is only one seed: a difference between cells is indistinguishable from one between seeds, and there "
            f"are no intervals. Run at least {MIN_PAIRS} seeds."
        )
    yield from _cell_by_cell(cells, others, name)


def _cell_by_cell(cells: pl.DataFrame, others: pl.DataFrame, name: Name) -> Iterator[str]:
    tests, keys = others["logrank_p"].count(), _cell_keys(cells)
    for row in others.iter_rows(named=True):
        same = pl.all_horizontal(pl.col(key).eq_missing(pl.lit(row[key])) for key in keys) if keys else pl.lit(True)
        rest = cells.filter(same & (pl.col("unit") != "generations"), pl.col("fi_ratio").is_not_null())
        rows = [row, *rest.iter_rows(named=True)]
        said = [(_ratio(one, name(row) or _keys(row), tests), _IN[one["unit"]]) for one in rows]
        for (before, after), group in groupby(said, key=lambda one: one[0]):  # the same in two units is said once
            yield before + " and ".join(unit for _, unit in group) + after
    if tests > 1:
        yield (
            f"{tests} cells were tested against the baseline. The p values above are adjusted for that (Holm); the "
            f"intervals are not: about one in {round(1 / (1 - others['level'][0]))} misses the true ratio, and that of "
            "the cell that looks best more often, since chance helped to pick it."
        )


def _ratio(row: Mapping[str, Any], name: str, tests: int) -> tuple[str, str]:
    """A cell's sentence, without the unit between its two parts."""
    if row["fi_ratio"] is None:
        test = _test(row, tests).removeprefix("; ")
        why = f": {_why_not(row)}{_means(row)}." + (f" {test.capitalize()}." * bool(test))
        return f"{name} has no ratio to the baseline ", why
    said = f"{name} stays faithful {_LEAST[row['fi_ratio_bound']]}{row['fi_ratio']:.3g} times as long as the baseline "
    basis = f" ({row['n_pairs']} pair{_s(row['n_pairs'])}{_interval(row)}{_censored(row)}{_test(row, tests)})"
    return said, f"{basis}: {verdict(row)}{_means(row) if row['fi_ratio_bound'] != 'exact' else ''}."


def _why_not(row: Mapping[str, Any]) -> str:
    if row["n_chains"] == 0:
        return "none of its chains has a verdict"
    if row["n_pairs"] == 0:
        return "no chain of it has a baseline chain of the same seed"
    pairs = f"{row['n_pairs']} pair{_s(row['n_pairs'])}"
    known = row["seed_bounds"].count("exact")
    if known == row["n_pairs"]:
        return f"a chain collapsed at generation 0, which has no logarithm, and {pairs} are few for a median"
    return (
        f"the ratio is known in {known} of {pairs}, too few to tell the typical one (in the others a chain outlasted "
        "the study, or the baseline's collapsed at generation 0), and leaving them out would favour the side that "
        "collapsed"
    )


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["fi_ratio_low"], row["fi_ratio_high"]
    percent = f"{100 * row['level']:g} %"
    if low is not None and high is not None:
        same = math.isclose(low, high, rel_tol=1e-9)
        return f"; the same in all pairs, {low:.3g}" if same else f"; {percent} interval {low:.3g} to {high:.3g}"
    if low is not None:
        return f"; above {low:.3g} at {percent}"
    return f"; below {high:.3g} at {percent}" if high is not None else ""


def _censored(row: Mapping[str, Any]) -> str:
    """That an estimate rests on censored chains and how, and what the pairs say without a model."""
    if row["fi_ratio_bound"] != "exact" or row["bound"] == "exact":
        return ""
    open_pairs = len(row["seed_bounds"]) - row["seed_bounds"].count("exact")
    if row["estimator"].startswith("median pair"):
        return f"; {open_pairs} of them censored, by the median pair"
    said = f"; {open_pairs} of them censored, by a log-normal model of all"
    if row["bound_ratio"] is not None:
        said += f"; {_LEAST[row['bound']]}{row['bound_ratio']:.3g} without it"
    return said


def _means(row: Mapping[str, Any]) -> str:
    """The ratio of the mean intervals up to the common horizon, which is exact whatever is censored beyond it."""
    low, high = row["mean_ratio_low"], row["mean_ratio_high"]
    if row["mean_ratio"] is None or row["mean_ratio_horizon"] is None or low is None:
        return ""
    return (
        f"; up to {row['mean_ratio_horizon']:.3g}, where the first chain is censored, its mean fidelity interval is "
        f"{row['mean_ratio']:.3g} times the baseline's ({low:.3g} to {high:.3g})"
    )


def _test(row: Mapping[str, Any], tests: int) -> str:
    if row["logrank_p"] is None:
        return ""
    return f"; log-rank p = {row['logrank_p_holm']:.2g}" + (f", adjusted for {tests} cells" if tests > 1 else "")


def verdict(row: Mapping[str, Any]) -> str:
    """What the interval of a row's ratio says: longer, sooner, or indistinguishable."""
    low, high = row["fi_ratio_low"], row["fi_ratio_high"]
    if low is None and high is None:
        if row["n_pairs"] < MIN_PAIRS:
            return f"no interval: it takes {MIN_PAIRS} pairs"
        return f"no interval: {row['n_pairs']} pairs with one ratio do not show how far from it others lie"
    said = {True: "it lasts longer", False: "it collapses sooner", None: "indistinguishable from the baseline"}
    return said[lasts_longer(row)]


def lasts_longer(row: Mapping[str, Any]) -> bool | None:
    """Whether the whole interval of a row's ratio is above 1, or below it; None where neither is known."""
    low, high = row["fi_ratio_low"], row["fi_ratio_high"]
    return True if low is not None and low > 1 else False if high is not None and high < 1 else None


def _cell_keys(cells: pl.DataFrame) -> list[str]:
    return [name for name in cells.columns[: cells.columns.index("metric")] if name != "cell"]


def _keys(row: Mapping[str, Any]) -> str:
    if row.get("cell") is not None:
        return str(row["cell"])
    keys = list(row)[: list(row).index("metric")]
    return " ".join(f"{key}={row[key]}" for key in keys if row[key] is not None) or "the recipe"


def _span(low: float, high: float) -> str:
    ends = f"{low:.3g}", f"{high:.3g}"
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _s(count: int) -> str:
    return "" if count == 1 else "s"
