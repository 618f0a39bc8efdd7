"""What a trial died of: whether another try can end otherwise, and the cause in one line.

Another try can help where something outside of the chain may have changed: a process, a node, a network, memory, a
disk. It cannot where the same code meets the same data again. What might be either (torch's ``RuntimeError``) is tried
once more, and given up when the same words come back.
"""

import errno
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

from ray.exceptions import RayError, RayTaskError, UserCodeException

from fortifai_ray.engines.pretrained import WeightsError
from fortifai_ray.errors import UserError
from fortifai_ray.storage.stage import StageLost

_LONGEST = 500  # characters of a cause
_CODE = (AssertionError, AttributeError, ImportError, NameError, NotImplementedError, RecursionError, SyntaxError)
_DATA = (UserError, WeightsError, ValueError, TypeError, LookupError, ArithmeticError)
_FILES = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
_LASTING_NUMBERS = {errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.EINVAL}
_PASSING = (StageLost, ConnectionError, TimeoutError, MemoryError, InterruptedError)
# Errors of libraries that need not be installed or imported here: torch, vLLM, httpx, which fetches from hubs.
_PASSING_NAMES = {"OutOfMemoryError", "DistBackendError", "DistNetworkError", "DistStoreError", "EngineDeadError"}
_PASSING_NAMES |= {"ConnectError", "ConnectTimeout", "ReadTimeout", "PoolTimeout", "RemoteProtocolError"}
# Ray Train's, of a training worker that does not answer, or of a group that does not come to be.
_PASSING_NAMES |= {"WorkerHealthCheckTimeoutError", "WorkerGroupStartupFailedError", "WorkerGroupStartupTimeoutError"}
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PLACES = re.compile(r" ?\((?:pid|ip|actor_id|task_id|repr)=[^()]*(?:\([^()]*\)[^()]*)*\)")
_DETAIL = re.compile(r"Worker exit detail: (.+?)(?:\. |\.?$)", re.MULTILINE)

_BEGINNING = "an error raised in its creation task"  # Ray keeps that error as text alone


class Fault(Enum):
    """Whether a fault lasts: ``UNCLEAR`` where only another try can tell."""

    LASTING = "lasting"
    UNCLEAR = "unclear"
    PASSING = "passing"


def fault_of(error: BaseException) -> Fault:
    """Whether trying again can help. Of a group of workers, one that met a lasting fault decides: the others' lost
    connections follow from it."""
    kinds = [_kind(cause) for cause in _causes(error)]
    return next((kind for kind in (Fault.LASTING, Fault.PASSING) if kind in kinds), Fault.UNCLEAR)


def in_words(error: BaseException) -> str:
    """The cause of an error in one line: what failed, and what that came from."""
    causes = list(_causes(error))
    kind = fault_of(error)
    cause = next((cause for cause in causes if _kind(cause) is kind), causes[0])
    words, root = _named(cause), _root(cause)
    if root is not cause and not isinstance(cause, UserError) and _line(str(root)) not in words:
        words += f" (from {_named(root)})"
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What is inside the wrappings of Ray, Ray Train and Ray Data."""
    inside: list[Any] = []
    if isinstance(error, RayTaskError):
        inside = [error.cause]
    elif isinstance(error, UserCodeException):
        inside = [error.__cause__]
    elif hasattr(error, "worker_failures"):
        inside = list(error.worker_failures.values())
    elif hasattr(error, "controller_failure"):
        inside = [error.controller_failure]
    elif hasattr(error, "health_check_failure"):  # of a training worker that died
        inside = [error.health_check_failure]
    elif isinstance(error, BaseExceptionGroup):
        inside = list(error.exceptions)
    found = [cause for cause in inside if isinstance(cause, BaseException) and cause is not error]
    if not found:
        yield error
    for cause in found:
        yield from _causes(cause)


def _kind(cause: BaseException) -> Fault:
    chain = list(_chain(cause))
    if any(isinstance(link, _PASSING) or type(link).__name__ in _PASSING_NAMES for link in chain):
        return Fault.PASSING
    if isinstance(cause, RayError) and _BEGINNING in str(cause):
        return Fault.UNCLEAR
    if isinstance(cause, RayError) and not isinstance(cause, RayTaskError | UserCodeException):
        return Fault.PASSING  # a process, a node or an object was lost
    if isinstance(cause, (*_CODE, *_DATA, *_FILES)):
        return Fault.LASTING
    if isinstance(cause, OSError) and cause.errno is not None:
        return Fault.LASTING if cause.errno in _LASTING_NUMBERS else Fault.PASSING
    return Fault.UNCLEAR


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _root(error: BaseException) -> BaseException:
    return list(_chain(error))[-1]


def _named(error: BaseException) -> str:
    message = str(error)
    if isinstance(error, RayError) and _BEGINNING in message:
        message = message.strip().splitlines()[-1]
    elif isinstance(error, RayError) and (detail := _DETAIL.search(message)):
        message = f"a process died: {detail[1]}"
    elif isinstance(error, RayError):
        message = message.split("\n\n")[0]
    line = _line(message)
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}".removesuffix(": ")


def _line(text: str) -> str:
    return " ".join(_PLACES.sub("", _COLOURS.sub("", text)).split())
