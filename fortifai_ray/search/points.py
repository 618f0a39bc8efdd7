"""``collapse_points.parquet``: where each cell collapses, along the key that was searched."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import polars as pl

from fortifai_ray.statistics.criterion import CRITERION_COLUMNS, CollapseCriterion

Bound = Literal["exact", "lower", "upper", "undetermined"]
Ending = Literal["settled", "budget", "refused", "failed"]

_SCHEMA: Mapping[str, Any] = {
    "over": pl.String,
    "critical": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "level": pl.Float64,
    "bound": pl.String,
    "chains_run": pl.Int64,
    "generations_run": pl.Int64,
    "seeds_used": pl.Int64,
    "ended": pl.String,
    "evidence": pl.String,
}
_CRITERION_SCHEMA: Mapping[str, Any] = {
    **dict.fromkeys(CRITERION_COLUMNS, pl.String),
    **dict.fromkeys(("threshold", "chance"), pl.Float64),
    "confirm": pl.Int64,
}


@dataclass(frozen=True)
class CollapsePoint:
    """Where half of a cell's chains collapse, in units of the searched key.

    Attributes:
        critical: the boundary: the posterior's median; the known end of a bound; None where nothing is known.
        low, high: the interval of the given level; None where the range ended before it did.
        bound: ``exact``; ``lower``: the boundary is above ``critical``; ``upper``: below it; ``undetermined``: the
            answers leave it open, or the cell was refused.
        chains_run, generations_run: what the search asked for, taken from the store or computed.
        seeds_used: different seeds among them.
        ended: ``settled``: the interval is within the tolerance, or it is clear that the boundary is not in the range;
            ``budget``: spent before; ``refused``: collapse is not monotone in the key; ``failed``: too many chains did.
            None while the search goes on.
        evidence: the answers that made it refuse.
    """

    critical: float | None
    low: float | None
    high: float | None
    level: float
    bound: Bound
    chains_run: int
    generations_run: int
    seeds_used: int = 0
    ended: Ending | None = None
    evidence: str | None = None


def collapse_points(
    points: Iterable[tuple[Mapping[str, Any], CollapseCriterion, CollapsePoint]], over: str
) -> pl.DataFrame:
    """The table: a row per cell and criterion, in the order given.

    Args:
        points: each cell's keys (the searched key and the seed are left out), the criterion, and what was found.
        over: the key searched.
    """
    rows = []
    for cell, criterion, point in points:
        keys = {key: value for key, value in cell.items() if key not in ("seed", over)}
        of_criterion = {name: getattr(criterion, name) for name in CRITERION_COLUMNS}
        rows.append({**keys, **of_criterion, "over": over, **asdict(point)})
    schema = {**_CRITERION_SCHEMA, **_SCHEMA}
    if not rows:
        return pl.DataFrame(schema=schema)
    return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None, strict=False)
