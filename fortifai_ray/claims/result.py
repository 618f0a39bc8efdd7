"""What came of a claim, and ``results/claims.parquet``."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from fortifai_ray.claims.verdict import Verdict
from fortifai_ray.files import write_table

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
    path = Path(study_dir) / "results" / "claims.parquet"
    write_table(path, claims_table(results))
    return path
