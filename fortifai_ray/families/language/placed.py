"""Where a trained model is measured: on the GPU that trained it."""

from collections.abc import Callable
from typing import Any, TypeVar

from fortifai_ray.recipe.devices import Devices
from fortifai_ray.storage.transfer import StageFiles, folder_here

_Result = TypeVar("_Result")


def where_it_trained(devices: Devices, function: Callable[..., _Result], *arguments: Any, **keywords: Any) -> _Result:
    """``function(*arguments, **keywords)``, in which each :class:`StageFiles` has become the folder (Path) it stands
    for.

    A single worker trained in this process, which so holds its GPU. Several trained in processes of their own, and this
    one holds no GPU: then the function runs as a Ray task on what one of them held, which is free now. Nothing is set
    aside for it that would lie idle while the chain trains or generates.
    """
    gpus = devices.resources_per_worker.get("GPU", 0.0)
    if devices.workers == 1 or not gpus:
        return _with_folders(function, arguments, keywords)
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    # Outside of what Tune set aside for this trial, where the task would wait for ever for a GPU.
    anywhere = PlacementGroupSchedulingStrategy(placement_group=None)  # type: ignore[arg-type]
    task: Any = ray.remote(_with_folders).options(
        num_cpus=devices.resources_per_worker.get("CPU", 0.0), num_gpus=gpus, scheduling_strategy=anywhere
    )
    return ray.get(task.remote(function, arguments, keywords))


def _with_folders(function: Callable[..., _Result], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> _Result:
    return function(*map(_folder, arguments), **{name: _folder(value) for name, value in keywords.items()})


def _folder(value: Any) -> Any:
    return folder_here(value) if isinstance(value, StageFiles) else value
