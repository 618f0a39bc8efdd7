"""A Ray cluster on this machine whose nodes share no folder: ``python separate_nodes.py FOLDER``, until its input ends.

Each node keeps its cache of stages in ``FOLDER/NAME``: the head, ``trials``, without CPUs, and two nodes, ``first`` and
``second``, of two CPUs. The head has the resource ``trials``, the others have one of ``trainer`` each. Prints the
address when all are there.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray.cluster_utils import Cluster


def main() -> None:
    with ExitStack() as folders:

        def node(name: str, cpus: int, resource: str) -> dict[str, Any]:
            # A short path: Ray's sockets lie below it.
            own = folders.enter_context(TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True))
            environment = {"FORTIFAI_CACHE": str(Path(sys.argv[1], name))}
            return {"num_cpus": cpus, "resources": {resource: 1}, "temp_dir": own, "env_vars": environment}

        head = {"include_dashboard": False, **node("trials", 0, "trials")}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for name in ("first", "second"):
                cluster.add_node(wait=False, **node(name, 2, "trainer"))
            cluster.wait_for_nodes()
            print(cluster.address, flush=True)
            sys.stdin.read()
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
