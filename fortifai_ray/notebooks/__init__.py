"""What the notebooks in ``analysis/`` share: opening a study's results, and the tables and charts that no report has.

Charts and tables are made of plain tables and know nothing of marimo; :mod:`fortifai_ray.notebooks.controls` alone
does. Where a study's data do not allow something, functions raise :class:`~fortifai_ray.errors.UserError` or return the
reason in words, which a notebook shows in the chart's place.
"""
