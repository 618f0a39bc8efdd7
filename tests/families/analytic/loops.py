"""A small recursion for these tests, and what a closed form is held to. The real one is tested by itself."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fortifai_ray.families.analytic import (
    AnalyticFamily,
    Discrete,
    ExponentialFamily,
    Gaussian,
    Gmm,
    Kde,
    LinearRegression,
    LogisticRegression,
    Ngram,
)
from fortifai_ray.families.analytic.base import Streams
from fortifai_ray.families.analytic.ngram import Text
from fortifai_ray.families.analytic.weighting import fit_with_loss
from fortifai_ray.losses import CrossEntropy
from fortifai_ray.recipe.regimes import Draw, Human, Pool, Regime

_ZIPF = 1 / np.arange(1.0, 13)
TEXT = Text(*(np.random.default_rng(seed).choice(12, 3_000, p=_ZIPF / _ZIPF.sum()) for seed in (0, 1)), size=12)

FAMILIES: dict[str, AnalyticFamily] = {
    "gaussian": Gaussian(),
    "gaussian, 3 dimensions, unbiased": Gaussian(dim=3, mean=2.0, std=0.5, covariance_estimator="unbiased"),
    "gaussian, more dimensions than samples": Gaussian(dim=40),
    "discrete": Discrete(outcomes=7, probabilities="zipf"),
    "kde": Kde(shape="moons"),
    "kde, tophat": Kde(shape="blobs", kernel="tophat", bandwidth=0.4),
    "linear regression": LinearRegression(dim=3),
    "linear regression, adaptive": LinearRegression(
        dim=5, design="fresh", ridge="adaptive", written_by="least_squares", spectrum_exponent=1.5
    ),
    "logistic regression": LogisticRegression(dim=2),
    "exponential": ExponentialFamily(member="exponential", mean=2.0),
    "poisson": ExponentialFamily(member="poisson", mean=3.0),
    "bernoulli": ExponentialFamily(member="bernoulli", mean=0.3),
    "gmm": Gmm(),
    "ngram": Ngram(order=2, length=5).on(TEXT),
    "ngram, smoothed": Ngram(order=3, length=4, written_by="smoothed").on(TEXT),
    "gmm, kmeans++": Gmm(components=4, dim=1, start="kmeans++"),
}
"""One of each kind, and of each setting that takes a path of its own."""


def run(
    family: AnalyticFamily,
    n: int,
    seeds: Sequence[int],
    generations: int,
    regime: Regime,
    loss: object = None,
    budgets: Sequence[float] = (),
) -> dict[str, npt.NDArray[np.float64]]:
    """Each metric of each generation and chain, (generations, chains)."""
    count = round(regime.human_needed(n, generations, budgets))
    pools = [Pool("human", np.ones(count), synthetic=False)]
    samples = {"human": family.human(count, Streams(tuple(seeds), -1))}
    human, scores = Human(pools[0], np.arange(count), n, tuple(budgets)), []
    for g in range(generations):
        drawn = regime.training_set(human, pools[1:], g, tuple(seeds))
        sets = drawn.of_each(len(seeds))
        data = np.stack([np.concatenate([_of(samples, draw, i) for draw in sets[i].draws]) for i in range(len(seeds))])
        weights = [own.item_weights() for own in sets]
        given = None if weights[0] is None else np.stack(weights)
        model, kept = fit_with_loss(family, data, loss or CrossEntropy(), g, given)
        scores.append({**family.evaluate(model, data), "kept_fraction": kept})
        size = round(regime.synthetic_size(budgets[min(g + 1, generations - 1)] if budgets else n, g))
        pools.append(Pool(f"synthetic {g}", np.ones(size), synthetic=True))
        samples[pools[-1].stage] = family.generate(model, size, Streams(tuple(seeds), g))
    return {name: np.stack([each[name] for each in scores]) for name in scores[0]}


def _of(samples: dict[str, npt.NDArray[np.float64]], draw: Draw, chain: int) -> npt.NDArray[np.float64]:
    return samples[draw.pool.stage][chain, draw.items]


def assert_mean(values: npt.NDArray[np.float64], expected: float, effect: float) -> None:
    """The mean over chains lies within four standard errors of ``expected``, and these are small beside ``effect``.

    ``effect`` is how far the expected value lies from what it would be were nothing lost: a test whose error is not a
    fifth of it could not fail.
    """
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert error <= abs(effect) / 5, (error, effect)
    assert abs(values.mean() - expected) <= 4 * error, (values.mean(), expected, error)
