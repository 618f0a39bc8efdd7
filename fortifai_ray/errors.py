"""The one kind of error that is the user's to mend, and how any other is told."""

from collections.abc import Callable


class UserError(Exception):
    """Something the user can put right: what is wrong, where, and what would be right, in one line.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """


def in_short(error: BaseException, redact: Callable[[str], str] = str) -> str:
    """An error's message in one line of at most 300 characters, or else its class; ``redact`` sees the whole of it."""
    message = redact(" ".join(str(error).split())) or type(error).__name__
    return message if len(message) <= 300 else f"{message[:299]}…"


def named(error: BaseException) -> str:
    """An error's class and its message in one line, ``ValueError: no reward today``."""
    kind, message = type(error).__name__, in_short(error)
    return kind if message == kind else f"{kind}: {message}"
