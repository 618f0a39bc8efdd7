"""Where a sweep's time goes beyond useful work: seconds from the command to each moment, and to the command's end.

    python -m benchmarks.timeline [sweeps/quickstart.yaml] [--set generations=2 --set vary.seed=[0] …]

The sweep runs in a process of its own, on a store that is empty, and says the moments itself (``timeline`` in its
``summary.json``). The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measure(study: str, settings: list[str]) -> dict[str, Any]:
    """The time line of one sweep (s), and what of its time was useful."""
    with tempfile.TemporaryDirectory(prefix="fortifai-timeline-") as storage:
        overrides = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "fortifai_ray", "sweep", study, "--storage", storage, *overrides]
        started = time.perf_counter()
        subprocess.run(command, check=True)
        ended = time.perf_counter() - started
        (summary,) = (json.loads(path.read_text()) for path in Path(storage).glob("*/results/summary.json"))
    names = ("wall_seconds", "useful_seconds", "chains_at_once", "overhead", "engine_start_seconds")
    moments = {**summary["timeline"], "command_ended": ended}
    return {
        "timeline": {name: round(at, 2) for name, at in moments.items()},
        **{name: summary[name] for name in names},
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="sweeps/quickstart.yaml")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.study, arguments.settings)))


if __name__ == "__main__":
    main()
