"""What the training of every neural family shares: its settings, its steps in the store, and the loop itself.

Losses are sums, divided once by the *global* number of targets, so that the number of workers changes nothing but
rounding. A *target* is what a loss f(log p) is taken of: a token, a pixel, or a coordinate of the noise.
"""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from fortifai_ray.losses import DynamicTruncatedCrossEntropy, Loss, PointwiseLoss, SequenceLoss
from fortifai_ray.process.memory import freed_memory_kept, give_back_gaps
from fortifai_ray.process.moments import FIRST_BATCH, happened
from fortifai_ray.recipe.executor import Workers
from fortifai_ray.recipe.family import Collapsed
from fortifai_ray.recipe.pools import TrainingSet
from fortifai_ray.seeds import generator
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageKey
from fortifai_ray.validation import Section

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

REPORT = "training.json"  # a training report, in the model's folder

EpochLoss = PointwiseLoss | SequenceLoss
_MOMENTUM, _WARMUP = 0.9, 0.05  # where a study file says nothing


class FitConfig(Section):
    """The part of ``training:`` that every neural family has."""

    epochs: int = Field(1, ge=1, description="passes over the training set")
    batch_size: int = Field(16, ge=1)
    optimizer: Literal["adamw", "adam", "adafactor", "sgd"] = Field(
        "adamw",
        description="Adam, its weight decay decoupled in adamw; Adafactor, which keeps a number for each row and "
        "column instead of Adam's two for each weight, and whose learning_rate is relative to the size of the "
        "weights (0.01 is usual); or stochastic gradient descent with momentum",
    )
    momentum: float = Field(
        _MOMENTUM,
        ge=0.0,
        lt=1.0,
        exclude_if=lambda value: value == _MOMENTUM,  # some recipes are older than the key
        description="of sgd alone",
    )
    learning_rate: float = Field(1e-3, gt=0.0, description="peak of the schedule")
    schedule: Literal["cosine", "linear", "constant", "rising"] = Field(
        "cosine",
        description="how the learning rate falls to 0 after its warm-up; constant: neither; rising: neither, but from "
        "a third of it, epoch by epoch, towards the whole (PyTorch's LinearLR, as ForTIFAI's sgd has it)",
    )
    warmup_ratio: float = Field(
        _WARMUP, ge=0.0, lt=1.0, description="share of the steps in which the rate rises from 0"
    )
    weight_decay: float = Field(0.01, ge=0.0, description="of the optimizer")
    max_grad_norm: float = Field(1.0, gt=0.0, allow_inf_nan=False, description="largest norm; 1.0e+9 clips nothing")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU that has it")

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Self:
        if self.optimizer != "sgd" and self.momentum != _MOMENTUM:
            raise ValueError(f"momentum: {self.optimizer} has none: leave it out, or take optimizer: sgd")
        if self.schedule == "rising" and self.warmup_ratio not in (0.0, _WARMUP):
            raise ValueError("warmup_ratio: schedule: rising has no warm-up: leave it out, or take schedule: constant")
        return self


@dataclass(frozen=True)
class FitReport:
    """One generation's training. The kept fraction and the probability are over all epochs, before each step."""

    train_loss: float  # nats per target over the last epoch, as the loss's normaliser and the family define it
    kept_fraction: float  # of the targets
    mean_target_probability: float
    gamma_by_epoch: list[float]  # of dynamic_tce; empty for other losses
    steps: int
    targets: int
    world_size: int
    train_seconds: float
    diverged: str | None  # why training stopped early


def fit_step(
    steps: Steps,
    version: int,
    data: TrainingSet,
    loss: Loss,
    training: FitConfig,
    *,
    start_from: Stage,
    generation: int,
    inputs: Mapping[str, Any],
    train: Callable[[Path], FitReport],
) -> Stage:
    """The stage of a trained model; ``train(folder)`` computes it, ``inputs`` are the family's own share of its key.

    Raises:
        Collapsed: there is nothing to train on. Training that diverged is a stage: see :func:`check_finished`.
    """
    if not data.human_size + data.synthetic_size:
        raise Collapsed("the training set is empty: the last generation wrote nothing")
    key = {
        "start_from": start_from.hash,
        "data": data.describe(),
        "loss": loss.identity(),
        "training": training.model_dump(mode="json", exclude={"init"}),
        **inputs,
    }
    return steps.run(
        StageKey("fit", version, key), f"train generation {generation}", lambda folder: asdict(train(folder))
    )


def check_finished(model: Stage) -> Stage:
    """``model``, a trained one; raises :class:`Collapsed` where its training diverged."""
    if model.outputs["diverged"]:
        raise Collapsed(f"training diverged: {model.outputs['diverged']}")
    return model


def synthetic_folders(data: TrainingSet, steps: Steps) -> dict[str, Path]:
    """The folder of each synthetic corpus that a training set draws from, by its stage."""
    pools = [draw.pool for draw in data.draws if draw.pool.synthetic]
    return {pool.stage: steps.store.path(pool.stage) for pool in pools}


Batch = TypeVar("Batch")


class Fit(ABC, Generic[Batch]):
    """One worker's share of a training run. A subclass defines the batches, their gradients and what is recorded.

    The recorded sums stay on the device, a row a step and a column for each of :attr:`COLUMNS` (at least ``loss``,
    ``kept``, ``probability`` and ``targets``), and are added up over the workers once, at the end.
    """

    COLUMNS: ClassVar[tuple[str, ...]]

    def __init__(self, network: "nn.Module", items: int, training: FitConfig, seed: int, workers: Workers) -> None:
        import torch

        self.network, self.training, self.workers = network.train(), training, workers
        self.device = next(network.parameters()).device
        self.gradient_norms: list[Tensor] = []  # of each step, before clipping; the same on every rank
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=_use_bfloat16(training, self.device))
        self._items, self._seed = items, seed
        self._steps = math.ceil(items / training.batch_size) * training.epochs
        self._optimizer, self._schedule = _make_optimizer(network, training, self._steps)
        self._sums = torch.zeros(self._steps, len(self.COLUMNS), dtype=torch.float64, device=self.device)
        self._gammas: list[float] = []
        self._seconds_beside = 0.0  # of what is no training

    @abstractmethod
    def batches(
        self, order: np.ndarray, rank: int, world: int, purpose: tuple[str | int, ...], first: int
    ) -> Iterator[Batch]:
        """One rank's share of each global batch of ``order`` (indices of items).

        ``purpose`` and the batch's number, which counts from ``first``, seed its noise, if the family has any.
        """

    @abstractmethod
    def add_gradients(self, step: int, batch: Batch, loss: EpochLoss) -> None:
        """Run the batch forward and backward, and record the step."""

    def after_epoch(self, epoch: int) -> None:
        """What is done with the network after each epoch, on every rank; nothing, but where a subclass says so."""

    @abstractmethod
    def target_probabilities(self, module: Any, batch: Batch) -> "list[Tensor]":
        """p of the batch's targets under ``module``, the unwrapped network: tensors of shape (targets,)."""

    @abstractmethod
    def train_loss(self, last_epoch: "Tensor") -> float:
        """The report's ``train_loss``, from the recorded rows of the last epoch (steps, columns)."""

    def run(self, loss: Loss) -> FitReport:
        """Train for every epoch, or until training diverges. Every worker calls it once."""
        happened(FIRST_BATCH)
        started = time.perf_counter()
        with freed_memory_kept():
            diverged = self._train(loss)
        seconds = time.perf_counter() - started - self._seconds_beside
        self.reduce()
        total = dict(zip(self.COLUMNS, self._sums.sum(0).tolist(), strict=True))
        targets = max(total["targets"], 1.0)
        return FitReport(
            train_loss=self.train_loss(self._sums[-(self._steps // self.training.epochs) :]),
            kept_fraction=total["kept"] / targets,
            mean_target_probability=total["probability"] / targets,
            gamma_by_epoch=self._gammas,
            steps=int((self.column("targets") > 0).sum()),
            targets=int(total["targets"]),
            world_size=self.workers.world,
            train_seconds=seconds,
            diverged=diverged,
        )

    def column(self, name: str) -> "Tensor":
        """A recorded column by step; over all workers once the run has ended."""
        return self._sums[:, self.COLUMNS.index(name)]

    def record(self, step: int, values: "Mapping[str, Tensor]") -> None:
        """Add to the row of a step."""
        for name, value in values.items():
            self._sums[step, self.COLUMNS.index(name)] += value

    def reduce(self) -> None:
        """Add up over the workers what was recorded."""
        self.workers.sum(self._sums)

    def _train(self, loss: Loss) -> str | None:
        """Every epoch; returns why it stopped early, on every rank alike, or None."""
        step = 0
        for epoch in range(self.training.epochs):
            of_epoch = self._loss_of(loss, epoch)
            if of_epoch is None:
                return f"the target probabilities are not finite ahead of epoch {epoch}"
            order = generator(self._seed, "epoch", epoch).permutation(self._items)
            for batch in self.batches(order, self.workers.rank, self.workers.world, ("noise",), step):
                if not self._step(step, batch, of_epoch):
                    return f"the gradient is not finite at step {step}"
                if step == 0:
                    give_back_gaps()
                step += 1
            started = time.perf_counter()
            self.after_epoch(epoch)
            self._seconds_beside += time.perf_counter() - started
        return None

    def _step(self, step: int, batch: Batch, loss: EpochLoss) -> bool:
        """One update of the weights; skipped, with False, where the gradient is not finite."""
        import torch

        self.add_gradients(step, batch, loss)
        self.gradient_norms.append(_clip_gradients(self.network, self.training.max_grad_norm))
        if not torch.isfinite(self.gradient_norms[-1]):  # the same on every rank: gradients are already reduced
            return False
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return True

    def _loss_of(self, loss: Loss, epoch: int) -> EpochLoss | None:
        """The loss of an epoch; None where a threshold that follows the model is not a number."""
        if not isinstance(loss, DynamicTruncatedCrossEntropy):
            return loss
        self._gammas.append(self._threshold(loss, epoch))
        return None if math.isnan(self._gammas[-1]) else loss.at(self._gammas[-1])

    def _threshold(self, loss: DynamicTruncatedCrossEntropy, epoch: int) -> float:
        """This epoch's γ, from ``sample_blocks`` items. Every worker goes through them all and gets the same γ."""
        import torch

        order = generator(self._seed, "threshold", epoch).permutation(self._items)[: loss.sample_blocks]
        module = unwrapped(self.network)
        module.eval()
        with torch.no_grad(), self.autocast:
            batches = self.batches(order, 0, 1, ("threshold", epoch), 0)
            probabilities = [part for batch in batches for part in self.target_probabilities(module, batch)]
        module.train()
        gamma = torch.tensor(loss.threshold(probabilities), dtype=torch.float64, device=self.device)
        return float(self.workers.sum(gamma) / self.workers.world)


def write_report(report: FitReport, folder: Path) -> None:
    """Put a report into the folder of the model that it is about."""
    (folder / REPORT).write_text(json.dumps(asdict(report)))


def read_report(folder: Path) -> dict[str, Any]:
    """The fields of the report in ``folder``."""
    return json.loads((folder / REPORT).read_text())


def unwrapped(network: "nn.Module") -> "nn.Module":
    """The module under DistributedDataParallel, whose forward passes would wait for the other workers."""
    from torch.nn.parallel import DistributedDataParallel

    return network.module if isinstance(network, DistributedDataParallel) else network


def _clip_gradients(network: "nn.Module", largest: float) -> "Tensor":
    """Scale all gradients to a common norm of at most ``largest``; returns the norm before, the same on every rank."""
    import torch
    from torch.distributed.tensor import DTensor

    norm = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    torch.nn.utils.clip_grads_with_norm_(network.parameters(), largest, norm)
    return norm


def _make_optimizer(
    network: "nn.Module", training: FitConfig, steps: int
) -> tuple["torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"]:
    """The optimiser and its schedule over ``steps`` steps."""
    import torch
    import transformers

    common: dict[str, Any] = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": partial(torch.optim.AdamW, fused=True),
        "adam": partial(torch.optim.Adam, fused=True),
        "adafactor": torch.optim.Adafactor,
        "sgd": partial(torch.optim.SGD, momentum=training.momentum, fused=True),
    }
    optimizer = kinds[training.optimizer](network.parameters(), **common)
    if training.schedule == "rising":
        of_an_epoch = steps // training.epochs

        def share(step: int) -> float:
            return (1 + 2 * (step // of_an_epoch) / training.epochs) / 3

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    schedule = transformers.get_scheduler(
        training.schedule, optimizer, num_warmup_steps=round(training.warmup_ratio * steps), num_training_steps=steps
    )
    return optimizer, schedule


def _use_bfloat16(training: FitConfig, device: "torch.device") -> bool:
    """Whether to compute in bfloat16 on ``device``; weights stay in float32."""
    import torch

    if training.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return training.precision == "bfloat16"
