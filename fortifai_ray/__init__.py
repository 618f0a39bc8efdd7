"""Recursive-training studies on Ray: when a generative model collapses, what delays it, and by how much."""

from fortifai_ray.process.imports import hide_foreign_companions
from fortifai_ray.process.search_path import add_own_folders

__version__ = "0.1.0"

add_own_folders()  # in a worker, this is the first of the package that runs
hide_foreign_companions()
