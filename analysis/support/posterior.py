"""The posterior of the boundary: a Bayesian grid over its place, the curve's widths and the seeds' share of the noise.

A chain collapses at place v under seed s with probability ½ at the boundary m, by a probit curve that may be steeper on
one side of m than on the other::

    collapse  where  u(v) > √ρ·z_s + √(1 − ρ)·e_{s,v},   u(v) = (v − m)/σ₋ below m, (v − m)/σ₊ above,   z, e normal

There are two widths because collapse curves are asymmetric: some chains that are fed only their own output survive to
the horizon, while none collapse far below the boundary. With one width the interval covered 68 times in 100 on such
curves. z_s is the effect of a seed on all of its chains: they share the human data and the sampling noise, so that
answers of one seed at neighbouring values are nearly the same. Without ρ, intervals would be too narrow wherever seeds
are used twice. A few answers in a hundred are taken to be arbitrary (ε): one odd chain far from the boundary must not
stretch the curve.

Priors: m uniform over the range and a margin beyond it (which detects a boundary outside), σ₋ and σ₊ uniform but for
their ratio, which is log-normal about 1 (one standard deviation is a factor of 1.6 either way: with two free widths,
the boundary of a wide curve may be anywhere, at twice the chains and no better coverage), ρ one of three. The prior of
the widths allows for answers that look sharper than the curve, as those of few chains do. On a curve with a shoulder
near one half, a floor or seeds of two kinds, which no width describes, the interval is too narrow: the search's own
(:mod:`fortifai_ray.search.evidence`) assumes no form of the curve.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from fortifai_ray.search.monotone import Judged

Floats = NDArray[np.float64]
History = tuple[tuple[int, bool], ...]
"""(place, collapsed) of one seed's chains, sorted."""

_WIDTHS = 9
_SHARES = (0.0, 0.5, 0.95)  # ρ
_PRIOR = 1.0  # the widths' prior is σ to this power, in log σ
_ASYMMETRY = 0.5  # standard deviation of log σ₋ − log σ₊
_ODD = 0.01  # ε, on either side
_NODES = ndtri((np.arange(16) + 0.5) / 16)  # of a normal distribution, equally likely
_PER_STEP = 2  # places of the boundary for each place that can be probed
_WIDEST = 0.25  # curve, of the range: one standard deviation, on one side
_MARGIN = 0.25  # of the range, beyond either end


@dataclass(frozen=True)
class Belief:
    """The posterior: ``weights`` (directions, places, widths below, widths above, shares) sum to 1; places in steps."""

    places: Floats
    weights: Floats

    @cached_property
    def _at(self) -> Floats:
        """(places,) Probability of each place."""
        return self.weights.sum(axis=(0, 2, 3, 4))

    def quantile(self, levels: Floats) -> Floats:
        """Quantiles of the boundary's place; probability is uniform within a cell of the grid."""
        edges = np.append(self.places - 0.5 / _PER_STEP, self.places[-1] + 0.5 / _PER_STEP)
        return np.interp(levels, np.append(0.0, np.cumsum(self._at)), edges)


class Posterior:
    """Beliefs from answers."""

    def __init__(self, first: int, last: int, signs: tuple[int, ...]) -> None:
        """``first`` and ``last``: places that can be probed; ``signs``: 1: collapse may rise, −1: it may fall."""
        margin = max(2.0, _MARGIN * (last - first))
        count = round((last - first + 2 * margin) * _PER_STEP) + 1
        self._places = first - margin + np.arange(count) / _PER_STEP
        self._widths = np.geomspace(0.5, (last - first) * _WIDEST, _WIDTHS)
        self._signs = signs
        below, above = np.meshgrid(np.log(self._widths), np.log(self._widths), indexing="ij")
        self._prior = _PRIOR * (below + above) - ((below - above) / _ASYMMETRY) ** 2 / 2  # spaced equally in log σ

    def belief(self, answers: Iterable[Judged]) -> Belief:
        """The posterior; it does not depend on the order of the answers."""
        seeds: Mapping[int, list[tuple[int, bool]]] = defaultdict(list)
        for place, seed, collapsed in answers:
            seeds[seed].append((place, collapsed))
        histories = Counter(tuple(sorted(history)) for history in seeds.values())
        often = [history for history in sorted(histories) if len(history) > 1]
        sides = np.zeros((len(self._signs), 2, self._places.size, self._widths.size))
        for history in sorted(histories.keys() - set(often)):
            sides += histories[history] * self._in_each_direction(self._once, history)
        total = (sides[:, 0, :, :, None] + sides[:, 1, :, None, :] + self._prior)[..., None]
        for history in often:
            total = total + histories[history] * self._in_each_direction(self._often, history)
        return Belief(self._places, _normalised(total))

    def _in_each_direction(self, log_likelihood: Callable[[int, History], Floats], history: History) -> Floats:
        """(directions, …) Log probability of one seed's answers."""
        return np.stack([log_likelihood(sign, history) for sign in self._signs])

    def _once(self, sign: int, history: History) -> Floats:
        """(2, places, widths) Of a seed used once, for any share: it depends only on the width of one side."""
        return np.log(self._sides(sign, 0.0, history)[..., 0])

    def _often(self, sign: int, history: History) -> Floats:
        """(places, widths, widths, shares) Averaged over z, given which the two sides are independent."""
        shares = [np.einsum("miz,mjz->mij", *self._sides(sign, share, history)) for share in _SHARES]
        return np.log(
            np.stack([both / (_NODES.size if share else 1) for both, share in zip(shares, _SHARES, strict=True)], -1)
        )

    def _sides(self, sign: int, share: float, history: History) -> Floats:
        """(2, places, widths, z) Probability of the answers below the boundary, and of those above it."""
        nodes = np.sqrt(share) * _NODES if share else np.zeros(1)
        sides = np.ones((2, self._places.size, self._widths.size, nodes.size))
        for place, collapsed in history:
            away = place - self._places
            chance = _curve((sign * away[:, None, None] / self._widths[:, None] - nodes) / np.sqrt(1 - share))
            answer = chance if collapsed else 1 - chance
            above = away >= 0
            sides[0, ~above] *= answer[~above]
            sides[1, above] *= answer[above]
        return sides


def _normalised(log_weights: Floats) -> Floats:
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def _curve(away: Floats) -> Floats:
    return _ODD + (1 - 2 * _ODD) * ndtr(away)
