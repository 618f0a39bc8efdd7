"""A cluster on this machine that starts nodes on demand: Ray's autoscaler over its fake provider.

``python -m cluster.growing FOLDER WORKERS GPUS``, until its input is closed: a head without CPUs, and at most WORKERS
nodes of one CPU and GPUS GPUs, none of them there yet. Prints the head's HOST:PORT. All its processes name FOLDER, and
are ended by it: Ray's own ``AutoscalingCluster`` would end every Ray process of the machine.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import ray.util
from ports import unused_port
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

BIN = Path(sys.executable).parent


def configuration(workers: int, gpus: int, address: str) -> dict[str, object]:
    """What ``ray up`` gives a head, for nodes that are processes of this machine."""
    worker = {"CPU": 1, **({"GPU": gpus} if gpus else {})}
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": workers},
    }
    # By its class: for the provider's name, Ray looks for a file of defaults that its wheel lacks.
    provider = {"type": "external", "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"}
    return {
        "cluster_name": "growing",
        "max_workers": workers,
        "idle_timeout_minutes": 5,
        "provider": provider | {"head_node_id": FAKE_HEAD_NODE_ID, "launch_multiple": True, "gcs_address": address},
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        **{f"{which}setup_commands": [] for which in ("", "head_", "worker_")},
        **{f"{which}_start_ray_commands": [] for which in ("head", "worker")},
        **{key: [] for key in ("cluster_synced_files", "initialization_commands", "rsync_exclude", "rsync_filter")},
        **{key: {} for key in ("auth", "file_mounts")},
        "file_mounts_sync_continuously": False,
    }


def start(folder: Path, workers: int, gpus: int) -> str:
    """Start the head; returns its address."""
    port = unused_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    (folder / "cluster.json").write_text(json.dumps(configuration(workers, gpus, address)))
    environment = os.environ | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": "ray.head.default",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    command = [str(BIN / "ray"), "start", "--head", f"--port={port}", "--num-cpus=0"]
    command += [f"--autoscaling-config={folder / 'cluster.json'}", f"--temp-dir={folder}", "--dashboard-port=0"]
    command += ["--include-dashboard=false", "--dashboard-agent-listen-port=0", "--disable-usage-stats"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return address


def stop(folder: Path) -> None:
    """End the processes with this folder in their command lines: the head's and those of its nodes."""
    for _ in range(3):  # the autoscaler may be starting another
        for process in psutil.process_iter(["cmdline"]):
            if process.pid != os.getpid() and any(str(folder) in part for part in process.info["cmdline"] or ()):
                process.kill()
        time.sleep(0.5)


def main() -> None:
    folder = Path(sys.argv[1])
    try:
        print(start(folder, int(sys.argv[2]), int(sys.argv[3])), flush=True)
        sys.stdin.read()
    finally:
        stop(folder)


if __name__ == "__main__":
    main()
