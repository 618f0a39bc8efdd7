"""The fidelity-interval ratio as a function of the criterion's threshold.

The ratio depends on what one calls collapse: a loss may gain little at twice generation 0's perplexity and a fifth at
ten times. The profile shows it from just above generation 0 to full collapse, each point with its interval and with
what was censored.
"""

from collections.abc import Collection, Sequence

import numpy as np
import polars as pl

from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import CRITERION_COLUMNS, CollapseCriterion
from fortifai_ray.statistics.crossing import Floats
from fortifai_ray.statistics.fidelity import fidelity_table
from fortifai_ray.statistics.ratios import Baseline, cell_keys

_POINTS = 24
_SUMMARY = ("level", "is_baseline", "n_chains", "n_censored", "n_pairs")
_RATIO = ("fi_median", "fi_ratio", "fi_ratio_low", "fi_ratio_high", "bound", "logrank_p", "logrank_p_holm")


def ratio_profile(
    generations: pl.DataFrame,
    criterion: CollapseCriterion,
    thresholds: Sequence[float] | None,
    baseline: Baseline,
    varied: Sequence[str],
    generations_asked: int,
    *,
    failed: Collection[str] = (),
    level: float = 0.90,
    n_resamples: int = 9_999,
    seed: int = 0,
) -> pl.DataFrame:
    """FI ratios under ``criterion`` at each of many thresholds.

    A study whose chains stop early saw nothing beyond the collapse it was asked for: later thresholds are then censored
    (``bound``, ``n_censored``). Run it with ``early_stopping: false`` for the whole profile.

    Args:
        generations, baseline, varied, generations_asked, failed: as for
            :func:`~fortifai_ray.statistics.chains.chain_table`.
        criterion: its own threshold plays no part, unless the profile is asked for there.
        thresholds: in the criterion's terms; None for :func:`spanning_thresholds`.
        level, n_resamples, seed: as for :func:`~fortifai_ray.statistics.fidelity.fidelity_table`.

    Returns:
        A row per cell, unit and threshold, sorted, the mildest threshold first: the cell's keys, the criterion's
        columns (``threshold`` varies), ``unit, level, is_baseline, n_chains, n_censored, n_pairs, fi_median, fi_ratio,
        fi_ratio_low, fi_ratio_high, bound, logrank_p, logrank_p_holm``, all as
        :func:`~fortifai_ray.statistics.fidelity.fidelity_table` has them: the p values are adjusted for the cells at
        one threshold, not for the thresholds, which look at the same chains.

    Raises:
        ValueError: no threshold, or one that the criterion refuses; else as the two tables.
    """
    if thresholds is None:
        thresholds = spanning_thresholds(generations, criterion, baseline, varied, generations_asked)
    if len(thresholds) == 0:
        raise ValueError("thresholds: none, and generation 0 is the worst that was measured: there is no profile")
    criteria = [
        CollapseCriterion.model_validate(criterion.model_dump() | {"threshold": float(threshold)})
        for threshold in thresholds
    ]
    chains = chain_table(generations, criteria, baseline, varied, generations_asked, failed=failed)
    fidelity = fidelity_table(chains, varied, baseline, level=level, n_resamples=n_resamples, seed=seed)
    keys = cell_keys(varied)
    by_severity = pl.col("threshold") * (1 if _grows(criterion) else -1)
    return fidelity.sort(*keys, "unit", by_severity).select(*keys, *CRITERION_COLUMNS, "unit", *_SUMMARY, *_RATIO)


def spanning_thresholds(
    generations: pl.DataFrame,
    criterion: CollapseCriterion,
    baseline: Baseline,
    varied: Sequence[str],
    generations_asked: int,
    points: int = _POINTS,
) -> list[float]:
    """Thresholds from just beyond generation 0 to full collapse, evenly spaced on the criterion's scale.

    Just beyond generation 0: one step from the worst generation 0 of any chain. Full collapse: where half of the
    chains got at their worst, finite values alone. Empty where no chain got worse than that generation 0.
    """
    probe = chain_table(generations, [criterion], baseline, varied, generations_asked).select("chain_id", "limit")
    measured = generations.filter(pl.col("generation") < generations_asked).join(probe, on="chain_id")
    values = _in_thresholds(measured[criterion.metric].cast(pl.Float64).to_numpy(), measured["limit"], criterion)
    possible = pl.col("value").is_finite() & ((pl.col("value") > 0) | (criterion.relative_to == "absolute"))
    told = measured.select("chain_id", "generation").with_columns(value=pl.Series(values)).filter(possible)
    grows = _grows(criterion)
    worst = pl.col("value").max() if grows else pl.col("value").min()
    start = told.filter(pl.col("generation") == 0).select(worst).item()
    end = told.group_by("chain_id").agg(worst).select(pl.col("value").median()).item()
    if start is None or end is None or (end <= start if grows else end >= start):
        return []
    space = np.geomspace if criterion.log_scale and min(start, end) > 0 else np.linspace
    return [float(value) for value in space(start, end, points + 1)[1:]]


def _in_thresholds(values: Floats, limits: pl.Series, criterion: CollapseCriterion) -> Floats:
    """The threshold that each value lies at: itself, or its ratio to generation 0, over chance where there is one."""
    if criterion.relative_to == "absolute":
        return values
    chance = criterion.chance or 0.0
    with np.errstate(all="ignore"):
        return (values - chance) / ((limits.to_numpy() - chance) / criterion.threshold)


def _grows(criterion: CollapseCriterion) -> bool:
    """Whether a later collapse is a larger threshold. Over chance, fidelity falls from 1 whichever way the metric goes,
    unless the threshold says that it grows."""
    return criterion.direction == "above" if criterion.chance is None else criterion.threshold > 1
