"""What the answers so far say of one cell: which places they rule out, and what the curve probably looks like."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fortifai_ray.search.curve import curve_posterior
from fortifai_ray.search.evidence import Evidence, Floats, evidence

_ABOVE_NEED = 0.3  # nats asked for beyond the threshold: the next answers may take some away


@dataclass(frozen=True)
class View:
    """What the answers say if collapse rises (``sign`` 1), or falls (−1), with the key.

    Attributes:
        evidence: for the boundary's being above or below each place.
        mean: (places,) the share of chains beyond their half: that collapse, or survive where collapse falls. It rises.
        crossed: (places,) probability that the boundary is at or below each place.
        log_probability: of the answers.
    """

    sign: int
    evidence: Evidence
    mean: Floats
    crossed: Floats
    log_probability: float

    @property
    def chances(self) -> Floats:
        """(places,) The likely share of chains that collapse."""
        return self.mean if self.sign > 0 else 1 - self.mean

    @property
    def _growth(self) -> Floats:
        """(places,) Nats that a chain adds to the evidence, at best."""
        return np.log(2) + self.mean * np.log(self.mean) + (1 - self.mean) * np.log1p(-self.mean)

    def backing(self, span: tuple[int, int], least: float, reach: int) -> "Pair | None":
        """Where the fewest more chains would prove, by ``least``, that the boundary is no more than ``reach`` places
        outside ``span``; None where that is proven, or the range ends before."""
        last, growth = self.mean.size - 1, self._growth
        sides: list[tuple[int | None, float]] = []
        found = self.evidence
        for inner, outer, known, alone in (
            (span[0], span[0] - reach, found.above, found.above_alone),
            (span[1], span[1] + reach, found.below, found.below_alone),
        ):
            if not 0 <= outer <= last or known[outer] >= least:
                sides.append((None, 0.0))
                continue
            places = np.arange(min(inner, outer), max(inner, outer) + 1).clip(0, last)
            chains = np.maximum(least + _ABOVE_NEED - alone[places], 0) / growth[places]
            best = int(chains.argmin())
            sides.append((int(places[best]), float(chains[best])))
        (low, at_low), (high, at_high) = sides
        return None if low is None and high is None else Pair(low, high, at_low, at_high)

    def narrowest(self, least: float, chains: float) -> "Pair | None":
        """The narrowest interval around the likely boundary that ``chains`` would prove; None where they prove none."""
        growth, crossing = self._growth, int(np.count_nonzero(self.mean < 0.5))
        above = np.maximum(least + _ABOVE_NEED - self.evidence.above_alone, 0) / growth
        below = np.maximum(least + _ABOVE_NEED - self.evidence.below_alone, 0) / growth
        lows = np.flatnonzero(above[:crossing] <= chains / 2)
        highs = crossing + np.flatnonzero(below[crossing:] <= chains / 2)
        low, high = (int(lows[-1]) if lows.size else None), (int(highs[0]) if highs.size else None)
        at_low, at_high = (0.0 if low is None else float(above[low])), (0.0 if high is None else float(below[high]))
        return Pair(low, high, at_low, at_high) if at_low + at_high > 0 else None

    def cheapest(self, least: float, farthest: NDArray[np.int64]) -> "Pair":
        """The two places at which the fewest more chains would settle the search.

        Args:
            least: the evidence wanted, on either side.
            farthest: (places,) for each place, the last one that is near enough to settle the search between both.
        """
        growth = self._growth
        last, crossing = self.mean.size - 1, int(np.count_nonzero(self.mean < 0.5))
        above = np.maximum(least + _ABOVE_NEED - self.evidence.above, 0) / growth
        below = np.maximum(least + _ABOVE_NEED - self.evidence.below, 0) / growth
        pairs = [
            Pair(low, high, float(above[low]), float(below[high]))
            for low in range(crossing)
            for high in range(max(crossing, low + 1), int(farthest[low]) + 1)
        ]
        if crossing == 0:
            pairs.append(Pair(None, 0, 0.0, float(below[0])))
        elif crossing > last:
            pairs.append(Pair(last, None, float(above[last]), 0.0))
        elif not pairs:  # places are farther apart than the tolerance
            pairs.append(Pair(crossing - 1, crossing, float(above[crossing - 1]), float(below[crossing])))
        return min(pairs, key=lambda pair: pair.chains)


@dataclass(frozen=True)
class Pair:
    """Two places on either side of the boundary, None beyond the range, and the chains that each still needs."""

    low: int | None
    high: int | None
    at_low: float
    at_high: float

    @property
    def chains(self) -> float:
        return self.at_low + self.at_high

    def places(self, turns: Sequence[float]) -> list[int]:
        """A place for each of ``turns`` (from 0 to 1), in proportion to the chains needed at each."""
        if self.low is None or self.high is None:
            return [self.high if self.low is None else self.low for _ in turns]  # type: ignore[misc]  # one is known
        return [self.low if turn * self.chains < self.at_low else self.high for turn in turns]


@dataclass(frozen=True)
class Belief:
    """One view where the direction of collapse is known, two where it is not; the likelier first."""

    views: tuple[View, ...]

    def span(self, least: float) -> tuple[int, int] | None:
        """The places around the boundary that ``least`` leaves, in any view; see :meth:`Evidence.span`."""
        spans = [span for view in self.views if (span := view.evidence.span(least))]
        return (min(low for low, _ in spans), max(high for _, high in spans)) if spans else None


def beliefs(collapses: Floats, survivals: Floats, signs: Sequence[int], step: float) -> list[Belief]:
    """The beliefs of several cells at once: numpy is called once for all of them.

    Args:
        collapses, survivals: (cells, places) votes at each place.
        signs: 1 where collapse may rise with the key, −1 where it may fall.
        step: between neighbouring places, in tolerances.
    """
    views: list[list[View]] = [[] for _ in collapses]
    for sign in signs:
        votes = (collapses, survivals) if sign > 0 else (survivals, collapses)
        found, curve = evidence(*votes, step), curve_posterior(*votes)
        for cell, of_cell in enumerate(views):
            own = Evidence(*(part[cell] for part in (found.above, found.below, found.above_alone, found.below_alone)))
            probability = float(curve.log_probability[cell])
            of_cell.append(View(sign, own, curve.mean[cell], curve.crossed[cell], probability))
    return [Belief(tuple(sorted(each, key=lambda view: -view.log_probability))) for each in views]
