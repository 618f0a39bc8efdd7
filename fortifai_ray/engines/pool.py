"""A pool of warm engines: named Ray actors that outlive every data set they write."""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from fortifai_ray.engines.actor import EngineActor, LedgerActor, PoolState
from fortifai_ray.engines.base import EngineAnswer, EngineCall
from fortifai_ray.engines.config import EngineConfig

logger = logging.getLogger(__name__)

# Says nothing that a user could act on: start-up notes of torch and of vLLM's imports.
_QUIET = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True)
class EnginePool:
    """A handle on the engines; small, and picklable into any task or actor of the same Ray cluster.

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
        """Ask Ray for the engines' actors, and return without waiting for them.

        Args:
            count: engines.
            name: the actors are ``NAME-engine-0`` …, and ``NAME-ledger``.
            namespace: the Ray namespace of these names.
            num_cpus: logical CPUs that each engine takes; a fraction, so that what feeds the engines finds room.
            num_gpus: GPUs that each engine takes: a share of one, or several that its model is spread over.
            threads: threads that each engine computes with. None: its whole CPUs, at least one.

        Raises:
            ValueError: ``count`` is below 1, or an actor of that name exists.
        """
        if count < 1:
            raise ValueError(f"a pool of {count} engines: at least 1 is needed")
        if importlib.util.find_spec("vllm") is None:
            logger.warning("vLLM is not installed: transformers generates instead, several times more slowly")
        threads = threads or max(1, int(num_cpus))
        environment = _QUIET | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
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

        Hides the start behind whatever comes before the first checkpoint. What goes wrong shows in :meth:`state`, and
        again at the first call.

        Args:
            model_config_folder: holds the model's ``config.json``.
            engine: the configuration that the calls will carry.
        """
        model_config = (model_config_folder / "config.json").read_bytes()  # an engine may be on another node
        for actor in self.engines:
            actor.prepare.remote(model_config, engine)

    def wait_until_ready(self, timeout: float | None = None) -> bool:
        """Wait until every engine is idle and ready; whether they were within ``timeout`` seconds."""
        pending = [actor.pid.remote() for actor in self.engines]  # queued behind the starts
        return len(ray.wait(pending, num_returns=len(pending), timeout=timeout)[0]) == len(pending)

    def generate(self, call: EngineCall) -> EngineAnswer:
        """Have the least loaded engine answer; blocks until it has.

        Raises:
            ray.exceptions.RayError: the engine raised, or cannot be brought back.
        """
        index = ray.get(self.ledger.claim.remote(call.call_id))
        try:
            return ray.get(self.engines[index].generate.remote(call))
        finally:
            self.ledger.release.remote(call.call_id)

    def state(self) -> PoolState:
        """How the engines are now."""
        return ray.get(self.ledger.state.remote())

    def starts(self) -> int:
        """Engine starts so far, those after a failure included."""
        return self.state().starts

    def start_seconds(self) -> list[float]:
        """What each finished start took, imports included."""
        return self.state().start_seconds

    def shutdown(self) -> None:
        """End the engines and the ledger."""
        for actor in (*self.engines, self.ledger):
            ray.kill(actor)
