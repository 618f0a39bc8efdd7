"""Chains whose boundary is known, for the search's tests and its benchmark: cheap, and as noisy as the real ones.

The recursions are simulated with plain NumPy: the package's families play no part in what the search is judged by.
Noise is a function of the seed alone, so that chains of one seed at neighbouring ratios are alike, as real ones are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtr

from fortifai_ray.search.belief import beliefs
from fortifai_ray.search.boundary import BoundaryFinder
from fortifai_ray.search.points import CollapsePoint
from fortifai_ray.seeds import generator
from fortifai_ray.study.search import BoundarySearch

_ROUNDING = 1e-9
Setting = float | int | str | None


class Law(Protocol):
    """``collapsed``: whether the chain at ``value`` under ``seed`` collapses within ``horizon``."""

    name: str
    generations: int

    def collapsed(self, value: float, seed: int) -> bool: ...

    @property
    def boundary(self) -> float: ...


@dataclass(frozen=True)
class Curve:
    """Chains that collapse with a given probability; ``shared`` of a seed's noise is common to its chains."""

    name: str
    probability: Callable[[float], float]
    boundary: float
    shared: float = 0.0
    generations: int = 6

    def collapsed(self, value: float, seed: int) -> bool:
        common = generator(seed, "law", "shared").standard_normal() if self.shared else 0.0
        own = generator(seed, "law", "own", repr(value)).standard_normal()
        return bool(ndtr(np.sqrt(self.shared) * common + np.sqrt(1 - self.shared) * own) < self.probability(value))


def logistic(boundary: float, width: float, shared: float = 0.0) -> Curve:
    """A logistic curve."""
    return Curve(f"logistic {boundary:g} ± {width:g}", lambda v: float(expit((v - boundary) / width)), boundary, shared)


def skewed(scale: float, shared: float = 0.0) -> Curve:
    """A complementary log-log curve, steep above the boundary and slow below, as none of the search's own is."""
    middle = 0.6 + scale * np.log(np.log(2.0))
    return Curve("skewed", lambda v: float(-np.expm1(-np.exp((v - 0.6) / scale))), float(middle), shared)


def low_ceiling(boundary: float, width: float) -> Curve:
    """A curve that never goes beyond 0.8: some chains survive whatever they are fed."""
    at = boundary - width * float(logit(0.5 / 0.8))
    return Curve("low ceiling", lambda v: float(0.8 * expit((v - at) / width)), boundary)


def steps(name: str, *rises: tuple[float, float, float]) -> Curve:
    """Logistic rises (where, width, by how much), one above the other: shoulders, a floor (a rise below the range), a
    ceiling, or several kinds of seed. The boundary is the lowest place with at least one half; inf without one."""

    def probability(value: float) -> float:
        return float(sum(height * expit((value - where) / width) for where, width, height in rises))

    if probability(2.0) < 0.5:
        return Curve(name, probability, float("inf"))
    return Curve(name, probability, float(brentq(lambda value: probability(value) - 0.5, -1.0, 2.0)))


def without(law: Curve, name: str, low: float, high: float, share: float, boundary: float = float("nan")) -> Curve:
    """``law``, but for a zone in which ``share`` of the chains collapse."""
    return Curve(name, lambda value: share if low < value < high else law.probability(value), boundary)


SHOULDERS = {
    "plateau 0.8": steps("plateau 0.8", (0.4, 0.01, 0.8), (0.8, 0.01, 0.2)),
    "plateau 0.7": steps("plateau 0.7", (0.4, 0.02, 0.7), (0.8, 0.01, 0.3)),
    "plateau 0.6": steps("plateau 0.6", (0.4, 0.01, 0.6), (0.8, 0.01, 0.4)),
    "floor 0.3": steps("floor 0.3", (-1.0, 0.01, 0.3), (0.6, 0.02, 0.7)),
    "kinds 40:60": steps("kinds 40:60", (0.5, 0.01, 0.4), (0.6, 0.01, 0.6)),
    "kinds 45:55": steps("kinds 45:55", (0.3, 0.01, 0.45), (0.7, 0.01, 0.55)),
    "three steps": steps("three steps", (0.2, 0.01, 0.3), (0.4, 0.01, 0.15), (0.55, 0.01, 0.15), (0.8, 0.01, 0.4)),
    "plateau 0.53": steps("plateau 0.53", (0.4, 0.005, 0.53), (0.8, 0.005, 0.47)),
    "ceiling 0.45": steps("ceiling 0.45", (0.5, 0.02, 0.45)),
    "dip to 0.6": without(logistic(0.3, 0.02), "dip to 0.6", 0.6, 0.8, 0.6, boundary=0.3),
}
ENDS = {f"end {at:g}": logistic(at, 0.01) for at in (-0.004, 0.004, 0.996, 1.004)}
ZONES = {
    "zone": without(logistic(0.35, 0.01), "zone", 0.53, 0.6, 0.02),
    "island": without(logistic(0.6, 0.01), "island", 0.03, 0.1, 0.98),
}


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian refitted to ``samples`` of which a share r is its own, the rest the first human ones, kept.

    Collapsed: the mean of the maximum-likelihood variances is below ``threshold`` in two successive generations.
    """

    samples: int = 50
    dim: int = 8
    generations: int = 40
    threshold: float = 0.5
    name: str = "gaussian"

    def collapsed(self, value: float, seed: int) -> bool:
        return bool(self.collapses(value, self.noise(seed, 1))[0])

    def collapses(self, ratio: float, noise: np.ndarray) -> np.ndarray:
        """(chains,) Whether each chain collapses."""
        human = noise[0]
        synthetic = round(ratio * self.samples)
        kept = human[:, : self.samples - synthetic]
        data, below = human, np.zeros(noise.shape[:2], dtype=bool)[1:]
        for g in range(self.generations):
            mean, std = data.mean(axis=1, keepdims=True), data.std(axis=1, keepdims=True)
            below[g] = (std[:, 0] ** 2).mean(axis=-1) < self.threshold
            data = np.concatenate([kept, mean + std * noise[g + 1, :, :synthetic]], axis=1)
        return (below[1:] & below[:-1]).any(axis=0)

    def noise(self, seed: int, chains: int) -> np.ndarray:
        """(generations + 1, chains, samples, dim)"""
        shape = (self.generations + 1, chains, self.samples, self.dim)
        return generator(seed, "law", "gaussian").standard_normal(shape)

    @cached_property
    def boundary(self) -> float:
        return dense_boundary(self)


@dataclass(frozen=True)
class Discrete:
    """Symbols of Zipf's law, refitted by counting to ``samples``: a share r is its own, the rest kept human ones.

    Collapsed: in two successive generations fewer than ``threshold`` of the symbols of generation 0 are left.
    """

    symbols: int = 100
    samples: int = 200
    generations: int = 20
    threshold: float = 0.5
    name: str = "discrete"

    def collapsed(self, value: float, seed: int) -> bool:
        return bool(self.collapses(value, self.noise(seed, 1))[0])

    def collapses(self, ratio: float, noise: np.ndarray) -> np.ndarray:
        """(chains,) Whether each chain collapses."""
        weights = 1 / np.arange(1, self.symbols + 1)
        truth = np.cumsum(weights / weights.sum())
        human = np.searchsorted(truth, noise[0]).clip(max=self.symbols - 1)
        synthetic = round(ratio * self.samples)
        kept, data = human[:, : self.samples - synthetic], human
        left = np.zeros((self.generations, noise.shape[1]))
        rows = np.arange(noise.shape[1])[:, None]
        for g in range(self.generations):
            order = np.sort(data, axis=1)  # a draw from the counts is a draw of one of the samples
            left[g] = (np.diff(order, axis=1) > 0).sum(axis=1) + 1
            drawn = order[rows, (noise[g + 1, :, :synthetic] * self.samples).astype(int)]
            data = np.concatenate([kept, drawn], axis=1)
        below = left < self.threshold * left[0]
        return (below[1:] & below[:-1]).any(axis=0)

    def noise(self, seed: int, chains: int) -> np.ndarray:
        """(generations + 1, chains, samples)"""
        return generator(seed, "law", "discrete").random((self.generations + 1, chains, self.samples))

    @cached_property
    def boundary(self) -> float:
        return dense_boundary(self)


def dense_boundary(law: Gaussian | Discrete, chains: int = 2_000, at_once: int = 200) -> float:
    """The ratio at which half of the chains collapse, from thousands of chains at every ratio around it.

    A ratio is realised to the nearest sample; between two numbers of samples the curve is taken to be straight.
    """
    blocks = range(chains // at_once)
    noises = [law.noise(10**12 + block, at_once) for block in blocks]
    known: dict[int, float] = {}

    def share(count: int) -> float:
        if count not in known:
            known[count] = float(np.mean([law.collapses(count / law.samples, noise) for noise in noises]))
        return known[count]

    low, high = 0, law.samples
    assert share(low) < 0.5 < share(high), "there is a boundary in between"
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if share(middle) > 0.5 else (middle, high)
    return (low + (0.5 - share(low)) / (share(high) - share(low))) / law.samples


def search(law: Law, repeat: int, **settings: Setting) -> BoundaryFinder:
    """A whole search of a law's boundary; ``repeat`` chooses the seeds."""
    finder = BoundaryFinder(_settings(settings), first_seed=repeat * 10_000)
    while not finder.done:
        _answer(finder, law)
    return finder


def searches(law: Law, count: int, **settings: Setting) -> list[BoundaryFinder]:
    """``count`` whole searches of one law."""
    return searches_of([(law, settings)] * count)


def searches_of(cases: Sequence[tuple[Law, Mapping[str, Setting]]]) -> list[BoundaryFinder]:
    """A whole search of each law with its settings, round by round, all beliefs of like searches at once: ten times as
    fast as one by one."""
    finders = [BoundaryFinder(_settings(of_law), first_seed=at * 10_000) for at, (_, of_law) in enumerate(cases)]
    alike: dict[tuple[Any, ...], list[tuple[BoundaryFinder, Law]]] = {}
    for finder, (law, _) in zip(finders, cases, strict=True):
        key = (finder.lattice.places.size, finder.signs, round(finder.step, 9))
        alike.setdefault(key, []).append((finder, law))
    for running in alike.values():
        while running:
            for finder, law in running:
                _answer(finder, law)
            votes = map(np.stack, zip(*(finder.votes() for finder, _ in running), strict=True))
            found = beliefs(*votes, running[0][0].signs, running[0][0].step)
            for (finder, _), belief in zip(running, found, strict=True):
                finder.plan(belief)
            running = [(finder, law) for finder, law in running if not finder.done]
    return finders


def _settings(changes: Mapping[str, Setting]) -> BoundarySearch:
    given = {"over": "regime.synthetic_ratio", "low": 0.0, "high": 1.0, "tolerance": 0.02, "budget": 600}
    return BoundarySearch.model_validate({**given, **changes})


def _answer(finder: BoundaryFinder, law: Law) -> None:
    for probe in finder.ask():
        finder.tell(probe, law.collapsed(probe.value, probe.seed), law.generations)


def holds(point: CollapsePoint, boundary: float) -> bool:
    """Whether what a collapse point says is true; a bound or an open interval says less than an exact one. Where there
    is no boundary (NaN), only an ``exact`` one is false; ±inf is a boundary beyond the range."""
    if np.isnan(boundary):
        return point.bound != "exact"
    above = point.low is None or point.low <= boundary + _ROUNDING
    return above and (point.high is None or boundary <= point.high + _ROUNDING)
