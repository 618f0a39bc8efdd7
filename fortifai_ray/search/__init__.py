"""Finding where collapse begins with a fraction of a grid's chains, and how sure it is.

:class:`~fortifai_ray.search.boundary.BoundaryFinder` searches one cell by ask and tell,
:class:`~fortifai_ray.search.cells.CellSearches` many side by side, and
:class:`~fortifai_ray.sweep.searcher.BoundarySearcher` makes them a searcher of Ray Tune. None but the last knows Ray,
and none knows what a chain is. Only the configuration is imported here: a study file is checked without the rest.
"""

from fortifai_ray.study.search import BoundarySearch, OptimiseSearch, Search, refuse_search

__all__ = ["BoundarySearch", "OptimiseSearch", "Search", "refuse_search"]
