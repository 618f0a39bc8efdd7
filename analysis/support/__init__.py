"""What the notebooks in ``analysis/`` share: opening a study's results, and what they show of them.

Only :mod:`support.controls` imports marimo. Where a study's data allow no table or chart, functions
raise :class:`~fortifai_ray.errors.UserError` or return the reason in words, which the notebook shows in its place.
"""
