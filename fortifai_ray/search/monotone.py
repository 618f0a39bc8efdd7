"""Whether the answers contradict that collapse only rises, or only falls, with the key.

The test is an e-process by universal inference (Wasserman, Ramdas and Balakrishnan 2020, PNAS 117, 16880, section 8):
the probability of the answers under a forecast made before each of them, over the largest that any monotone curve gives
them. The forecast counts collapses in each of a few parts of the range (Krichevsky–Trofimov: (k + ½)/(n + 1)). While
the curve is monotone that ratio exceeds 1/α, at any time of the search, with probability at most α, however the probes
were chosen (Ville's inequality): a search may test after each answer, and probe exactly where it became suspicious.

Answers of one seed depend on each other, so a seed used more than once gets a monotone curve of its own; seeds used
once share one. Whatever seeds do to their chains, that is at least as probable as the truth, and the bound holds.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

Judged = tuple[int, int, bool]
"""(place, seed, collapsed) of a chain."""

PROVEN = math.log(1e3)  # −ln α: at most one false alarm in a thousand searches
_PARTS = 16


def contradiction(answers: Sequence[Judged], first: int, last: int, signs: Sequence[int]) -> float:
    """How strongly ``answers`` contradict every curve that is monotone in one of ``signs``: the logarithm of the
    e-process, which proves it above ``PROVEN``.

    Args:
        answers: (place, seed, collapsed) of each chain.
        first, last: the range's places.
        signs: 1 for a curve that rises with the key, −1 for one that falls.
    """
    if not answers:
        return 0.0
    places, seeds = np.array([place for place, _, _ in answers]), np.array([seed for _, seed, _ in answers])
    collapsed = np.array([answer for _, _, answer in answers], dtype=np.float64)
    part = _part_of(places, first, last)
    forecast = _forecast(np.bincount(part, weights=collapsed), np.bincount(part)).sum()
    _, group, count = np.unique(seeds, return_inverse=True, return_counts=True)
    group = np.where(count[group] == 1, -1, group)
    best = max(
        sum(_monotone(places[group == one], collapsed[group == one], sign) for one in np.unique(group))
        for sign in signs
    )
    return float(forecast - best)


def collapsed_by_part(answers: Sequence[Judged], first: int, last: int) -> list[tuple[int, int, int, int]]:
    """The lowest and highest place probed in each part of the range, the chains there, and how many collapsed."""
    places = np.array([place for place, _, _ in answers])
    collapsed, part = np.array([answer for _, _, answer in answers]), _part_of(places, first, last)
    parts = [(places[part == one], collapsed[part == one]) for one in np.unique(part)]
    return [(int(at.min()), int(at.max()), at.size, int(fell.sum())) for at, fell in parts]


def _part_of(places: np.ndarray, first: int, last: int) -> np.ndarray:
    return np.minimum((places - first) * _PARTS // max(1, last - first), _PARTS - 1)


def _forecast(hits: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Log probability of each part's answers under its forecasts: B(k + ½, n − k + ½) / B(½, ½)."""
    return gammaln(hits + 0.5) + gammaln(count - hits + 0.5) - gammaln(count + 1) - np.log(np.pi)


def _monotone(places: np.ndarray, collapsed: np.ndarray, sign: int) -> float:
    """The largest log probability of the answers under a monotone curve: isotonic regression is its maximum."""
    from scipy.optimize import isotonic_regression  # a quarter of a second, which a process that asks nothing is spared

    _, where = np.unique(places, return_inverse=True)
    chains = np.bincount(where).astype(np.float64)
    hits = np.bincount(where, weights=collapsed)
    fit = isotonic_regression(hits / chains, weights=chains, increasing=sign > 0).x
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(hits > 0, hits * np.log(fit), 0.0) + np.where(
            hits < chains, (chains - hits) * np.log1p(-fit), 0.0
        )
    return float(terms.sum())
