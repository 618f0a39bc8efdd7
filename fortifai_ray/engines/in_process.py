"""An engine in this process that stays warm, and the executor that does everything in this process, without Ray."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from fortifai_ray.engines.checkpoints import architecture, whole_model
from fortifai_ray.engines.corpus import Request
from fortifai_ray.engines.engine import Engine, EngineAnswer, EngineCall, EngineConfig, resolve_kind
from fortifai_ray.recipe.executor import Arguments, CorpusReport, Loop, OnWait, R, Workers, with_folders
from fortifai_ray.storage.store import Folder, folder_here

MOST_ENGINES = 3  # on a CPU, each with up to 1 GiB for keys and values; on a GPU one takes the memory that there is


@dataclass(eq=False)
class _Held:
    """An engine that runs, its configuration, and the version of the weights that it holds; None: unknown."""

    engine: Engine
    config: EngineConfig
    version: str | None = None


class WarmEngine:
    """An engine for each architecture and configuration that calls ask for, as far as there is room: so lineages of
    several architectures start each once. One starts, or loads weights, only when a call asks for others than it holds;
    where there is no room, the one that was not asked for the longest time is stopped.

    Args:
        gpu_fraction: its share of a GPU, or the number of whole GPUs that it is spread over; 0 for a CPU.
        on_state: receives ``starting``, ``loading``, ``generating`` or ``ready`` when that changes.
        on_start: receives the seconds that each start took, imports included.
    """

    def __init__(
        self,
        gpu_fraction: float = 0.0,
        on_state: Callable[[str], None] = lambda state: None,
        on_start: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._gpu_fraction, self._on_state, self._on_start = gpu_fraction, on_state, on_start
        self._most = 1 if gpu_fraction else MOST_ENGINES
        self._held: list[_Held] = []  # the one asked for last at the end

    def answer(self, call: EngineCall) -> EngineAnswer:
        """Answer a call, with the weights it names and no others.

        Raises:
            WeightsError: the engine does not hold the checkpoint after loading it.
        """
        started = time.time()
        try:
            held = self._hold(call)
            loaded = time.time()
            self._on_state("generating")
            prompts, seeds = call.prompts["prompt_ids"].to_pylist(), call.prompts["seed"].to_pylist()
            begun = time.time()
            generated = held.engine.generate(prompts, seeds, call.decoding)
            finished = time.time()
        finally:
            self._on_state("ready")
        assert held.version is not None
        ids = pa.array(generated, type=pa.list_(pa.int32()))
        return EngineAnswer(ids, held.version, begun, finished, loaded - started)

    def start(self, config: EngineConfig, folder: Path) -> _Held:
        """An engine of this configuration for the architecture in ``folder``: a running one, or a new one."""
        config, wanted = config.model_copy(update={"rows_per_call": 1}), architecture(folder)  # rows concern the caller
        running = [one for one in self._held if one.engine.architecture]  # after an error, one has stopped
        found = [one for one in running if one.config == config and one.engine.architecture == wanted]
        self._held = [one for one in running if one not in found]
        while not found and len(self._held) >= self._most:
            self._held.pop(0).engine.stop()
        self._held += found or [self._started(config, folder)]
        return self._held[-1]

    def _started(self, config: EngineConfig, folder: Path) -> _Held:
        self._on_state("starting")
        begun = time.time()
        engine = make_engine(config, self._gpu_fraction)
        engine.start(folder)
        self._on_start(time.time() - begun)
        return _Held(engine, config)

    def _hold(self, call: EngineCall) -> _Held:
        """An engine that holds the call's weights."""
        checkpoint = folder_here(call.checkpoint)
        held = self.start(call.engine, whole_model(checkpoint))
        if held.version != call.weights_version:
            self._on_state("loading")
            held.version = None  # unknown until loading has succeeded
            held.engine.load(checkpoint)
            held.version = call.weights_version
        return held


def make_engine(config: EngineConfig, gpu_fraction: float = 0.0) -> Engine:
    """An engine of a configuration, not started.

    Args:
        config: its kind and its sizes.
        gpu_fraction: its share of a GPU, or the number of whole GPUs that it is spread over; 0 for a CPU.

    Raises:
        ValueError: several GPUs for an engine that knows only one.
    """
    spread = max(1, int(gpu_fraction))
    if resolve_kind(config.kind) == "vllm":
        from fortifai_ray.engines.vllm_engine import VllmEngine

        return VllmEngine(config, gpu=gpu_fraction > 0, gpu_fraction=min(1.0, gpu_fraction), spread=spread)
    if spread > 1:
        raise ValueError("the Hugging Face engine runs on one GPU: resources.engines.gpus is 1 or less for it")
    from fortifai_ray.engines.huggingface_engine import HuggingFaceEngine

    return HuggingFaceEngine(config, gpu=gpu_fraction > 0)


@dataclass(frozen=True)
class InProcess:
    """See :class:`~fortifai_ray.recipe.executor.Executor`. One worker, one engine; for tests and replays."""

    threads: int = 1

    @cached_property
    def _engine(self) -> WarmEngine:
        import torch

        return WarmEngine(float(torch.cuda.is_available()))

    def fit(self, loop: Loop, settings: Arguments, arrays: Arguments, model: Folder, output: Path) -> None:
        import torch

        output.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(self.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        workers = Workers(0, 1, device, lambda network: network.to(device))
        loop(workers, model=folder_here(model), output=output.absolute(), **settings, **arrays)

    def score(self, function: Callable[..., R], *arguments: Any, **keywords: Any) -> R:
        return with_folders(function, arguments, keywords)

    def write(
        self, request: Request, prompts: pa.Table, out_dir: Path, on_wait: OnWait = lambda line: None
    ) -> CorpusReport:
        """See :class:`~fortifai_ray.recipe.executor.Executor`. There is nothing to wait for here."""
        return request.write(prompts, out_dir, lambda calls: (request.answer(c, self._engine.answer) for c in calls))

    def close(self) -> None:
        """Nothing: there are no other processes."""
