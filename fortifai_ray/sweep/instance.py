"""The Ray instance that a sweep runs on: one started here, or the one at an address and the nodes it brings."""

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenacity import retry, stop_after_attempt

from fortifai_ray.errors import UserError
from fortifai_ray.process import forked_worker
from fortifai_ray.process.forked_worker import SOCKETS
from fortifai_ray.process.imports import garbage_kept
from fortifai_ray.process.search_path import home_of_package, workers_environment
from fortifai_ray.process.signals import check_signals, signals_kept, signals_wait
from fortifai_ray.process.temporary import RAY_SOCKET, short_name
from fortifai_ray.study.resources import ResourcesConfig
from fortifai_ray.sweep.fork_server import forked_workers
from fortifai_ray.sweep.plan import cores_here
from fortifai_ray.user_code import modules_here

if TYPE_CHECKING:
    from ray.autoscaler.v2.schema import ClusterStatus

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the metrics: no TensorBoard, CSV and JSON beside it
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers run in this environment, not in a copy of it
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # seconds until a training worker's death is seen; a look costs 8 ms
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more: a node that is taken away is a fault like any other
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own view, which would write over this one
    "RAY_idle_worker_killing_time_threshold_ms": "600000",  # a new worker would import for seconds, every generation
    "TOKENIZERS_PARALLELISM": "false",
}
# An instance started here is this machine's own: its sockets listen on loopback, and no page shows its load.
_LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_enable_metrics_collection": "0"}
# A cluster that refuses the token gives no answer: Ray would retry for half a minute, here it gives up after seconds.
_ATTACHED = {"RAY_NUM_REDIS_GET_RETRIES": "5"}
_LOOK_EVERY = 1.0  # seconds
_made_here: list[str] = []  # tokens of instances that this process started
_TOKEN_FILE = Path("~/.ray/auth_token")

Bundle = dict[str, float]
_MOST = 256  # groups: past that their number costs Ray more than another node would bring
_QUIET_SECONDS = 20.0  # some rounds of the autoscaler, each of five seconds, in which it starts nothing more


@contextmanager
def ray_instance(address: str | None, num_cpus: int | None, preload: Sequence[str] = ()) -> Iterator[None]:
    """A Ray instance: one started here, or the one at ``address``; never whichever happens to be running.

    A program that is already connected to Ray keeps that connection, and it stays open. ``preload`` are modules that
    the workers of an instance started here need (:mod:`fortifai_ray.sweep.fork_server`).

    Raises :class:`UserError` where no cluster answers at ``address``.
    """
    if connected():  # its environment is the program's own
        yield
        return
    _prepare_environment(address)  # before Ray is imported
    with ExitStack() as lasting:
        modules, ended = workers_environment(), threading.Event()
        own = modules
        if address is None:
            temporary = lasting.enter_context(short_name(RAY_SOCKET))
            own = {**modules, "RAY_TMPDIR": str(temporary)}
            with _environment(own), _a_group_of_their_own():
                own |= lasting.enter_context(forked_workers(temporary, home_of_package(), preload))
        import ray

        arguments: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": "warning",
            "namespace": "fortifai",
            "job_config": _job_config(),
        }
        with signals_kept():
            if address is None:
                with (
                    _environment(own),
                    _a_group_of_their_own(),
                    _few_services(),
                    _asking_for_workers(SOCKETS in own),
                    signals_wait(),
                ):
                    _start(address="local", num_cpus=num_cpus or cores_here(), include_dashboard=False, **arguments)
            else:
                sent = modules_here()
                py_modules = {"py_modules": sent} if sent else {}
                _attach(address=address, runtime_env={"env_vars": _ENVIRONMENT | modules, **py_modules}, **arguments)
        if address and "://" not in address:  # by way of a Ray client's server, the head itself cannot be seen
            threading.Thread(target=_watch_head, args=(address, ended), name="fortifai-head", daemon=True).start()
        try:
            check_signals()
            yield
        finally:
            ended.set()
            # Garbage is kept: a reference of Ray's that a thread finds in it while Ray ends would end this process.
            with signals_wait(), signals_kept(), garbage_kept():
                ray.shutdown()


def connected() -> bool:
    """Whether this program is connected to Ray already."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


class _Settled(list[str]):
    """Folders that Ray puts first in its workers' paths, to which it would add the script's and the working folder."""

    def extend(self, folders: Iterable[str]) -> None:
        """Nothing: these come last (:mod:`fortifai_ray.process.search_path`)."""


def _job_config() -> Any:
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _Settled(home_of_package())
    return config


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables for the processes that start within; whoever imported this package keeps an environment without."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _a_group_of_their_own() -> Iterator[None]:
    """Processes that start within are led by themselves: `timeout` signals this program's whole group, and Ray, which
    must outlive it for a clean end, would end first."""
    original = subprocess.Popen.__init__

    def start(self: Any, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **{"process_group": 0, **keywords})

    subprocess.Popen.__init__ = start  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = original  # type: ignore[method-assign]


@contextmanager
def _few_services() -> Iterator[None]:
    """An instance that starts within is without the server of Ray's page, the monitor that asks for more nodes and the
    reader of logs: nobody has a use for them here.

    ``ray.init`` has no argument for it, and waits for the first. They took 2.4 s of CPU, and half of the time that Ray
    needs to start and to end (8.8 and 1.3 s at a load of 5; 4.5 and 0.6 s
    without).
    """
    from ray._private.node import Node

    services = ("start_api_server", "start_monitor", "start_log_monitor")
    originals = {name: getattr(Node, name) for name in services}
    for name in services:
        setattr(Node, name, lambda node, **settings: None)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Node, name, original)


@contextmanager
def _asking_for_workers(asks: bool) -> Iterator[None]:
    """An instance that starts within asks the fork server for its workers."""
    from ray._private.parameter import RayParams

    original = RayParams.__init__

    def settle(self: Any, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **keywords)
        self.setup_worker_path = forked_worker.__file__

    if asks:
        RayParams.__init__ = settle  # type: ignore[method-assign]
    try:
        yield
    finally:
        RayParams.__init__ = original  # type: ignore[method-assign]


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
            f"--address {address}: no Ray token on this machine: set RAY_AUTH_TOKEN_PATH, or put the cluster's token "
            f"into {_TOKEN_FILE}"
        ) from error
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers there, or it does not take this token (RAY_AUTH_MODE, "
            f"{_TOKEN_FILE}): {str(error).splitlines()[0]}"
        ) from error


def _watch_head(address: str, ended: threading.Event) -> None:
    """Say what happens when the head is gone: Ray waits a minute for it, and then ends this process on the spot."""
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
            "sweep ends here. Every finished step is kept: the same command resumes from there, on any cluster",
            file=sys.stderr,
            flush=True,
        )


def _prepare_environment(address: str | None) -> None:
    """Set what Ray reads when it is imported. The workers of an instance started here inherit it.

    Such an instance answers only this run's own processes, by a token that is never written down. For a cluster, a
    token in its usual place is used without any setting.
    """
    for name, value in (_ENVIRONMENT | (_LOCAL if address is None else _ATTACHED)).items():
        os.environ.setdefault(name, value)
    if address is not None and os.environ.get("RAY_AUTH_TOKEN") in _made_here:  # an instance of this process had it
        del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]
    if "RAY_AUTH_MODE" not in os.environ:
        if address is None:
            _made_here.append(secrets.token_hex(32))
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _made_here[-1]}
        elif {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or _TOKEN_FILE.expanduser().is_file():
            os.environ["RAY_AUTH_MODE"] = "token"
    if "ray" in sys.modules:  # a program that uses this package may have imported it first: it looks again
        from ray import _raylet

        raylet: Any = _raylet  # whose stub knows neither
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def check_address(address: str | None) -> None:
    """Raise :class:`UserError` where nothing listens: Ray itself would try for minutes before it says so."""
    host, separator, port = (address or "").rpartition(":")
    if not separator or not port.isdigit() or "/" in host:  # started here, or a form that Ray resolves ("auto", ray://)
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address {address}: nothing answers there ({error}); give a Ray cluster's HOST:PORT"
        ) from error


def bring_nodes(
    resources: ResourcesConfig,
    chains: int,
    *,
    trained: bool,
    engines: bool,
    say: Callable[[str], None],
    patience: float = 1800.0,
) -> None:
    """Ask the cluster that this process is connected to for the nodes ``chains`` chains could use, and wait for them.

    A sweep plans for the nodes that it finds, so it asks first: with a placement group for each training worker and
    each engine that it could use at once. The autoscaler serves these one by one, as far as the cluster's limits go,
    and they end with the driver, however it ends. Ray's own ``request_resources`` is served whole or not at all, and
    keeps its nodes until somebody takes it back.

    Returns at once where no autoscaler started the nodes; else when all have come, or some of them and nothing more
    comes (the cluster's limits, a cloud without spare machines). ``trained`` is whether any chain trains a network:
    those that do not are computed together and need one node. ``engines`` is whether any generates on warm engines.

    Raises:
        UserError: nothing that a chain could run on came within ``patience`` seconds.
    """
    if not _is_autoscaled():
        return
    *first, last = wishes(resources, chains if trained else 1, gpus=trained, engines=engines)
    for bundles in first:
        if _ask(bundles, say, _QUIET_SECONDS):
            return
    if not _ask(last, say, patience):
        raise UserError(
            "--address: the cluster started no worker for this study: `ray status` on its head says why (its "
            "max_workers, the cloud's quota, no spot machines)"
        )


def wishes(resources: ResourcesConfig, chains: int, *, gpus: bool, engines: bool) -> list[list[Bundle]]:
    """The bundles that ``chains`` chains could use at once, one for each process; each list is the fallback of the one
    before it.

    With GPUs first, then on CPUs alone; only the one or the other where the study says how many GPUs it wants.
    """
    workers, asked = resources.train.workers, resources.chains_at_once
    at_once = chains if asked == "auto" else min(asked, chains)
    on_cpus: list[Bundle] = [{"CPU": 1.0}] * min(at_once * workers, _MOST)
    trainer = resources.train.gpus_per_worker if gpus else 0.0
    if trainer == 0:
        return [on_cpus]
    bundle: Bundle = {"CPU": 1.0, "GPU": 1.0 if trainer == "auto" else float(trainer)}
    on_gpus = [bundle] * (at_once * workers)
    share = resources.engines.gpus
    if engines and share != 0:
        count = at_once if resources.engines.count == "auto" else resources.engines.count
        on_gpus += [{"CPU": 1.0, "GPU": 1.0 if share == "auto" else float(share)}] * count
    return [on_gpus[:_MOST], on_cpus] if trainer == "auto" else [on_gpus[:_MOST]]


def _status() -> "ClusterStatus":
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    return get_cluster_status(ray.get_runtime_context().gcs_address)


def _is_autoscaled() -> bool:
    """An autoscaler gives each of its nodes the name of its type: others are named after themselves.

    Ray Client (ray://) has no way to ask for it.
    """
    from ray.util.client import ray as client

    if client.is_connected():
        return False
    status = _status()
    nodes = (*status.active_nodes, *status.idle_nodes)
    return any(node.ray_node_type_name not in ("", f"node_{node.node_id}") for node in nodes)


def _ask(bundles: list[Bundle], say: Callable[[str], None], patience: float) -> bool:
    """Hold a placement group for each bundle until all are placed, or nothing more comes; then let go.

    Returns whether the cluster has room for any of them, even if it is in use. Where it has none, it waits until
    nothing has come for ``patience`` seconds.
    """
    from ray.util import placement_group, remove_placement_group

    groups = [placement_group([bundle]) for bundle in bundles]
    try:
        return _wait({group.id.hex() for group in groups}, bundles[0], say, patience)
    finally:
        for group in groups:
            remove_placement_group(group)


def _wait(groups: set[str], bundle: Bundle, say: Callable[[str], None], patience: float) -> bool:
    import ray
    from ray.util import placement_group_table

    seen, moved = "", time.monotonic()
    while True:
        table, status, now = placement_group_table(), _status(), time.monotonic()
        placed = sum(table[name]["state"] == "CREATED" for name in groups if name in table)
        coming = sum(launch.count for launch in status.pending_launches) + len(status.pending_nodes)
        nodes = len(status.active_nodes) + len(status.idle_nodes)
        state = f"{nodes} node(s) in the cluster, {coming} on the way: room for {placed} of {len(groups)} processes"
        if state != seen:
            say(state)
        if state != seen or coming:
            seen, moved = state, now
        have = ray.cluster_resources()
        some = all(have.get(name, 0.0) >= share for name, share in bundle.items())
        if placed == len(groups) or now - moved > (_QUIET_SECONDS if some else patience):
            return some
        time.sleep(1)
