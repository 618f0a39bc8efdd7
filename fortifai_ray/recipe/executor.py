"""What runs a neural family's expensive steps: training, scoring and generation.

A family says *what* is to be computed; the executor decides where, and nothing it decides changes a result beyond
rounding. On Ray it is :class:`fortifai_ray.sweep.ray_executor.RayExecutor`; without Ray,
:class:`fortifai_ray.engines.in_process.InProcess`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fortifai_ray.storage.store import Folder, StageFiles

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import Tensor, nn

R = TypeVar("R")
Loop = Callable[..., None]
Arguments = Mapping[str, Any]
OnWait = Callable[[str], None]


@dataclass(frozen=True)
class Workers:
    """A train function's place in its group of workers.

    ``rank`` counts from 0 to ``world`` − 1; ``device`` is this worker's own; ``prepare`` moves a network to it and, in
    a group, wraps it in DistributedDataParallel.
    """

    rank: int
    world: int
    device: "torch.device"
    prepare: "Callable[[nn.Module], nn.Module]"

    def sum(self, tensor: "Tensor") -> "Tensor":
        """``tensor`` summed over the workers, in place. Every worker must call it."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor


@dataclass(frozen=True)
class CorpusReport:
    """Size and duration of a corpus.

    Attributes:
        rows: rows written.
        generated_tokens: tokens generated in total.
        seconds: time during which at least one engine generated: no waiting, no start, no load.
        load_seconds: time spent on starting engines and swapping weights, summed over calls.
        calls: number of engine calls.
    """

    rows: int
    generated_tokens: int
    seconds: float
    load_seconds: float
    calls: int


class Executor(Protocol):
    """Runs training, scoring and generation."""

    @property
    def threads(self) -> int:
        """CPU threads that one process of a chain computes with."""

    def fit(self, loop: Loop, settings: Arguments, arrays: Arguments, model: Folder, output: Path) -> None:
        """Call ``loop(workers, model=…, output=…, **settings, **arrays)`` on every training worker.

        ``loop`` is a module-level function. ``settings`` are small and pickle; ``arrays`` may be large; ``model``
        reaches the loop as a path (Path) that exists on its node. Rank 0 writes into ``output``, a path on its own node
        whose content is in the caller's ``output`` when this returns.
        """

    def score(self, function: Callable[..., R], *arguments: Any, **keywords: Any) -> R:
        """``function(*arguments, **keywords)`` on the device that trained the model; each :class:`StageFiles` among
        the arguments reaches it as a folder (Path) on its node."""

    def write(self, request: Any, prompts: "pa.Table", out_dir: Path, on_wait: OnWait) -> CorpusReport:
        """Generate from every prompt and write the corpus into ``out_dir`` as Parquet.

        ``request`` is an ``engines.corpus.Request``; ``on_wait`` receives a line for every minute in which no call to
        an engine has ended.
        """

    def close(self) -> None:
        """Give back the processes that are kept between steps; the next step takes others."""


def with_folders(function: Callable[..., R], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> R:
    """Call ``function`` with the folder on this node in the place of each :class:`StageFiles`."""
    return function(*map(_folder, arguments), **{name: _folder(value) for name, value in keywords.items()})


def _folder(value: Any) -> Any:
    return value.path if isinstance(value, StageFiles) else value
