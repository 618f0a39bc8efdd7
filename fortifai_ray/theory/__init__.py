"""Closed forms that analytic chains must meet: what study files' claims name as ``{theory: NAME, …}``.

Generation 0 is already one fit, to n human samples; ``generation`` g has g + 1 fits behind it. Where a source is given
as *derived*, the formula follows from the lines in its docstring, and tests check it by simulation.
"""

from collections.abc import Callable

from fortifai_ray.theory.discrete import (
    discrete_accumulate_heterozygosity,
    discrete_fixed_human_distance_bound,
    discrete_fixed_human_error,
    discrete_fixed_human_heterozygosity,
    discrete_fixed_human_heterozygosity_change,
    discrete_largest_synthetic,
    discrete_published_deviation_bound,
    discrete_published_largest_synthetic,
    discrete_replace_heterozygosity,
    discrete_replace_support,
)
from fortifai_ray.theory.exponential_family import (
    exponential_family_accumulate_error,
    exponential_family_replace_error,
)
from fortifai_ray.theory.gaussian import (
    gaussian_accumulate_mean_error,
    gaussian_accumulate_mean_variance,
    gaussian_accumulate_subsample_mean_variance,
    gaussian_fixed_human_mean_variance,
    gaussian_incremental_mean_variance,
    gaussian_mixed_mean_variance,
    gaussian_replace_mean_error,
    gaussian_replace_mean_log_variance,
    gaussian_replace_mean_variance,
    gaussian_replace_variance_log_variance,
    gaussian_tce_variance_factor,
)
from fortifai_ray.theory.kde import (
    kde_critical_synthetic_ratio,
    kde_mixed_bias_bound,
    kde_mixed_mean_trace_ratio,
    kde_replace_mean_trace_ratio,
)
from fortifai_ray.theory.kde_error import (
    kde_mixed_integrated_squared_error,
    kde_mixed_squared_bias,
)
from fortifai_ray.theory.regression import (
    regression_accumulate_excess,
    regression_excess,
    regression_replace_excess,
    ridge_excess,
)
from fortifai_ray.theory.workflow import (
    workflow_excess,
    workflow_variance,
)

__all__ = [
    "THEORY",
    "discrete_accumulate_heterozygosity",
    "discrete_fixed_human_distance_bound",
    "discrete_fixed_human_error",
    "discrete_fixed_human_heterozygosity",
    "discrete_fixed_human_heterozygosity_change",
    "discrete_largest_synthetic",
    "discrete_published_deviation_bound",
    "discrete_published_largest_synthetic",
    "discrete_replace_heterozygosity",
    "discrete_replace_support",
    "exponential_family_accumulate_error",
    "exponential_family_replace_error",
    "gaussian_accumulate_mean_error",
    "gaussian_accumulate_mean_variance",
    "gaussian_accumulate_subsample_mean_variance",
    "gaussian_fixed_human_mean_variance",
    "gaussian_incremental_mean_variance",
    "gaussian_mixed_mean_variance",
    "gaussian_replace_mean_error",
    "gaussian_replace_mean_log_variance",
    "gaussian_replace_mean_variance",
    "gaussian_replace_variance_log_variance",
    "gaussian_tce_variance_factor",
    "kde_critical_synthetic_ratio",
    "kde_mixed_bias_bound",
    "kde_mixed_integrated_squared_error",
    "kde_mixed_mean_trace_ratio",
    "kde_mixed_squared_bias",
    "kde_replace_mean_trace_ratio",
    "regression_accumulate_excess",
    "regression_excess",
    "regression_replace_excess",
    "ridge_excess",
    "workflow_excess",
    "workflow_variance",
]

THEORY: dict[str, Callable[..., float]] = {
    function.__name__: function
    for function in (
        gaussian_replace_mean_variance,
        gaussian_replace_mean_log_variance,
        gaussian_replace_variance_log_variance,
        gaussian_replace_mean_error,
        gaussian_accumulate_mean_variance,
        gaussian_accumulate_mean_error,
        gaussian_accumulate_subsample_mean_variance,
        gaussian_mixed_mean_variance,
        gaussian_fixed_human_mean_variance,
        gaussian_incremental_mean_variance,
        gaussian_tce_variance_factor,
        kde_replace_mean_trace_ratio,
        kde_mixed_mean_trace_ratio,
        kde_critical_synthetic_ratio,
        kde_mixed_bias_bound,
        kde_mixed_integrated_squared_error,
        kde_mixed_squared_bias,
        discrete_replace_heterozygosity,
        discrete_accumulate_heterozygosity,
        discrete_fixed_human_heterozygosity,
        discrete_fixed_human_heterozygosity_change,
        discrete_fixed_human_error,
        discrete_fixed_human_distance_bound,
        discrete_largest_synthetic,
        discrete_published_deviation_bound,
        discrete_published_largest_synthetic,
        discrete_replace_support,
        exponential_family_replace_error,
        exponential_family_accumulate_error,
        regression_replace_excess,
        regression_accumulate_excess,
        regression_excess,
        ridge_excess,
        workflow_excess,
    )
}
"""The closed forms that a claim may name; arguments by keyword, ``generation`` from the claim's statistic."""
