"""Folders for temporary files and for sockets, whose paths the kernel keeps short.

A batch system's ``TMPDIR`` (``/scratch/users/…/job.12345``) is often too long for a socket's path: Ray's then get a
short name for it, a link in another folder.
"""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fortifai_ray.errors import UserError

_LONGEST = 103 if sys.platform == "darwin" else 107  # bytes of a Unix socket's path
_LINK = len("/fortifai-01234567")
RAY_SOCKET = len("/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store.10")
VLLM_SOCKET = len("/01234567-89ab-cdef-0123-456789abcdef")


def check_temporary() -> None:
    """Raise :class:`UserError` for a folder in ``TMPDIR`` or ``RAY_TMPDIR`` that cannot be written."""
    for name in ("TMPDIR", "RAY_TMPDIR"):
        folder = os.environ.get(name)
        if not folder:
            continue
        if not os.path.isdir(folder):
            wrong = "is no folder" if os.path.lexists(folder) else "does not exist"
        elif not os.path.isabs(folder):
            wrong = "is no absolute path"
        elif not os.access(folder, os.W_OK | os.X_OK):
            wrong = "cannot be written"
        else:
            continue
        raise UserError(f"{name}={folder}: {wrong}: make that folder, give another one (/tmp), or unset {name}")


@contextmanager
def short_name(beneath: int) -> Iterator[Path]:
    """A name of the folder for temporary files to which a socket's path of ``beneath`` bytes can be added.

    It is the folder itself, or a link to it that is removed afterwards. Raises :class:`UserError` where every folder
    that could hold one is too long itself.
    """
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    if _fits(folder, beneath):
        yield folder
        return
    link = short_folder(beneath + _LINK) / f"fortifai-{secrets.token_hex(4)}"
    link.symlink_to(folder, target_is_directory=True)
    try:
        yield link
    finally:
        with suppress(OSError):
            link.unlink()


def short_folder(beneath: int) -> Path:
    """A folder to which a socket's path of ``beneath`` bytes can be added; see :func:`short_name`."""
    named = [os.environ.get(name) for name in ("TMPDIR", "XDG_RUNTIME_DIR", "HOME")]
    for folder in map(Path, filter(None, [named[0], "/tmp", *named[1:]])):
        if folder.is_absolute() and _fits(folder, beneath) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise UserError(
        f"TMPDIR={named[0]}: is too long for Ray's sockets, and there is no short folder beside it that can be "
        f"written: give one of at most {_LONGEST - beneath} bytes, e.g. TMPDIR=/tmp"
    )


def _fits(folder: Path, beneath: int) -> bool:
    return len(os.fsencode(folder)) + beneath <= _LONGEST
