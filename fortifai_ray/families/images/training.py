"""Training one generation of a VAE or a diffusion model.

Noise is drawn on the CPU for the whole global batch: the number of workers changes nothing but rounding.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fortifai_ray.families.fitting import EpochLoss, Fit, FitReport, read_report, unwrapped, write_report
from fortifai_ray.families.images.config import TrainingConfig
from fortifai_ray.families.images.models import load_identity, load_model, save_model
from fortifai_ray.families.images.objective import GenerativeModel, Noise, Sums, cpu_generator
from fortifai_ray.losses import CrossEntropy, Loss, PointwiseLoss
from fortifai_ray.recipe.executor import Executor, Workers
from fortifai_ray.seeds import derive_seed
from fortifai_ray.storage.store import Folder

VERSION = 1  # bump when the same data and settings give another model


def train(
    executor: Executor,
    model: Folder,
    output: Path,
    samples: np.ndarray,
    loss: Loss,
    training: TrainingConfig,
    seed: int,
) -> FitReport:
    """Train ``model`` (a folder) on ``samples`` (n, …); write the result, a folder of the same kind, to ``output``.

    ``seed`` determines the order of the samples, epoch by epoch, and the noise of each step. The report's
    ``train_loss`` includes the penalty (the VAE's KL term).
    """
    settings = {"loss": loss, "training": training, "seed": seed}
    executor.fit(train_loop, settings, {"samples": samples}, model, output)
    return FitReport(**read_report(output))


def train_loop(
    workers: Workers,
    *,
    model: Path,
    output: Path,
    samples: np.ndarray,
    loss: Loss,
    training: TrainingConfig,
    seed: int,
) -> None:
    """Run by every training worker (see :func:`train`)."""
    network = load_model(model)
    fit = _ImageFit(workers.prepare(network), samples, training, seed, workers)
    report = fit.run(loss)
    if workers.rank == 0:
        save_model(network, load_identity(model), output)
        np.save(output / "losses.npy", fit.column("loss").cpu().numpy())  # nats per target by step: float64, (steps,)
        write_report(report, output)


class _Batch(NamedTuple):
    """One rank's share of a global batch of ``rows`` samples, with its noise."""

    samples: Tensor
    noise: Noise
    rows: int


class _ImageFit(Fit[_Batch]):
    COLUMNS: ClassVar[tuple[str, ...]] = ("loss", "kept", "probability", "targets")

    def __init__(
        self, network: torch.nn.Module, samples: np.ndarray, training: TrainingConfig, seed: int, workers: Workers
    ) -> None:
        super().__init__(network, len(samples), training, seed, workers)
        self._samples, self._seed = samples, seed
        model = unwrapped(network)
        assert isinstance(model, GenerativeModel)
        self._model = model

    def batches(
        self, order: np.ndarray, rank: int, world: int, purpose: tuple[str | int, ...], first: int
    ) -> Iterator[_Batch]:
        size, share = self.training.batch_size, slice(rank, None, world)
        for number, start in enumerate(range(0, len(order), size), start=first):
            batch = order[start : start + size]
            noise = self._model.noise(len(batch), cpu_generator(derive_seed(self._seed, *purpose, number)))
            samples = torch.from_numpy(self._samples[batch[share]]).to(self.device)
            yield _Batch(samples, tuple(part[share].to(self.device) for part in noise), len(batch))

    def add_gradients(self, step: int, batch: _Batch, loss: EpochLoss) -> None:
        assert isinstance(loss, PointwiseLoss), "the recipe refuses the others"
        with self.autocast:
            sums: Sums = self.network(batch.samples, batch.noise, loss)
        targets = batch.rows * self._model.dimensions
        count = targets if loss.normaliser == "valid" else self.workers.sum(sums.kept.clone()).clamp_min(1)
        value = sums.total / count + sums.penalty / targets
        # DistributedDataParallel averages gradients over workers; the sum over workers is wanted.
        (value * self.workers.world).backward()
        recorded: Mapping[str, Any] = {
            "loss": value.detach(),
            "kept": sums.kept,
            "probability": sums.log_p.exp().sum(),
            "targets": sums.log_p.numel(),
        }
        self.record(step, recorded)

    def target_probabilities(self, module: GenerativeModel, batch: _Batch) -> list[Tensor]:
        return [module(batch.samples, batch.noise, CrossEntropy()).log_p.exp().flatten()]

    def train_loss(self, last_epoch: Tensor) -> float:
        loss, targets = last_epoch[:, 0], last_epoch[:, 3]
        return float((loss * targets).sum() / targets.sum().clamp_min(1))
