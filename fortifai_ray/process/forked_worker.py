"""Ray runs this file where it starts a worker of an instance that was started here: it asks the fork server for one
(:mod:`fortifai_ray.sweep.fork_server`), and starts Ray's own program where none answers.

The standard library alone is imported here, and as little of it as possible.
"""

import os
import sys

SOCKETS = "FORTIFAI_FORK_SERVER"  # in the environment: the folder of the server's sockets
WORKERS, ENGINES = "workers", "engines"  # the sockets: of any worker, of one that has vLLM too
KIND = "FORTIFAI_WORKER"  # in a worker's runtime environment: which of them it is
CONTEXT = "--serialized-runtime-env-context"


def ask() -> None:
    """Have the worker forked, with this process's arguments, environment, folder and files.

    Raises:
        OSError: no server answers.
    """
    import json
    import socket

    arguments = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    runtime = json.loads(arguments.get(CONTEXT, "{}")).get("env_vars", {})
    request = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.path.join(os.environ.get(SOCKETS, ""), runtime.get(KIND, WORKERS)))
        socket.send_fds(server, [b"\n"], [0, 1, 2])
        server.sendall(json.dumps(request).encode())
        server.shutdown(socket.SHUT_WR)
        if not server.recv(1):
            raise ConnectionError("the server forked none")


def main() -> None:
    """The program."""
    try:
        ask()
    except OSError:
        program = os.path.join(os.path.dirname(sys.argv[1]), "setup_worker.py")  # beside the worker's own
        os.execv(sys.executable, [sys.executable, program, *sys.argv[1:]])


if __name__ == "__main__":
    main()
