"""Families that are fitted in closed form, or by a few iterations, to many chains at once.

A family's configuration is the family: ``family: {kind: gaussian, dim: 1}``. TCE on densities inflates the variance
(:mod:`fortifai_ray.families.analytic.weighting`): studies of it need a two-sided criterion. Nothing here imports SciPy
or scikit-learn until it is needed.
"""

from fortifai_ray.families.analytic.base import AnalyticFamily
from fortifai_ray.families.analytic.discrete import Discrete
from fortifai_ray.families.analytic.exponential_family import ExponentialFamily
from fortifai_ray.families.analytic.gaussian import Gaussian
from fortifai_ray.families.analytic.gmm import Gmm
from fortifai_ray.families.analytic.kde import Kde
from fortifai_ray.families.analytic.linear_regression import LinearRegression
from fortifai_ray.families.analytic.logistic_regression import LogisticRegression

ANALYTIC: dict[str, type[AnalyticFamily]] = {
    "gaussian": Gaussian,
    "discrete": Discrete,
    "kde": Kde,
    "linear_regression": LinearRegression,
    "logistic_regression": LogisticRegression,
    "exponential_family": ExponentialFamily,
    "gmm": Gmm,
}
"""The families that come with the platform, by their kind."""

METRICS = tuple(dict.fromkeys(metric for family in ANALYTIC.values() for metric in family.metrics))
