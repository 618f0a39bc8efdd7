"""The executor of a test's training."""

from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.recipe.executor import Executor


def executor(workers: int = 1) -> Executor:
    """This process for one worker; for several, workers of half a CPU each on the test's Ray instance."""
    if workers == 1:
        return InProcess()
    from fortifai_ray.sweep.ray_executor import RayExecutor

    return RayExecutor(workers=workers, worker_resources={"CPU": 0.5})
