"""The Ray instance that a sweep runs on: one started here, or the one at an address."""

import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenacity import retry, stop_after_attempt

from fortifai_ray.errors import UserError
from fortifai_ray.sweep.plan import cores_here
from fortifai_ray.user_code import modules_here

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the metrics: no TensorBoard, CSV and JSON beside it
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers run in this environment, not in a copy of it
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a worker group that is ready is seen at once, not seconds later
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own view, which would write over this one
    "RAY_idle_worker_killing_time_threshold_ms": "600000",  # a new worker would import for seconds, every generation
    "TOKENIZERS_PARALLELISM": "false",
}
# An instance started here is this machine's own: its sockets listen on loopback, and no page tells of its load.
_LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_enable_metrics_collection": "0"}
# A cluster that does not take the token says nothing: what Ray would try for half a minute, it gives up after seconds.
_ATTACHED = {"RAY_NUM_REDIS_GET_RETRIES": "5"}
_LOOK_EVERY = 1.0  # seconds
_TOKEN_FILE = Path("~/.ray/auth_token")


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
    ended = threading.Event()
    if address is None:
        _start(address="local", num_cpus=num_cpus or cores_here(), include_dashboard=False, **arguments)
    else:
        modules = modules_here()
        own = {"py_modules": modules} if modules else {}
        _attach(address=address, runtime_env={"env_vars": _ENVIRONMENT, **own}, **arguments)
        if "://" not in address:  # by way of a Ray client's server, the head itself cannot be seen
            threading.Thread(target=_watch_head, args=(address, ended), name="fortifai-head", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
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
    except ray.exceptions.AuthenticationError as error:
        raise UserError(
            f"--address {address}: there is no Ray token here: set RAY_AUTH_TOKEN_PATH, or put the cluster's token "
            f"into {_TOKEN_FILE}"
        ) from error
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers there, or it does not take this token (RAY_AUTH_MODE, "
            f"{_TOKEN_FILE}): {str(error).splitlines()[0]}"
        ) from error


def _watch_head(address: str, ended: threading.Event) -> None:
    """Say what to do about a head that has gone: Ray waits a minute for it, and then ends this process on the spot."""
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    missed = 0
    while missed < 2 and not ended.wait(_LOOK_EVERY):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            missed = 0
        except OSError:
            missed += 1
    if missed == 2:
        print(
            f"fortifai: --address {address}: the cluster's head does not answer; if it stays away for a minute, the "
            "sweep ends here. Every finished step is kept: the same command goes on from there, on any cluster",
            file=sys.stderr,
            flush=True,
        )


def _prepare_environment(address: str | None) -> None:
    """What Ray reads when it is imported. The workers of an instance started here inherit it.

    Such an instance answers only this run's own processes, by a token that is never written down. For a cluster, a
    token that lies ready is used without being asked for.
    """
    for name, value in (_ENVIRONMENT | (_LOCAL if address is None else _ATTACHED)).items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_MODE" in os.environ:
        return
    if address is None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    elif {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or _TOKEN_FILE.expanduser().is_file():
        os.environ["RAY_AUTH_MODE"] = "token"
