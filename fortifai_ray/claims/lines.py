"""Checked claims as people read them: a line each, in the terminal and in the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fortifai_ray.claims.result import ClaimResult, Verdict
from fortifai_ray.results.words import number, printable

if TYPE_CHECKING:
    from rich.console import Console

_STYLES: dict[Verdict, str] = {"holds": "green", "does not hold": "red", "undecided": "yellow"}
_SINGULAR_AND_PLURAL: dict[Verdict, tuple[str, str]] = {
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "undecided": ("undecided", "undecided"),
}


@dataclass(frozen=True)
class ClaimLine:
    """A claim as columns of text; ``why`` may be empty."""

    id: str
    source: str
    kind: str
    verdict: Verdict
    measured: str
    asked: str
    chains: str
    statistic: str
    why: str


def claims_lines(results: Sequence[ClaimResult]) -> list[ClaimLine]:
    """The lines of a report's table, in the study file's order."""
    return [
        ClaimLine(
            id=result.id,
            source=result.source,
            kind=result.kind,
            verdict=result.verdict,
            measured=_measured(result),
            asked=result.asked,
            chains=f"{result.n_chains:,} chain{'' if result.n_chains == 1 else 's'}",
            statistic=result.statistic,
            why=result.why,
        )
        for result in results
    ]


def summary(results: Sequence[ClaimResult]) -> str:
    """How many claims hold, by kind: ``theory: 3 hold · replication: 1 does not hold, 1 undecided``."""
    if not results:
        return "this study makes no claims"
    parts = []
    for kind in ("theory", "replication"):
        counts = Counter(result.verdict for result in results if result.kind == kind)
        told = [
            f"{counts[verdict]} {words[counts[verdict] > 1]}"
            for verdict, words in _SINGULAR_AND_PLURAL.items()
            if counts[verdict]
        ]
        if told:
            parts.append(f"{kind}: {', '.join(told)}")
    return " · ".join(parts)


def multiplicity(results: Sequence[ClaimResult]) -> str:
    """What testing several claims at once costs.

    A verdict other than undecided is wrong only where its interval misses the truth, so that the probability of any
    wrong verdict is at most the sum of (1 − level) over the decided claims, dependent or not (Bonferroni). Levels are
    each claim's own: to bound the sum at α over m claims, give them level 1 − α/m.
    """
    decided = [result for result in results if result.verdict != "undecided"]
    if not decided:
        return ""
    risk = min(1.0, sum(1 - result.level for result in decided))
    return (
        "each interval is at its own level: the chance that any of the "
        f"{len(decided)} decided verdicts is wrong is at most {number(risk)}"
    )


def print_claims(results: Sequence[ClaimResult], console: Console) -> None:
    """Print a line per claim, then how many hold. A line is never wrapped, so that it can be searched for."""
    from rich.text import Text

    for line in claims_lines(results):
        why = f" — {line.why}" if line.why else ""
        text = Text.assemble(
            (f"{line.verdict:<13}", _STYLES[line.verdict]),
            f" {line.kind:<11} ",
            (line.id, "bold"),
            f": {line.measured}; asked {line.asked}; {line.chains}; {printable(line.statistic)}{printable(why)}",
        )
        console.print(text, soft_wrap=True)
    console.print(Text(summary(results)), soft_wrap=True)
    if note := multiplicity(results):
        console.print(Text(note, style="dim"), soft_wrap=True)


def exit_code(results: Sequence[ClaimResult]) -> int:
    """1 where a theory claim does not hold or is undecided, else 0: a replication that fails is a finding."""
    return int(any(result.kind == "theory" and result.verdict != "holds" for result in results))


def _measured(result: ClaimResult) -> str:
    if result.measured is None:
        return "not measured"
    assert result.low is not None
    assert result.high is not None
    level = f"{100 * result.level:.6g} %"
    return f"{number(result.measured, 4)} [{number(result.low, 4)}, {number(result.high, 4)}] at {level}"
