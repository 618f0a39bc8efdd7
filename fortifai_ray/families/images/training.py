"""Training one generation on Ray Train: one train function, in one process or in many.

Losses are sums, divided once by the *global* number of targets, and noise is drawn for the whole global batch on the
CPU: the number of workers changes nothing but rounding.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor, nn

from fortifai_ray.families.fitting import fetch, make_optimizer, run_on_ray_train, use_bfloat16
from fortifai_ray.families.images.config import TrainingConfig
from fortifai_ray.families.images.models import load_identity, load_model, save_model
from fortifai_ray.families.images.objective import Noise, Sums, cpu_generator
from fortifai_ray.losses import CrossEntropy, DynamicTruncatedCrossEntropy, Loss, PointwiseLoss
from fortifai_ray.seeds import derive_seed, generator
from fortifai_ray.storage.transfer import Folder

VERSION = 1  # bump when the same data and settings give another model

_REPORT = "training.json"
_loss_adapter: TypeAdapter[Loss] = TypeAdapter(Loss)


@dataclass(frozen=True)
class TrainingReport:
    """What one generation's training came to. A target is a pixel or a coordinate of the noise."""

    train_loss: float  # nats per target over the last epoch, penalty (the VAE's KL term) included
    kept_fraction: float  # of the targets, over all epochs
    mean_target_probability: float  # over all epochs, as it was before each step
    gamma_by_epoch: list[float]  # of dynamic_tce; empty for other losses
    steps: int
    targets: int
    world_size: int
    train_seconds: float
    diverged: str | None


def train(
    model: Folder,
    output: Path,
    samples: np.ndarray,
    loss: Loss,
    training: TrainingConfig,
    seed: int,
    *,
    workers: int = 1,
    resources_per_worker: dict[str, float] | None = None,
    threads: int = 1,
) -> TrainingReport:
    """Train ``model`` (a folder) on ``samples`` (n, …); write the result, a folder of the same kind, to ``output``.

    ``seed`` gives the order of the samples, epoch by epoch, and the noise of each step.
    """
    config = {
        "loss": loss.model_dump(),
        "training": training.model_dump(),
        "seed": seed,
        "threads": threads,
    }
    run_on_ray_train(
        train_loop,
        config,
        {"samples": samples},
        {"model": model},
        output,
        workers=workers,
        resources_per_worker=resources_per_worker,
    )
    return TrainingReport(**json.loads((output / _REPORT).read_text()))


def train_loop(config: dict[str, Any]) -> None:
    """The train function that each Ray Train worker runs (see :func:`train` for what ``config`` holds)."""
    import ray.train
    import ray.train.torch

    torch.set_num_threads(config["threads"])
    training = TrainingConfig(**config["training"])
    context = ray.train.get_context()
    world, rank = context.get_world_size(), context.get_world_rank()
    if world > 1:
        assert dist.get_world_size() == world, "the process group is not the worker group"
    model = load_model(Path(config["model"]))
    run = _Run(ray.train.torch.prepare_model(model), fetch(config["samples"]), training, config["seed"], rank, world)
    started = time.perf_counter()
    diverged = run.train(_loss_adapter.validate_python(config["loss"]))
    report = run.report(time.perf_counter() - started, diverged)
    if rank == 0:
        output = Path(config["output"])
        save_model(model, load_identity(Path(config["model"])), output)
        np.save(output / "losses.npy", run.losses())
        (output / _REPORT).write_text(json.dumps(asdict(report)))


class _Run:
    """One worker's training: what its steps share."""

    def __init__(
        self, network: nn.Module, samples: np.ndarray, training: TrainingConfig, seed: int, rank: int, world: int
    ) -> None:
        self._network, self._samples, self._training = network.train(), samples, training
        self._model: Any = getattr(network, "module", network)
        self._seed, self._rank, self._world = seed, rank, world
        self._device = self._model.device
        self._steps = math.ceil(len(samples) / training.batch_size) * training.epochs
        self._optimizer, self._schedule = make_optimizer(network, training, self._steps)
        self._autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=use_bfloat16(training, self._device))
        # a row a step: loss, kept targets, target probability, targets
        self._sums = torch.zeros(self._steps, 4, dtype=torch.float64, device=self._device)
        self._gammas: list[float] = []

    def train(self, loss: Loss) -> str | None:
        """Every epoch; returns why it stopped early, on every rank alike, or None."""
        step = 0
        for epoch in range(self._training.epochs):
            of_epoch = self._loss_of(loss, epoch)
            if of_epoch is None:
                return f"the target probabilities are not finite ahead of epoch {epoch}"
            order = generator(self._seed, "epoch", epoch).permutation(len(self._samples))
            share = slice(self._rank, None, self._world)
            for samples, noise, rows in self._batches(order, share, step, "noise"):
                if not self._step(step, samples, noise, rows, of_epoch):
                    return f"the gradient is not finite at step {step}"
                step += 1
        return None

    def _batches(
        self, order: np.ndarray, share: slice, step: int, *purpose: str | int
    ) -> Iterator[tuple[Tensor, Noise, int]]:
        """A share of each global batch and of its noise, and the rows in the whole of it; ``step`` is the first's."""
        size = self._training.batch_size
        for number, start in enumerate(range(0, len(order), size), start=step):
            batch = order[start : start + size]
            noise = self._model.noise(len(batch), cpu_generator(derive_seed(self._seed, *purpose, number)))
            samples = torch.from_numpy(self._samples[batch[share]]).to(self._device)
            yield samples, tuple(part[share].to(self._device) for part in noise), len(batch)

    def _step(self, step: int, samples: Tensor, noise: Noise, rows: int, loss: PointwiseLoss) -> bool:
        """One update of the weights, left out where the gradient is not finite."""
        with self._autocast:
            sums: Sums = self._network(samples, noise, loss)
        targets = rows * self._model.dimensions
        count = targets if loss.normaliser == "valid" else self._over_workers(sums.kept.clone()).clamp_min(1)
        value = sums.total / count + sums.penalty / targets
        # DistributedDataParallel averages gradients over workers; the sum over workers is wanted.
        (value * self._world).backward()
        row = (value.detach(), sums.kept, sums.log_p.exp().sum(), torch.tensor(sums.log_p.numel()))
        self._sums[step] = torch.stack([part.to(self._sums) for part in row])
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), self._training.max_grad_norm)
        if not torch.isfinite(norm):  # the same on every rank, since gradients are already reduced
            return False
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return True

    def _loss_of(self, loss: Loss, epoch: int) -> PointwiseLoss | None:
        """The loss of an epoch; None where a threshold that follows the model is not a number."""
        if isinstance(loss, DynamicTruncatedCrossEntropy):
            self._gammas.append(self._threshold(loss, epoch))
            return None if math.isnan(self._gammas[-1]) else loss.at(self._gammas[-1])
        assert isinstance(loss, PointwiseLoss), "the recipe refuses the others"
        return loss

    def _threshold(self, loss: DynamicTruncatedCrossEntropy, epoch: int) -> float:
        """This epoch's γ, from ``sample_blocks`` samples. Each worker goes through them all, and so has the same γ."""
        order = generator(self._seed, "threshold", epoch).permutation(len(self._samples))[: loss.sample_blocks]
        with torch.no_grad(), self._autocast:
            batches = self._batches(order, slice(None), 0, "threshold", epoch)
            probabilities = [self._model(x, noise, CrossEntropy()).log_p.exp().flatten() for x, noise, _ in batches]
        gamma = torch.tensor(loss.threshold(probabilities), dtype=torch.float64, device=self._device)
        return float(self._over_workers(gamma) / self._world)

    def _over_workers(self, count: Tensor) -> Tensor:
        if self._world > 1:
            dist.all_reduce(count)
        return count

    def losses(self) -> np.ndarray:
        """Loss by step, nats per target, over all workers: float64 of shape (steps,). After :meth:`report`."""
        return self._sums[:, 0].cpu().numpy()

    def report(self, seconds: float, diverged: str | None) -> TrainingReport:
        """What it came to, after reducing over the workers: to be called once, by every worker."""
        self._over_workers(self._sums)
        _, kept, probability, targets = self._sums.sum(0).tolist()
        last = self._sums[-(self._steps // self._training.epochs) :]
        return TrainingReport(
            train_loss=float((last[:, 0] * last[:, 3]).sum() / last[:, 3].sum().clamp_min(1)),
            kept_fraction=kept / max(targets, 1.0),
            mean_target_probability=probability / max(targets, 1.0),
            gamma_by_epoch=self._gammas,
            steps=int((self._sums[:, 3] > 0).sum()),
            targets=int(targets),
            world_size=self._world,
            train_seconds=seconds,
            diverged=diverged,
        )
