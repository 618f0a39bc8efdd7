"""Wait until a cluster's nodes are there, for cluster/slurm.sbatch: a sweep plans for those that it finds.

    python cluster/nodes.py 3    until three nodes have joined, the head among them

Where an autoscaler starts the nodes, the sweep itself asks for them and waits.
"""

import argparse
import sys
import time

import ray
from ray.exceptions import AuthenticationError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed


def main() -> int:
    """Returns 0 when the nodes are there, 1 when they were not in time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", type=int, help="nodes to wait for")
    parser.add_argument("--address", default="auto", help="the cluster; by default the one that this node is in")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds to wait")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.timeout
    _attach(arguments.address, arguments.timeout)
    try:
        return _wait(arguments.nodes, deadline)
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


def _wait(wanted: int, deadline: float) -> int:
    seen = -1
    while (there := sum(node["Alive"] for node in ray.nodes())) < wanted and time.monotonic() < deadline:
        if there != seen:
            print(f"{there} of {wanted} nodes are there", flush=True)
        seen = there
        time.sleep(1)
    print(f"{there} of {wanted} nodes are there" + ("" if there >= wanted else ": gave up waiting"), flush=True)
    return 0 if there >= wanted else 1


if __name__ == "__main__":
    sys.exit(main())
