"""Warm engines on Ray: named actors that outlive every corpus they write, and the ledger that knows their load."""

import importlib.util
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from fortifai_ray.engines.engine import EngineAnswer, EngineCall, EngineConfig
from fortifai_ray.engines.in_process import WarmEngine
from fortifai_ray.process.forked_worker import ENGINES, KIND
from fortifai_ray.process.temporary import VLLM_SOCKET, short_folder

logger = logging.getLogger(__name__)

# A call that ends its engine's process this often would do so for ever.
MOST_ATTEMPTS = 5
# A claim this old belongs to a client that died. It is only a hint about load: an early expiry unbalances, no more.
CLAIM_SECONDS = 900.0
# Silences start-up notes of torch and of vLLM's imports, on which a user could not act.
_QUIET = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True)
class EngineState:
    """An engine's last report: ``waiting for resources``, ``starting``, ``ready``, ``loading`` or ``generating``."""

    name: str
    since: float


@dataclass
class PoolState:
    """A pool at one moment.

    Attributes:
        engines: state of each engine.
        starts: engine starts so far, restarts included.
        start_seconds: duration of each start, imports included, in the order in which they ended.
        failure: why an engine could not be started in advance, if so.
    """

    engines: list[EngineState]
    starts: int = 0
    start_seconds: list[float] = field(default_factory=list)
    failure: str | None = None


class Ledger:
    """Load, state and starts of a pool's engines. It outlives an engine that is killed."""

    def __init__(self, engines: int) -> None:
        self.pool = PoolState([EngineState("waiting for resources", time.time())] * engines)
        self.claims: dict[str, tuple[int, float]] = {}
        self.attempts: Counter[str] = Counter()

    def claim(self, call_id: str) -> int:
        """The engine with the fewest claims (the first of them), claimed for a call."""
        now = time.time()
        self.claims = {
            key: (engine, since) for key, (engine, since) in self.claims.items() if now - since < CLAIM_SECONDS
        }
        load = Counter(engine for engine, _ in self.claims.values())
        chosen = min(range(len(self.pool.engines)), key=lambda engine: load[engine])
        self.claims[call_id] = (chosen, now)
        return chosen

    def release(self, call_id: str) -> None:
        """End a claim, even one that has expired."""
        self.claims.pop(call_id, None)
        self.attempts.pop(call_id, None)

    def attempt(self, call_id: str) -> int:
        """Count an attempt at a call: 1 the first time."""
        self.attempts[call_id] += 1
        return self.attempts[call_id]

    def report(self, engine: int, state: str, failure: str | None = None) -> None:
        """Record an engine's state."""
        self.pool.engines[engine] = EngineState(state, time.time())
        self.pool.starts += state == "starting"
        self.pool.failure = failure or self.pool.failure

    def started(self, seconds: float) -> None:
        """Record the duration of a start."""
        self.pool.start_seconds.append(seconds)

    def state(self) -> PoolState:
        """The pool's present state."""
        return self.pool


LedgerActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger)


@ray.remote(max_restarts=-1, max_task_retries=-1)
class EngineActor:
    """One engine in one process: a call at a time, in the order of arrival.

    After a kill, Ray restarts it and repeats its call; since a call is self-contained, the answer is the same.
    """

    def __init__(self, index: int, ledger: str, namespace: str, gpu_fraction: float) -> None:
        os.environ.setdefault("VLLM_RPC_BASE_PATH", str(short_folder(VLLM_SOCKET)))
        self._index = index
        self._ledger: Any = ray.get_actor(ledger, namespace)
        self._engine = WarmEngine(gpu_fraction, self._report, lambda seconds: self._ledger.started.remote(seconds))

    def pid(self) -> int:
        """The process that the engine runs in."""
        return os.getpid()

    def prepare(self, model_config: bytes, config: EngineConfig) -> None:
        """Start for the architecture of a ``config.json``, before there are any weights.

        A failure goes to the ledger and is not raised: nobody waits for this, and the first call will raise it again.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="fortifai-") as folder:
                Path(folder, "config.json").write_bytes(model_config)
                self._engine.start(config, Path(folder))
        except Exception as error:
            self._ledger.report.remote(self._index, "not started", failure=f"{type(error).__name__}: {error}")
        else:
            self._report("ready")

    def generate(self, call: EngineCall) -> EngineAnswer:
        """Answer a call, with the weights it names and no others.

        Raises:
            WeightsError: the engine does not hold the checkpoint after loading it.
            RuntimeError: the call has ended its engine's process several times.
        """
        if ray.get(self._ledger.attempt.remote(call.call_id)) > MOST_ATTEMPTS:
            raise RuntimeError(
                f"call {call.call_id} has ended its engine's process {MOST_ATTEMPTS} times: most likely it ran out of "
                "memory (give it a smaller kv_cache_bytes or max_num_seqs)"
            )
        return self._engine.answer(call)

    def _report(self, state: str) -> None:
        self._ledger.report.remote(self._index, state)


@dataclass(frozen=True)
class EnginePool:
    """A handle on the engines: small, and picklable into any task or actor of the same Ray cluster.

    The engines live as long as the driver that created them, or until :meth:`shutdown`.
    """

    engines: Sequence[Any]
    ledger: Any

    @classmethod
    def create(
        cls,
        count: int,
        *,
        name: str,
        namespace: str,
        num_cpus: float,
        num_gpus: float = 0.0,
        threads: int | None = None,
    ) -> "EnginePool":
        """Create the engines' actors, and return without waiting for them.

        Args:
            count: engines.
            name: the actors are ``NAME-engine-0`` …, and ``NAME-ledger``.
            namespace: the Ray namespace of these names.
            num_cpus: logical CPUs of each engine; a fraction, so that the tasks that feed the engines find room.
            num_gpus: GPUs of each engine: a share of one, or several that its model is spread over.
            threads: CPU threads of each engine. None: as many as its whole CPUs, at least one.

        Raises:
            ValueError: ``count`` is below 1, or an actor of that name exists.
        """
        if count < 1:
            raise ValueError(f"a pool of {count} engines: at least 1 is needed")
        if importlib.util.find_spec("vllm") is None:
            logger.warning("vLLM is not installed: transformers generates instead, several times more slowly")
        threads = threads or max(1, int(num_cpus))
        environment = _QUIET | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), KIND: ENGINES}
        ledger = LedgerActor.options(name=f"{name}-ledger", namespace=namespace).remote(count)
        engines = [
            EngineActor.options(  # type: ignore[attr-defined]
                name=f"{name}-engine-{index}",
                namespace=namespace,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                runtime_env={"env_vars": environment},
            ).remote(index, f"{name}-ledger", namespace, num_gpus)
            for index in range(count)
        ]
        return cls(tuple(engines), ledger)

    def prestart(self, model_config_folder: Path, engine: EngineConfig) -> None:
        """Start every engine for an architecture, with random weights, and return at once.

        The start overlaps with whatever precedes the first checkpoint. A failure shows in :meth:`state`, and again at
        the first call.

        Args:
            model_config_folder: holds the model's ``config.json``.
            engine: the configuration of the calls to come.
        """
        model_config = (model_config_folder / "config.json").read_bytes()  # an engine may be on another node
        for actor in self.engines:
            actor.prepare.remote(model_config, engine)

    def wait_until_ready(self, timeout: float | None = None) -> bool:
        """Wait until every engine is idle and ready; returns whether that took at most ``timeout`` seconds."""
        pending = [actor.pid.remote() for actor in self.engines]  # queued behind the starts
        return len(ray.wait(pending, num_returns=len(pending), timeout=timeout)[0]) == len(pending)

    def generate(self, call: EngineCall) -> EngineAnswer:
        """Answer a call by the least loaded engine; blocks until it has.

        Raises:
            ray.exceptions.RayError: the engine raised, or cannot be restarted.
        """
        index = ray.get(self.ledger.claim.remote(call.call_id))
        try:
            return ray.get(self.engines[index].generate.remote(call))
        finally:
            self.ledger.release.remote(call.call_id)

    def state(self) -> PoolState:
        """The engines' present state."""
        return ray.get(self.ledger.state.remote())

    def shutdown(self) -> None:
        """End the engines and the ledger."""
        for actor in (*self.engines, self.ledger):
            ray.kill(actor)
