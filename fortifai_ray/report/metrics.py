"""The report's names for the registry of metrics."""

from fortifai_ray.metrics import is_bookkeeping
from fortifai_ray.metrics import metric as describe

__all__ = ["describe", "is_bookkeeping"]
