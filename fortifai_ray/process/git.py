"""What git says of a folder."""

import subprocess
from pathlib import Path

_PATIENCE = 5.0  # seconds for git, which may have to wait for a file server


def git(*arguments: str, folder: Path | None = None) -> str:
    """What git says in a folder, by default the working folder; "" where that is in no repository, or there is no
    git."""
    command = ["git", *(("-C", str(folder)) if folder else ()), *arguments]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()
