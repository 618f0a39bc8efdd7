"""The log-normal model of censored pairs: its estimate, its interval, and what they cover."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from fortifai_ray.statistics.censored import Fits, Pairs, _At, _Data, fit
from fortifai_ray.statistics.intervals import student

TRUE = math.log(1.3)
DEVIATION, CORRELATION = 0.5, 0.6


def drawn(cells: int, n: int, share: float, seed: int = 1, *, own_deviation: float = DEVIATION) -> Pairs:
    """Log-normal intervals with the ratio 1.3, cut at the horizon that ``share`` of the cell's chains reach."""
    rng = np.random.default_rng(seed)
    common, base, own = rng.normal(size=(3, cells, n))
    base, own = (
        deviation * (math.sqrt(CORRELATION) * common + math.sqrt(1 - CORRELATION) * noise)
        for deviation, noise in ((DEVIATION, base), (own_deviation, own))
    )
    own = own + TRUE
    end = TRUE + own_deviation * stats.norm.isf(share) if share else np.inf
    cell = np.repeat(np.arange(cells), n)
    return Pairs(
        cell,
        np.minimum(base, end).ravel(),
        np.minimum(own, end).ravel(),
        (base > end).ravel(),
        (own > end).ravel(),
    )


def rows(pairs: Pairs, which: np.ndarray, cell: int = 0) -> Pairs:
    fields = (pairs.base, pairs.own, pairs.base_censored, pairs.own_censored)
    return Pairs(np.full(int(which.sum()), cell), *(field[which] for field in fields))


def test_the_gradient_is_that_of_the_likelihood() -> None:
    data, _ = _Data.of(drawn(4, 12, 0.5, seed=3))
    assert all(len(kind.cell) for kind in (data.own, data.base, data.neither))
    theta = np.random.default_rng(2).normal(0, 0.4, (4, 5))
    gradient = _At(data, theta).gradient
    for column in range(5):
        step = 1e-5 * np.eye(5)[column]
        slope = (_At(data, theta + step).value - _At(data, theta - step).value) / 2e-5
        np.testing.assert_allclose(gradient[:, column], slope, rtol=1e-6, atol=1e-7)


def _negative(theta: np.ndarray, pairs: Pairs) -> float:
    """The penalised log likelihood, turned over, by SciPy's densities: a second writing of the model."""
    _, scale = _Data.of(pairs)
    mu, delta, tau, z, xi = theta
    sigmas, rho = np.exp(tau + np.array([-0.5, 0.5]) * xi), math.tanh(z)
    both = np.concatenate([pairs.base, pairs.own])
    x, y = ((side - both.mean()) / scale[0] for side in (pairs.base, pairs.own))
    law = stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]])
    total = math.log(math.sqrt(1 - rho**2)) - 0.5 * (xi / 0.7) ** 2 - 0.5 * (0.05 / math.exp(tau)) ** 2
    for at, other, at_open, other_open in zip(x, y, pairs.base_censored, pairs.own_censored, strict=True):
        u, v = (at - mu) / sigmas[0], (other - mu - delta) / sigmas[1]
        if at_open and other_open:
            total += math.log(law.cdf([-u, -v]))
        elif not at_open and not other_open:
            total += law.logpdf([u, v]) - math.log(sigmas[0] * sigmas[1])
        else:
            known, unknown, sigma = (u, v, sigmas[0]) if other_open else (v, u, sigmas[1])
            total += stats.norm.logpdf(known) - math.log(sigma)
            total += stats.norm.logsf((unknown - rho * known) / math.sqrt(1 - rho**2))
    return -total


def test_the_estimate_and_its_interval_are_those_of_a_search_by_scipy() -> None:
    pairs = drawn(1, 9, 0.4, seed=5)
    _, scale = _Data.of(pairs)
    found = fit(pairs, 0.9)
    fine = {"xatol": 1e-7, "fatol": 1e-10, "maxiter": 4_000, "maxfev": 4_000}
    best = optimize.minimize(_negative, [0, 0, 0, 0.3, 0], (pairs,), "Nelder-Mead", options=fine)
    assert found.delta[0] == pytest.approx(best.x[1] * scale[0], abs=1e-4)
    allowed = 9 * math.log1p(student(0.9, 8) ** 2 / 8)
    for end in (found.low[0], found.high[0]):

        def held(rest: np.ndarray, end: float = end) -> float:
            return _negative(np.insert(rest, 1, end / scale[0]), pairs)

        profile = optimize.minimize(held, np.delete(best.x, 1), method="Nelder-Mead", options=fine)
        assert 2 * (profile.fun - best.fun) == pytest.approx(allowed, rel=1e-3)


def test_without_censoring_it_is_the_mean_log_ratio_and_about_students_interval() -> None:
    pairs = drawn(50, 20, 0)
    found = fit(pairs, 0.9)
    logs = (pairs.own - pairs.base).reshape(50, 20)
    np.testing.assert_allclose(found.delta, logs.mean(axis=1), atol=1e-6)
    half = student(0.9, 19) * logs.std(axis=1, ddof=1) / math.sqrt(20)
    np.testing.assert_allclose(found.high - found.delta, half, rtol=0.03)  # the penalties, and no more
    np.testing.assert_allclose(found.delta - found.low, half, rtol=0.03)


def test_exchanging_the_sides_inverts_the_ratio_and_the_units_of_time_do_not_matter() -> None:
    pairs = drawn(60, 7, 0.4, seed=3)
    found = fit(pairs, 0.9)
    turned = fit(Pairs(pairs.cell, pairs.own, pairs.base, pairs.own_censored, pairs.base_censored), 0.9)
    for one, other in ((found.delta, turned.delta), (found.low, turned.high), (found.high, turned.low)):
        np.testing.assert_allclose(one, -other, atol=2e-3)
    shifted = Pairs(pairs.cell, pairs.base + 5, pairs.own + 5, pairs.base_censored, pairs.own_censored)
    moved = fit(shifted, 0.9)
    for name in ("delta", "low", "high"):
        np.testing.assert_allclose(getattr(moved, name), getattr(found, name), atol=2e-3)


def test_cells_do_not_depend_on_the_cells_beside_them() -> None:
    pairs = drawn(30, 6, 0.4, seed=4)
    together = fit(pairs, 0.9)
    for cell in (0, 7, 29):
        alone = fit(rows(pairs, pairs.cell == cell), 0.9)
        for name in ("delta", "low", "high"):
            assert getattr(alone, name)[0] == pytest.approx(getattr(together, name)[cell], abs=1e-3)


def test_a_side_of_which_no_chain_collapsed_has_no_estimate_and_leaves_those_beside_it_alone() -> None:
    base, end = np.log([2, 3, 2.5, 4]), np.full(4, math.log(9))
    no, yes = np.zeros(4, dtype=bool), np.ones(4, dtype=bool)
    sides = [np.concatenate(side) for side in ([base, end, base], [end, base, base + 1], [no, yes, no], [yes, no, no])]
    found = fit(Pairs(np.repeat([0, 1, 2], 4), *sides), 0.9)
    for values in (found.delta, found.low, found.high):
        assert np.isnan(values).tolist() == [True, True, False]
    assert found.delta[2] == pytest.approx(1)


def test_a_chain_of_which_nothing_is_known_changes_little() -> None:
    """It is censored at 0: only its partner counts, for the baseline's mean."""
    pairs = drawn(1, 8, 0.3, seed=6)
    more = Pairs(
        np.zeros(9, dtype=np.int64),
        np.append(pairs.base, pairs.base.mean()),
        np.append(pairs.own, -math.inf),
        np.append(pairs.base_censored, False),
        np.append(pairs.own_censored, True),
    )
    assert fit(more, 0.9).delta[0] == pytest.approx(fit(pairs, 0.9).delta[0], abs=0.1)


def covers(found: Fits) -> float:
    known = np.isfinite(found.delta)
    return float(np.mean(((found.low <= TRUE) & (found.high >= TRUE))[known]))


@pytest.mark.parametrize(("n", "share"), [(6, 0.1), (6, 0.5), (10, 0.3), (20, 0.3), (20, 0.5)])
def test_it_covers_the_ratio_87_to_93_times_in_100(n: int, share: float) -> None:
    """And no cell is without an estimate, unless every chain of it is censored."""
    cells = 500
    pairs = drawn(cells, n, share, seed=7)
    found = fit(pairs, 0.9)
    error = 3 * math.sqrt(0.9 * 0.1 / cells)  # three binomial standard errors
    assert 0.87 - error < covers(found) < 0.93 + error
    collapsed = np.bincount(pairs.cell[~pairs.own_censored], minlength=cells) > 0
    known = np.isfinite(found.delta + found.low + found.high)
    assert (known == collapsed).mean() > 0.995  # all but cells whose baselines are all censored


def test_more_seeds_narrow_it_and_so_does_less_censoring() -> None:
    def width(n: int, share: float) -> float:
        found = fit(drawn(150, n, share, seed=8), 0.9)
        return float(np.median(found.high - found.low))

    widths = {(n, share): width(n, share) for n in (6, 10, 20) for share in (0.1, 0.5)}
    for share in (0.1, 0.5):
        assert widths[6, share] > widths[10, share] > widths[20, share]
    assert all(widths[n, 0.5] > widths[n, 0.1] for n in (6, 10, 20))


def test_unequal_deviations_do_not_bias_it_beyond_what_it_covers() -> None:
    cells = 600
    found = fit(drawn(cells, 10, 0.4, seed=9, own_deviation=0.8), 0.9)
    assert covers(found) > 0.87 - 3 * math.sqrt(0.9 * 0.1 / cells)


@pytest.mark.parametrize("seed", range(3))
def test_odd_samples_end_in_numbers(seed: int) -> None:
    """Three pairs, ties, one collapse, ends that differ: finite estimates between finite ends."""
    rng = np.random.default_rng(seed)
    cells, n = 50, 3
    base, own = (np.log(rng.integers(1, 4, (cells, n)).astype(float)) for _ in range(2))
    base_censored, own_censored = (rng.random((cells, n)) < 0.4 for _ in range(2))
    base_censored[:, 0] = own_censored[:, 1] = False
    pairs = Pairs(np.repeat(np.arange(cells), n), *(one.ravel() for one in (base, own, base_censored, own_censored)))
    found = fit(pairs, 0.9)
    assert np.isfinite([found.delta, found.low, found.high]).all()
    assert (found.low <= found.delta + 1e-9).all()
    assert (found.delta <= found.high + 1e-9).all()
