"""Where a study's runs come from: the command, the commit of the folder in which it was given, and this package."""

import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

from fortifai_ray import __version__
from fortifai_ray.tracking.address import redact

_PATIENCE = 5.0  # seconds for git, which may have to wait for a file server


@cache
def provenance() -> dict[str, str]:
    """The tags that MLflow's page shows as a run's source and version, and ``fortifai.version``."""
    commit = _git("rev-parse", "HEAD")
    tags = {
        "mlflow.source.name": redact(_command(sys.argv)),
        "mlflow.source.type": "LOCAL",
        "fortifai.version": __version__,
    }
    if commit:
        branch = _git("rev-parse", "--abbrev-ref", "HEAD")
        tags |= {"mlflow.source.git.commit": commit} | ({"mlflow.source.git.branch": branch} if branch else {})
    return tags


def _command(argv: list[str]) -> str:
    """``fortifai sweep FILE``; of another program that uses the package, its name."""
    program = Path(argv[0] if argv else "")
    if program.name == "fortifai" or program.parts[-2:] == ("fortifai_ray", "__main__.py"):
        return shlex.join(["fortifai", *argv[1:]])
    return program.name or "python"


def _git(*arguments: str) -> str:
    """What git says in the working folder; "" where that is no repository, or there is no git."""
    command = ["git", *arguments]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()
