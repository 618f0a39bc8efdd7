"""When something first happened in this process: its first batch of training, its first call that generated.

A sweep puts them together to a time line (``timeline`` in ``summary.json``), by which one sees what its start costs.
"""

import time

FIRST_BATCH, FIRST_TOKEN = "first_batch", "first_token"

_moments: dict[str, float] = {}


def happened(what: str, at: float | None = None) -> None:
    """Note ``what``, unless it has happened before; ``at`` in seconds since the epoch, by default now."""
    _moments.setdefault(what, time.time() if at is None else at)


def moments() -> dict[str, float]:
    """All that has happened here, in seconds since the epoch."""
    return dict(_moments)
