"""What a search asks and what it finds: the values that it may probe, its probes, and the collapse point of a cell."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fortifai_ray.results.schema import table_schema
from fortifai_ray.statistics.criterion import Collapse, criterion_values
from fortifai_ray.study.search import BoundarySearch

Bound = Literal["exact", "lower", "upper", "undetermined"]
Ending = Literal["settled", "budget", "refused", "failed"]

_ROUNDING = 1e-9  # of a step: 0.7 / 0.01 is 69.99999999999999
_DIGITS = 6  # significant digits of a value on a log scale


@dataclass(frozen=True)
class Lattice:
    """The values that a search may probe: round numbers, 1, 2 or 5 times a power of ten apart.

    That step is at most half the tolerance and does not depend on the range, so that a search of another range, or a
    finer one, finds the chains of the coarser one in the stage store. A *place* counts steps: place p is the value
    p·step, or exp(p·step) on a log scale.
    """

    search: BoundarySearch
    whole: bool  # whether the key takes whole numbers alone

    @cached_property
    def step(self) -> float:
        """Between neighbouring places, in units of the key (of its logarithm on a log scale)."""
        step = _round_step(self.search.tolerance / 2)
        return max(1.0, step) if self.whole and not self.is_log else step

    @property
    def is_log(self) -> bool:
        return self.search.scale == "log"

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Every place in the range, ascending; one for each value where steps are finer than whole numbers."""
        low, high = (self.place(end) for end in (self.search.low, self.search.high))
        places = np.arange(math.ceil(low - _ROUNDING), math.floor(high + _ROUNDING) + 1)
        first = {self.value(place): place for place in reversed(places.tolist())}
        return np.array(sorted(first.values()), dtype=np.int64)

    def value(self, place: float) -> float:
        """The key's value at a lattice place: a round number, whole where the key is."""
        at = place * self.step
        if self.is_log:
            value = float(f"{math.exp(at):.{_DIGITS}g}")
        else:
            value = round(at, max(0, -math.floor(math.log10(self.step))))
        return float(round(value)) if self.whole else value

    def place(self, value: float) -> float:
        """Where a value of the key lies, in steps; not rounded."""
        return (math.log(value) if self.is_log else value) / self.step

    def between(self, place: float) -> float:
        """The key's value at any place, not rounded: intervals are reported in it."""
        return math.exp(place * self.step) if self.is_log else place * self.step

    @property
    def half_width(self) -> float:
        """The tolerance in steps."""
        return self.search.tolerance / self.step


def _round_step(most: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above ``most``."""
    power = math.floor(math.log10(most) + _ROUNDING)
    leading = most / 10.0**power
    factor = next(factor for factor in (5, 2, 1) if factor <= leading + _ROUNDING)
    return float(f"{factor}e{power}")


@dataclass(frozen=True, order=True)
class Probe:
    """A chain to run: the searched key's value, and the seed. ``place`` is the value's on the search's lattice."""

    place: int
    value: float
    seed: int

    def config(self, cell: str) -> dict[str, Any]:
        """The configuration of a trial that runs it, for the cell of that name."""
        return {"cell": cell, "value": self.value, "seed": self.seed, "place": self.place}


@dataclass(frozen=True)
class Answer:
    """The outcome of a probe: whether its chain collapsed (None where it failed), and the generations it computed."""

    collapsed: bool | None
    generations: int


@dataclass(frozen=True)
class CollapsePoint:
    """Where half of a cell's chains collapse, in units of the searched key.

    Attributes:
        critical: the boundary: where the likely curve crosses one half; the known end of a bound; else None.
        low, high: the interval of the given level; None where the range ended before it did.
        bound: ``exact``: settled, with an interval within the tolerance; ``lower``: the boundary is above ``critical``;
            ``upper``: below it; ``undetermined``: the answers leave it open (between ``low`` and ``high``, where they
            are known), or the cell was refused.
        chains_run, generations_run: that the search used, taken from the store or computed.
        seeds_used: different seeds among the chains.
        ended: ``settled``: the interval is within the tolerance, or the boundary is clearly outside the range;
            ``budget``: spent before that; ``refused``: collapse is not monotone in the key; ``failed``: too many chains
            failed. None while the search runs.
        evidence: the answers that made it refuse.
        audit_width: the widest stretch of the range in which no chain ran (of the key's logarithm on a log scale): a
            wider zone in which 19 chains of 20 do the opposite of those around it was seen with 90% or more.
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
    audit_width: float | None = None


def collapse_points(points: Iterable[tuple[Mapping[str, Any], Collapse, CollapsePoint]], over: str) -> pl.DataFrame:
    """``collapse_points.parquet``: a row per cell and criterion, in the order given.

    Args:
        points: each cell's keys (the searched key and the seed are left out), the criterion, and its collapse point.
        over: the key searched.
    """
    rows = []
    for cell, criterion, point in points:
        keys = {key: value for key, value in cell.items() if key not in ("seed", over)}
        rows.append({**keys, **criterion_values(criterion), "over": over, **asdict(point)})
    schema = table_schema("collapse_points")
    if not rows:
        return pl.DataFrame(schema=schema)
    return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None, strict=False)
