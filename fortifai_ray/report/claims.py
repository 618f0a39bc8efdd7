"""The study's claims with their verdicts, as the page shows them."""

from __future__ import annotations

from dataclasses import dataclass

from fortifai_ray.claims.lines import ClaimLine, claims_lines, multiplicity, summary
from fortifai_ray.results.reader import Results

_MARKS = {"holds": "✓", "does not hold": "✗", "undecided": "?"}


@dataclass(frozen=True)
class ClaimRow:
    """A claim's line; ``mark`` says the verdict beside its words, ``tone`` how grave it is (good, bad, quiet)."""

    line: ClaimLine
    mark: str
    tone: str
    verdict: str


@dataclass(frozen=True)
class ClaimsSection:
    """All claims, how many hold, and what must be known to read them."""

    rows: list[ClaimRow]
    summary: str
    notes: list[str]


def claims_section(results: Results) -> ClaimsSection | None:
    """The claims as they were last checked; None where there are none, or none was checked."""
    if not results.claims:
        return None
    notes = [
        "A verdict comes from the whole interval: holds where all of it agrees with the claim, does not hold where "
        "none of it does."
    ]
    if any(_is_finding(line) for line in claims_lines(results.claims)):
        notes.append(
            "A replication that does not hold is a finding: at this study's scale the published number does not come "
            "out. It is no fault of the run."
        )
    notes += [note[0].upper() + note[1:] + "." for note in [multiplicity(results.claims)] if note]
    return ClaimsSection([_row(line) for line in claims_lines(results.claims)], summary(results.claims), notes)


def _row(line: ClaimLine) -> ClaimRow:
    if _is_finding(line):
        return ClaimRow(line, _MARKS[line.verdict], "quiet", f"{line.verdict} – a finding")
    tone = "good" if line.verdict == "holds" else "bad" if line.kind == "theory" else "quiet"
    return ClaimRow(line, _MARKS[line.verdict], tone, line.verdict)


def _is_finding(line: ClaimLine) -> bool:
    return line.kind == "replication" and line.verdict == "does not hold"
