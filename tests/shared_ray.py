"""The suite's Ray instance: its workers are forked from a server that has imported their libraries, as a sweep's are.

Each sweep in a process of its own (``--address``) is a job of its own to Ray, and gets workers of its own: without the
server each would import for 6 s of CPU.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fortifai_ray.process.search_path import home_of_package
from fortifai_ray.process.temporary import RAY_SOCKET, short_name
from fortifai_ray.sweep.fork_server import TEXTS, forked_workers
from fortifai_ray.sweep.instance import _asking_for_workers


@contextmanager
def shared_ray(cpus: int) -> Iterator[str]:
    """An instance of so many logical CPUs; yields its address, HOST:PORT."""
    import ray

    with short_name(RAY_SOCKET) as folder, forked_workers(folder, home_of_package(), TEXTS) as variables:
        before = dict(os.environ)
        os.environ |= variables
        try:
            with _asking_for_workers(bool(variables)):
                context = ray.init(address="local", num_cpus=cpus, include_dashboard=False, logging_level="warning")
        finally:
            for name in variables.keys() - before.keys():
                del os.environ[name]
        yield context.address_info["gcs_address"]
        ray.shutdown()
