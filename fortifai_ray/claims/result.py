"""A claim's verdict and its record: as a row of ``results/claims.parquet``, and as a line for people to read."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from fortifai_ray.results.schema import write_table
from fortifai_ray.results.words import counted, number, printable
from fortifai_ray.study.claims import Claim

if TYPE_CHECKING:
    from rich.console import Console

Verdict = Literal["holds", "does not hold", "undecided"]
MARKS = {"at_most": "≤", "at_least": "≥", "less": "<", "greater": ">"}
_STYLES: dict[Verdict, str] = {"holds": "green", "does not hold": "red", "undecided": "yellow"}
_FORMS: dict[Verdict, tuple[str, str]] = {  # one claim, several
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "undecided": ("undecided", "undecided"),
}


@dataclass(frozen=True)
class Region:
    """The numbers that agree with a claim: from ``low`` to ``high``, ends included unless ``open``."""

    low: float
    high: float
    open: bool = False

    @staticmethod
    def of(claim: Claim, numbers: tuple[float, ...]) -> "Region":
        """The region of a claim whose value is ``numbers`` (two for ``between``)."""
        value = numbers[0]
        if claim.relation == "between":
            return Region(value, numbers[1])
        if claim.relation == "equals":
            assert claim.tolerance is not None
            distance = claim.tolerance.around(value)
            return Region(value - distance, value + distance)
        if claim.relation in ("at_most", "less"):
            return Region(-math.inf, value, claim.relation == "less")
        return Region(value, math.inf, claim.relation == "greater")

    def verdict(self, low: float, high: float) -> Verdict:
        """The verdict of the interval from ``low`` to ``high``, whose ends may be infinite.

        ``holds`` where all of it lies in the region, ``does not hold`` where none of it does.
        """
        if math.isnan(low) or math.isnan(high):
            return "undecided"
        if self._has(low, self.low, above=True) and self._has(high, self.high, above=False):
            return "holds"
        if not self._has(high, self.low, above=True) or not self._has(low, self.high, above=False):
            return "does not hold"
        return "undecided"

    def _has(self, number: float, end: float, above: bool) -> bool:
        """Whether a number lies on the right side of one end."""
        if math.isinf(end) and (end < 0) == above:
            return True
        if self.open:
            return number > end if above else number < end
        return number >= end if above else number <= end


@dataclass(frozen=True)
class ClaimResult:
    """A checked claim: a row of ``claims.parquet``.

    Attributes:
        statistic: what was measured, in words.
        measured, low, high: the number and its interval; None where there is none. An end may be infinite. The number
            alone is None where a search has not settled: its interval may decide all the same.
        level: of the claim, over all its looks.
        method: how the interval was computed.
        n_chains: independent chains (seeds; pairs of a comparison) behind it.
        value: the number it was compared with; None for ``between``.
        accepted_low, accepted_high: the numbers that agree with the claim.
        asked: relation and value in words.
        why: why it is undecided, or what else the reader must know; may be empty.
        looks: how many sets of chains the claim allows: 1 where it is fixed beforehand. The interval is at the level
            1 − (1 − ``level``)/``looks``.
        look: which of them this is; 0 where it is none, as there was no interval or chains are still to come.
        looked_at: the numbers of chains with which it was looked at, the earliest look first.
        looked_at_seeds: for each of these, a hash of which chains they were; empty text where that is not known.
        about: hash of what was measured on which recipe; another one's looks do not count.
        wrong: the theories that the claim must reject, in words, each with whether the interval leaves its value out.
        wrong_value: the nearest of their values; None where the claim names none.
        chains_needed: chains with which, at this sample's spread, the claim holds 19 times in 20 where it is right, and
            does not hold 19 times in 20 where the nearest wrong theory is; None for a claim that is no equality.
    """

    id: str
    source: str
    kind: Literal["theory", "replication"]
    statistic: str
    measured: float | None
    low: float | None
    high: float | None
    level: float
    method: str
    n_chains: int
    min_chains: int
    relation: str
    value: float | None
    accepted_low: float
    accepted_high: float
    asked: str
    verdict: Verdict
    why: str
    looks: int = 1
    look: int = 0
    looked_at: tuple[int, ...] = ()
    looked_at_seeds: tuple[str, ...] = ()
    about: str = ""
    wrong: str = ""
    wrong_value: float | None = None
    chains_needed: int | None = None

    @property
    def measured_words(self) -> str:
        """``0.371 [0.342, 0.402] at 99 %``; ``[0.342, 0.402] at 99 %`` where the interval is all that is known."""
        if self.low is None or self.high is None:
            return "not measured"
        level = f"{100 * (1 - (1 - self.level) / self.looks):.6g} %"
        point = "" if self.measured is None else f"{number(self.measured, 4)} "
        return f"{point}[{number(self.low, 4)}, {number(self.high, 4)}] at {level}"

    @property
    def chains_words(self) -> str:
        """``1,000 chains``."""
        return counted(self.n_chains, "chain")

    @property
    def looks_words(self) -> str:
        """``number fixed beforehand``, or ``look 2 of 5, 99 % over all``."""
        if self.looks == 1:
            return "number fixed beforehand"
        return f"look {self.look} of {self.looks}, {100 * self.level:.6g} % over all"

    @property
    def is_finding(self) -> bool:
        """Whether it is a replication that does not hold: at this scale the published number is not reproduced."""
        return self.kind == "replication" and self.verdict == "does not hold"


_TYPES: dict[object, pl.DataType] = {
    int: pl.Int64(),
    int | None: pl.Int64(),
    float: pl.Float64(),
    float | None: pl.Float64(),
    tuple[int, ...]: pl.List(pl.Int64),
    tuple[str, ...]: pl.List(pl.String),
}
_SCHEMA: dict[str, pl.DataType] = {one.name: _TYPES.get(one.type, pl.String()) for one in fields(ClaimResult)}


def claims_table(results: Sequence[ClaimResult]) -> pl.DataFrame:
    """A row per claim, in the study file's order."""
    return pl.DataFrame([asdict(result) for result in results], schema=_SCHEMA)


def write_claims(study_dir: Path, results: Sequence[ClaimResult], earlier: Sequence[ClaimResult] = ()) -> Path:
    """Write ``results/claims.parquet`` (aside first, then renamed) and return its path.

    Args:
        earlier: the rows of claims that were not checked this time, which stay in the table.
    """
    checked = {result.id for result in results}
    rest = [result for result in earlier if result.id not in checked]
    return write_table(study_dir, "claims", claims_table([*results, *rest]))


def stored_claims(table: pl.DataFrame | None) -> list[ClaimResult]:
    """The claims of ``claims.parquet``; none where it is None or has other columns."""
    if table is None or not set(_SCHEMA) - {"looked_at_seeds"} <= set(table.columns):
        return []
    rows = table.select([name for name in _SCHEMA if name in table.columns]).rows(named=True)
    return [_stored(row) for row in rows]


def _stored(row: dict[str, Any]) -> ClaimResult:
    """A row of ``claims.parquet``, which may be older than one of its columns."""
    counts = tuple(row["looked_at"])
    seeds = tuple(row.get("looked_at_seeds", [""] * len(counts)))
    return ClaimResult(**{**row, "looked_at": counts, "looked_at_seeds": seeds})


def summary(results: Sequence[ClaimResult]) -> str:
    """How many claims hold, by kind: ``theory: 3 hold · replication: 1 does not hold, 1 undecided``."""
    if not results:
        return "this study makes no claims"
    parts = []
    for kind in ("theory", "replication"):
        counts = Counter(result.verdict for result in results if result.kind == kind)
        words = [
            f"{counts[verdict]} {forms[counts[verdict] > 1]}" for verdict, forms in _FORMS.items() if counts[verdict]
        ]
        if words:
            parts.append(f"{kind}: {', '.join(words)}")
    return " · ".join(parts)


def multiplicity(results: Sequence[ClaimResult]) -> str:
    """What testing several claims at once costs; empty where none is decided.

    A decided verdict is wrong only where its interval misses the truth, so the probability of any wrong verdict is at
    most the sum of (1 − level) over the decided claims, dependent or not (Bonferroni). Each claim has its own level: to
    bound the sum by α over m claims, give each the level 1 − α/m.
    """
    decided = [result for result in results if result.verdict != "undecided"]
    if not decided:
        return ""
    risk = min(1.0, sum(1 - result.level for result in decided))
    which = f"any of the {len(decided)} decided verdicts" if len(decided) > 1 else "the decided verdict"
    return f"each interval is at its own level: the chance that {which} is wrong is at most {number(risk)}"


def print_claims(results: Sequence[ClaimResult], console: "Console") -> None:
    """Print a line per claim, never wrapped, so that it can be searched for; then how many hold."""
    from rich.text import Text

    for result in results:
        why = f" — {result.why}" if result.why else ""
        chains = f"{result.chains_words}, {result.looks_words}"
        said = (result.measured_words, f"asked {result.asked}", result.wrong, chains, printable(result.statistic + why))
        facts = [fact for fact in said if fact]
        text = Text.assemble(
            (f"{result.verdict:<13}", _STYLES[result.verdict]),
            f" {result.kind:<11} ",
            (result.id, "bold"),
            f": {'; '.join(facts)}",
        )
        console.print(text, soft_wrap=True)
    console.print(Text(summary(results)), soft_wrap=True)
    if note := multiplicity(results):
        console.print(Text(note, style="dim"), soft_wrap=True)


def exit_code(results: Sequence[ClaimResult]) -> int:
    """1 where a theory claim does not hold or is undecided, else 0: a replication that fails is a finding."""
    return int(any(result.kind == "theory" and result.verdict != "holds" for result in results))
