"""Which closed forms of :mod:`fortifai_ray.theory` a study's cells must meet, and with which arguments.

Read off the resolved recipe: the family, the regime, the loss. A closed form is offered only where its assumptions
hold, so that a deviation means something; where one holds in a limit alone, it says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import fortifai_ray.theory as theory
from fortifai_ray.results.reader import Results
from fortifai_ray.results.schema import flatten

Recipe = Mapping[str, Any]
_ONLY_TRUNCATION = {"tce"}


@dataclass(frozen=True)
class ClosedForm:
    """A metric's mean (or variance) over chains as a function of the generation.

    Attributes:
        summary: which moment over chains it gives.
        name: the function in :mod:`fortifai_ray.theory`.
        at: its value at a generation; raises ValueError outside its domain.
        limit: in which limit it holds (empty: exactly).
    """

    metric: str
    summary: Literal["mean", "variance"]
    name: str
    at: Callable[[int], float]
    limit: str = ""

    @property
    def title(self) -> str:
        """The quantity, e.g. ``mean of trace_ratio``."""
        return f"{self.summary} of {self.metric}"


def recipes(results: Results) -> dict[str, Recipe]:
    """The flat recipe (dotted keys) of each cell.

    A section that varies as a whole is taken from the cell alone: what the base recipe says of it belongs to another
    kind of regime or loss.
    """
    study = results.study
    beside = ("vary", "collapse", "baseline", "claims", "resources", "search", "name")
    base = flatten({key: value for key, value in study.items() if key not in beside})
    vary = study.get("vary")
    whole = [key for key, values in vary.items() if _has_sections(values)] if isinstance(vary, dict) else []
    kept = {key: value for key, value in base.items() if not any(key.startswith(f"{section}.") for section in whole)}
    found: dict[str, Recipe] = {}
    for identity, cell in results.cells.labels.items():
        values = dict(zip(results.cells.keys, json.loads(identity), strict=True))
        found[cell] = kept | {key: value for key, value in values.items() if value is not None}
    return found


def _has_sections(values: Any) -> bool:
    return isinstance(values, list) and any(isinstance(value, dict) for value in values)


def closed_forms(recipe: Recipe) -> list[ClosedForm]:
    """The closed forms that hold for a recipe; none where nothing is known of it."""
    if recipe.get("curation.kind", "none") != "none":
        return []
    kind, loss = str(recipe.get("family.kind")), recipe.get("loss.kind", "cross_entropy")
    if kind == "gaussian" and loss in _ONLY_TRUNCATION:
        return list(_truncated_gaussian(recipe))
    if loss != "cross_entropy" or kind not in _FAMILIES:
        return []
    return list(_FAMILIES[kind](recipe))


def _size(recipe: Recipe) -> int:
    return int(recipe.get("samples_per_generation", 100))


def _regime(recipe: Recipe) -> str:
    """The regime's kind, by what it does: nothing but synthetic data is ``replace``, and ForTIFAI's short form is the
    mixed regime with fresh human data."""
    kind, ratio = str(recipe.get("regime.kind", "replace")), recipe.get("regime.synthetic_ratio")
    if kind not in ("mixed", "incremental") or ratio is None:
        return kind
    return "replace" if ratio == 1 else "mixed"


def _synthetic_ratio(recipe: Recipe) -> float:
    """Of the replace and mixed regimes."""
    return 1.0 if _regime(recipe) == "replace" else float(recipe["regime.synthetic_ratio"])


def _human(recipe: Recipe) -> Literal["kept", "fresh"]:
    """Which human samples the mixed regime uses; ForTIFAI's short form uses fresh ones."""
    fresh = recipe.get("regime.kind") == "incremental" or recipe.get("regime.human") == "fresh"
    return "fresh" if fresh else "kept"


def _gaussian(recipe: Recipe) -> Iterator[ClosedForm]:
    n, regime = _size(recipe), _regime(recipe)
    estimator = recipe.get("family.covariance_estimator", "maximum_likelihood")
    likeliest = estimator == "maximum_likelihood"
    if regime == "replace":
        variance, logarithm = theory.gaussian_replace_mean_variance, theory.gaussian_replace_mean_log_variance
        error, spread = theory.gaussian_replace_mean_error, theory.gaussian_replace_variance_log_variance
        yield ClosedForm("trace_ratio", "mean", variance.__name__, lambda g: variance(n, g, estimator))
        yield ClosedForm("log_variance_ratio", "mean", logarithm.__name__, lambda g: logarithm(n, g, estimator))
        if recipe.get("family.dim", 1) == 1:
            yield ClosedForm("log_variance_ratio", "variance", spread.__name__, lambda g: spread(n, g))
        yield ClosedForm("mean_error", "mean", error.__name__, lambda g: error(n, g, estimator))
    elif regime == "accumulate":
        pooled, wandering = theory.gaussian_accumulate_mean_variance, theory.gaussian_accumulate_mean_error
        yield ClosedForm("trace_ratio", "mean", pooled.__name__, lambda g: pooled(n, g, estimator))
        if likeliest:
            yield ClosedForm("mean_error", "mean", wandering.__name__, lambda g: wandering(n, g))
    elif likeliest:
        yield from _partly_human_gaussian(recipe, n, regime)


def _partly_human_gaussian(recipe: Recipe, n: int, regime: str) -> Iterator[ClosedForm]:
    """Maximum likelihood alone."""
    if regime == "accumulate_subsample":
        subsample = theory.gaussian_accumulate_subsample_mean_variance
        yield ClosedForm("trace_ratio", "mean", subsample.__name__, lambda g: subsample(n, g))
    elif regime == "mixed":
        ratio, human, mixed = _synthetic_ratio(recipe), _human(recipe), theory.gaussian_mixed_mean_variance
        yield ClosedForm("trace_ratio", "mean", mixed.__name__, lambda g: mixed(n, g, ratio, human))
    elif regime == "fixed_human":
        sizes, fixed = (
            (int(recipe["regime.human"]), int(recipe["regime.synthetic"])),
            theory.gaussian_fixed_human_mean_variance,
        )
        yield ClosedForm("trace_ratio", "mean", fixed.__name__, lambda g: fixed(n, g, *sizes))
    elif regime == "incremental":
        growing = theory.gaussian_incremental_mean_variance
        yield ClosedForm("trace_ratio", "mean", growing.__name__, lambda g: growing(n, g))


def _truncated_gaussian(recipe: Recipe) -> Iterator[ClosedForm]:
    if _regime(recipe) == "replace":
        gamma, factor = float(recipe["loss.gamma"]), theory.gaussian_tce_variance_factor
        limit = "in the limit of many samples"
        yield ClosedForm("trace_ratio", "mean", factor.__name__, lambda g: factor(gamma) ** (g + 1), limit)


def _kde(recipe: Recipe) -> Iterator[ClosedForm]:
    bandwidth, n, regime = recipe.get("family.bandwidth", "scott"), _size(recipe), _regime(recipe)
    kernel = 0.25 if recipe.get("family.kernel") == "tophat" else 1.0
    if regime == "replace" and not isinstance(bandwidth, str):
        form = theory.kde_replace_mean_trace_ratio
        yield ClosedForm("trace_ratio", "mean", form.__name__, lambda g: form(n, g, float(bandwidth), kernel))
    elif regime in ("replace", "mixed"):
        ratio, human, mixed = _synthetic_ratio(recipe), _human(recipe), theory.kde_mixed_mean_trace_ratio
        yield ClosedForm("trace_ratio", "mean", mixed.__name__, lambda g: mixed(n, g, ratio, bandwidth, human, kernel))


def _discrete(recipe: Recipe) -> Iterator[ClosedForm]:
    from fortifai_ray.families.analytic.discrete import true_probabilities

    n, regime, outcomes = _size(recipe), _regime(recipe), int(recipe["family.outcomes"])
    shape, exponent = recipe.get("family.probabilities", "uniform"), recipe.get("family.exponent") or 1.0
    true = 1 - float((true_probabilities(shape, outcomes, exponent) ** 2).sum())
    forms = {"replace": theory.discrete_replace_heterozygosity, "accumulate": theory.discrete_accumulate_heterozygosity}
    if drift := forms.get(regime):
        yield ClosedForm("heterozygosity", "mean", drift.__name__, lambda g: true * drift(n, g))
    if regime == "fixed_human":
        sizes, kept = (
            (int(recipe["regime.human"]), int(recipe["regime.synthetic"])),
            theory.discrete_fixed_human_heterozygosity,
        )
        yield ClosedForm("heterozygosity", "mean", kept.__name__, lambda g: true * kept(n, g, *sizes))
    if regime == "replace":
        support = theory.discrete_replace_support
        yield ClosedForm("support", "mean", support.__name__, lambda g: support(n, g, outcomes, shape, exponent))


def _exponential_family(recipe: Recipe) -> Iterator[ClosedForm]:
    forms = {
        "replace": theory.exponential_family_replace_error,
        "accumulate": theory.exponential_family_accumulate_error,
    }
    if form := forms.get(_regime(recipe)):
        n, member, mean = _size(recipe), recipe["family.member"], float(recipe["family.mean"])
        yield ClosedForm("parameter_error", "mean", form.__name__, lambda g: form(n, g, member, mean))


def _linear_regression(recipe: Recipe) -> Iterator[ClosedForm]:
    n, dim, regime = _size(recipe), int(recipe["family.dim"]), _regime(recipe)
    noise, ridge = float(recipe.get("family.noise_std", 1.0)), recipe.get("family.ridge", 0.0)
    if n <= dim + 1 or isinstance(ridge, str):
        return
    least, ridged, pooled = theory.regression_excess, theory.ridge_excess, theory.regression_accumulate_excess
    if regime == "replace" and ridge == 0:
        yield ClosedForm("excess_risk", "mean", least.__name__, lambda g: least(n, g, dim, noise))
    elif regime == "accumulate" and ridge == 0 and recipe.get("family.design", "fixed") == "fixed":
        name = f"{pooled.__name__}, times {least.__name__} at generation 0"
        yield ClosedForm("excess_risk", "mean", name, lambda g: least(n, 0, dim, noise) * pooled(g))
    elif (
        regime == "replace"
        and recipe.get("family.written_by") == "least_squares"
        and recipe.get("family.design") == "fresh"
    ):
        settings = {
            "signal": float(recipe.get("family.signal", 1.0)),
            "spectrum_exponent": float(recipe.get("family.spectrum_exponent", 0.0)),
            "source": float(recipe.get("family.source") or 0.5),
        }
        limit = "in the limit of many dimensions and samples"
        yield ClosedForm(
            "excess_risk", "mean", ridged.__name__, lambda g: ridged(n, g, dim, noise, float(ridge), **settings), limit
        )


_FAMILIES: Mapping[str, Callable[[Recipe], Iterator[ClosedForm]]] = {
    "gaussian": _gaussian,
    "kde": _kde,
    "discrete": _discrete,
    "exponential_family": _exponential_family,
    "linear_regression": _linear_regression,
}
