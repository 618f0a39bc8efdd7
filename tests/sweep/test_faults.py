"""What is tried again, and what a chain that failed is said to have died of."""

import errno
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, OutOfMemoryError, RayTaskError, WorkerCrashedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from fortifai_ray.engines.pretrained import WeightsError
from fortifai_ray.errors import UserError
from fortifai_ray.storage.stage import StageLost
from fortifai_ray.sweep.faults import Fault, fault_of, in_words
from fortifai_ray.sweep.progress import Board


def task_error(cause: Exception) -> Exception:
    """As `ray.get` raises what a task or an actor raised."""
    error = RayTaskError("generate", "\x1b[36mray::Engine.generate()\x1b[39m (pid=7, ip=127.0.0.1)\n  boom", cause)
    return error.as_instanceof_cause()


def raised(error: Exception, cause: Exception) -> Exception:
    """``error``, raised from ``cause``."""
    try:
        raise error from cause
    except Exception as caught:
        return caught


class OutOfMemoryOnGpu(RuntimeError):
    """As torch's, which is known by its name."""


OutOfMemoryOnGpu.__name__ = "OutOfMemoryError"
GLOO = RuntimeError("[../gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:4242: Connection reset by peer")


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (UserError("family.dim: too many"), Fault.LASTING),
        (WeightsError("model.safetensors lacks lm_head.weight"), Fault.LASTING),
        (ValueError("rows of 90 tokens do not fit"), Fault.LASTING),
        (TypeError("not a number"), Fault.LASTING),
        (KeyError("hidden_size"), Fault.LASTING),
        (IndexError("out of range"), Fault.LASTING),
        (AttributeError("bias"), Fault.LASTING),
        (AssertionError(), Fault.LASTING),
        (ZeroDivisionError("division by zero"), Fault.LASTING),
        (ModuleNotFoundError("No module named 'my_loss'"), Fault.LASTING),
        (NotImplementedError("no such layer"), Fault.LASTING),
        (FileNotFoundError(errno.ENOENT, "No such file", "model-00002-of-00002.safetensors"), Fault.LASTING),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), Fault.LASTING),
        (OSError(errno.ENAMETOOLONG, "File name too long"), Fault.LASTING),
        (OSError(errno.EROFS, "Read-only file system"), Fault.LASTING),
        (task_error(ValueError("in an engine")), Fault.LASTING),
        (task_error(task_error(FileNotFoundError(2, "No such file", "x"))), Fault.LASTING),
        (WorkerGroupError("two failed", {0: GLOO, 1: ValueError("expected 2 got 3")}), Fault.LASTING),
        (OSError(errno.ENOSPC, "No space left on device"), Fault.PASSING),
        (OSError(errno.EIO, "Input/output error"), Fault.PASSING),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Fault.PASSING),
        (TimeoutError("no answer"), Fault.PASSING),
        (MemoryError(), Fault.PASSING),
        (OutOfMemoryOnGpu("CUDA out of memory"), Fault.PASSING),
        (StageLost("its files are gone"), Fault.PASSING),
        (ActorDiedError(), Fault.PASSING),
        (WorkerCrashedError(), Fault.PASSING),
        (OutOfMemoryError("killed"), Fault.PASSING),
        (GetTimeoutError("late"), Fault.PASSING),
        (task_error(ConnectionRefusedError(errno.ECONNREFUSED, "refused")), Fault.PASSING),
        (raised(ValueError("the hub gave nothing"), ConnectionError("no route")), Fault.PASSING),
        (WorkerGroupError("two failed", {0: GLOO, 1: ActorDiedError()}), Fault.PASSING),
        (WorkerGroupError("x", {0: GLOO, 1: WorkerHealthCheckFailedError("x", ActorDiedError())}), Fault.PASSING),
        (WorkerGroupError("x", {0: WorkerHealthCheckFailedError("x", ValueError("no number"))}), Fault.LASTING),
        (WorkerGroupError("x", {0: WorkerHealthCheckTimeoutError("hangs")}), Fault.PASSING),
        (ControllerError(WorkerGroupStartupFailedError("a worker died")), Fault.PASSING),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), Fault.PASSING),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Fault.UNCLEAR),
        (OSError("We couldn't connect to the hub"), Fault.UNCLEAR),
        (WorkerGroupError("one failed", {0: GLOO}), Fault.UNCLEAR),
    ],
    ids=lambda value: f"{type(value).__name__}-{value}"[:60] if isinstance(value, Exception) else "",
)
def test_another_try_is_for_what_may_have_changed(error: Exception, fault: Fault) -> None:
    """The same code on the same data fails again; a process, node, network or disk may be another one by then."""
    assert fault_of(error) is fault


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("family.dim: too many"), "family.dim: too many"),
        (KeyError("hidden_size"), "KeyError: 'hidden_size'"),
        (AssertionError(), "AssertionError"),
        (task_error(ValueError("rows of 90\n  tokens do not fit")), "ValueError: rows of 90 tokens do not fit"),
        (
            FileNotFoundError(2, "No such file or directory", "model-2.safetensors"),
            "FileNotFoundError: [Errno 2] No such file or directory: 'model-2.safetensors'",
        ),
        (
            raised(RuntimeError("the model cannot be read"), KeyError("n_embd")),
            "RuntimeError: the model cannot be read (from KeyError: 'n_embd')",
        ),
        (raised(RuntimeError("it says: boom"), ValueError("boom")), "RuntimeError: it says: boom"),
        (WorkerGroupError("x", {0: GLOO, 1: TypeError("no number")}), "TypeError: no number"),
        (RuntimeError("\x1b[31mred\x1b[0m (pid=12, ip=10.0.0.1) ends"), "RuntimeError: red ends"),
    ],
)
def test_the_cause_is_said_in_one_line(error: Exception, words: str) -> None:
    """Not the last line of a remote traceback, which is often somebody else's: no colours, no numbers of processes."""
    assert in_words(error) == words


def test_a_long_cause_is_cut() -> None:
    assert len(in_words(RuntimeError("x" * 10_000))) == 500


def test_the_same_fault_is_counted_for_each_job() -> None:
    """What might have passed and comes back word for word is given up."""
    board = Board()
    assert [board.fault("a", "boom"), board.fault("a", "bang"), board.fault("b", "boom")] == [1, 1, 1]
    assert board.fault("a", "boom") == 2


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_what_an_actor_raises_and_how_it_dies(tmp_path: Path) -> None:
    """As Ray really hands them on: a fault of its beginning is a cause like any other, a death is none."""

    @ray.remote(num_cpus=0)
    class Broken:
        def __init__(self) -> None:
            raise ValueError("of my own making")

        def ask(self) -> None: ...

    @ray.remote(num_cpus=0)
    class Engine:
        def refuse(self) -> None:
            raise WeightsError("lm_head.weight is not that of the file") from ValueError("checksums")

        def die(self) -> None:
            import os

            os._exit(1)

    with pytest.raises(ActorDiedError) as broken:
        ray.get(Broken.remote().ask.remote())
    assert fault_of(broken.value) is Fault.UNCLEAR
    assert in_words(broken.value) == "ActorDiedError: ValueError: of my own making"
    engine = Engine.remote()
    with pytest.raises(WeightsError) as refused:
        ray.get(engine.refuse.remote())
    assert fault_of(refused.value) is Fault.LASTING
    assert in_words(refused.value).startswith("WeightsError: lm_head.weight is not that of the file")
    with pytest.raises(ActorDiedError) as died:
        ray.get(engine.die.remote())
    assert fault_of(died.value) is Fault.PASSING
    assert in_words(died.value).startswith("ActorDiedError: a process died: ")
