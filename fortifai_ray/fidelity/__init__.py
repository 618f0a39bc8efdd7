"""Fidelity statistics: when a chain collapses, and how its fidelity interval compares with the baseline's.

Pure functions of tables. Nothing here knows what a model is, what ran it, or where a table is kept::

    generations  --chain_table-->  chains  --fidelity_table-->  fidelity

:func:`onset` and :func:`collapse_confirmed` judge one chain, also while it still runs; :func:`chain_table` judges all
chains of a study at once; :func:`fidelity_table` summarises them per cell, with censored chains kept as the lower
bounds they are.
"""

from fortifai_ray.fidelity.cells import fidelity_table
from fortifai_ray.fidelity.chains import chain_table
from fortifai_ray.fidelity.criterion import CollapseCriterion, is_log_scale
from fortifai_ray.fidelity.crossing import Onset, collapse_confirmed, onset

__all__ = [
    "CollapseCriterion",
    "Onset",
    "chain_table",
    "collapse_confirmed",
    "fidelity_table",
    "is_log_scale",
    "onset",
]
