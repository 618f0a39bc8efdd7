"""Fidelity statistics: when a chain collapses, and how its fidelity interval compares with the baseline's.

Pure functions of tables, which know neither models, nor what ran them, nor where a table is stored::

    generations  --chain_table-->  chains  --fidelity_table-->  fidelity  --conclusions-->  sentences
         |                           +--onset_orders, first_crossings, crossing_order-->  what collapses first
         +--ratio_profile-->  the ratio as a function of the criterion's threshold
    collapse points  --critical_ratios-->  how much more synthetic data a loss tolerates

:func:`onset`, :func:`collapse_confirmed` and :func:`ruling` judge one chain, also while it still runs;
:func:`chain_table` judges all chains of a study at once; :func:`fidelity_table` summarises them per cell, and keeps
censored chains as the lower bounds that they are.
"""

from fortifai_ray.statistics.chains import Reference, chain_table
from fortifai_ray.statistics.conclusions import conclusions
from fortifai_ray.statistics.criterion import (
    CRITERION_COLUMNS,
    CollapseCriterion,
    criteria_of,
    criterion_rows,
)
from fortifai_ray.statistics.critical import critical_ratios
from fortifai_ray.statistics.crossing import Onset, collapse_confirmed, judge, onset, ruling
from fortifai_ray.statistics.fidelity import fidelity_table, ratio_profile, spanning_thresholds
from fortifai_ray.statistics.order import crossing_order, first_crossings, onset_orders
from fortifai_ray.statistics.survival import logrank

__all__ = [
    "CRITERION_COLUMNS",
    "CollapseCriterion",
    "Onset",
    "Reference",
    "chain_table",
    "collapse_confirmed",
    "conclusions",
    "criteria_of",
    "criterion_rows",
    "critical_ratios",
    "crossing_order",
    "fidelity_table",
    "first_crossings",
    "judge",
    "logrank",
    "onset",
    "onset_orders",
    "ratio_profile",
    "ruling",
    "spanning_thresholds",
]
