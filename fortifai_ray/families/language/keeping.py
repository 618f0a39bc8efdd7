"""``training.keep: best``: each epoch's model is scored where it is trained, and the best one stays."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from fortifai_ray.recipe.executor import Workers, with_folders

CANDIDATE, BEST = "candidate", "best"


@dataclass(frozen=True)
class Measure:
    """What chooses an epoch: ``function(folder, *arguments, **keywords)`` measures a model's folder; picklable.

    ``highest`` says whether a higher value is the better one. :class:`StageFiles` among the arguments become folders.
    """

    highest: bool
    function: Callable[..., float]
    arguments: Sequence[Any] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, folder: Path) -> float:
        return with_folders(self.function, (folder, *self.arguments), self.keywords)

    def better(self, value: float, than: float | None) -> bool:
        """Whether a value is better than another one, or the first; NaN is worse than any."""
        if than is None or math.isnan(value) or math.isnan(than):
            return than is None or not math.isnan(value)
        return value > than if self.highest else value < than


class BestEpoch:
    """Scores the model after each epoch and keeps the best one, in a folder within ``output`` until it replaces the
    last one there. Every rank takes part in saving; rank 0 alone scores, and the others wait for it.

    ``save(folder)`` writes the model as it is now; ``base`` is the folder of an adapter's model.
    """

    def __init__(
        self, measure: Measure, save: Callable[[Path], None], output: Path, workers: Workers, base: Path | None
    ) -> None:
        self._measure, self._save, self._output, self._rank = measure, save, output, workers.rank
        self._device, self._patient = workers.device, _patient_group() if workers.world > 1 else None
        self._folder = output / "epochs"
        self.values: list[float] = []
        self.kept: int | None = None
        if self._rank == 0:
            self._folder.mkdir()
            if base is not None:  # an adapter is read beside its model
                (self._folder / base.name).symlink_to(base)

    def after(self, epoch: int) -> None:
        """Score the model after ``epoch`` (from 0)."""
        candidate = self._folder / CANDIDATE
        if self._rank == 0:
            candidate.mkdir()
        self._save(candidate)
        if self._rank == 0:
            self._score(candidate, epoch)
        if self._patient is not None:
            import torch
            import torch.distributed

            scored = torch.zeros((), device=self._device)
            torch.distributed.all_reduce(scored, group=self._patient)
            scored.item()  # NCCL's call returns at once: wait here, before the training's own group counts the time

    def _score(self, candidate: Path, epoch: int) -> None:
        import torch

        devices = list(range(torch.cuda.device_count()))
        with torch.random.fork_rng(devices):  # dropout goes on as if nothing had been measured
            value = self._measure(candidate)
        best = self._folder / BEST
        if self._measure.better(value, None if self.kept is None else self.values[self.kept]):
            self.kept = epoch
            shutil.rmtree(best, ignore_errors=True)
            candidate.rename(best)
        else:
            shutil.rmtree(candidate)
        self.values.append(value)

    def finish(self, diverged: bool) -> bool:
        """Put the best model into ``output``; False, with nothing put there, where training diverged."""
        if self._rank != 0:
            return not diverged
        if not diverged:
            for file in (self._folder / BEST).iterdir():
                file.rename(self._output / file.name)
        shutil.rmtree(self._folder)
        return not diverged


def _patient_group() -> Any:
    """A group of all workers that wait longer for one another than the half hour or less after which a training's own
    group gives up: a benchmark of a large model may take as long. Every worker calls it. (Of the training's own
    backend, which reaches the other nodes.)"""
    import torch.distributed

    return torch.distributed.new_group(timeout=timedelta(days=7))
