"""The report as one HTML page: every script, style and number is inside it, and nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import polars as pl
from altair.utils import schemapi
from jinja2 import Environment, PackageLoader, StrictUndefined

from fortifai_ray import metrics
from fortifai_ray.claims.result import multiplicity, stored_claims, summary
from fortifai_ray.report.charts.curves import draw
from fortifai_ray.report.charts.encodings import MOST_BANDS, MOST_IN_LEGEND, key
from fortifai_ray.report.charts.histograms import TEXTS, histogram_chart, probability_table
from fortifai_ray.report.charts.onset import onset_chart, ratio_chart
from fortifai_ray.report.headline import headline
from fortifai_ray.report.points import BAND, MANY_CHAINS, MOST_POINTS, Curve, curve
from fortifai_ray.report.samples import MOST_CELLS, sample_tables, strips
from fortifai_ray.report.search import Figure, search_tables
from fortifai_ray.report.tables import (
    HEADINGS,
    FidelityRow,
    concluded,
    facts,
    fidelity_rows,
    legend,
    median_intervals,
    order_tables,
    outcomes,
)
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import FI_UNITS, LINEAGE, WHOLES, metric_columns
from fortifai_ray.results.words import counted, fi_unit
from fortifai_ray.statistics.criterion import Collapse, criterion_rows

FEW_METRICS = 6  # up to this many, further measurements are open; above, they are folded into groups of small charts
SMALL_POINTS = 600  # in a small chart
MOST_OUTCOMES = 100  # failed chains that the page lists; the summary has them all
_MARKS = {"holds": "✓", "does not hold": "✗", "undecided": "?"}


def render_page(results: StudyResults, made_from: str) -> str:
    """The whole page. Texts are escaped, and the security policy in its head allows only its own script to run.

    ``made_from`` is noted in its head.
    """
    with ThreadPoolExecutor(1) as background, _quick_charts():
        script = background.submit(_script)
        return _render(results, made_from, script)


@contextmanager
def _quick_charts() -> Iterator[None]:
    """Altair without what takes most of the time of a page with dozens of charts: it validates each part as it is made
    (and then the whole chart, as the tests of each kind of chart let it), and reads the schemas of all its classes anew
    for each channel that is given as a text."""
    original, tables = schemapi._FromDict, list[schemapi._FromDict]()

    def once(classes: Iterable[Any], /) -> schemapi._FromDict:
        tables[:] = tables or [original(classes)]
        return tables[0]

    with schemapi.debug_mode(False):
        schemapi._FromDict = once  # type: ignore[misc,assignment]
        try:
            yield
        finally:
            schemapi._FromDict = original  # type: ignore[misc]


def _render(results: StudyResults, made_from: str, coming: Future[str]) -> str:
    environment = Environment(
        loader=PackageLoader("fortifai_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    samples, samples_note = sample_tables(results)
    pictures, pictures_note = strips(results)
    ended = outcomes(results)
    return environment.get_template(
        "report.html.j2"
    ).render(
        results=results,
        made_from=made_from,
        headline=headline(results),
        headings=HEADINGS,
        searches=search_tables(results),
        sections=[] if results.search else [section(results, criterion) for criterion in results.criteria],
        curves=[] if results.search else curves(results),  # a search's chains differ in more than their cell and seed
        groups=[] if results.search else [*other_curves(results), *histograms(results)],
        key=key(results.cells),
        orders=order_tables(results),
        claims=claims_section(results),
        legend=legend(results) if results.fidelity is not None else [],
        conclusions=concluded(results),
        counts=_counts(results),
        facts=facts(results),
        outcomes=ended[:MOST_OUTCOMES],
        outcomes_left=max(0, len(ended) - MOST_OUTCOMES),
        samples=samples,
        samples_note=samples_note,
        pictures=pictures,
        pictures_note=pictures_note,
        columns=max((len(strip.pictures) for strip in pictures), default=1),
        versions=_versions(results),
        style=_resource("report.css"),
        script=(script := coming.result()),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def claims_section(results: StudyResults) -> dict[str, Any] | None:
    """The claims as last checked; None where there are none, or they were never checked.

    Each of ``rows`` is a claim with its mark, its verdict and its tone, the gravity of the verdict (good, bad, quiet).
    """
    claims = stored_claims(results.claims)
    if not claims:
        return None
    notes = [
        "A verdict comes from the whole interval: a claim holds where all of it agrees, and does not hold where none "
        "of it does."
    ]
    if any(claim.is_finding for claim in claims):
        notes.append(
            "A replication that does not hold is a finding: at this study's scale the published number is not "
            "reproduced. It is not a fault of the run."
        )
    notes += [note[0].upper() + note[1:] + "." for note in [multiplicity(claims)] if note]
    rows = []
    for claim in claims:
        grave = claim.kind == "theory" and claim.verdict != "holds"
        tone = "bad" if grave else "good" if claim.verdict == "holds" else "quiet"
        verdict = f"{_MARKS[claim.verdict]} {claim.verdict}{' – a finding' if claim.is_finding else ''}"
        rows.append((claim, tone, verdict))
    return {"rows": rows, "summary": summary(claims), "notes": notes}


@dataclass(frozen=True)
class FigureGroup:
    """Charts that belong together; ``small`` ones have no legend and are folded away."""

    title: str
    figures: list[Figure]
    small: bool


@dataclass(frozen=True)
class CriterionSection:
    """Everything that depends on one collapse criterion, which ``title`` spells out."""

    title: str
    rows: list[FidelityRow]
    figures: list[Figure]


def section(results: StudyResults, criterion: Collapse) -> CriterionSection:
    """A criterion's fidelity table, onsets and ratios."""
    figures: list[Figure] = []
    if results.chains is not None:
        medians = median_intervals(results, criterion)
        chart = onset_chart(results.chains, criterion, results.cells, medians=medians, width="container")
        if chart is not None:
            figures.append(Figure("Onset per chain", _onset_caption(results), chart.to_dict(validate=False)))
    caption = (
        f"Large: all seeds, with the interval where there is one; small: single seeds (up to {MANY_CHAINS}). "
        "▷ at least, ◁ at most."
    )
    for unit in FI_UNITS:
        if results.fidelity is None:
            break
        chart = ratio_chart(results.fidelity, criterion, results.cells, unit, width="container")
        if chart is not None:
            name = fi_unit(unit, results.unit)
            figures.append(Figure(f"Ratio to the baseline, in {name}", caption, chart.to_dict(validate=False)))
    return CriterionSection(criterion.words, fidelity_rows(results, criterion), figures)


def curves(results: StudyResults) -> list[Figure]:
    """A chart for each metric that a criterion judges."""
    judged = dict.fromkeys(member.metric for criterion in results.criteria for member in criterion.members)
    return [_curve(results, metric, 360) for metric in judged if _drawable(results, metric)]


def other_curves(results: StudyResults) -> list[FigureGroup]:
    """The kept fraction, where a loss truncates, and every other metric: a few are open, many are folded by group."""
    judged = {member.metric for criterion in results.criteria for member in criterion.members}
    names = [name for name in metric_columns(results.columns, results.varied) if name not in {*judged, "kept_fraction"}]
    names = [name for name in names if not metrics.is_bookkeeping(name)]
    if "kept_fraction" not in judged and _drawable(results, "kept_fraction"):
        truncated = results.ask(lambda table: table.select((pl.col("kept_fraction") < 1).any())).item()
        names = ["kept_fraction", *names] if truncated else names
    names = [name for name in names if _drawable(results, name)]
    if len(names) <= FEW_METRICS:
        return [FigureGroup("", [_curve(results, name, 240) for name in names], small=False)] if names else []
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[metrics.metric(name).group].append(name)
    return [
        FigureGroup(title, [_curve(results, name, 170, small=True) for name in members], small=True)
        for title, members in groups.items()
    ]


def histograms(results: StudyResults) -> list[FigureGroup]:
    """The probability histograms of the first cells; none where the study computes no signs of its models."""
    if "mean_target_probability_human" not in results.columns or results.details is None:
        return []
    table = probability_table(results.batches("details"), results.roster, results.cells)
    figures = []
    for (cell, text), part in table.group_by("cell", "text", maintain_order=True):
        if cell in results.cells.order[:MOST_CELLS] and part["blocks"].sum():
            caption = f"{part['blocks'].sum():,} blocks or documents of all seeds and generations."
            chart = histogram_chart(part, width="container")
            figures.append(Figure(f"{cell}: {TEXTS[str(text)]}", caption, chart.to_dict(validate=False)))
    return [FigureGroup("Probability of the tokens, block by block", figures, small=True)] if figures else []


def _curve(results: StudyResults, metric: str, height: int, small: bool = False) -> Figure:
    text = metrics.metric(metric)
    points = SMALL_POINTS if small else MOST_POINTS
    drawn = curve(results.scanned, metric, results.cells, results.chains, most_points=points)
    chart = draw(
        drawn, results.chains, results.cells, small=small, most_points=points, width="container", height=height
    )
    first = [f"{metric}: {text.definition}" if small and text.definition else "", text.sense]
    marks = [] if small else _band_sentences(drawn, points)
    caption = _joined([*first, *marks, *_exceptions(results, metric, drawn)])
    return Figure(text.axis if small else f"{text.axis} by generation", caption, chart.to_dict(validate=False))


def _joined(sentences: list[str]) -> str:
    return " ".join(f"{text}." if text[-1] not in ".!?" else text for text in sentences if text)


def _band_sentences(drawn: Curve, most_points: int) -> list[str]:
    """What the thick line, the band and the thin lines show."""
    sizes = drawn.spread.group_by("cell").agg(pl.col("chains").max())["chains"]
    most, fewest = int(str(sizes.max() or 0)), int(str(sizes.min() or 0))
    if most == 1:
        parts = ["One chain per cell: no band"]
    else:
        kinds = ["lowest to highest value over seeds"] if fewest <= MANY_CHAINS else []
        if most > MANY_CHAINS:
            quantiles = f"{100 * BAND[0]:g} to {100 * BAND[1]:g} % quantiles over seeds"
            kinds.append(f"{quantiles} (cells with more than {MANY_CHAINS} chains)" if kinds else quantiles)
        band = "" if drawn.spread["cell"].n_unique() > MOST_BANDS else f"; band: {' or '.join(kinds)}"
        thin = "; thin: single chains" if 0 < len(drawn.points) <= most_points and fewest <= MANY_CHAINS else ""
        parts = [f"Thick: median over seeds{band}, as far as every chain has a value{thin}"]
    if len(drawn.cells) > MOST_IN_LEGEND:
        parts.append(
            "Colours follow the order of the table below; point at a symbol to see its cell, click to highlight it"
        )
    else:
        parts.append("Click a name in the legend to highlight it")
    return parts


def _exceptions(results: StudyResults, metric: str, drawn: Curve) -> list[str]:
    """What the chart leaves out, or draws at its edge."""
    exceptions = []
    if drawn.measured > len(drawn.generations):
        exceptions.append(f"{len(drawn.generations)} of {drawn.measured:,} generations are drawn, evenly spaced")
    broken = results.ask(lambda table: table.filter(~pl.col(metric).cast(pl.Float64).is_finite()).select("chain_id"))
    if len(broken):
        share = f"{len(broken):,} of {results.counts[metric]:,} values, in {broken['chain_id'].n_unique():,} chains"
        exceptions.append(f"Triangles at the edge: no finite value (NaN or ∞), {share}")
    absent = [cell for cell in results.cells.order if cell not in drawn.cells | results.cells.wholes]
    if absent:
        names = ", ".join(absent) if len(absent) <= 4 else f"{len(absent)} cells"
        exceptions.append(f"Not measured in {names}")
    return exceptions


def _onset_caption(results: StudyResults) -> str:
    assert results.chains is not None
    sizes = results.cells.name(results.chains.unique("chain_id")).group_by("cell").len()["len"]
    sentences = []
    if int(str(sizes.min())) <= MANY_CHAINS:
        sentences += ["Filled: collapsed there", "Open triangle: censored, not collapsed by its last generation"]
    if int(str(sizes.max())) > MANY_CHAINS:
        many = "" if not sentences else f"cells with more than {MANY_CHAINS} chains, "
        sentences.append(f"Lines: {many}Kaplan–Meier quantiles, thick from 25 to 75 %, thin from 5 to 95 %")
        sentences.append("A triangle at the end of a line: too many chains are censored for the quantile to be known")
    return _joined([*sentences, "Bar: Kaplan–Meier median"])


def _drawable(results: StudyResults, metric: str) -> bool:
    return results.counts.get(metric, 0) > 0


def _counts(results: StudyResults) -> str:
    """``4 chains in 2 cells, 5 generations: 2 collapsed, 2 survived`` (by the first criterion)."""
    chains = results.roster.height
    generations = results.ask(lambda table: table.select(pl.col("generation").n_unique())).item()
    cells = results.cells.name(results.roster)["cell"].n_unique()
    text = f"{counted(chains, 'chain')} in {counted(cells, 'cell')}, {counted(generations, 'generation')}"
    if results.chains is None or not results.criteria:
        return text
    judged = results.chains.filter(criterion_rows(results.criteria[0]))
    if LINEAGE in judged.columns:  # an ecosystem as a whole is no chain
        judged = judged.filter(~pl.col(LINEAGE).is_in(WHOLES).fill_null(False))
    status = judged["status"].value_counts(sort=True)
    return f"{text}: " + ", ".join(f"{number:,} {name}" for name, number in status.iter_rows())


def _versions(results: StudyResults) -> list[tuple[str, str]]:
    versions = results.summary.get("versions")
    return [(str(name), str(version)) for name, version in versions.items()] if isinstance(versions, dict) else []


def _script() -> str:
    """Vega, Vega-Lite, Vega-Embed and the page's own few lines, in one scope."""
    return f"(() => {{\n{vega()}\n{_resource('report.js')}}})();"


@cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed."""
    # In a process of its own, beside the charts: it takes 1.4 s, and lets no other thread run.
    program = "import sys, vl_convert as v; sys.stdout.buffer.write(v.javascript_bundle(sys.argv[1]).encode())"
    bundle = subprocess.check_output([sys.executable, "-c", program, "window.vegaEmbed = vegaEmbed;"]).decode()
    return bundle.replace("</script", "<\\/script")  # nothing inside a script element may look like its end


def _resource(name: str) -> str:
    return files("fortifai_ray.report").joinpath("templates", name).read_text(encoding="utf-8")
