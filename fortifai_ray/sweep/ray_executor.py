"""The executor on Ray: training by Ray Train, scores on the GPUs that trained, corpora by warm engines and Ray Data.

Ray places a chain's training workers and engines wherever there is room. Folders therefore travel as stages
(:class:`fortifai_ray.storage.store.StageFiles`), and what a worker writes on another node is sent back to the chain's
node.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from fortifai_ray.engines.corpus import Part, Request
from fortifai_ray.recipe.executor import Arguments, CorpusReport, Loop, OnWait, R, Workers, with_folders
from fortifai_ray.storage.store import Folder, folder_here
from fortifai_ray.sweep.training_group import TrainingGroup

if TYPE_CHECKING:
    import torch

    from fortifai_ray.engines.pool import EnginePool

logger = logging.getLogger(__name__)

REPORT_SECONDS = 60.0  # a wait this long is reported
_CHUNK = 64 << 20  # bytes: much more than a message costs, little beside Ray's object store
_UNDER_WAY = 4  # chunks


@dataclass(frozen=True)
class RayExecutor:
    """See :class:`~fortifai_ray.recipe.executor.Executor`.

    Args:
        threads: CPU threads of one process.
        workers: training workers. One trains in the calling process (Ray Train's local mode); several are a group that
            is kept from step to step.
        worker_resources: what Ray sets aside for each of several workers, e.g. ``{"CPU": 1.0, "GPU": 1.0}``.
        engines_at_once: calls to engines under way at once.
        pool: the warm engines; None where the chain generates nothing on engines.
    """

    threads: int = 1
    workers: int = 1
    worker_resources: Mapping[str, float] = field(default_factory=dict)
    engines_at_once: int = 1
    pool: "EnginePool | None" = None

    @cached_property
    def _group(self) -> TrainingGroup:
        return TrainingGroup(self.workers, self.worker_resources)

    def close(self) -> None:
        """Give the group of several workers back."""
        if self.workers > 1:
            self._group.close()

    def fit(self, loop: Loop, settings: Arguments, arrays: Arguments, model: Folder, output: Path) -> None:
        """By a TorchTrainer. Several workers fetch the arrays from Ray's object store, where they lie once; they stay
        for the next fit."""
        output = output.absolute()
        output.mkdir(parents=True, exist_ok=True)
        if self.workers > 1:
            node = ray.get_runtime_context().get_node_id()
            references = {name: ray.put(value) for name, value in arrays.items()}
            self._group.run(partial(_fit_on_its_node, loop, self.threads, settings, references, model, output, node))
            return
        from ray.train import ScalingConfig
        from ray.train.torch import TorchTrainer

        threads = self.threads

        def here(config: dict[str, Any]) -> None:
            _run_loop(loop, threads, {**config, "model": folder_here(model), "output": output})

        scaling = ScalingConfig(num_workers=0, use_gpu=bool(self.worker_resources.get("GPU")))
        TorchTrainer(here, train_loop_config={**settings, **arrays}, scaling_config=scaling).fit()

    def score(self, function: Callable[..., R], *arguments: Any, **keywords: Any) -> R:
        """In the process that trained the model, which so holds the GPU: this one, or the first of several workers.

        Where no workers are there yet, on CPUs this process scores; the GPUs that they would hold are free, and a Ray
        task takes one.
        """
        gpus = self.worker_resources.get("GPU", 0.0)
        if self.workers == 1 or not gpus:
            return with_folders(function, arguments, keywords)
        if self._group.started:
            result, *_ = self._group.run(partial(_score_on_first, function, arguments, keywords))
            if isinstance(result, _Raised):
                raise result.error
            return result
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        # Outside of what Tune set aside for this trial, where the task would wait for ever for a GPU.
        anywhere = PlacementGroupSchedulingStrategy(placement_group=None)  # type: ignore[arg-type]
        task: Any = ray.remote(with_folders).options(
            num_cpus=self.worker_resources.get("CPU", 0.0), num_gpus=gpus, scheduling_strategy=anywhere
        )
        return ray.get(task.remote(function, arguments, keywords))

    def write(
        self, request: Request, prompts: pa.Table, out_dir: Path, on_wait: OnWait = logger.warning
    ) -> CorpusReport:
        """By a Ray Data stage of thin clients, which keeps the engines busy with more calls than can be under way at
        once; from this process, where all can.

        Ray Data would start four processes for the sake of a single call, at 2 s of CPU each, and 0.5 s for every
        corpus after that. Raises :class:`ray.exceptions.RayError` where an engine raised.
        """
        assert self.pool is not None, "a chain that generates needs engines"
        pool = self.pool

        def answers(calls: Sequence[pa.Table]) -> Iterator[Part]:
            with _watch(pool, out_dir, len(calls), on_wait):
                if len(calls) <= self.engines_at_once:
                    yield from _answers_from_here(request, pool, calls)
                else:
                    yield from _ray_data_answers(request, pool, calls, self.engines_at_once)

        return request.write(prompts, out_dir, answers)


@dataclass(frozen=True)
class _Raised:
    """An error that a worker met alone, so that its group is none the worse."""

    error: Exception


def _fit_on_its_node(
    loop: Loop,
    threads: int,
    settings: Arguments,
    references: Mapping[str, Any],
    model: Folder,
    output: Path,
    node: str,
) -> None:
    """Runs in each of several workers. ``references`` are the arrays'."""
    arrays = dict(zip(references, ray.get(list(references.values())), strict=True))
    with written_for(output, node) as folder:
        _run_loop(loop, threads, {**settings, **arrays, "model": folder_here(model), "output": folder})


def _score_on_first(function: Callable[..., Any], arguments: Sequence[Any], keywords: Arguments) -> Any:
    """Runs in each of several workers; the first scores."""
    import ray.train

    if ray.train.get_context().get_world_rank():
        return None
    try:
        return with_folders(function, arguments, keywords)
    except Exception as error:
        return _Raised(error)


def _run_loop(loop: Callable[..., None], threads: int, keywords: Mapping[str, Any]) -> None:
    """Runs in each training worker."""
    import ray.train
    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device, prepare_model

    context, device = ray.train.get_context(), get_device()
    world = context.get_world_size()
    if world > 1:
        assert dist.get_world_size() == world, "the process group is not the worker group"
    with _torch_as_it_was(device):
        torch.set_num_threads(threads)
        loop(Workers(context.get_world_rank(), world, device, prepare_model), **keywords)


@contextmanager
def _torch_as_it_was(device: "torch.device") -> Iterator[None]:
    """Put back what a loop changes of torch's settings and random states: the process goes on to other loops."""
    import torch

    settings: Sequence[tuple[Callable[[], Any], Callable[[Any], Any]]] = (
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_default_device, lambda device: torch.set_default_device(None)),  # any other slows every call
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    )
    before = [read() for read, _ in settings]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for (read, write), value in zip(settings, before, strict=True):
                if read() != value:
                    write(value)


@contextmanager
def written_for(target: Path, node: str) -> Iterator[Path]:
    """Yield the folder in which to write files for ``target``, a folder on Ray's node ``node`` with a unique name.

    It is ``target`` itself where this process sees it: on that node, or in a storage that nodes share. Else it is a
    local folder, whose files are sent when the context ends without an error. Raises ``FileNotFoundError`` where
    ``target`` has been removed in the meantime.
    """
    if target.is_dir():
        yield target
        return
    with tempfile.TemporaryDirectory(prefix="fortifai-") as folder:
        yield Path(folder)
        _send(Path(folder), target, node)


def _send(source: Path, target: Path, node: str) -> None:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    write = ray.remote(num_cpus=0)(_write_chunk).options(scheduling_strategy=there)
    pending: list[Any] = []
    for name, start, chunk in _chunks(source):
        if len(pending) == _UNDER_WAY:
            ray.get(pending.pop(0))
        pending.append(write.remote(target, name, start, chunk))
    ray.get(pending)


def _chunks(folder: Path) -> Iterator[tuple[str, int, np.ndarray]]:
    """The files below ``folder`` piece by piece: name, offset in bytes, uint8 of shape (bytes,)."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for start in range(0, max(1, path.stat().st_size), _CHUNK):  # an empty file too
            yield path.relative_to(folder).as_posix(), start, np.fromfile(path, np.uint8, _CHUNK, offset=start)


def _write_chunk(folder: Path, name: str, start: int, chunk: np.ndarray) -> None:
    """A Ray task on the node of ``folder``; idempotent."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} was removed: the chain that {name} belongs to has ended")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+b") as file:
        file.seek(start)
        file.write(chunk.data)


def _answers_from_here(request: Request, pool: "EnginePool", calls: Sequence[pa.Table]) -> Iterator[Part]:
    with ThreadPoolExecutor(len(calls), "corpus-call") as threads:
        yield from threads.map(lambda call: request.answer(call, pool.generate), calls)


def _ray_data_answers(
    request: Request, pool: "EnginePool", calls: Sequence[pa.Table], concurrency: int
) -> Iterator[Part]:
    import ray.data

    with _quiet_ray_data():
        rows = (
            ray.data.from_blocks(list(calls))  # from_arrow would run a task of a whole CPU, which may never be free
            .map_batches(
                partial(_answer_row, request=request, pool=pool),
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.TaskPoolStrategy(size=min(concurrency, len(calls))),
                num_cpus=0,  # a client only waits: it must find room beside trials and engines that took every CPU
            )
            .iter_rows()
        )
        yield from (Part(**row) for row in rows)


def _answer_row(call: pa.Table, *, request: Request, pool: "EnginePool") -> pa.Table:
    """Answer one call, as a row, which Ray Data never splits. A Ray Data task, on any node; it may run twice."""
    part = request.answer(call, pool.generate)
    content = pa.array([part.content], pa.large_binary())
    return pa.table({name: content if name == "content" else [value] for name, value in part._asdict().items()})


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Ray Data without its progress bars and its notes on each execution: a sweep runs it once per generation."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    ray_data_logger = logging.getLogger("ray.data")
    level = ray_data_logger.level
    ray_data_logger.setLevel(logging.ERROR)
    try:
        with ray.data.DataContext.current(context):
            yield
    finally:
        ray_data_logger.setLevel(level)


@contextmanager
def _watch(pool: "EnginePool", out_dir: Path, calls: int, on_wait: OnWait) -> Iterator[None]:
    """Report to ``on_wait`` every :data:`REPORT_SECONDS` in which no part was finished, with the engines' states."""
    over = threading.Event()

    def watch() -> None:
        done, since = 0, time.time()
        while not over.wait(REPORT_SECONDS / 10):
            parts = len(list(out_dir.glob("part-*")))
            if parts > done:
                done, since = parts, time.time()
            elif time.time() - since >= REPORT_SECONDS:
                on_wait(f"{done} of {calls} generation calls done, none for {REPORT_SECONDS:.0f} s: {_describe(pool)}")
                since = time.time()

    watcher = threading.Thread(target=watch, name="corpus-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(REPORT_SECONDS)


def _describe(pool: "EnginePool") -> str:
    """The engines' states in a line, or that they do not answer."""
    try:
        state = ray.get(pool.ledger.state.remote(), timeout=5)
    except Exception as error:  # the watcher must outlive whatever it watches
        return f"the engines' ledger does not answer ({type(error).__name__})"
    now = time.time()
    engines = ", ".join(
        f"engine {index} {engine.name} for {now - engine.since:.0f} s" for index, engine in enumerate(state.engines)
    )
    return f"{engines}; {state.starts} starts" + (f"; {state.failure}" if state.failure else "")
