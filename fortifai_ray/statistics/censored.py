"""The ratio of fidelity intervals where chains are censored: a log-normal model of pairs, by maximum likelihood.

The logarithms of a pair's two fidelity intervals are bivariate normal: exp δ is the ratio, δ the difference of their
means. The baseline's mean is μ, the standard deviations σ exp(±ξ/2), and there is a correlation ρ, since chains of one
seed share their noise. Every pair counts:

================  ==============================================================================
both collapsed    the density of both
one is censored   the density of the one that collapsed, and the tail of the other given it
both are          the tail of both (Drezner and Wesolowsky 1990, Journal of Statistical Computation and Simulation 35,
censored          101: the integral over the correlation)
================  ==============================================================================

Three weak penalties keep the estimate finite in small samples: ξ is normal with standard deviation 0.7 (one deviation
is twice the other), log √(1 − ρ²) is added (it takes more than one pair to make ρ large), and σ is kept from 0.

The interval is the profile likelihood's: the δ at which twice the log likelihood lies less than n log(1 + t²/(n − 1))
below its maximum, n the number of pairs and t Student's quantile of n − 1 degrees of freedom. Without censoring and
penalties that is Student's interval of the mean log ratio, exactly. docs/statistics.md has its coverage.

All cells are fitted at once: Newton's steps on arrays with a row per cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fortifai_ray.statistics.crossing import Booleans, Floats, Integers

_SPREAD = 0.7  # the standard deviation of ξ
_SMALLEST = 0.05  # of σ, roughly, in the sample's own standard deviations
_LARGEST = 3.0  # of |atanh ρ|: a correlation of 0.995
_FAR = 1e6  # standard deviations: where a normal tail is 0 or 1
_STEPS, _ENDS = 80, 40
_LOG_2PI = math.log(2 * math.pi)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)  # the tail of both to 1e-9, up to a correlation of 0.995
_MU, _DELTA, _TAU, _Z, _XI = range(5)  # the columns of θ; σ = exp τ, ρ = tanh z
_START = (0.0, 0.0, -0.1, 0.3, 0.0)
_ALL, _NUISANCE = (_MU, _DELTA, _TAU, _Z, _XI), (_MU, _TAU, _Z, _XI)


@dataclass(frozen=True)
class Pairs:
    """Pairs of log fidelity intervals, a row each: ``cell``, its number from 0 on; ``base`` and ``own``, −∞ for an
    interval of 0; and whether each is censored. An interval of 0 must be censored."""

    cell: Integers
    base: Floats
    own: Floats
    base_censored: Booleans
    own_censored: Booleans


@dataclass(frozen=True)
class Fits:
    """(cells,) ``delta``, the log ratio, and the ends of its interval; NaN where nothing collapsed on one side."""

    delta: Floats
    low: Floats
    high: Floats


def fit(pairs: Pairs, level: float) -> Fits:
    """Estimates of δ and their intervals at a level in (0, 1), for cells of at least two pairs."""
    from scipy.special import stdtrit

    data, scale = _Data.of(pairs)
    found = np.full((3, data.cells), np.nan)
    t = stdtrit(data.n - 1, (1 + level) / 2)
    allowed = np.sqrt(data.n * np.log1p(t**2 / (data.n - 1)))
    known = np.flatnonzero((data.collapsed_own > 0) & (data.collapsed_base > 0))
    if len(known):
        some = data.only(known)
        best, top = _maximise(some, np.tile(_START, (len(known), 1)), _ALL)
        ends = (_end(some, best, top, allowed[known], side) for side in (-1.0, 1.0))
        found[:, known] = np.stack([best[:, _DELTA], *ends]) * scale[known]
    return Fits(*found)


@dataclass(frozen=True)
class _Kind:
    """Pairs of one kind in each cell's own units: the baseline's x, the cell's y, and how many pairs each row is."""

    cell: Integers
    x: Floats
    y: Floats
    count: Floats

    def only(self, place: Integers) -> _Kind:
        """Those of the cells with a place, at that place."""
        kept = place[self.cell] >= 0
        return _Kind(place[self.cell[kept]], self.x[kept], self.y[kept], self.count[kept])


@dataclass(frozen=True)
class _Data:
    """The pairs of all cells by kind. Of pairs in which both collapsed, their sums say all: the number, and those of x,
    y, x², y² and xy."""

    n: Floats
    sums: Floats  # (6, cells)
    own: _Kind  # the cell's chain is censored
    base: _Kind  # the baseline's is
    neither: _Kind  # neither collapsed
    collapsed_own: Floats
    collapsed_base: Floats

    @property
    def cells(self) -> int:
        return len(self.n)

    @staticmethod
    def of(pairs: Pairs) -> tuple[_Data, Floats]:
        """The data, and (cells,) the unit of each cell: the standard deviation of its finite logarithms."""
        cells, twice = int(pairs.cell.max()) + 1, np.tile(pairs.cell, 2)
        both = np.concatenate([pairs.base, pairs.own])
        finite = np.isfinite(both)
        number = np.maximum(np.bincount(twice, finite, cells), 1)
        centre = np.bincount(twice, np.where(finite, both, 0.0), cells) / number
        squares = np.where(finite, both - centre[twice], 0.0) ** 2
        scale = np.maximum(np.sqrt(np.bincount(twice, squares, cells) / number), 1e-6)
        x, y = (np.maximum((side - centre[pairs.cell]) / scale[pairs.cell], -_FAR) for side in (pairs.base, pairs.own))
        data = _Data._of_units(pairs, x, y, cells)
        return data, scale

    @staticmethod
    def _of_units(pairs: Pairs, x: Floats, y: Floats, cells: int) -> _Data:
        known_base, known_own = ~pairs.base_censored, ~pairs.own_censored

        def kind(rows: Booleans) -> _Kind:
            """Pairs that are equal, as those that reach a common horizon are, are one row."""
            table = np.stack([pairs.cell[rows], x[rows], y[rows]], axis=1)
            distinct, count = np.unique(table, axis=0, return_counts=True)
            return _Kind(distinct[:, 0].astype(np.int64), distinct[:, 1], distinct[:, 2], count.astype(np.float64))

        both = known_base & known_own
        powers = (np.ones_like(x), x, y, x * x, y * y, x * y)
        return _Data(
            n=np.bincount(pairs.cell, minlength=cells).astype(np.float64),
            sums=np.stack([np.bincount(pairs.cell[both], power[both], cells) for power in powers]),
            own=kind(known_base & ~known_own),
            base=kind(~known_base & known_own),
            neither=kind(~known_base & ~known_own),
            collapsed_own=np.bincount(pairs.cell[known_own], minlength=cells).astype(np.float64),
            collapsed_base=np.bincount(pairs.cell[known_base], minlength=cells).astype(np.float64),
        )

    def only(self, rows: Integers) -> _Data:
        """The data of some cells, in that order."""
        place = np.full(self.cells, -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        kinds = {name: getattr(self, name).only(place) for name in ("own", "base", "neither")}
        counts = {name: getattr(self, name)[rows] for name in ("n", "collapsed_own", "collapsed_base")}
        return replace(self, sums=self.sums[:, rows], **kinds, **counts)


class _At:
    """The penalised log likelihood (cells,) at θ, and its derivatives: by all u and all v, the standardised x and y
    (``du``, ``dv``), by −ξ/2 and ξ/2 (``us``, ``vs``, with the sign turned), and by ρ."""

    def __init__(self, data: _Data, theta: Floats) -> None:
        mu, delta, tau, z, xi = theta.T
        self.data, self.means = data, (mu, mu + delta)
        self.logs = (tau - xi / 2, tau + xi / 2)
        self.sigmas = (np.exp(self.logs[0]), np.exp(self.logs[1]))
        self.rho, self.r = np.tanh(z), 1 / np.cosh(z)
        self._both_collapsed()
        if len(data.own.cell):
            self._one_censored(data.own, collapsed=0)
        if len(data.base.cell):
            self._one_censored(data.base, collapsed=1)
        if len(data.neither.cell):
            self._both_censored(data.neither)
        self.value += np.log(self.r) - 0.5 * (xi / _SPREAD) ** 2 - 0.5 * (_SMALLEST / np.exp(tau)) ** 2
        by_mean = [d / sigma for d, sigma in zip((self.du, self.dv), self.sigmas, strict=True)]
        self.gradient = np.stack(
            [
                -by_mean[0] - by_mean[1],
                -by_mean[1],
                -self.us - self.vs + (_SMALLEST / np.exp(tau)) ** 2,
                self.drho * self.r**2 - self.rho,
                (self.us - self.vs) / 2 - xi / _SPREAD**2,
            ],
            axis=1,
        )

    def _both_collapsed(self) -> None:
        (mx, my), (sx, sy), rho, r2 = self.means, self.sigmas, self.rho, self.r**2
        n, x, y, xx, yy, xy = self.data.sums
        u, v = (x - n * mx) / sx, (y - n * my) / sy
        uu, vv = (xx - 2 * mx * x + n * mx**2) / sx**2, (yy - 2 * my * y + n * my**2) / sy**2
        uv = (xy - mx * y - my * x + n * mx * my) / (sx * sy)
        square = (uu + vv - 2 * rho * uv) / r2
        self.value = -0.5 * square - n * (self.logs[0] + self.logs[1] + np.log(self.r) + _LOG_2PI)
        self.du, self.dv = -(u - rho * v) / r2, -(v - rho * u) / r2
        self.us, self.vs = n - (uu - rho * uv) / r2, n - (vv - rho * uv) / r2
        self.drho = n * rho / r2 + (uv - rho * square) / r2

    def _one_censored(self, kind: _Kind, collapsed: int) -> None:
        """One side ``collapsed`` (0: the baseline's), at a, the other is censored, at b: its tail begins at w."""
        from scipy.special import log_ndtr

        rho, r = self.rho[kind.cell], self.r[kind.cell]
        a, b = self._standardised(kind)[:: -1 if collapsed else 1]
        w = (b - rho * a) / r
        log_tail = log_ndtr(-w)
        hazard = np.exp(-0.5 * w * w - 0.5 * _LOG_2PI - log_tail)
        value = -0.5 * a * a - 0.5 * _LOG_2PI - self.logs[collapsed][kind.cell] + log_tail
        da, db = hazard * rho / r - a, -hazard / r
        by = [(da, a * da + 1), (db, b * db)][:: -1 if collapsed else 1]
        self._add(kind, value, by, -hazard * (rho * b - a) / r**3)

    def _both_censored(self, kind: _Kind) -> None:
        u, v = self._standardised(kind)
        tail, *slopes, by_rho = _tail_of_both(u, v, self.rho[kind.cell], self.r[kind.cell])
        by = [(slope / tail, at * slope / tail) for slope, at in zip(slopes, (u, v), strict=True)]
        self._add(kind, np.log(tail), by, by_rho / tail)

    def _standardised(self, kind: _Kind) -> tuple[Floats, Floats]:
        cell = kind.cell
        u, v = (
            (at - mean[cell]) / sigma[cell]
            for at, mean, sigma in zip((kind.x, kind.y), self.means, self.sigmas, strict=True)
        )
        return u, v

    def _add(self, kind: _Kind, value: Floats, by: Sequence[tuple[Floats, Floats]], by_rho: Floats) -> None:
        (du, us), (dv, vs) = by
        for name, part in (("value", value), ("du", du), ("dv", dv), ("us", us), ("vs", vs), ("drho", by_rho)):
            total = np.bincount(kind.cell, kind.count * part, self.data.cells)
            setattr(self, name, getattr(self, name) + total)


def _tail_of_both(u: Floats, v: Floats, rho: Floats, r: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """P(U > u, V > v) of standard normals with correlation ρ = √(1 − r²), and its derivatives by u, v and ρ."""
    from scipy.special import ndtr

    half = np.arcsin(rho)[:, None] / 2
    angle = half * (1 + _NODES)
    square = (u * u + v * v)[:, None] - 2 * (u * v)[:, None] * np.sin(angle)
    integral = np.exp(-0.5 * square / np.cos(angle) ** 2) @ _WEIGHTS
    tail = ndtr(-u) * ndtr(-v) + half[:, 0] / (2 * math.pi) * integral
    by_u, by_v = (-np.exp(-0.5 * a * a - 0.5 * _LOG_2PI) * ndtr((rho * a - b) / r) for a, b in ((u, v), (v, u)))
    by_rho = np.exp(-0.5 * (u * u + v * v - 2 * rho * u * v) / r**2) / (2 * math.pi * r)
    return np.maximum(tail, 1e-300), by_u, by_v, by_rho


def _maximise(data: _Data, theta: Floats, free: Sequence[int]) -> tuple[Floats, Floats]:
    """θ with the largest likelihood over its ``free`` columns, and (cells,) that likelihood.

    Newton's steps with Levenberg's damping; a cell leaves the computation when a step no longer helps it.
    """
    found, top, rows = theta.copy(), np.empty(data.cells), np.arange(data.cells)
    theta = theta.copy()
    now, damping = _At(data, theta), np.full(data.cells, 1e-3)
    value, gradient = now.value, now.gradient
    for _ in range(_STEPS):
        moved = theta.copy()
        moved[:, free] += _step(data, theta, gradient, free, damping)
        moved[:, _Z] = np.clip(moved[:, _Z], -_LARGEST, _LARGEST)
        there = _At(data, moved)
        better = there.value >= value
        done = (better & (there.value - value < 1e-9)) | (damping > 1e8)
        theta, gradient = np.where(better[:, None], moved, theta), np.where(better[:, None], there.gradient, gradient)
        value = np.where(better, there.value, value)
        damping = np.where(better, damping / 10, damping * 10)
        found[rows], top[rows] = theta, value
        if done.all():
            break
        if done.any():
            left = np.flatnonzero(~done)
            data, rows, theta, gradient = data.only(left), rows[left], theta[left], gradient[left]
            value, damping = value[left], damping[left]
    return found, top


def _step(data: _Data, theta: Floats, gradient: Floats, free: Sequence[int], damping: Floats) -> Floats:
    """(cells, free) A damped Newton step uphill, of at most 2 in any column."""
    columns, small = list(free), 1e-5
    hessian = np.empty((data.cells, len(columns), len(columns)))
    for i, column in enumerate(columns):
        nudged = theta.copy()
        nudged[:, column] += small
        hessian[:, i] = (gradient - _At(data, nudged).gradient)[:, columns] / small
    hessian = (hessian + hessian.transpose(0, 2, 1)) / 2
    curvature, directions = np.linalg.eigh(hessian)
    size = np.abs(curvature) + damping[:, None] * (1 + np.abs(curvature).max(axis=1, keepdims=True))
    along = np.einsum("cij,ci->cj", directions, gradient[:, columns]) / size
    step = np.einsum("cij,cj->ci", directions, along)
    return step * np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-12))


def _end(data: _Data, best: Floats, top: Floats, allowed: Floats, side: float) -> Floats:
    """(cells,) The end of δ's interval on one side of the estimate, in each cell's own units.

    Twice the likelihood's loss has a root that is nearly linear in δ: Newton's method on it, between known bounds.
    """
    stride = np.exp(best[:, _TAU]) * allowed / np.sqrt(data.n)
    theta, at, inside = best.copy(), best[:, _DELTA] + side * stride, best[:, _DELTA]
    outside, ends, rows = np.full(data.cells, side * np.inf), at.copy(), np.arange(data.cells)
    for _ in range(_ENDS):
        theta[:, _DELTA] = at
        theta, value = _maximise(data, theta, _NUISANCE)
        root = np.sqrt(np.maximum(2 * (top - value), 0.0))
        beyond = root > allowed
        inside, outside = np.where(beyond, inside, at), np.where(beyond, at, outside)
        ends[rows] = at
        left = np.flatnonzero(np.abs(root - allowed) > 1e-4)
        if not len(left):
            break
        slope = np.abs(_At(data, theta).gradient[:, _DELTA]) / np.maximum(root, 1e-12)
        with np.errstate(all="ignore"):
            proposed = at + side * (allowed - root) / slope
            between = (proposed - inside) * (proposed - outside) < 0
            middle = (inside + outside) / 2
        away = np.where(beyond, at - side * stride, at + side * stride)
        middle = np.where(np.isfinite(middle), middle, away)
        at = np.where(between & (np.abs(proposed - at) < 4 * stride), proposed, middle)
        data, rows, theta, top, allowed = data.only(left), rows[left], theta[left], top[left], allowed[left]
        at, inside, outside, stride = at[left], inside[left], outside[left], 2 * stride[left]
    return ends
