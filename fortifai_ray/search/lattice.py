"""The values that a search may probe: round numbers on a fixed lattice.

They do not depend on the range searched, so that a search of another range, or a finer one, finds chains of the coarser
in the stage store: a step is 1, 2 or 5 times a power of ten, at most half the tolerance.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fortifai_ray.study.search import BoundarySearch

_ROUNDING = 1e-9  # of a step: 0.7 / 0.01 is 69.99999999999999
_DIGITS = 6  # significant digits of a value on a log scale


@dataclass(frozen=True)
class Lattice:
    """The lattice of one search. A *place* counts steps: place p is the value p·step, or exp(p·step) on a log scale."""

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
        """Every place in the range, ascending; one of each value where whole numbers lie closer than the steps."""
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
        """The key's value at any place, not rounded: what intervals are told in."""
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
