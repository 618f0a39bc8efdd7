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


class Written(Protocol):
    """What writing a corpus came to: rows, tokens, and the seconds in which at least one engine generated."""

    @property
    def rows(self) -> int: ...

    @property
    def generated_tokens(self) -> int: ...

    @property
    def seconds(self) -> float: ...


class Executor(Protocol):
    """Runs training, scoring and generation."""

    @property
    def threads(self) -> int:
        """CPU threads that one process of a chain computes with."""

    def fit(
        self,
        loop: Callable[..., None],
        settings: Mapping[str, Any],
        arrays: Mapping[str, Any],
        folders: Mapping[str, Folder],
        output: Path,
    ) -> None:
        """Call ``loop(workers, output=…, **settings, **arrays, **folders)`` on every training worker.

        ``loop`` is a module-level function. ``settings`` are small and pickle; ``arrays`` may be large; ``folders``
        reach the loop as paths (Path) that exist on its node. Rank 0 writes into ``output``, a path on its own node
        whose content is in the caller's ``output`` when this returns.
        """

    def score(self, function: Callable[..., R], *arguments: Any, **keywords: Any) -> R:
        """``function(*arguments, **keywords)`` on the device that trained the model; each :class:`StageFiles` among
        the arguments reaches it as a folder (Path) on its node."""

    def write(
        self,
        model: Folder,
        version: str,
        prompts: "pa.Table",
        decoding: Any,
        engine: Any,
        out_dir: Path,
        on_wait: Callable[[str], None],
    ) -> Written:
        """Generate from every prompt and write the corpus into ``out_dir`` as Parquet.

        ``version`` identifies the weights in ``model``; ``decoding`` and ``engine`` are a ``DecodingConfig`` and an
        ``EngineConfig``; ``on_wait`` receives a line for every minute in which no call to an engine has ended.
        """


def with_folders(function: Callable[..., R], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> R:
    """Call ``function`` with the folder on this node in the place of each :class:`StageFiles`."""
    return function(*map(_folder, arguments), **{name: _folder(value) for name, value in keywords.items()})


def _folder(value: Any) -> Any:
    return value.path if isinstance(value, StageFiles) else value
