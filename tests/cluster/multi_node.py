"""A Ray cluster of several nodes on this machine: ``python multi_node.py WORKERS [dashboard]``, until its input is
closed.

The head has no CPU, as in the files of ``cluster/``; each worker has one. Ray reads its authentication from the
environment when it is imported, so the cluster needs a process of its own. Prints a line of JSON when all nodes are
there: ``address`` (HOST:PORT) and ``dashboard`` (a URL, where it was asked for).
"""

import json
import sys
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any

from ray.cluster_utils import Cluster


def main() -> None:
    with ExitStack() as folders:

        def node(**resources: Any) -> dict[str, Any]:
            # As on machines of their own: nodes that share a folder remove each other's unpacked working directory,
            # and where the agent's usual port is another Ray's, no job can be submitted.
            folder = folders.enter_context(TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True))
            return {"temp_dir": folder, "dashboard_agent_listen_port": 0, **resources}

        asked = "dashboard" in sys.argv[2:]
        dashboard = {"include_dashboard": asked, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
        cluster = Cluster(initialize_head=True, head_node_args=node(num_cpus=0, **dashboard))
        try:
            for _ in range(int(sys.argv[1])):
                cluster.add_node(wait=False, **node(num_cpus=1))
            cluster.wait_for_nodes()
            print(json.dumps({"address": cluster.address, "dashboard": f"http://{cluster.webui_url}"}), flush=True)
            sys.stdin.read()
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
