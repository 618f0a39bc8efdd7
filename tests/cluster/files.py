"""The files of ``cluster/``, as the tests read them."""

from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
CLUSTER = PROJECT / "cluster"
LAUNCHER = ("aws.yaml", "gcp.yaml", "on_prem.yaml")
STARTS = (*LAUNCHER, "kuberay.yaml", "slurm.sbatch")


def launcher(name: str) -> dict[str, Any]:
    """A file of the Ray cluster launcher, as written."""
    content: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return content


def commands(config: dict[str, Any]) -> list[str]:
    """Every shell command that the launcher runs on a node."""
    return [command for key, listed in config.items() if key.endswith("_commands") for command in listed]
