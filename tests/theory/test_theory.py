"""The closed forms among themselves, and chains of discrete distributions and density estimates beside human data.

That chains meet the others is tested in ``families/analytic/test_closed_forms.py``.
"""

import inspect
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from fortifai_ray import theory
from fortifai_ray.families.analytic import AnalyticFamily, Discrete, Kde
from fortifai_ray.families.analytic.base import Streams
from fortifai_ray.families.images.data import shape_points
from fortifai_ray.recipe.regimes import FixedHuman, Human, Mixed, Pool, Regime
from fortifai_ray.theory.registry import CLOSED_FORMS
from fortifai_ray.theory.regression import workflow_variance

Array = npt.NDArray[np.float64]
Model = dict[str, Array]


def chains(
    family: AnalyticFamily, n: int, seeds: Sequence[int], generations: int, regime: Regime
) -> list[tuple[Array, Model]]:
    """Each generation's training samples and model under the real regime, (chains, …)."""
    count, streams = round(regime.human_needed(n, generations)), tuple(seeds)
    pools = [Pool("human", np.ones(count), synthetic=False)]
    samples = {"human": family.human(count, Streams(streams, -1))}
    human, fitted = Human(pools[0], np.arange(count), n), []
    for g in range(generations):
        drawn = regime.training_set(human, pools[1:], g, streams)
        data = np.concatenate([samples[draw.pool.stage][:, draw.items] for draw in drawn.draws], axis=1)
        fitted.append((data, family.fit(data)))
        size = round(regime.synthetic_size(n, g))
        pools.append(Pool(f"synthetic {g}", np.ones(size), synthetic=True))
        samples[pools[-1].stage] = family.generate(fitted[-1][1], size, Streams(streams, g))
    return fitted


def assert_mean(values: Array, expected: float, effect: float) -> None:
    """Within four standard errors, which are at most a fifth of ``effect``: a test with larger ones could not fail."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert error <= abs(effect) / 5, (error, effect)
    assert abs(values.mean() - expected) <= 4 * error, (values.mean(), expected, error)


def test_every_closed_form_is_a_documented_number() -> None:
    """Claims name them and give their arguments by keyword."""
    examples = {
        "n": 50,
        "generation": 2,
        "dim": 3,
        "noise_std": 1.0,
        "ridge": 0.1,
        "bandwidth": 0.2,
        "outcomes": 5,
        "gamma": 0.9,
        "synthetic_ratio": 0.5,
        "human": 10,
        "synthetic": 40,
        "member": "poisson",
        "mean": 0.5,
        "multiple": 1.2,
        "deviation": 0.1,
        "initial": 10,
        "growth": "power",
        "human_weight": 0.6,
        "of": 2,
        "temperature": 0.5,
        "preferred_mean": 1.0,
        "preferred_std": 1.5,
        "sizes": [10, 20],
        "mixing": [[0.7, 0.3], [0.4, 0.6]],
        "lineage": 0,
        "k": 1.0,
        "weights": [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]],
    }
    for name, registered in CLOSED_FORMS.items():
        form = registered.function
        required = [p.name for p in inspect.signature(form).parameters.values() if p.default is p.empty]
        value = form(**{key: examples[key] for key in required})
        assert isinstance(value, float), name
        assert math.isfinite(value), name
        assert form.__name__ == name
        assert inspect.getdoc(form)


def test_accumulate_tends_to_the_sine() -> None:
    """∏ (1 − x²/t²) = sin(πx)/(πx), Euler's product, at x = 1/√n."""
    x = 1 / math.sqrt(7)
    limit = math.sin(math.pi * x) / (math.pi * x)
    assert theory.gaussian_accumulate_mean_variance(7, 100_000) == pytest.approx(limit, rel=1e-5)


def test_sums_tend_to_their_bounds() -> None:
    """π²/6, from below."""
    late = theory.regression_accumulate_excess(10_000)
    assert math.pi**2 / 6 - 1.1e-4 < late < math.pi**2 / 6


def test_mixed_regimes_meet_at_their_corners() -> None:
    """All synthetic is replace, none is generation 0 for ever, fixed human data of half the set is mixed at ½."""
    for g in range(5):
        replace = theory.gaussian_replace_mean_variance(30, g)
        assert theory.gaussian_mixed_mean_variance(30, g, 1.0) == pytest.approx(replace, rel=1e-12)
        assert theory.gaussian_mixed_mean_variance(30, g, 1.0, "fresh") == pytest.approx(replace, rel=1e-12)
        assert theory.gaussian_mixed_mean_variance(30, g, 0.0) == pytest.approx(29 / 30, rel=1e-12)
        half = theory.gaussian_mixed_mean_variance(30, g, 0.5)
        assert theory.gaussian_fixed_human_mean_variance(30, g, 15, 15) == pytest.approx(half, rel=1e-12)
    # Incremental, generation 1: 30 fresh samples and 30 written by a fit whose mean has variance 1/30.
    expected = 59 / 60 * (1 - 30 * 29 / 30 / (60 * 59))
    assert theory.gaussian_incremental_mean_variance(30, 1) == pytest.approx(expected, rel=1e-12)


def test_accumulate_subsample_lies_between_and_plateaus() -> None:
    """Kazdan et al. 2025's order, and a limit above 0."""
    for g in range(1, 200, 20):
        low, mid, high = (
            form(20, g)
            for form in (
                theory.gaussian_replace_mean_variance,
                theory.gaussian_accumulate_subsample_mean_variance,
                theory.gaussian_accumulate_mean_variance,
            )
        )
        assert low < mid < high
    far = [theory.gaussian_accumulate_subsample_mean_variance(20, g) for g in (2_000, 20_000)]
    assert far[1] == pytest.approx(far[0], rel=1e-3)
    assert far[1] > 0.8


def test_workflows_of_weights() -> None:
    """Replace and accumulate are the identity and equal weights; any other one agrees with a simulated process."""
    assert workflow_variance(np.eye(5)).tolist() == [1, 2, 3, 4, 5]
    equal = np.tril(np.ones((6, 6))) / np.arange(1, 7)[:, None]
    expected = [theory.regression_accumulate_excess(g) for g in range(6)]
    np.testing.assert_allclose(workflow_variance(equal), expected, rtol=1e-12)

    draw = np.random.default_rng(0)
    weights = np.tril(draw.random((5, 5)) + 0.1)
    weights /= weights.sum(1, keepdims=True)
    errors = np.zeros((5, 100_000))
    batches = draw.standard_normal((5, 100_000))
    for g in range(5):
        if g:
            batches[g] += errors[g - 1]
        errors[g] = weights[g] @ batches
    simulated = (errors**2).mean(1)
    np.testing.assert_allclose(simulated, workflow_variance(weights), rtol=5 * math.sqrt(2 / 100_000))


def test_workflows_that_are_none_are_refused() -> None:
    """A batch cannot be used before it is written, and weights are shares."""
    with pytest.raises(ValueError, match="zero above the diagonal"):
        workflow_variance([[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match="sum to 1"):
        workflow_variance([[1.0, 0.0], [0.5, 0.6]])
    with pytest.raises(ValueError, match="generations 0 to 1"):
        theory.workflow_excess([[1.0, 0.0], [0.5, 0.5]], 2)


def test_ridge_without_a_ridge_is_least_squares_in_the_limit() -> None:
    """λ = 0 gives σ²φ/(1 − φ) for each fit, the exact value but for d + 1 in place of d."""
    ours = theory.ridge_excess(40_000, 3, 10_000, 0.7, 0.0)
    assert ours == pytest.approx(theory.regression_excess(40_000, 3, 10_000, 0.7), rel=1e-3)


def test_a_stronger_ridge_suits_later_generations() -> None:
    """Dohmatob et al. 2024's point: what is best for generation 0 is too little after ten."""
    ridges = np.geomspace(1e-4, 10, 60)

    def best(generation: int) -> float:
        errors = [theory.ridge_excess(200, generation, 100, 0.5, float(r), spectrum_exponent=1.5) for r in ridges]
        return float(ridges[np.argmin(errors)])

    assert best(10) > 2 * best(0)


def test_extinction_is_that_of_the_sample_at_first() -> None:
    """Generation 0: Σ 1 − (1 − p)^n, and in the end one outcome is left."""
    first = theory.discrete_replace_support(12, 0, 4, [0.5, 0.3, 0.15, 0.05])
    assert first == pytest.approx(sum(1 - (1 - p) ** 12 for p in (0.5, 0.3, 0.15, 0.05)), rel=1e-12)
    assert theory.discrete_replace_support(12, 500, 4) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(("human", "synthetic"), [(100, 25), (100, 400), (20, 1)])
def test_theorem_2_of_seddik_et_al(human: int, synthetic: int) -> None:
    """Their formula for S_m, typed in from the paper, says what the recursion of covariances says."""
    a, squares = synthetic / (human + synthetic), 0.1233
    b = a * ((1 + 1 / human) * a - 1 / human)
    for m in (0, 1, 7, 300):
        first = (1 + 2 * a - (1 - 1 / human) * a * b**m) / human
        second = (1 - 1 / human) * squares * (1 + a + a * b**m / human)
        dispersion = (first + second) / (1 + (1 + 1 / human) * a)
        kept = theory.discrete_fixed_human_heterozygosity(human, m, human, synthetic)
        assert 1 - dispersion == pytest.approx((1 - squares) * kept, rel=1e-12)
        assert theory.discrete_fixed_human_error(m, human, synthetic) == pytest.approx(human * (1 - kept), rel=1e-9)


@pytest.mark.parametrize("synthetic", [8, 40, 600])
def test_discrete_chains_beside_kept_human_data(synthetic: int) -> None:
    """Squared distances to the truth and to generation 0, the change of heterozygosity, and the bound on distance."""
    h, outcomes, generations = 30, 6, 12
    family = Discrete(outcomes=outcomes, probabilities="zipf")
    true = family.truth()["probabilities"]
    models = [
        model["probabilities"]
        for _, model in chains(family, h, range(3_000), generations, FixedHuman(human=h, synthetic=synthetic))
    ]
    start = float(1 - (true**2).sum()) / h
    for g in (1, 4, 11):
        ratio = theory.discrete_fixed_human_error(g, h, synthetic)
        assert_mean(((models[g] - true) ** 2).sum(1) / start, ratio, ratio)
        change = theory.discrete_fixed_human_heterozygosity_change(g, h, synthetic, outcomes, "zipf")
        assert_mean(((models[g] - models[0]) ** 2).sum(1), -change, change)
        drop = (models[0] ** 2).sum(1) - (models[g] ** 2).sum(1)
        assert abs(drop.mean() - change) < 4 * drop.std(ddof=1) / math.sqrt(len(drop))
        bound = theory.discrete_fixed_human_distance_bound(g, h, synthetic, outcomes, "zipf")
        distance = np.abs(models[g] - true).sum(1) / 2
        assert 0.75 * bound < distance.mean() < bound


def test_the_largest_amount_of_synthetic_data() -> None:
    """Up to the amount the error stays within the multiple, beyond it not; from just under 1.5 on any amount does."""
    for human, multiple in ((50, 1.25), (100, 1.1), (2_000, 1.4)):
        largest = theory.discrete_largest_synthetic(human, multiple)
        below, above = math.floor(largest), math.floor(largest) + 1
        assert theory.discrete_fixed_human_error(10**6, human, below) <= multiple
        assert theory.discrete_fixed_human_error(10**6, human, above) > multiple
    assert math.floor(theory.discrete_largest_synthetic(50, 1.25)) == 26  # what sweeps/seddik2024_limit.yaml rests on
    assert theory.discrete_largest_synthetic(50, 1.0) == 0
    always = 1 + 49 / 101
    assert theory.discrete_largest_synthetic(50, always + 1e-9) == math.inf
    assert theory.discrete_fixed_human_error(10**6, 50, 10**5) < always


def test_the_published_bound_lies_above_what_is_exact() -> None:
    """Theorem 3 is a bound on the exact deviation, on all three of its branches, and equation 11 follows from it."""
    for human in (50, 1_000, 10**6):
        for synthetic in (1, 5, 10, 16, 24, 200):
            exact = -theory.discrete_fixed_human_heterozygosity_change(10**5, human, synthetic, 20)
            bound = theory.discrete_published_deviation_bound(human, synthetic, 20)
            assert math.sqrt(20 * exact) <= bound  # E ‖D‖₁ ≤ √(K·E ‖D‖²)
    for human, deviation in ((10**6, 0.1), (10**8, 0.05), (10**30, 1.0)):
        amount = math.floor(theory.discrete_published_largest_synthetic(human, 20, deviation))
        assert amount >= 1
        assert theory.discrete_published_deviation_bound(human, amount, 20) < deviation
    assert theory.discrete_published_largest_synthetic(100, 20, 0.1) == 0
    # Beside 10,000 human samples the estimate grants two, and a billion keep within the same distance.
    assert 2 < theory.discrete_published_largest_synthetic(10**4, 20, 0.1) < 3
    assert math.sqrt(-20 * theory.discrete_fixed_human_heterozygosity_change(10**6, 10**4, 10**9, 20)) < 0.1


@pytest.mark.parametrize(
    ("family", "ratio", "human", "kernel"),
    [
        (Kde(shape="moons", bandwidth=0.4), 0.75, "fresh", 1.0),
        (Kde(shape="circles", bandwidth=0.5, kernel="tophat"), 0.5, "kept", 0.25),
        (Kde(shape="moons", bandwidth="silverman"), 0.5, "fresh", 1.0),
        (Kde(shape="swiss_roll", bandwidth="scott"), 0.75, "kept", 1.0),
        (Kde(shape="blobs", bandwidth="scott"), 1.0, "kept", 1.0),
        (Kde(shape="blobs", bandwidth="scott", kernel="tophat"), 0.75, "fresh", 0.25),
    ],
)
def test_density_estimates_beside_human_data(family: Kde, ratio: float, human: str, kernel: float) -> None:
    """The variance of the estimate, with every kind of bandwidth; the effect is what the last share of it adds."""
    n = 40
    fitted = chains(family, n, range(1_000), 7, Mixed(synthetic_ratio=ratio, human=human))
    for g in (0, 1, 6):
        data, model = fitted[g]
        assert data.shape[1] == n
        traces = data.var(1).mean(-1) + kernel * model["bandwidth"] ** 2
        expected = theory.kde_mixed_mean_trace_ratio(n, g, ratio, family.bandwidth, human, kernel)
        assert_mean(traces, expected, expected - 1 + 1 / n)


def test_density_estimates_without_human_data_meet_their_own_form() -> None:
    """All synthetic is replace, and a rule makes the variance grow by 1 + n^(−1/3) − 1/n a generation."""
    for g in range(6):
        expected = theory.kde_replace_mean_trace_ratio(40, g, 0.3, 0.25)
        mixed = theory.kde_mixed_mean_trace_ratio(40, g, 1.0, 0.3, "fresh", 0.25)
        assert mixed == pytest.approx(expected, rel=1e-12)
    values = [theory.kde_mixed_mean_trace_ratio(125, g, 1.0, "scott") for g in range(4)]
    np.testing.assert_allclose(np.array(values[1:]) / values[:-1], 1 + 1 / 5 - 1 / 125, rtol=1e-12)


def test_the_critical_ratio_parts_what_converges_from_what_does_not() -> None:
    """A thousand samples: just below it the variance settles, just above it grows for ever, data kept or fresh."""
    n = 1_000
    critical = theory.kde_critical_synthetic_ratio(n)
    assert critical == pytest.approx(1 / (1 + n ** (-1 / 3)), rel=2e-3)
    assert theory.kde_critical_synthetic_ratio(100) == pytest.approx(
        0.826, abs=5e-4
    )  # sweeps/fu2024_kde_threshold.yaml
    for human in ("kept", "fresh"):
        below, above = (
            [theory.kde_mixed_mean_trace_ratio(n, g, critical + step, "silverman", human) for g in (4_000, 8_000)]
            for step in (-0.005, 0.005)
        )
        assert below[1] == pytest.approx(below[0], rel=1e-6)
        assert above[1] > 1e3 * above[0]
    assert theory.kde_critical_synthetic_ratio(2, kernel_variance=0.25) == 1.0


@pytest.mark.parametrize("human", ["kept", "fresh"])
def test_integrated_squared_error_of_density_estimates(human: str) -> None:
    """The exact error against that of the project's own estimates, each integrated as a sum over pairs of Gaussians."""
    n, bandwidth, ratio = 20, 0.35, 0.7
    centres, spread = _blobs()
    regime = Mixed(synthetic_ratio=ratio, human=human)
    fitted = chains(Kde(shape="blobs", bandwidth=bandwidth), n, range(1_500), 6, regime)
    truth = _gaussians(centres[None], centres[None], 2 * spread**2)
    first = theory.kde_mixed_integrated_squared_error(n, 0, ratio, bandwidth, human)
    for g in (0, 1, 5):
        data = fitted[g][0]
        cross = _gaussians(data, centres[None], bandwidth**2 + spread**2)
        errors = _gaussians(data, data, 2 * bandwidth**2) - 2 * cross + truth
        expected = theory.kde_mixed_integrated_squared_error(n, g, ratio, bandwidth, human)
        assert_mean(errors, expected, expected - first if g else expected)


def _gaussians(left: Array, right: Array, variance: float) -> Array:
    """(chains,) Mean over all pairs of the plane's normal density of ``variance`` along an axis."""
    squared = ((left[:, :, None] - right[:, None]) ** 2).sum(-1)
    return (np.exp(-squared / (2 * variance)) / (2 * math.pi * variance)).mean((1, 2))


def _blobs() -> tuple[Array, float]:
    """The modes' centres and standard deviation, measured on the points themselves."""
    points, labels = shape_points("blobs", 100_000)
    assert labels is not None
    groups = [points[labels == label].astype(np.float64) for label in range(5)]
    return np.stack([group.mean(0) for group in groups]), float(np.mean([group.std(0).mean() for group in groups]))


def test_bias_of_density_estimates() -> None:
    """It is what is left of the error of many samples, it obeys its bound, and the variance attains the bound."""
    n, ratio, bandwidth = 10**7, 0.7, 0.3
    first = theory.kde_mixed_squared_bias(n, 0, ratio, bandwidth)
    for g in (0, 1, 6):
        bias = theory.kde_mixed_squared_bias(n, g, ratio, bandwidth)
        error = theory.kde_mixed_integrated_squared_error(n, g, ratio, bandwidth, "kept")
        assert error == pytest.approx(bias, rel=1e-4)
        bound = theory.kde_mixed_bias_bound(g, ratio)
        assert math.sqrt(bias / first) <= bound + 1e-12
        added = theory.kde_mixed_mean_trace_ratio(n, g, ratio, bandwidth) - 1
        assert added == pytest.approx(bandwidth**2 * bound, rel=1e-4)
    assert theory.kde_mixed_bias_bound(9, 1.0) == 10


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.gaussian_replace_mean_variance(1, 0),
        lambda: theory.gaussian_replace_mean_variance(10, -1),
        lambda: theory.regression_excess(5, 0, 4, 1.0),
        lambda: theory.ridge_excess(50, 0, 4, 1.0, -0.1),
        lambda: theory.gaussian_tce_variance_factor(0.0),
        lambda: theory.gaussian_replace_mean_variance(10, 0, "biased"),
        lambda: theory.gaussian_mixed_mean_variance(10, 0, 1.5),
        lambda: theory.gaussian_mixed_mean_variance(10, 0, 0.5, "old"),
        lambda: theory.exponential_family_replace_error(10, 0, "gamma", 1.0),
        lambda: theory.discrete_fixed_human_error(1, 1, 5),
        lambda: theory.discrete_largest_synthetic(50, 0.9),
        lambda: theory.discrete_published_deviation_bound(50, 0, 3),
        lambda: theory.discrete_published_largest_synthetic(50, 3, 0.0),
        lambda: theory.kde_mixed_mean_trace_ratio(10, 0, 0.5, "wide"),
        lambda: theory.kde_mixed_mean_trace_ratio(10, 0, 0.5, 0.0),
        lambda: theory.kde_critical_synthetic_ratio(1),
        lambda: theory.kde_mixed_bias_bound(0, 1.1),
        lambda: theory.kde_mixed_integrated_squared_error(10, 0, 0.5, -1.0),
    ],
)
def test_arguments_outside_the_domain_are_refused(call: object) -> None:
    """A claim with such arguments says so, rather than compare with nonsense."""
    with pytest.raises(ValueError, match=r"must|lies"):
        call()
