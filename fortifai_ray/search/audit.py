"""The audit of the whole range: where no chain ran yet, and which answers contradict what is believed of their places.

It finds zones in which chains do the opposite of those around them. A zone that one place lies in shows in that place's
own answers; one in which only two chains of three do the opposite may hide from each of its places, but not from all
of them together.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from fortifai_ray.search.belief import View
from fortifai_ray.search.evidence import Floats
from fortifai_ray.search.monotone import Judged

_FEW = 0.3  # of a place's chains collapse, or survive: it lies clearly on one side of the boundary
_DOUBT = 0.2  # the most that its own answers may leave of that; one chain leaves 0.18
_DOUBT_TOGETHER = 0.1  # the most that its answers may leave with those of its neighbours
_UNCLEAR = 0.25  # the most that they may leave together where the likely curve is not clear
_ROUNDING = 1e-9


def unprobed(probed: Iterable[int], widest: float, nearest: Callable[[float], int], count: int) -> list[int]:
    """At most ``count`` places that cut the widest stretches without a probe into parts of equal width.

    Args:
        probed: places, the ends of the range among them.
        widest: the stretch, in places, that may stay.
        nearest: the place of the lattice that is nearest to any.
    """
    chosen, known = list[int](), sorted(set(probed))
    while len(chosen) < count:
        gaps = np.diff(known)
        at = int(gaps.argmax())
        parts = int(np.ceil(gaps[at] / widest - _ROUNDING))
        place = nearest(known[at] + gaps[at] * (parts // 2) / max(1, parts))
        if parts < 2 or place in known:
            break
        chosen.append(place)
        known = sorted([*known, place])
    return chosen


@dataclass(frozen=True)
class Doubts:
    """The doubt that places lie on the side of the boundary that they are believed to be on.

    The doubt is the probability that more than half of a place's chains collapse (or fewer), from its answers alone and
    Jeffreys' prior.

    Attributes:
        places: (n,) those with an answer.
        doubt: (n,) of each; 0 inside the interval.
        asked: (n,) whether it is worth asking again: its own answers, or those of its neighbourhood, leave too much.
    """

    places: NDArray[np.int64]
    doubt: Floats
    asked: NDArray[np.bool_]

    def again(self, count: int) -> list[int]:
        """At most ``count`` places (but two chains), the most doubtful first, each twice. It takes a few chains that
        survive to outweigh one that collapsed where few should."""
        order = np.argsort(-self.doubt, kind="stable")
        return [int(place) for place in self.places[order][self.asked[order]] for _ in range(2)][: max(2, count)]

    @property
    def undoubted(self) -> NDArray[np.int64]:
        """The places whose own answers leave little doubt."""
        return self.places[self.doubt <= _DOUBT]


def doubts(
    judged: Sequence[Judged], lattice: NDArray[np.int64], view: View, span: tuple[int, int], widest: float
) -> Doubts:
    """The doubts that the answers leave, if the boundary lies within ``span``.

    Args:
        judged: the answers.
        lattice: every place.
        view: what the answers say.
        span: indices of the places around the boundary; −1, or their number, beyond an end.
        widest: the widest stretch, in places, that the audit leaves without a probe.
    """
    probed = np.array([place for place, _, _ in judged], dtype=np.int64)
    places, where = np.unique(probed, return_inverse=True)
    hits, chains = np.bincount(where, weights=[fell for _, _, fell in judged]), np.bincount(where)
    at = np.searchsorted(lattice, places)
    chances, before, beyond = view.chances[at], at <= span[0], at >= span[1]
    few, many = (before, beyond) if view.sign > 0 else (beyond, before)  # of their chains should collapse
    same = (few[:, None] & few) | (many[:, None] & many)
    apart = np.abs(places[:, None] - places)

    def doubt(reach: float) -> Floats:
        near = same & (apart <= reach)
        below = _below_half(near @ hits, near @ chains)
        return np.select([few, many], [1 - below, below], 0.0)

    alone, clear = doubt(0.0), np.where(few, chances < _FEW, chances > 1 - _FEW)
    around, farther = doubt(widest), doubt(2 * widest)
    asked = clear & ((alone > _DOUBT) | (farther > _DOUBT_TOGETHER))
    return Doubts(places, alone, asked | (np.maximum(around, farther) > _UNCLEAR))


def _below_half(hits: NDArray[Any], chains: NDArray[Any]) -> NDArray[Any]:
    """Probability that fewer than half of a place's chains collapse, from so many that did and Jeffreys' prior."""
    return betainc(hits + 0.5, chains - hits + 0.5, 0.5)
