"""What came of a claim, and ``results/claims.parquet``."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from fortifai_ray.results.schema import write_table
from fortifai_ray.study.claims import Claim

# From an interval and a relation to a verdict.

Verdict = Literal["holds", "does not hold", "undecided"]
MARKS = {"at_most": "≤", "at_least": "≥", "less": "<", "greater": ">"}


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
        """What the interval from ``low`` to ``high`` says, which may have infinite ends.

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


_SCHEMA: dict[str, type[pl.DataType]] = {
    "id": pl.String,
    "source": pl.String,
    "kind": pl.String,
    "statistic": pl.String,
    "measured": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "level": pl.Float64,
    "method": pl.String,
    "n_chains": pl.Int64,
    "min_chains": pl.Int64,
    "relation": pl.String,
    "value": pl.Float64,
    "accepted_low": pl.Float64,
    "accepted_high": pl.Float64,
    "asked": pl.String,
    "verdict": pl.String,
    "why": pl.String,
}


@dataclass(frozen=True)
class ClaimResult:
    """A claim checked: a row of ``claims.parquet``.

    Attributes:
        statistic: what was measured, in words.
        measured, low, high: the number and its interval at ``level``; None where there is none. An end may be infinite.
        method: how the interval was made.
        n_chains: independent chains (seeds; pairs of a comparison) that it rests on.
        value: what it was compared with; None for ``between``, and where it could not be computed.
        accepted_low, accepted_high: the numbers that agree with the claim.
        asked: relation and value in words.
        why: why it is undecided, or what else must be known; may be empty.
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


def claims_table(results: Sequence[ClaimResult]) -> pl.DataFrame:
    """A row per claim, in the study file's order."""
    return pl.DataFrame([asdict(result) for result in results], schema=_SCHEMA)


def write_claims(study_dir: Path, results: Sequence[ClaimResult]) -> Path:
    """Write ``results/claims.parquet`` (aside first, then renamed) and return its path."""
    return write_table(study_dir, "claims", claims_table(results))


def stored_claims(table: pl.DataFrame | None) -> list[ClaimResult]:
    """The claims of ``claims.parquet``; none where it is None or has other columns."""
    if table is None or not set(_SCHEMA) <= set(table.columns):
        return []
    return [ClaimResult(**row) for row in table.select(list(_SCHEMA)).rows(named=True)]
