"""A server that imports the heavy libraries once, while Ray starts, and forks Ray's workers from itself.

By itself each worker imports them anew: 2 s of CPU for Ray, 4.5 more in a trial, 4 more in an engine, and the first
batch of a sweep on two cores waits for two of each. Where no server answers, a worker starts as Ray has it.

A fork takes no threads along, so nothing is imported here that starts its own and misses them: Polars, which takes a
trial 0.1 s. (The BLAS of numpy and Arrow's allocator know what a fork is.)
"""

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from fortifai_ray.engines.vllm_engine import import_vllm
from fortifai_ray.process.forked_worker import CONTEXT, ENGINES, SOCKETS, WORKERS
from fortifai_ray.process.imports import quick_imports

NUMBERS = ("numpy", "pyarrow.parquet", "ray.tune")  # what any trial imports
NETWORKS = (*NUMBERS, "torch", "ray.train.torch")
TEXTS = (
    *(*NETWORKS, "transformers.modeling_utils", "transformers.models.auto.modeling_auto"),
    "transformers.optimization",  # with PEFT, though only a schedule of learning rates is wanted of it
    "fortifai_ray.families.language.family",
)
_GPUS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
_RAYLET = "RAY_RAYLET_PID"
_NO_JOB = "ffffffff"  # of a worker that takes any job's tasks
_PATIENCE = 10.0  # seconds for a request that has begun: one that stops in the middle holds up all others
_PROGRAM = """
import json, sys
home, descriptors, preload = map(json.loads, sys.argv[1:])
sys.path[:0] = home
from fortifai_ray.sweep.fork_server import serve
serve(descriptors, preload)
"""


@contextmanager
def forked_workers(folder: Path, home: Sequence[str], preload: Sequence[str]) -> Iterator[dict[str, str]]:
    """A server for the Ray instance that starts within; yields the variables that Ray's processes need.

    No server starts, and they are none, without modules to import, and on other systems than Linux. Where there is a
    GPU, the libraries that could use it are left to the workers: a process that has used one cannot be forked.

    Args:
        folder: where its sockets are put, a short name.
        home: where this package lies, if workers would not find it by themselves.
        preload: the modules that are imported for all workers, and for engines vLLM beside.
    """
    if sys.platform != "linux" or not preload:
        yield {}
        return
    preload = NUMBERS if any(map(os.path.exists, _GPUS)) else preload
    with tempfile.TemporaryDirectory(prefix="fortifai-", dir=folder) as sockets:  # which nobody else may enter
        listeners = [_listener(os.path.join(sockets, name)) for name in (WORKERS, ENGINES)]
        lifeline, end = socket.socketpair()  # the server ends with this process, however that ends
        descriptors = [each.fileno() for each in (end, *listeners)]
        server = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *map(json.dumps, (list(home), descriptors, list(preload)))],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for each in (end, *listeners):
            each.close()
        try:
            # None are started in advance, upon which Ray's start waits: a fork takes a hundredth of a second.
            yield {SOCKETS: sockets, "RAY_prestart_worker_first_driver": "0"}
        finally:
            lifeline.close()
            server.kill()
            server.wait()


def _listener(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(128)
    return listener


# --- in the server --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """What a worker is to be started with. ``files`` are its standard input, output and error."""

    connection: socket.socket
    files: Sequence[int]
    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str

    def close(self) -> None:
        self.connection.close()
        for file in self.files:
            os.close(file)


def serve(descriptors: Sequence[int], preload: Sequence[str]) -> None:
    """The program of the server, and of the workers that it forks.

    Ray reads its raylet's number from the environment as it is imported, and is therefore imported for the first
    worker.

    Args:
        descriptors: of the lifeline, and of the sockets that listen for requests for workers and for engines.
        preload: the modules to import.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets workers that have ended
    lifeline, workers, engines = (socket.socket(fileno=descriptor) for descriptor in descriptors)
    of_ray = [name for name in preload if name.startswith("ray.")]
    _import(name for name in preload if name not in of_ray)
    first = _next(workers, lifeline)
    os.environ |= {name: value for name, value in first.environment.items() if name.startswith("RAY_")}
    os.environ["RAY_JOB_ID"] = _NO_JOB
    _import(["ray.actor"])
    with _actors_without_random_names():
        _import(("ray._private.runtime_env.context", *of_ray))
    if os.fork():
        engines.close()
        _serve(workers, lifeline, first)
        return
    first.close()
    workers.close()
    if "transformers" in sys.modules:
        with _actors_without_random_names(), suppress(Exception):
            import_vllm(gpu=False)
    _serve(engines, lifeline, None)


def _import(names: Iterable[str]) -> None:
    """Import what can be imported; a worker that needs the rest says what is wrong with it."""
    with quick_imports():
        for name in names:
            with suppress(Exception):
                import_module(name)
            # Only numpy, the first, has as many threads as cores in a worker: torch comes after Ray has said this.
            os.environ.setdefault("OMP_NUM_THREADS", "1")


@contextmanager
def _actors_without_random_names() -> Iterator[None]:
    """Ray draws an identifier for each class of actors as it is defined. Here the system gives them: where Ray's own
    generator has been used, all processes forked from this one go on with the same draws, and their objects collide."""
    import ray.actor
    from ray import ActorClassID

    class Identifiers:
        @staticmethod
        def from_random() -> ActorClassID:
            return ActorClassID(os.urandom(ActorClassID.size()))

    ray.actor.ActorClassID = Identifiers  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        ray.actor.ActorClassID = ActorClassID  # type: ignore[misc]


def _serve(listener: socket.socket, lifeline: socket.socket, request: _Request | None) -> None:
    """Fork a worker for each request. Returns in the worker, once that has ended."""
    while True:
        request = request or _next(listener, lifeline)
        with suppress(OSError):  # no process can be forked, or nobody waits for the answer any more
            if request.environment.get(_RAYLET) == os.environ.get(_RAYLET):  # Ray tries again where its start failed
                if os.fork() == 0:
                    listener.close()
                    lifeline.close()
                    break
                request.connection.sendall(b"1")
        request.close()
        request = None
    _work(request)


def _next(listener: socket.socket, lifeline: socket.socket) -> _Request:
    """Wait for a request; ends the process where nobody is left to make one."""
    while True:
        ready, *_ = select.select([listener, lifeline], [], [])
        if lifeline in ready:
            os._exit(0)
        connection, _ = listener.accept()
        connection.settimeout(_PATIENCE)
        with suppress(OSError, ValueError):  # who asked is gone in the middle of it
            _, files, *_ = socket.recv_fds(connection, 1, 3)
            content = b"".join(iter(lambda: connection.recv(1 << 16), b""))  # noqa: B023 - read at once
            return _Request(connection, files, **json.loads(content))


def _work(request: _Request) -> NoReturn:
    """Become a worker, as Ray's ``setup_worker.py`` and ``default_worker.py`` make one."""
    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.utils import update_envs

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # the raylet ends a worker's whole group with it
    for number, file in enumerate(request.files):
        os.dup2(file, number)
    request.close()
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    passed = {argument.partition("=")[0]: argument for argument in request.arguments}
    passed.pop("--language", None)
    update_envs(RuntimeEnvContext.deserialize(passed.pop(CONTEXT, "={}").partition("=")[2]).env_vars)
    sent = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder not in ("", *sys.path)]
    sys.path[:0] = sent  # a job's own modules, which a new process would find by itself
    _settle()
    sys.argv[:] = passed.values()
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


def _settle() -> None:
    """Give libraries that were imported in the server what a new process has: random numbers and threads of its own."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if "torch" in sys.modules and threads.isdigit():
        sys.modules["torch"].set_num_threads(int(threads))
