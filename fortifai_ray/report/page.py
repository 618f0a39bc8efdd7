"""The report as one HTML page: every script, style and number is inside it, and nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from altair.utils.schemapi import debug_mode

from fortifai_ray.claims.result import ClaimResult, multiplicity, stored_claims, summary
from fortifai_ray.report.charts.encodings import key
from fortifai_ray.report.figures import curves, other_curves, section
from fortifai_ray.report.samples import sample_tables, strips
from fortifai_ray.report.search import search_tables
from fortifai_ray.report.tables import HEADINGS, conclusion_lines, facts, legend, order_tables, outcomes
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.statistics.criterion import criterion_rows

_MARKS = {"holds": "✓", "does not hold": "✗", "undecided": "?"}


@dataclass(frozen=True)
class ClaimRow:
    """A checked claim, with a ``mark`` for its verdict and a ``tone`` for its gravity (good, bad, quiet)."""

    claim: ClaimResult
    mark: str
    tone: str
    verdict: str


@dataclass(frozen=True)
class ClaimsSection:
    """All claims, how many hold, and notes on how to read them."""

    rows: list[ClaimRow]
    summary: str
    notes: list[str]


def claims_section(results: StudyResults) -> ClaimsSection | None:
    """The claims as last checked; None where there are none, or they were never checked."""
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
    return ClaimsSection([_row(claim) for claim in claims], summary(claims), notes)


def _row(claim: ClaimResult) -> ClaimRow:
    if claim.is_finding:
        return ClaimRow(claim, _MARKS[claim.verdict], "quiet", f"{claim.verdict} – a finding")
    tone = "good" if claim.verdict == "holds" else "bad" if claim.kind == "theory" else "quiet"
    return ClaimRow(claim, _MARKS[claim.verdict], tone, claim.verdict)


MOST_OUTCOMES = 100  # failed chains that the page lists; the summary has them all


def render_page(results: StudyResults) -> str:
    """The whole page. Texts are escaped, and the security policy in its head allows only its own script to run."""
    # Altair validates each part as it is made, and then the whole chart. The second check is enough; the first takes
    # most of the time of a page with dozens of charts.
    with debug_mode(False):
        return _render(results)


def _render(results: StudyResults) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("fortifai_ray.report"),
        autoescape=select_autoescape(["html", "j2"], default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _script()
    samples, samples_note = sample_tables(results)
    pictures, pictures_note = strips(results)
    ended = outcomes(results)
    return environment.get_template(
        "report.html.j2"
    ).render(
        results=results,
        headings=HEADINGS,
        searches=search_tables(results),
        sections=[] if results.search else [section(results, criterion) for criterion in results.criteria],
        curves=[] if results.search else curves(results),  # a search's chains differ in more than their cell and seed
        groups=[] if results.search else other_curves(results),
        key=key(results.cells),
        orders=order_tables(results),
        claims=claims_section(results),
        legend=legend(results) if results.fidelity is not None else [],
        conclusions=conclusion_lines(results),
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
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _counts(results: StudyResults) -> str:
    """``4 chains in 2 cells, 5 generations: 2 collapsed, 2 survived`` (by the first criterion)."""
    chains = results.generations["chain_id"].n_unique()
    generations = results.generations["generation"].n_unique()
    cells = len(results.cells.order)
    text = f"{_plural(chains, 'chain')} in {_plural(cells, 'cell')}, {_plural(generations, 'generation')}"
    if results.chains is None or not results.criteria:
        return text
    status = results.chains.filter(criterion_rows(results.criteria[0]))["status"].value_counts(sort=True)
    return f"{text}: " + ", ".join(f"{number:,} {name}" for name, number in status.iter_rows())


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _versions(results: StudyResults) -> list[tuple[str, str]]:
    versions = results.summary.get("versions")
    return [(str(name), str(version)) for name, version in versions.items()] if isinstance(versions, dict) else []


def _script() -> str:
    """Vega, Vega-Lite, Vega-Embed and the page's own few lines, in one scope."""
    return f"(() => {{\n{_vega()}\n{_resource('report.js')}}})();"


@cache
def _vega() -> str:
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")  # nothing inside a script element may look like its end


def _resource(name: str) -> str:
    return files("fortifai_ray.report").joinpath("templates", name).read_text(encoding="utf-8")
