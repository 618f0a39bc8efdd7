"""Human and synthetic data weighed in the loss: ``regime.weights`` (He, Xu and Cheng 2025, arXiv:2502.18049).

Their setting ("fresh data augmentation") is the mixed regime with fresh human data: each generation has h new human
samples and s of the last generation's, and its estimate is w times the mean over the first plus 1 − w times that over
the second. A weighted maximum-likelihood fit has the mean and the variance of its weighted sample, whose second moment
about the truth is 1 in the mean; so what the variance loses is the mean's squared error, as without weights
(:mod:`fortifai_ray.theory.gaussian`).
"""

import math

from fortifai_ray.theory.moments import mixed_sizes
from fortifai_ray.theory.registry import Human, Recipe, check_arguments, check_choice, closed_form


def _maximum_likelihood(recipe: Recipe) -> bool:
    return recipe.get("family.covariance_estimator", "maximum_likelihood") == "maximum_likelihood"


@closed_form("mean_error", family="gaussian", regime="mixed", when=_maximum_likelihood, weighs=True)
def gaussian_weights_mean_error(
    n: int, generation: int, synthetic_ratio: float, human_weight: float, human: Human = "kept"
) -> float:
    """E (μ̂_g − μ)²/σ² where human data have the share ``human_weight`` = w of the loss. Exact, by maximum likelihood.

    V_g = w²/h + (1 − w)²(1/s + (1 − 1/s)·V_{g−1}) + 2w(1 − w)·a_{g−1}, from V_0 = 1/n, where a is the covariance of
    what is written with a human sample of the next set: 0 for fresh ones, and a_g = w/h + (1 − w)·a_{g−1} from
    a_0 = 1/n for those that are kept. Derived; He, Xu and Cheng 2025 have the fresh case for many samples.
    """
    check_arguments(n, generation)
    check_choice("human", human, Human)
    if not 0 <= human_weight <= 1:
        raise ValueError(f"human_weight must lie in [0, 1]: {human_weight} does not")
    error = shared = 1 / n
    for own, synthetic in mixed_sizes(n, generation, synthetic_ratio)[1:]:
        w = human_weight if own and synthetic else float(own > 0)
        of_human = w**2 / own if own else 0.0
        of_synthetic = (1 - w) ** 2 * (1 / synthetic + (1 - 1 / synthetic) * error) if synthetic else 0.0
        common = shared if human == "kept" else 0.0
        error = of_human + of_synthetic + 2 * w * (1 - w) * common
        shared = (w / own if own else 0.0) + (1 - w) * shared
    return error


@closed_form("trace_ratio", family="gaussian", regime="mixed", when=_maximum_likelihood, weighs=True)
def gaussian_weights_mean_variance(
    n: int, generation: int, synthetic_ratio: float, human_weight: float, human: Human = "kept"
) -> float:
    """E σ̂²_g/σ² in the same setting: 1 − E (μ̂_g − μ)²/σ²."""
    return 1 - gaussian_weights_mean_error(n, generation, synthetic_ratio, human_weight, human)


@closed_form()
def golden_weight(k: float) -> float:
    """The best weight w* of human data with k human samples to each synthetic one: w² = k(1 − w), (√(k² + 4k) − k)/2.

    He, Xu and Cheng 2025, of the fresh-data setting with many samples, in which the error tends to
    (w²/h + (1 − w)²/s)/(w(2 − w)). For k = 1 it is 0.618, the reciprocal of the golden ratio. Weights by size,
    k/(1 + k), are never the best.
    """
    if not k > 0:
        raise ValueError(f"k must be above 0: {k} is not")
    return (math.sqrt(k**2 + 4 * k) - k) / 2


@closed_form()
def weights_limit_error(k: float, human_weight: float) -> float:
    """What weights lead to for many samples: h times E (μ̂_g − μ)²/σ² as g → ∞, (w² + k(1 − w)²)/(w(2 − w)).

    He, Xu and Cheng 2025: k human samples to each synthetic one, fresh in each generation. It is 1 without synthetic
    data, w = 1; at the golden weight it equals w*, for each k.
    """
    if not (k > 0 and 0 < human_weight <= 1):
        raise ValueError(f"k must be above 0 and human_weight in (0, 1] (k {k}, human_weight {human_weight})")
    return (human_weight**2 + k * (1 - human_weight) ** 2) / (human_weight * (2 - human_weight))
