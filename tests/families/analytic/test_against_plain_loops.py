"""The families that fit many chains at once agree with plain code for one chain, written here from the definitions."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.linear_model import Ridge
from sklearn.neighbors import KernelDensity

from fortifai_ray.families.analytic import (
    AnalyticFamily,
    Discrete,
    ExponentialFamily,
    Gaussian,
    Gmm,
    Kde,
    LinearRegression,
    LogisticRegression,
)
from fortifai_ray.families.analytic.base import Streams, sliced_wasserstein

SEEDS = (3, 1, 4)
EXACT = 1e-12


def fitted(family: AnalyticFamily, n: int = 60) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Data of the second generation of some chains, the model fitted to it, and its metrics."""
    human = family.human(n, Streams(SEEDS, -1))
    data = family.generate(family.fit(human), n, Streams(SEEDS, 0))
    model = family.fit(data)
    return data, model, family.evaluate(model, data)


def agree(ours: np.ndarray, one_chain: Callable[[int], object], rtol: float = EXACT) -> None:
    np.testing.assert_allclose(ours, np.stack([one_chain(b) for b in range(len(SEEDS))]), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("estimator", ["maximum_likelihood", "unbiased"])
def test_gaussian(estimator: str) -> None:
    """Mean, covariance, density and every metric, in three dimensions."""
    family = Gaussian(dim=3, mean=1.5, std=2.0, covariance_estimator=estimator)
    data, model, scores = fitted(family)
    covariance = [np.cov(own.T, bias=estimator == "maximum_likelihood") for own in data]
    mean = [own.mean(0) for own in data]
    agree(model["mean"], lambda b: mean[b])
    agree(model["covariance"], lambda b: covariance[b])
    agree(scores["trace_ratio"], lambda b: sum(covariance[b][i, i] for i in range(3)) / 12)
    agree(scores["log_variance_ratio"], lambda b: sum(math.log(covariance[b][i, i] / 4) for i in range(3)) / 3)
    agree(scores["mean_error"], lambda b: sum((m - 1.5) ** 2 for m in mean[b]) / 12)

    def divergence(b: int) -> float:
        inverse, away = np.linalg.inv(covariance[b]), mean[b] - 1.5
        log_ratio = math.log(np.linalg.det(covariance[b]) / 64)
        return (4 * np.trace(inverse) + away @ inverse @ away - 3 + log_ratio) / 2

    def wasserstein(b: int) -> float:
        # Bures: tr Σ̂ + tr Σ − 2 tr (Σ^½ Σ̂ Σ^½)^½, whose singular values the nuclear norm of a root sums.
        root = np.linalg.norm(np.linalg.cholesky(covariance[b]) * 2, "nuc")
        return math.sqrt(((mean[b] - 1.5) ** 2).sum() + np.trace(covariance[b]) + 12 - 2 * root)

    agree(scores["kl_divergence"], divergence, 1e-11)  # a difference of terms of size 3
    agree(scores["wasserstein"], wasserstein, 1e-11)
    density = [stats.multivariate_normal(m, c) for m, c in zip(mean, covariance, strict=True)]
    agree(family.log_likelihood(model, data), lambda b: density[b].logpdf(data[b]), 1e-11)


def test_gaussian_samples_have_the_fitted_moments() -> None:
    """200,000 draws of a correlated model: each second moment within five of its standard errors."""
    covariance = np.array([[[2.0, 0.9], [0.9, 0.5]]])
    drawn = Gaussian(dim=2).generate(
        {"mean": np.array([[1.0, -2.0]]), "covariance": covariance}, 200_000, Streams((0,), 0)
    )
    scale = np.sqrt(np.diagonal(covariance[0]))
    assert np.all(np.abs(drawn[0].mean(0) - [1.0, -2.0]) < 5 * scale / np.sqrt(200_000))
    assert np.all(np.abs(np.cov(drawn[0].T) - covariance[0]) < 5 * np.sqrt(2 / 200_000) * np.outer(scale, scale))


def test_a_degenerate_gaussian_has_defined_numbers() -> None:
    """More dimensions than samples, and a chain that has shrunk to a point: infinities where they belong, no NaN."""
    wide = Gaussian(dim=5)
    data = wide.human(3, Streams((0,), 0))
    scores = wide.evaluate(wide.fit(data), data)
    assert scores["kl_divergence"] == np.inf
    assert np.isfinite([scores["trace_ratio"], scores["wasserstein"]]).all()
    assert (wide.log_likelihood(wide.fit(data), data) == np.inf).all()
    point = Gaussian(dim=2)
    model = point.fit(np.ones((1, 4, 2)))
    scores = point.evaluate(model, data)
    assert (scores["trace_ratio"], scores["log_variance_ratio"], scores["kl_divergence"]) == (0.0, -np.inf, np.inf)
    assert scores["wasserstein"] == pytest.approx(2.0)  # √(1 + 1 + 1 + 1)
    likelihood = point.log_likelihood(model, np.array([[[1.0, 1.0], [1.0, 0.9]]]))
    assert likelihood.tolist() == [[np.inf, -np.inf]]
    assert (point.generate(model, 3, Streams((0,), 0)) == 1.0).all()
    unbiased = Gaussian(covariance_estimator="unbiased")
    assert unbiased.fit(np.ones((1, 1, 1)))["covariance"] == 0.0


def test_discrete() -> None:
    """Frequencies, and every metric by a sum over outcomes; a lost outcome makes the divergence infinite."""
    family = Discrete(outcomes=6, probabilities=[0.4, 0.3, 0.2, 0.08, 0.02, 0.0])
    data, model, scores = fitted(family)
    true = [0.4, 0.3, 0.2, 0.08, 0.02, 0.0]
    share = [[Counter(own[:, 0].astype(int).tolist())[k] / 60 for k in range(6)] for own in data]
    agree(model["probabilities"], lambda b: share[b])
    agree(scores["support"], lambda b: sum(p > 0 for p in share[b]))
    agree(scores["support_ratio"], lambda b: sum(p > 0 for p in share[b]) / 5)
    agree(scores["entropy"], lambda b: -sum(p * math.log(p) for p in share[b] if p))
    agree(scores["heterozygosity"], lambda b: 1 - sum(p * p for p in share[b]))
    agree(scores["total_variation"], lambda b: sum(abs(p - q) for p, q in zip(share[b], true, strict=True)) / 2)

    def divergence(b: int) -> float:
        pairs = [(q, p) for q, p in zip(true, share[b], strict=True) if q]
        return sum(q * math.log(q / p) for q, p in pairs) if all(p for _, p in pairs) else math.inf

    agree(scores["kl_divergence"], divergence)
    assert np.isinf(family.evaluate(family.fit(np.zeros((1, 5, 1))), data)["kl_divergence"]).all()
    drawn = family.generate(family.truth(), 100_000, Streams((0,), 0))
    assert stats.chisquare(np.bincount(drawn[0, :, 0].astype(int), minlength=5), np.array(true[:5]) * 1e5).pvalue > 1e-4


@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
def test_kde_with_a_fixed_bandwidth(kernel: str) -> None:
    """scikit-learn's density, at the samples and far from them; the trace by the law of total variance."""
    family = Kde(shape="moons", kernel=kernel, bandwidth=0.35)
    data, model, scores = fitted(family)
    points = np.concatenate([data, data + 0.3], axis=1)
    estimates = [KernelDensity(kernel=kernel, bandwidth=0.35, rtol=0, atol=0).fit(own) for own in data]
    with np.errstate(divide="ignore"):
        expected = np.stack([each.score_samples(own) for each, own in zip(estimates, points, strict=True)])
    # scikit-learn gives a huge negative number, or −∞, where no top-hat reaches.
    np.testing.assert_allclose(
        np.maximum(family.log_likelihood(model, points), -700), np.maximum(expected, -700), EXACT
    )
    variance = {"gaussian": 0.35**2, "tophat": 0.35**2 / 4}[kernel]
    agree(scores["trace_ratio"], lambda b: (data[b].var(0).sum() + 2 * variance) / 2, 1e-11)
    drawn = family.generate({name: part[:1] for name, part in model.items()}, 200_000, Streams((0,), 5))[0]
    np.testing.assert_allclose(drawn.var(0), data[0].var(0) + variance, rtol=5 * math.sqrt(2 / 200_000))
    nearest = np.sqrt(((drawn[:2_000, None] - data[0]) ** 2).sum(-1)).min(1)
    assert kernel == "gaussian" or nearest.max() <= 0.35


@pytest.mark.parametrize("rule", ["scott", "silverman"])
def test_kde_bandwidth_rules(rule: str) -> None:
    """SciPy's factors, times the root of the mean unbiased variance; under weights, SciPy's effective size."""
    family = Kde(shape="circles", bandwidth=rule)
    data = family.human(50, Streams(SEEDS, 0))
    weights = np.tile(np.linspace(0.1, 2.0, 50), (len(SEEDS), 1))
    for given in (None, weights):
        whole = [stats.gaussian_kde(own.T, rule, weights=None if given is None else given[0]) for own in data]
        agree(
            family.fit(data, given)["bandwidth"],
            lambda b, whole=whole: math.sqrt(np.trace(whole[b].covariance) / 2),
        )


def test_kde_truth_and_held_out_points_have_unit_variance() -> None:
    """``trace_ratio`` is over the population's variance, which is 1 along an axis: five standard errors of 20,000."""
    for shape in ("blobs", "circles", "moons", "swiss_roll"):
        family = Kde(shape=shape)
        drawn = family.human(20_000, Streams((0,), 0))[0]
        spread = np.square(drawn - drawn.mean(0)).sum(1) / 2
        assert abs(spread.mean() - 1) < 5 * spread.std() / math.sqrt(20_000)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_linear_regression(ridge: float) -> None:
    """Least squares by QR, ridge by scikit-learn (whose penalty is on the sum); the risk by the definition."""
    family = LinearRegression(dim=4, ridge=ridge, noise_std=0.7, spectrum_exponent=1.0, source=0.4, design="fresh")
    data, model, scores = fitted(family)
    true = family.truth()["weights"][0]
    variances = [1.0, 1 / 2, 1 / 3, 1 / 4]

    def weights(b: int) -> np.ndarray:
        inputs, targets = data[b, :, :-1], data[b, :, -1]
        if ridge:
            return Ridge(alpha=60 * ridge, fit_intercept=False, solver="cholesky").fit(inputs, targets).coef_
        return np.linalg.lstsq(inputs, targets)[0]

    def excess(b: int) -> float:
        return sum(v * (w - t) ** 2 for v, w, t in zip(variances, weights(b), true, strict=True))

    agree(model["weights"], weights)
    agree(scores["excess_risk"], excess, 1e-11)
    agree(scores["test_error"], lambda b: excess(b) + 0.49, 1e-11)
    assert sum(v * t * t for v, t in zip(variances, true, strict=True)) == pytest.approx(1.0)


def test_linear_regression_with_too_few_samples_is_the_minimum_norm_fit() -> None:
    """Fewer samples than inputs: NumPy's least squares gives the same."""
    family = LinearRegression(dim=12)
    data = family.human(5, Streams(SEEDS, 0))
    agree(family.fit(data)["weights"], lambda b: np.linalg.lstsq(data[b, :, :-1], data[b, :, -1])[0], 1e-9)


def test_adaptive_ridge_follows_the_generation() -> None:
    """λ = n^−min((1 − log_n g)·ℓ_crit, β), with ℓ_crit = β/(2βr + 1), and the writer is the least-squares fit."""
    family = LinearRegression(dim=4, ridge="adaptive", written_by="least_squares", spectrum_exponent=1.5, source=0.4)
    critical = 1.5 / (2 * 1.5 * 0.4 + 1)
    for generation in (1, 2, 20):
        exponent = min((1 - math.log(generation, 60)) * critical, 1.5)
        assert family.penalty(60, generation) == pytest.approx(60**-exponent)
    assert family.penalty(60, 0) == pytest.approx(60**-critical)
    data = family.human(60, Streams(SEEDS, 0))
    model = family.fit(data, generation=7)
    plain = LinearRegression(dim=4, ridge=family.penalty(60, 7)).fit(data)
    assert np.array_equal(model["weights"], plain["weights"])
    agree(model["writer"], lambda b: np.linalg.lstsq(data[b, :, :-1], data[b, :, -1])[0], 1e-11)


def test_logistic_regression() -> None:
    """The penalised optimum by a plain Newton loop; the excess risk by integrating over the two directions."""
    family = LogisticRegression(dim=3, penalty=0.5)
    data, model, scores = fitted(family)

    def weights(b: int) -> np.ndarray:
        inputs, labels, w = data[b, :, :-1], data[b, :, -1], np.zeros(3)
        for _ in range(30):
            p = 1 / (1 + np.exp(-inputs @ w))
            hessian = inputs.T @ np.diag(p * (1 - p)) @ inputs + 0.5 * np.eye(3)
            w = w - np.linalg.solve(hessian, inputs.T @ (p - labels) + 0.5 * w)
        return w

    agree(model["weights"], weights)
    agree(scores["parameter_error"], lambda b: ((weights(b) - 1 / math.sqrt(3)) ** 2).sum(), 1e-11)
    inputs = np.random.default_rng(0).standard_normal((400_000, 3))
    p = 1 / (1 + np.exp(-inputs.sum(1) / math.sqrt(3)))
    for b in range(len(SEEDS)):
        q = 1 / (1 + np.exp(-inputs @ weights(b)))
        gap = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
        assert abs(gap.mean() - scores["excess_risk"][b]) < 5 * gap.std() / math.sqrt(400_000)


def test_logistic_regression_of_separable_samples_is_finite() -> None:
    """A plane separates the labels: the penalty keeps the weights finite, at SciPy's optimum."""
    family = LogisticRegression(dim=2)
    inputs = np.random.default_rng(0).standard_normal((20, 2))
    data = np.column_stack([inputs, inputs[:, 0] > 0])[None]

    def objective(w: np.ndarray) -> float:
        signs = 2 * data[0, :, 2] - 1
        return np.logaddexp(0, -signs * (inputs @ w)).sum() + 1e-3 * w @ w / 2

    best = optimize.minimize(objective, np.zeros(2), method="BFGS", options={"gtol": 1e-10})
    ours = family.fit(data)["weights"][0]
    assert objective(ours) <= best.fun + 1e-12
    assert np.isfinite(family.evaluate({"weights": ours[None]}, data)["excess_risk"]).all()


@pytest.mark.parametrize(
    ("member", "mean", "distribution"),
    [
        ("exponential", 2.0, lambda m: stats.expon(scale=m)),
        ("poisson", 3.0, stats.poisson),
        ("bernoulli", 0.3, stats.bernoulli),
    ],
)
def test_exponential_family(member: str, mean: float, distribution: Callable[[float], object]) -> None:
    """The mean, SciPy's densities, the divergence as an expectation under the truth, and the sampler's distribution."""
    family = ExponentialFamily(member=member, mean=mean)
    data, model, scores = fitted(family)
    agree(model["mean"], lambda b: sum(data[b, :, 0]) / 60)
    agree(scores["parameter_error"], lambda b: ((sum(data[b, :, 0]) / 60 - mean) / mean) ** 2, 1e-11)

    def log_density(at: np.ndarray, m: float) -> np.ndarray:
        known = distribution(m)
        return known.logpdf(at) if member == "exponential" else known.logpmf(at)

    agree(family.log_likelihood(model, data), lambda b: log_density(data[b, :, 0], model["mean"][b]))
    many = family.human(200_000, Streams((0,), 0))[0, :, 0]
    assert abs(many.mean() - mean) < 5 * many.std() / math.sqrt(200_000)
    assert abs(many.var() - distribution(mean).var()) < 0.03 * distribution(mean).var()
    for b in range(len(SEEDS)):
        gap = log_density(many, mean) - log_density(many, model["mean"][b])
        error = 5 * gap.std() / math.sqrt(200_000)
        assert abs(gap.mean() - scores["kl_divergence"][b]) <= error + EXACT  # a chain may hit the mean exactly


def test_an_absorbed_chain_stays_and_has_defined_numbers() -> None:
    """A Poisson chain that wrote zeros alone writes zeros for ever, infinitely far from the truth."""
    for member in ("exponential", "poisson", "bernoulli"):
        family = ExponentialFamily(member=member, mean=0.5)
        model = family.fit(np.zeros((1, 4, 1)))
        assert (family.generate(model, 3, Streams((0,), 0)) == 0).all()
        assert family.evaluate(model, np.zeros((1, 4, 1)))["kl_divergence"] == np.inf
        assert not np.isnan(family.log_likelihood(model, np.array([[[0.0], [1.0]]]))).any()


def _plain_em(family: Gmm, data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth = family.truth()
    weights, means, covariances = (truth[name][0] for name in ("weights", "means", "covariances"))
    before = -math.inf
    for _ in range(family.max_iterations):
        parts = [
            w * stats.multivariate_normal(m, c).pdf(data) for w, m, c in zip(weights, means, covariances, strict=True)
        ]
        likelihood = np.mean(np.log(np.sum(parts, axis=0)))
        shares = [part / np.sum(parts, axis=0) for part in parts]
        weights = np.array([share.sum() for share in shares]) / len(data)
        means = np.array([np.average(data, axis=0, weights=share) for share in shares])
        covariances = np.array(
            [np.cov(data.T, aweights=share, bias=True) + family.regularisation * np.eye(family.dim) for share in shares]
        )
        if likelihood - before < family.tolerance:
            break
        before = likelihood
    return weights, means, covariances


def test_gmm() -> None:
    """EM from the truth, iteration for iteration, with components that overlap; then the metrics."""
    family = Gmm(components=3, separation=2.5)
    data, model, scores = fitted(family, 150)
    plain = [_plain_em(family, own) for own in data]
    agree(model["weights"], lambda b: plain[b][0], 1e-10)  # rounding grows a little in each of some dozen iterations
    agree(model["means"], lambda b: plain[b][1], 1e-10)
    agree(model["covariances"], lambda b: plain[b][2], 1e-10)
    true = family.truth()["means"][0]

    def modes(b: int) -> int:
        heavy = [m for w, m in zip(plain[b][0], plain[b][1], strict=True) if w >= 1 / 30]
        return sum(any(np.linalg.norm(m - t) <= 1.25 for m in heavy) for t in true)

    def spread(b: int) -> float:
        weights, means, covariances = plain[b]
        second = sum(w * (np.trace(c) + m @ m) for w, m, c in zip(weights, means, covariances, strict=True))
        total = second - np.sum((weights @ means) ** 2)
        return total / (2 + np.mean(np.sum(true**2, axis=1)))

    agree(scores["modes"], modes)
    agree(scores["trace_ratio"], spread, 1e-10)
    assert family.evaluate(family.truth(), data)["kl_divergence"] == 0.0
    lost = {**family.truth(), "weights": np.array([[0.5, 0.5, 0.0]])}
    assert family.evaluate(lost, data)["modes"] == 2
    drawn = family.generate(family.truth(), 100_000, Streams((0,), 0))
    assert family.evaluate(family.fit(drawn), drawn)["trace_ratio"] == pytest.approx(1.0, abs=0.02)


def test_gmm_seeding_finds_separate_modes() -> None:
    """k-means++ puts a seed into each of four well separated modes more often than not, and EM keeps it there."""
    family = Gmm(components=4, separation=20.0, start="kmeans++")
    data = family.human(200, Streams(tuple(range(40)), 0))
    assert family.evaluate(family.fit(data), data)["modes"].mean() > 3.5


def test_sliced_wasserstein() -> None:
    """On the line it is SciPy's distance of order 2 between sorted samples; a shift by s in the plane gives |s|/√2."""
    drawn = np.random.default_rng(0).standard_normal((2, 80, 1))
    expected = np.sqrt(np.mean((np.sort(drawn[0, :, 0]) - np.sort(drawn[1, :, 0])) ** 2))
    assert sliced_wasserstein(drawn[:1], drawn[1])[0] == pytest.approx(expected, rel=1e-12)
    plane = np.random.default_rng(1).standard_normal((1, 50, 2))
    shifted = sliced_wasserstein(plane + np.array([3.0, 4.0]), plane[0])
    assert shifted[0] == pytest.approx(5 / math.sqrt(2), rel=1e-9)
