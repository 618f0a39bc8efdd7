"""Families that are fitted in closed form, or by a few iterations, to many chains at once.

A family's configuration is the family: ``family: {kind: gaussian, dim: 1}``. TCE on densities inflates the variance
(:mod:`fortifai_ray.families.analytic.weighting`): studies of it need a two-sided criterion. Nothing here
imports SciPy or scikit-learn until it is needed. To add a family, write its class in a file here and list it below.
"""

from fortifai_ray.families import LINEAGE_DISTANCE
from fortifai_ray.families.analytic.base import AnalyticFamily
from fortifai_ray.families.analytic.discrete import Discrete
from fortifai_ray.families.analytic.exponential_family import ExponentialFamily
from fortifai_ray.families.analytic.gaussian import Gaussian
from fortifai_ray.families.analytic.gmm import Gmm
from fortifai_ray.families.analytic.kde import Kde
from fortifai_ray.families.analytic.ngram import Ngram
from fortifai_ray.families.analytic.regression import LinearRegression, LogisticRegression

_FAMILIES: tuple[type[AnalyticFamily], ...] = (
    Gaussian,
    Discrete,
    Kde,
    LinearRegression,
    LogisticRegression,
    ExponentialFamily,
    Gmm,
    Ngram,
)

ANALYTIC: dict[str, type[AnalyticFamily]] = {family.model_fields["kind"].default: family for family in _FAMILIES}
"""The families of this package by their kind."""

METRICS = (*dict.fromkeys(metric for family in _FAMILIES for metric in family.metrics), LINEAGE_DISTANCE)
