"""The executor of a test's training."""

from functools import cache
from typing import TYPE_CHECKING

from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.recipe.executor import Executor

if TYPE_CHECKING:
    from fortifai_ray.sweep.ray_executor import RayExecutor


def executor(workers: int = 1) -> Executor:
    """This process for one worker; for several, workers of half a CPU each on the test's Ray instance."""
    return InProcess() if workers == 1 else _group(workers)


@cache
def _group(workers: int) -> "RayExecutor":
    from fortifai_ray.sweep.ray_executor import RayExecutor

    return RayExecutor(workers=workers, worker_resources={"CPU": 0.5})


def give_back() -> None:
    """End the groups of workers that tests have shared: the next tests want their CPUs."""
    if _group.cache_info().currsize:
        _group(2).close()
        _group.cache_clear()
