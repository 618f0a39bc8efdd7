"""The Ray instance that a sweep runs on: one started here, or the one at an address."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tenacity import retry, stop_after_attempt

from fortifai_ray.errors import UserError
from fortifai_ray.resources import cores_here

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the metrics: no TensorBoard, CSV and JSON beside it
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers run in this environment, not in a copy of it
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a worker group that is ready is seen at once, not seconds later
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own view, which would write over this one
    "RAY_idle_worker_killing_time_threshold_ms": "600000",  # a new worker would import for seconds, every generation
    "TOKENIZERS_PARALLELISM": "false",
}


@contextmanager
def ray_instance(address: str | None, num_cpus: int | None) -> Iterator[None]:
    """A Ray instance: one started here, or the one at ``address``; never whichever happens to be running.

    A program that is connected to Ray already goes on with that connection, which stays open.

    Raises :class:`UserError` where no cluster answers at ``address``.
    """
    _prepare_environment(address)  # before Ray is imported
    import ray

    if ray.is_initialized():
        yield
        return
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning", "namespace": "fortifai"}
    if address is None:
        _start(address="local", num_cpus=num_cpus or cores_here(), include_dashboard=False, **arguments)
    else:
        _attach(address=address, **arguments)
    try:
        yield
    finally:
        ray.shutdown()


@retry(stop=stop_after_attempt(3), reraise=True)  # Ray gives a start 30 s, which a busy machine can miss
def _start(**arguments: Any) -> None:
    import ray

    try:
        ray.init(**arguments)
    except BaseException:
        ray.shutdown()  # what did start of it
        raise


def _attach(address: str, **arguments: Any) -> None:
    import ray

    try:
        ray.init(address=address, **arguments)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--address {address}: no Ray cluster answers there: {str(error).splitlines()[0]}") from error


def _prepare_environment(address: str | None) -> None:
    """What Ray reads when it is imported. Its workers inherit it.

    An instance started here answers only this run's own processes, by a token that is never written down.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
