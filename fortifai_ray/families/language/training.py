"""Training one generation on Ray Train: one train function, in one process or in many.

With one worker Ray Train runs the function in the process that asks (its local mode), which saves the seconds that a
worker group takes to start; with more, each worker runs it under DistributedDataParallel. Losses are sums, divided
once by the *global* number of targets, so that the number of workers changes nothing but rounding.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from fortifai_ray.families.language.config import TrainingConfig
from fortifai_ray.families.language.data import Blocks
from fortifai_ray.families.ray_train import fetch, make_optimizer, run_on_ray_train, use_bfloat16
from fortifai_ray.losses import CrossEntropy, DynamicTruncatedCrossEntropy, Loss, LovaszSoftmax, PointwiseLoss
from fortifai_ray.seeds import generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fortifai_ray.losses.fused import LossSums

VERSION = 2  # bump when the same data and settings give another model

_REPORT = "training.json"
_HISTOGRAM = "target_probability.json"
_loss_adapter: TypeAdapter[Loss] = TypeAdapter(Loss)


@dataclass(frozen=True)
class TrainingReport:
    """What one generation's training came to. Losses are means per valid or kept target, as the loss's normaliser says.

    What is said of the target probability is over all epochs, as it was before each step; its whole histogram is in the
    file ``target_probability.json``.
    """

    train_loss: float  # over the last epoch
    kept_fraction: float  # of the valid targets, over all epochs
    mean_target_probability: float
    target_probability_q25: float | None
    target_probability_median: float | None
    target_probability_q75: float | None
    gamma_by_epoch: list[float]  # of dynamic_tce; empty for other losses
    output_head: str  # "fused", or "plain: " and why
    steps: int
    targets: int
    world_size: int
    train_seconds: float
    diverged: str | None


def train(
    model: Path,
    output: Path,
    blocks: Blocks,
    loss: Loss,
    training: TrainingConfig,
    order_seed: int,
    *,
    workers: int = 1,
    resources_per_worker: dict[str, float] | None = None,
    threads: int = 1,
) -> TrainingReport:
    """Train ``model`` (a Hugging Face folder) on ``blocks``; write the result, a Hugging Face folder, to ``output``.

    Runs :func:`train_loop` by a ``TorchTrainer``. ``order_seed`` shuffles the blocks, epoch by epoch.
    """
    config = {
        "model": str(model.absolute()),
        "output": str(output.absolute()),
        "loss": loss.model_dump(),
        "training": training.model_dump(),
        "order_seed": order_seed,
        "threads": threads,
    }
    arrays = {"tokens": blocks.tokens, "lengths": blocks.lengths}
    run_on_ray_train(train_loop, config, arrays, output, workers=workers, resources_per_worker=resources_per_worker)
    return TrainingReport(**json.loads((output / _REPORT).read_text()))


def train_loop(config: dict[str, Any]) -> None:
    """The train function that each Ray Train worker runs (see :func:`train` for what ``config`` holds)."""
    import ray.train.torch
    import torch
    import torch.distributed as dist
    import transformers

    from fortifai_ray.losses.causal_lm import CausalLMObjective

    torch.set_num_threads(config["threads"])
    training = TrainingConfig(**config["training"])
    loss = _loss_adapter.validate_python(config["loss"])
    blocks = Blocks(fetch(config["tokens"]), fetch(config["lengths"]))
    context = ray.train.get_context()
    world = context.get_world_size()
    if world > 1:
        assert dist.get_world_size() == world, "the process group is not the worker group"

    torch.manual_seed(config["order_seed"])  # dropout, where a model has it
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32)
    objective = CausalLMObjective(model)
    run = _Run(ray.train.torch.prepare_model(objective), blocks, training, config["order_seed"], world)
    started = time.perf_counter()
    diverged = run.train(loss, context.get_world_rank())
    seconds = time.perf_counter() - started

    report = run.meter.report(
        training.epochs, world, seconds, diverged, output_head=objective.output_head, gammas=run.gammas
    )
    if context.get_world_rank() == 0:
        output = Path(config["output"])
        model.save_pretrained(output)
        np.save(output / "losses.npy", run.meter.losses())
        (output / _HISTOGRAM).write_text(json.dumps(run.meter.histogram()))
        (output / _REPORT).write_text(json.dumps(asdict(report)))


class _Run:
    """One worker's training: what its steps share."""

    def __init__(self, network: Any, blocks: Blocks, training: TrainingConfig, order_seed: int, world: int) -> None:
        import torch

        self._network, self._blocks, self._training = network.train(), blocks, training
        self._order_seed, self._world = order_seed, world
        self._device = next(network.parameters()).device
        steps = math.ceil(len(blocks) / training.batch_size) * training.epochs
        self._optimizer, self._schedule = make_optimizer(network, training, steps)
        self._autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=use_bfloat16(training, self._device))
        self.meter = _Meter(steps, self._device)
        self.gammas: list[float] = []

    def train(self, loss: Loss, rank: int) -> str | None:
        """Every epoch; returns why it stopped early, on every rank alike, or None."""
        step = 0
        for epoch in range(self._training.epochs):
            if isinstance(loss, DynamicTruncatedCrossEntropy):
                self.gammas.append(self._threshold(loss, epoch))
                if math.isnan(self.gammas[-1]):
                    return f"the target probabilities are not finite ahead of epoch {epoch}"
                of_epoch: PointwiseLoss | LovaszSoftmax = loss.at(self.gammas[-1])
            else:
                of_epoch = loss
            order = generator(self._order_seed, "epoch", epoch).permutation(len(self._blocks))
            for tokens, lengths, targets in _batches(self._blocks, order, self._training.batch_size, rank, self._world):
                if not self._step(step, tokens, lengths, targets, of_epoch):
                    return f"the gradient is not finite at step {step}"
                step += 1
        return None

    def _step(
        self, step: int, tokens: "Tensor", lengths: "Tensor", targets: int, loss: PointwiseLoss | LovaszSoftmax
    ) -> bool:
        """One update of the weights, left out where the gradient is not finite."""
        import torch

        with self._autocast:
            sums: LossSums = self._network(tokens.to(self._device), lengths.to(self._device), loss)
        count = targets if loss.normaliser == "valid" else self._over_workers(sums.kept.sum()).clamp_min(1)
        # DistributedDataParallel averages gradients over workers; the sum over workers is wanted.
        (sums.total * (self._world / count)).backward()
        self.meter.add(step, sums, loss.normaliser)
        norm = torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._training.max_grad_norm)
        if not torch.isfinite(norm):  # the same on every rank, since gradients are already reduced
            return False
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return True

    def _over_workers(self, count: "Tensor") -> "Tensor":
        import torch.distributed as dist

        if self._world > 1:
            dist.all_reduce(count)
        return count

    def _threshold(self, loss: DynamicTruncatedCrossEntropy, epoch: int) -> float:
        """This epoch's γ. Each worker goes through the whole sample: their weights are the same, and so is γ."""
        import torch

        order = generator(self._order_seed, "threshold", epoch).permutation(len(self._blocks))[: loss.sample_blocks]
        objective = self._network.module if self._world > 1 else self._network
        objective.eval()
        probabilities = []
        with torch.no_grad(), self._autocast:
            for tokens, lengths, _ in _batches(self._blocks, order, self._training.batch_size, 0, 1):
                sums = objective(tokens.to(self._device), lengths.to(self._device), CrossEntropy())
                probabilities.append(sums.log_p[sums.valid].exp())
        objective.train()
        gamma = torch.tensor(loss.threshold(probabilities), dtype=torch.float64, device=self._device)
        return float(self._over_workers(gamma) / self._world)


def _batches(
    blocks: Blocks, order: np.ndarray, batch_size: int, rank: int, world: int
) -> Iterator[tuple["Tensor", "Tensor", int]]:
    """This rank's share of each global batch, and the number of targets in the whole of it."""
    import torch

    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        targets = int((blocks.lengths[batch] - 1).clip(0).sum())
        mine = batch[rank::world]
        lengths = blocks.lengths[mine]
        if len(mine) == 0:  # fewer rows than ranks: a row without targets keeps this rank in step with the others
            mine, lengths = batch[:1], np.zeros(1, dtype=np.int64)
        yield torch.from_numpy(blocks.tokens[mine]).long(), torch.from_numpy(lengths), max(targets, 1)


class _Meter:
    """Sums over targets, kept on the device and reduced over the workers once, at the end."""

    BINS = 1000  # of the target probability, equal, over [0, 1]

    def __init__(self, steps: int, device: "torch.device") -> None:
        import torch

        # a row a step: loss, what the loss is divided by, kept targets, target probability, targets
        self._sums = torch.zeros(steps, 5, dtype=torch.float64, device=device)
        self._counts = torch.zeros(self.BINS, dtype=torch.int64, device=device)

    def add(self, step: int, sums: "LossSums", normaliser: str) -> None:
        """One step of this worker's."""
        import torch

        probability = sums.log_p.exp()
        kept, targets = sums.kept.sum(), sums.valid.sum()
        row = (sums.total.detach(), kept if normaliser == "kept" else targets, kept)
        for column, value in enumerate((*row, probability.masked_fill(~sums.valid, 0.0).sum(), targets)):
            self._sums[step, column] = value
        bins = (probability.nan_to_num(0.0) * self.BINS).long().clamp(0, self.BINS - 1)
        counted = torch.where(sums.valid & ~probability.isnan(), bins, self.BINS)  # one more bin for what is no target
        self._counts += counted.flatten().bincount(minlength=self.BINS + 1)[: self.BINS]

    def losses(self) -> np.ndarray:
        """Mean loss by step, over all workers: float64 of shape (steps,)."""
        sums = self._sums.cpu().numpy()
        return sums[:, 0] / sums[:, 1].clip(1)

    def histogram(self) -> dict[str, list[float]]:
        """Of the target probability over all epochs and workers: bin ``edges`` and ``counts`` of targets."""
        return {"edges": np.linspace(0.0, 1.0, self.BINS + 1).round(9).tolist(), "counts": self._counts.tolist()}

    def _quantile(self, level: float) -> float | None:
        """Of the target probability, exact to the width of a bin; None without targets."""
        below = np.concatenate([[0], np.cumsum(self._counts.cpu().numpy())])
        return float(np.interp(level * below[-1], below, np.linspace(0.0, 1.0, self.BINS + 1))) if below[-1] else None

    def report(
        self, epochs: int, world: int, seconds: float, diverged: str | None, *, output_head: str, gammas: list[float]
    ) -> TrainingReport:
        """What it came to, after reducing over the workers: to be called once, by every worker."""
        if world > 1:
            import torch.distributed as dist

            dist.all_reduce(self._sums)
            dist.all_reduce(self._counts)
        total = self._sums.sum(0).tolist()
        last = self._sums[-(len(self._sums) // epochs) :].sum(0).tolist()
        return TrainingReport(
            train_loss=last[0] / max(last[1], 1.0),
            kept_fraction=total[2] / max(total[4], 1.0),
            mean_target_probability=total[3] / max(total[4], 1.0),
            target_probability_q25=self._quantile(0.25),
            target_probability_median=self._quantile(0.5),
            target_probability_q75=self._quantile(0.75),
            gamma_by_epoch=gammas,
            output_head=output_head,
            steps=int((self._sums[:, 4] > 0).sum()),
            targets=int(total[4]),
            world_size=world,
            train_seconds=seconds,
            diverged=diverged,
        )
