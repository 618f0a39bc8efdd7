"""A group of training workers that is kept: one run of Ray Train, whose workers take jobs until it is closed.

Ray Train starts a group's processes anew for every run, and each imports torch and transformers anew, which costs more
than a small model's whole training. So the run of a chain's first fit goes on: its workers wait for the next fit, of
this chain or of the next one in the same trial, with their process group and their GPUs.
"""

import asyncio
import gc
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

Job = Callable[[], Any]
_CLOSING_SECONDS = 10.0  # in which a group ends by itself; what is left then ends with this process


class Desk:
    """Where workers take their jobs from, one after the other, and leave their answers. An actor of asyncio."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._jobs = 0
        self._job: list[Any] = []  # the job under way, as a reference
        self._answers: dict[int, Any] = {}
        self._closed = False
        self._changed = asyncio.Condition()

    async def submit(self, job: list[Any]) -> list[Any] | None:
        """Wait for every worker's answer, by rank; None where the group ends before."""
        async with self._changed:
            self._job, self._answers = job, {}
            self._jobs += 1
            self._changed.notify_all()
            await self._changed.wait_for(lambda: len(self._answers) == self._workers or self._closed)
            self._job = []
            answered = len(self._answers) == self._workers
            return [self._answers[rank] for rank in range(self._workers)] if answered else None

    async def take(self, number: int) -> list[Any]:
        """Wait for the job of that number, from 0; none where there will be no more."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._jobs > number or self._closed)
            return [] if self._closed else self._job

    async def answer(self, rank: int, value: Any) -> None:
        """One worker's answer to the job under way."""
        async with self._changed:
            self._answers[rank] = value
            self._changed.notify_all()

    async def close(self) -> None:
        """No more jobs."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass
class TrainingGroup:
    """Runs jobs on every worker of a group, which the first job starts, and another after a fault.

    It belongs to the process that uses it, and ends with it however that ends.

    Args:
        workers: how many.
        resources: what Ray sets aside for each, e.g. ``{"CPU": 1.0, "GPU": 1.0}``, for as long as the group is kept.
    """

    workers: int
    resources: Mapping[str, float]
    _run: "_Run | None" = field(default=None, init=False)

    @property
    def started(self) -> bool:
        """Whether its workers are there."""
        return self._run is not None and self._run.is_alive()

    def run(self, job: Job) -> list[Any]:
        """What ``job()`` returns on each worker, by rank.

        Raises what Ray Train raises where a worker raised or died: the whole group has ended then.
        """
        if self._run is None or not self._run.is_alive():
            self._run = _Run(self.workers, self.resources)
            self._run.start()
        run = self._run
        try:
            answers = ray.get(run.desk.submit.remote([ray.put(job)]))
        except BaseException:
            self.close()
            raise
        if answers is None:
            self._run = None
            raise run.end()
        return answers

    def close(self) -> None:
        """Give the workers back; the next job starts others."""
        run, self._run = self._run, None
        if run is not None:
            run.close()


class _Run(threading.Thread):
    """A run of Ray Train, of which a thread waits for the end. Ray Train's controller and workers end with their
    owner, this process."""

    def __init__(self, workers: int, resources: Mapping[str, float]) -> None:
        super().__init__(name="training-group", daemon=True)
        self.desk: Any = ray.remote(num_cpus=0)(Desk).remote(workers)
        self._workers, self._resources = workers, resources
        self._failure: Exception | None = None

    def run(self) -> None:
        from ray.train import RunConfig, ScalingConfig

        scaling = ScalingConfig(
            num_workers=self._workers,
            use_gpu=bool(self._resources.get("GPU")),
            resources_per_worker=dict(self._resources),
        )
        try:
            _remove_orphans()
            with tempfile.TemporaryDirectory(prefix="fortifai-train-") as notes:  # Ray Train's own files
                _trainer()(
                    _serve,
                    train_loop_config={"desk": self.desk},
                    scaling_config=scaling,
                    run_config=RunConfig(storage_path=notes, name="fit"),
                ).fit()
        except Exception as error:
            self._failure = error
        finally:
            if ray.is_initialized():  # else this call would start a Ray instance, in a driver that has left its own
                self.desk.close.remote()

    def end(self) -> Exception:
        """Why it ended, once it has."""
        self.join()
        return self._failure or RuntimeError("the training workers ended before their job")

    def close(self) -> None:
        self.desk.close.remote()
        self.join(_CLOSING_SECONDS)


def _trainer() -> "type[TorchTrainer]":
    """A TorchTrainer without two of its processes: one that hands out data sets, of which there are none, and one that
    takes back the workers' room after a fault (:func:`_remove_orphans` does), asks Ray's dashboard, without which it
    takes nothing back and never ends, and outlives the driver."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            needless = (DatasetsCallback, PlacementGroupCleanerCallback)
            every = super()._create_default_callbacks()  # type: ignore[misc] # mypy reads Ray Train's first version
            return [each for each in every if not isinstance(each, needless)]

    return Trainer


def _remove_orphans() -> None:
    """Take back the room of groups whose trial was killed: Ray keeps a placement group until both the actor and the
    driver that it was made for are dead."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for row in state._connect_and_get_accessor().get_placement_group_table():
        held = PlacementGroupTableData.FromString(row)
        ours = held.creator_job_id.hex() == job and held.creator_actor_id.strip(b"\xff")
        if ours and held.creator_actor_dead and held.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(held.placement_group_id)))


def _serve(config: dict[str, Any]) -> None:
    """What each worker runs: job after job, until there are no more."""
    import torch

    desk, rank, number = config["desk"], ray.train.get_context().get_world_rank(), 0
    while job := ray.get(desk.take.remote(number)):
        desk.answer.remote(rank, ray.get(job[0])())
        del job
        gc.collect()  # networks are circles of references, and the engines may want their memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        number += 1
