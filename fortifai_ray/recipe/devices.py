"""What a chain may use of the machine. Nothing here changes a result beyond rounding."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing Ray takes a second, and what it reads when imported is settled by the sweep
    from fortifai_ray.engines.pool import EnginePool


@dataclass(frozen=True)
class Devices:
    """Threads and training workers of a chain, and the engines it may ask."""

    threads: int = 1
    workers: int = 1
    resources_per_worker: Mapping[str, float] = field(default_factory=dict)
    engines_at_once: int = 1
    pool: "EnginePool | None" = None
