"""What the answers rule out: the set of places where the boundary may lie, under no assumption about the curve's form.

The boundary is where collapse crosses one half: below it at most half of all seeds' chains collapse, above it at least
half (the other way round where collapse falls with the key). Nothing else is assumed: the curve may have a floor, a
ceiling, shoulders, steps for several kinds of seed, and dips that stay on their side of one half.

A place r is ruled out from above where chains at r and beyond collapse too seldom for a boundary at or below r. Each
chain in a window that begins at r bets against its collapse: a share of the stake is won if it survives and lost if it
collapses. While at least half collapse the stake does not grow on average, however the chains were placed (a test
supermartingale; Shafer 2021, JRSS A 184, 407; Ramdas and others 2023, Statistical Science 38, 576). Windows of all
lengths share the stake, half of it ending with every half tolerance, since only chains between r and the boundary count
for r. What rules r out rules out every place before r, too. From below it is the mirror image.

Evidence of 1/α is reached by chance with probability α at most, at a given r. The threshold asked for is half of that
(``_CALIBRATED``): a search looks a limited number of times, and either side errs only where the curve runs close
to one half. ``python -m benchmarks.search`` measures what it comes to: at 90% the interval holds the boundary in 90
searches of 100 or more, also on curves made to mislead; on one that stays within 0.01 of one half over most of the
range, in fewer.

Answers of one seed depend on each other in a way that nobody knows. So a seed has one vote: each of its m answers
counts 1/m, which has at most the expectation of a single bet (the geometric mean is below the arithmetic one).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from fortifai_ray.search.monotone import Judged

Floats = NDArray[np.float64]

_STAKES = np.array([0.5, 0.2, 0.08])  # the largest wins on steep curves, the least on those ten tolerances wide
_SHARES = np.log([0.25, 0.5, 0.25])
_WON, _LOST = np.log1p(_STAKES), np.log1p(-_STAKES)
_CALIBRATED = 0.5  # of 1/α; with 1, wide curves take twice the chains
_UNSETTLED = 1.5  # nats more, where a search ends before it settles: it may have wandered over a flat part of the curve


def votes(answers: Sequence[Judged], places: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """(places,), twice: collapses and survivals at each of ``places``; a seed's votes add to 1."""
    if not answers:
        return np.zeros(places.size), np.zeros(places.size)
    place, seed, collapsed = np.array(answers).T
    _, which, used = np.unique(seed, return_inverse=True, return_counts=True)
    at, share = np.searchsorted(places, place), 1 / used[which]
    fell = np.bincount(at, share * collapsed, places.size).astype(np.float64)
    return fell, np.bincount(at, share, places.size) - fell


def threshold(level: float, *, settled: bool = True) -> float:
    """The evidence that rules a place out, in nats, for an interval of the given level."""
    return math.log(_CALIBRATED / (1 - level)) + (0.0 if settled else _UNSETTLED)


BACKING = ((2.0, 1.0), (4.0, 2.4))


@dataclass(frozen=True)
class Evidence:
    """Evidence for one direction of collapse, in nats.

    Attributes:
        above: (…, places) that the boundary is above each place: that too few chains collapse there.
        below: (…, places) that it is below: that too many do.
        above_alone, below_alone: of those, from windows that begin at the place itself.
    """

    above: Floats
    below: Floats
    above_alone: Floats
    below_alone: Floats

    def span(self, least: float) -> tuple[int, int] | None:
        """The places around the boundary that less evidence than ``least`` leaves: it is above the first, −1 where it
        may be below all places, and below the second, their number where it may be above all. None: nothing is left."""
        ruled_out = np.zeros(self.above.shape[-1] + 1, dtype=bool)  # cell i lies between places i − 1 and i
        ruled_out[:-1] |= self.above >= least
        ruled_out[1:] |= self.below >= least
        left = np.flatnonzero(~ruled_out)
        return (int(left[0]) - 1, int(left[-1])) if left.size else None


def evidence(collapses: Floats, survivals: Floats, step: float) -> Evidence:
    """The evidence of the votes at each place for a boundary above and below it, where collapse rises with the key.

    Args:
        collapses, survivals: (…, places) votes.
        step: between neighbouring places, in tolerances.
    """
    above = _ahead(survivals[..., None] * _WON + collapses[..., None] * _LOST, step)
    below = _ahead((collapses[..., None] * _WON + survivals[..., None] * _LOST)[..., ::-1, :], step)[..., ::-1]
    return Evidence(
        np.maximum.accumulate(above[..., ::-1], axis=-1)[..., ::-1],
        np.maximum.accumulate(below, axis=-1),
        above,
        below,
    )


def _ahead(bets: Floats, step: float) -> Floats:
    """(…, places) What windows that begin at each place have won, from the bets (…, places, stakes)."""
    stays = 2 * step * math.log(0.5)  # log share of the windows that go on to the next place
    ends = math.log1p(-math.exp(stays))
    won = np.empty_like(bets)
    now = np.zeros(bets[..., 0, :].shape)
    for place in range(bets.shape[-2] - 1, -1, -1):
        won[..., place, :] = now = bets[..., place, :] + np.logaddexp(ends, stays + now)
    return logsumexp(won + _SHARES, axis=-1)
