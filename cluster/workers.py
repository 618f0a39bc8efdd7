"""Bring a cluster to size before a study starts: a sweep plans for the nodes that are there.

    python cluster/workers.py 4           ask the autoscaler for four workers, and wait until they are there
    python cluster/workers.py 0           let them go, when they have been idle for the cluster's idle timeout
    python cluster/workers.py --nodes 3   ask for nothing, wait until three nodes (the head counts) are there

Workers are counted by the resource ``worker``, one each, which cluster/aws.yaml and cluster/gcp.yaml give them.
"""

import argparse
import sys
import time
from collections.abc import Callable

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import AuthenticationError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed


def main() -> int:
    """Returns 0 when the size is reached, 1 when it was not in time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("workers", type=int, nargs="?", help="workers to ask the autoscaler for")
    size.add_argument("--nodes", type=int, help="nodes to wait for, without asking for any")
    parser.add_argument("--address", default="auto", help="the cluster; by default the one that this node is in")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds to wait")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.timeout
    _attach(arguments.address, arguments.timeout)
    try:
        if arguments.nodes is not None:
            return _wait(lambda: sum(node["Alive"] for node in ray.nodes()), arguments.nodes, "nodes", deadline)
        request_resources(bundles=[{"worker": 1}] * arguments.workers)
        return _wait(lambda: int(ray.cluster_resources().get("worker", 0)), arguments.workers, "workers", deadline)
    finally:
        ray.shutdown()


def _attach(address: str, timeout: float) -> None:
    """Connect; a head that is still starting is tried again until ``timeout`` seconds have passed."""
    connect = retry(
        retry=retry_if_exception_type(ConnectionError),
        stop=stop_after_delay(timeout),
        wait=wait_fixed(2),
        before_sleep=lambda state: print(f"{address}: no Ray answers yet, or not to this token", flush=True),
        reraise=True,
    )(ray.init)
    try:
        connect(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, AuthenticationError) as error:
        sys.exit(f"{address}: {error}")


def _wait(count: Callable[[], int], wanted: int, what: str, deadline: float) -> int:
    seen = -1
    while (there := count()) < wanted and time.monotonic() < deadline:
        if there != seen:
            print(f"{there} of {wanted} {what} are there", flush=True)
        seen = there
        time.sleep(1)
    print(f"{there} of {wanted} {what} are there" + ("" if there >= wanted else ": gave up waiting"), flush=True)
    return 0 if there >= wanted else 1


if __name__ == "__main__":
    sys.exit(main())
