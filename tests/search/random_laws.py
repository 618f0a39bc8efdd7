"""Curves of collapse at random, by several mechanisms, each with the place where it crosses one half.

What a search guarantees must hold on curves that nobody thought of: these are drawn, not chosen. A law is drawn on the
unit range and then laid over a range of its own, rising or falling, with a tolerance of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from tests.search.laws import Curve, Setting

Floats = NDArray[np.float64]
Shape = Callable[[Floats], Floats]
Ends = tuple[float, float]

_FINE = np.linspace(-0.05, 1.05, 22_001)


@dataclass(frozen=True)
class Drawn:
    """A law over its own range, and the settings of a search for it."""

    kind: str
    law: Curve
    settings: dict[str, Setting]


def draw(kind: str, rng: np.random.Generator, *, plain: bool = False) -> Drawn:
    """A law of ``kind`` (a key of ``KINDS``); ``plain``: over 0 to 1, rising, with a tolerance of 0.02."""
    shape = KINDS[kind](rng)
    low, span, falls, tolerance = 0.0, 1.0, False, 0.02
    if not plain:
        low, span = float(rng.choice([0.0, 0.0, -3.0, 0.5])), float(rng.choice([1.0, 0.5, 10.0]))
        falls, tolerance = bool(rng.random() < 0.3), float(rng.choice([0.01, 0.02, 0.05]))

    def probability(value: float) -> float:
        unit = (value - low) / span
        return float(np.clip(shape(np.array([1 - unit if falls else unit]))[0], 0, 1))

    boundary = crossing(shape)
    law = Curve(kind, probability, low + span * ((1 - boundary) if falls else boundary))
    ends: dict[str, Setting] = {"low": low, "high": low + span, "tolerance": tolerance * span}
    return Drawn(kind, law, ends | {"direction": "falls" if falls else "rises"})


def narrow_zone(rng: np.random.Generator, opposite: float, width: float = 0.03) -> Curve:
    """A steep law over 0 to 1 with a zone, anywhere but within 0.08 of the boundary, in which a share ``opposite`` of
    the chains does the opposite of those around it; ``width``: what an audit of that range reports."""
    boundary = float(rng.uniform(0.2, 0.8))
    survives = bool(rng.random() < 0.5)
    start = float(rng.uniform(boundary + 0.08, 1 - width) if survives else rng.uniform(0, boundary - 0.08 - width))
    share = 1 - opposite if survives else opposite
    base = rises((boundary, 0.003, 1.0))

    def probability(value: float) -> float:
        return share if start <= value <= start + width else float(base(np.array([value]))[0])

    return Curve("narrow zone", probability, float("nan"))


def crossing(shape: Shape) -> float:
    """Where a curve crosses one half; ±inf where it does so beyond the range, NaN where it does so more than once, or
    stays there."""
    over = np.sign(np.round(shape(_FINE) - 0.5, 9))
    changes = np.flatnonzero(np.diff(over[over != 0]))
    if np.mean(over == 0) > 0.01 or changes.size > 1 or (changes.size == 1 and over[over != 0][0] > 0):
        return float("nan")
    if not changes.size:
        return float(-over[over != 0][0] * np.inf)
    first = int(np.flatnonzero(over > 0)[0])
    return float(brentq(lambda at: float(shape(np.array([at]))[0]) - 0.5, _FINE[first - 1], _FINE[first], xtol=1e-9))


def rises(*parts: tuple[float, float, float], floor: float = 0.0) -> Shape:
    """Logistic rises (where, width, by how much) on a floor."""
    return lambda at: floor + sum(height * expit((at - where) / width) for where, width, height in parts)


def _width(rng: np.random.Generator, least: float = 0.001, most: float = 0.03) -> float:
    return float(np.exp(rng.uniform(np.log(least), np.log(most))))


def _logistic(rng: np.random.Generator) -> Shape:
    return rises((rng.uniform(0.05, 0.95), _width(rng, most=0.3), 1.0))


def _near_an_end(rng: np.random.Generator) -> Shape:
    return rises((rng.choice([0.0, 1.0]) + rng.uniform(-0.03, 0.03), _width(rng), 1.0))


def _gompertz(rng: np.random.Generator) -> Shape:
    where, scale, early = rng.uniform(0.1, 0.9), _width(rng, 0.003, 0.15), rng.random() < 0.5
    if early:
        return lambda at: np.exp(-np.exp(-np.clip((at - where) / scale, -50, 50)))
    return lambda at: -np.expm1(-np.exp(np.clip((at - where) / scale, -50, 50)))


def _between(rng: np.random.Generator) -> Shape:
    """A floor and a ceiling together."""
    floor, ceiling = rng.uniform(0, 0.4), rng.uniform(0.6, 1)
    return rises((rng.uniform(0.1, 0.9), _width(rng), ceiling - floor), floor=floor)


def _lingering(rng: np.random.Generator) -> Shape:
    """A wide plateau just beside one half."""
    start, length = rng.uniform(0.05, 0.5), rng.uniform(0.15, 0.45)
    level = 0.5 + rng.choice([-1, 1]) * rng.uniform(0.005, 0.05)
    return rises((start, _width(rng, most=0.02), level), (start + length, _width(rng, most=0.02), 1 - level))


def _beside(rng: np.random.Generator) -> Shape:
    """A plateau 0.05 to 0.15 beside one half."""
    start, length = rng.uniform(0.05, 0.5), rng.uniform(0.1, 0.45)
    level = 0.5 + rng.choice([-1, 1]) * rng.uniform(0.05, 0.15)
    return rises((start, _width(rng, most=0.02), level), (start + length, _width(rng, most=0.02), 1 - level))


def _ledge(rng: np.random.Generator) -> Shape:
    """A short plateau just beside one half, of one to five tolerances."""
    start, length = rng.uniform(0.1, 0.7), rng.uniform(0.02, 0.1)
    level = 0.5 + rng.choice([-1, 1]) * rng.uniform(0.005, 0.08)
    return rises((start, 0.002, level), (start + length, 0.002, 1 - level))


def _kinds_of_seed(rng: np.random.Generator) -> Shape:
    """Two or three kinds of seed, each with a threshold of its own."""
    share = rng.dirichlet(np.full(rng.integers(2, 4), 8.0))
    return rises(*((rng.uniform(0.1, 0.9), _width(rng), part) for part in share))


def _staircase(rng: np.random.Generator) -> Shape:
    """Three to five steps, on a floor, under a ceiling, some of them around one half."""
    floor, ceiling = rng.uniform(0, 0.3), rng.uniform(0.7, 1)
    share = rng.dirichlet(np.full(rng.integers(3, 6), 3.0)) * (ceiling - floor)
    return rises(*((rng.uniform(0.1, 0.9), _width(rng, most=0.01), part) for part in share), floor=floor)


def _any_monotone(rng: np.random.Generator) -> Shape:
    """The distribution function of a Dirichlet process: jumps and slopes of any size."""
    rise = rng.gamma(_width(rng, 0.02, 1.0), size=200)
    heights = np.cumsum(rise) / rise.sum()
    return lambda at: np.interp(at, np.linspace(0, 1, 200), heights)


def _below(rng: np.random.Generator) -> Shape:
    """A ceiling below one half: no boundary."""
    return rises((rng.uniform(0.1, 0.8), _width(rng), rng.uniform(0.3, 0.49)))


def _dip(rng: np.random.Generator) -> Shape:
    """Beyond the boundary a dip that stays above one half, or before it a bump that stays below."""
    where = rng.uniform(0.1, 0.4)
    base, start = rises((where, _width(rng, most=0.02), 1.0)), where + rng.uniform(0.1, 0.25)
    length, level, turned = rng.uniform(0.05, 0.3), rng.uniform(0.52, 0.75), rng.random() < 0.5

    def dipped(at: Floats) -> Floats:
        return np.where((at > start) & (at < start + length), np.minimum(base(at), level), base(at))

    return (lambda at: 1 - dipped(1 - at)) if turned else dipped


def _zone(rng: np.random.Generator) -> Shape:
    """Beyond the boundary a zone of survival, or before it an island of collapse, 0.05 to 0.3 wide."""
    return _hollow(rng, where=(0.1, 0.45), beyond=(0.1, 0.25), length=(0.05, 0.3), level=(0.0, 0.1))


def _weak_zone(rng: np.random.Generator) -> Shape:
    """As a zone, 0.1 to 0.3 wide, but with 20 to 40% of the chains doing as those around it."""
    return _hollow(rng, where=(0.1, 0.4), beyond=(0.1, 0.2), length=(0.1, 0.3), level=(0.2, 0.4))


def _hollow(rng: np.random.Generator, *, where: Ends, beyond: Ends, length: Ends, level: Ends) -> Shape:
    """A sharp boundary, and so far ``beyond`` it a zone of that ``length`` with one ``level``; either way round."""
    at_first = rng.uniform(*where)
    base, start = rises((at_first, _width(rng, most=0.02), 1.0)), at_first + rng.uniform(*beyond)
    wide, share, turned = rng.uniform(*length), rng.uniform(*level), rng.random() < 0.5

    def hollow(at: Floats) -> Floats:
        return np.where((at > start) & (at < start + wide), share, base(at))

    return (lambda at: 1 - hollow(1 - at)) if turned else hollow


def _touching(rng: np.random.Generator) -> Shape:
    """A hill whose top touches one half."""
    where, width, top = rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.3), rng.uniform(0.49, 0.5)
    return lambda at: top * np.exp(-(((at - where) / width) ** 2))


def _at_half(rng: np.random.Generator) -> Shape:
    """One half everywhere."""
    return lambda at: np.full_like(at, 0.5)


KINDS: dict[str, Callable[[np.random.Generator], Shape]] = {
    "logistic": _logistic,
    "near an end": _near_an_end,
    "gompertz": _gompertz,
    "floor and ceiling": _between,
    "plateau 0.05 to 0.15 beside one half": _beside,
    "lingering within 0.05": _lingering,
    "short ledge": _ledge,
    "kinds of seed": _kinds_of_seed,
    "staircase": _staircase,
    "any monotone": _any_monotone,
    "ceiling below one half": _below,
    "dip": _dip,
    "zone": _zone,
    "weak zone": _weak_zone,
    "touching one half": _touching,
    "one half everywhere": _at_half,
}
