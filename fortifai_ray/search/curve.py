"""The likely share of chains that collapse at each place: a monotone non-parametric posterior, which guides the search.

Where to ask next depends on the curve around the boundary; what the answers prove does not
(:mod:`~fortifai_ray.search.evidence`). So this may err: it costs chains, not coverage.

The curve is a hidden Markov chain along the key. Its state is the share of chains that collapse, one of 14 levels that
never fall, and whether the curve is quiet or on the move: it has few rises, each of them a jump or a slope. That holds
steps, slopes, floors, ceilings and shoulders. The posterior is exact, by one pass in either direction.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LEVELS = np.array([0.01, 0.05, 0.12, 0.22, 0.32, 0.41, 0.47, 0.53, 0.59, 0.68, 0.78, 0.88, 0.95, 0.99])
_RISES = 1.5  # expected over the range
_STOPS = 0.1  # chance that a curve on the move becomes quiet, from place to place
_MOVES = 0.4  # chance that it goes up, meanwhile
_JUMPS = 0.3  # of those, to any level above; the others to the next
_FLOORS = np.where(_LEVELS < 0.5, 1.0, 0.4)  # prior of the level at the range's lower end, with the next line
_FLOORS[0] = 6.0
_QUIET_FIRST = 0.9


@dataclass(frozen=True)
class CurvePosterior:
    """The posterior of the curve.

    Attributes:
        mean: (…, places) the share of chains that collapse.
        crossed: (…, places) probability that the boundary is at or below each place.
        log_probability: (…) of the answers under the prior.
    """

    mean: Floats
    crossed: Floats
    log_probability: Floats


def curve_posterior(collapses: Floats, survivals: Floats) -> CurvePosterior:
    """The posterior from the votes (…, places) at each place, where collapse rises with the key."""
    places = collapses.shape[-1]
    states, steps = np.tile(_LEVELS, 2), _steps(places)
    chance = collapses[..., None] * np.log(states) + survivals[..., None] * np.log1p(-states)
    most = chance.max(axis=-1, keepdims=True)
    chance = np.exp(chance - most)
    ahead = np.empty_like(chance)  # of the answers from each place on
    now = np.ones_like(chance[..., 0, :])
    for place in range(places - 1, -1, -1):
        now = chance[..., place, :] * now
        ahead[..., place, :] = now = now / now.max(axis=-1, keepdims=True)
        now = now @ steps.T
    prior = _FLOORS / _FLOORS.sum()
    now = np.broadcast_to(np.concatenate([_QUIET_FIRST * prior, (1 - _QUIET_FIRST) * prior]), now.shape)
    mean, crossed = np.empty_like(collapses), np.empty_like(collapses)
    log_probability = most.sum(axis=(-1, -2))
    for place in range(places):
        both = now * ahead[..., place, :]
        both = both / both.sum(axis=-1, keepdims=True)
        mean[..., place], crossed[..., place] = both @ states, both @ (states > 0.5).astype(np.float64)
        now = now * chance[..., place, :]
        total = now.sum(axis=-1, keepdims=True)
        log_probability = log_probability + np.log(total[..., 0])
        now = (now / total) @ steps
    return CurvePosterior(mean, crossed, log_probability)


def _steps(places: int) -> Floats:
    """(states, states) Chances from one place to the next: levels of a quiet curve, then of one on the move."""
    count = _LEVELS.size
    up = np.triu(np.ones((count, count)), 1)
    jump = up / np.maximum(up.sum(axis=1, keepdims=True), 1)
    move = (1 - _JUMPS) * np.eye(count, k=1) + _JUMPS * jump
    move[-1, -1] = 1.0
    moves, starts = (1 - _MOVES) * np.eye(count) + _MOVES * move, _RISES / places
    return np.block([[(1 - starts) * np.eye(count), starts * moves], [_STOPS * np.eye(count), (1 - _STOPS) * moves]])
