"""The Ray actors of a pool: an engine that answers calls, and the ledger that knows how the engines are."""

import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from fortifai_ray.engines.adapters import whole_model
from fortifai_ray.engines.base import Engine, EngineAnswer, EngineCall, architecture
from fortifai_ray.engines.config import EngineConfig, resolve_kind
from fortifai_ray.storage.transfer import folder_here

# A call that brings its engine down this often would do so for ever.
MOST_ATTEMPTS = 5
# A claim this old belongs to a client that died. It is only a hint about load: an early expiry unbalances, no more.
CLAIM_SECONDS = 900.0


@dataclass(frozen=True)
class EngineState:
    """What an engine said last: ``waiting for resources``, ``starting``, ``ready``, ``loading`` or ``generating``."""

    name: str
    since: float


@dataclass(frozen=True)
class PoolState:
    """A pool at one moment.

    Attributes:
        engines: state of each engine.
        starts: engine starts so far, restarts included.
        start_seconds: what each start took, imports included, in the order in which they ended.
        failure: why an engine could not be started ahead, if so.
    """

    engines: list[EngineState]
    starts: int
    start_seconds: list[float]
    failure: str | None


@dataclass
class Ledger:
    """Load and state of a pool's engines, and how often they started. It outlives an engine that is killed."""

    engines: int
    states: list[EngineState] = field(init=False)
    start_seconds: list[float] = field(default_factory=list)
    starts: int = 0
    failure: str | None = None
    claims: dict[str, tuple[int, float]] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.states = [EngineState("waiting for resources", time.time())] * self.engines

    def claim(self, call_id: str) -> int:
        """The engine with the fewest claims (the first of them), claimed for a call."""
        now = time.time()
        self.claims = {
            key: (engine, since) for key, (engine, since) in self.claims.items() if now - since < CLAIM_SECONDS
        }
        load = Counter(engine for engine, _ in self.claims.values())
        chosen = min(range(self.engines), key=lambda engine: load[engine])
        self.claims[call_id] = (chosen, now)
        return chosen

    def release(self, call_id: str) -> None:
        """End a claim, whether or not it still stands."""
        self.claims.pop(call_id, None)
        self.attempts.pop(call_id, None)

    def attempt(self, call_id: str) -> int:
        """Count an attempt at a call: 1 the first time."""
        self.attempts[call_id] += 1
        return self.attempts[call_id]

    def report(self, engine: int, state: str, failure: str | None = None) -> None:
        """An engine says how it is."""
        self.states[engine] = EngineState(state, time.time())
        self.starts += state == "starting"
        self.failure = failure or self.failure

    def started(self, seconds: float) -> None:
        """An engine says what its start took."""
        self.start_seconds.append(seconds)

    def state(self) -> PoolState:
        """The pool now."""
        return PoolState(list(self.states), self.starts, list(self.start_seconds), self.failure)


LedgerActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger)


@ray.remote(max_restarts=-1, max_task_retries=-1)
class EngineActor:
    """One engine in one process: a call at a time, in the order of arrival.

    Killed, it is started again by Ray and the call it was at is made again; since a call carries all it needs, the
    answer is the same.
    """

    def __init__(self, index: int, ledger: str, namespace: str, gpu_fraction: float) -> None:
        self._index = index
        self._ledger: Any = ray.get_actor(ledger, namespace)
        self._gpu_fraction = gpu_fraction
        self._engine: Engine | None = None
        self._config: EngineConfig | None = None
        self._version: str | None = None

    def pid(self) -> int:
        """The process that the engine runs in."""
        return os.getpid()

    def prepare(self, model_config: bytes, config: EngineConfig) -> None:
        """Start for the architecture of a ``config.json``, ahead of any weights.

        A failure is told to the ledger and not raised: nobody waits for this, and the first call will raise it again.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="fortifai-") as folder:
                Path(folder, "config.json").write_bytes(model_config)
                self._start(config, Path(folder))
        except Exception as error:
            self._ledger.report.remote(self._index, "not started", failure=f"{type(error).__name__}: {error}")
        else:
            self._ledger.report.remote(self._index, "ready")

    def generate(self, call: EngineCall) -> EngineAnswer:
        """Answer a call, with the weights it names and no others.

        Raises:
            WeightsError: the checkpoint is not what the engine holds after loading it.
            RuntimeError: the call has brought its engine down several times.
        """
        if ray.get(self._ledger.attempt.remote(call.call_id)) > MOST_ATTEMPTS:
            raise RuntimeError(
                f"call {call.call_id} has ended its engine's process {MOST_ATTEMPTS} times: most likely it ran out of "
                "memory (give it a smaller kv_cache_bytes or max_num_seqs)"
            )
        started = time.time()
        try:
            engine = self._hold(call)
            loaded = time.time()
            self._ledger.report.remote(self._index, "generating")
            prompts, seeds = call.prompts["prompt_ids"].to_pylist(), call.prompts["seed"].to_pylist()
            begun = time.time()
            generated = engine.generate(prompts, seeds, call.decoding)
            finished = time.time()
        finally:
            self._ledger.report.remote(self._index, "ready")
        assert self._version is not None
        ids = pa.array(generated, type=pa.list_(pa.int32()))
        return EngineAnswer(ids, self._version, begun, finished, loaded - started)

    def _hold(self, call: EngineCall) -> Engine:
        """The engine, holding the call's weights."""
        checkpoint = folder_here(call.checkpoint)
        engine = self._start(call.engine, whole_model(checkpoint))
        if self._version != call.weights_version:
            self._ledger.report.remote(self._index, "loading")
            self._version = None  # whatever it holds until loading has succeeded
            engine.load(checkpoint)
            self._version = call.weights_version
        return engine

    def _start(self, config: EngineConfig, folder: Path) -> Engine:
        """An engine for this configuration and this architecture: the one there is, or a new one in its place."""
        config = config.model_copy(update={"rows_per_call": 1})  # the client's affair
        if self._engine and self._config == config and self._engine.architecture == architecture(folder):
            return self._engine
        if self._engine:
            self._engine.stop()
        self._engine, self._version, self._config = None, None, config
        self._ledger.report.remote(self._index, "starting")
        begun = time.time()
        engine = make_engine(config, self._gpu_fraction)
        engine.start(folder)
        self._ledger.started.remote(time.time() - begun)
        self._engine = engine
        return engine


def make_engine(config: EngineConfig, gpu_fraction: float = 0.0) -> Engine:
    """The engine a configuration asks for, not started.

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
