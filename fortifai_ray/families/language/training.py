"""Training one generation on Ray Train: one train function, in one process or in many.

With one worker Ray Train runs the function in the process that asks (its local mode), which saves the seconds that a
worker group takes to start; with more, each worker runs it under DistributedDataParallel or with a shard of the model
(:mod:`fortifai_ray.families.language.parallel`). Losses are sums, divided once by the *global* number of targets, so
that the number of workers and of micro-batches changes nothing but rounding.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from fortifai_ray.engines.adapters import whole_model
from fortifai_ray.families.fitting import fetch, make_optimizer, run_on_ray_train, use_bfloat16
from fortifai_ray.families.language.config import TrainingConfig
from fortifai_ray.families.language.data import Batch, Blocks, batches, keep_documents_apart
from fortifai_ray.families.language.lora import adapt, save_adapter
from fortifai_ray.families.language.parallel import (
    clip_gradients,
    held_share,
    save_whole,
    spread,
    unreduced,
    unwrapped,
)
from fortifai_ray.losses import CrossEntropy, DynamicTruncatedCrossEntropy, Loss, PointwiseLoss, SequenceLoss
from fortifai_ray.seeds import generator
from fortifai_ray.storage.transfer import Folder

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
    held_share: float  # of the weights, by rank 0 between steps: 1 unless they are sharded
    train_seconds: float
    diverged: str | None


def train(
    model: Folder,
    output: Path,
    blocks: Blocks,
    loss: Loss,
    training: TrainingConfig,
    order_seed: int,
    *,
    end_of_text: int | None = None,
    workers: int = 1,
    resources_per_worker: dict[str, float] | None = None,
    threads: int = 1,
) -> TrainingReport:
    """Train ``model`` (a Hugging Face folder) on ``blocks``; write the result, a Hugging Face folder, to ``output``.

    With ``training.lora`` what is trained and written is an adapter, and ``model`` may be one: it is gone on with. The
    folder of the model it belongs to must come to stand beside ``output`` (:mod:`fortifai_ray.engines.adapters`).
    Runs :func:`train_loop` by a ``TorchTrainer``. ``order_seed`` shuffles the blocks, epoch by epoch. ``end_of_text``
    is the token that ends a document, which ``training.document_mask`` needs. Raises ValueError where that lacks.
    """
    if training.document_mask and end_of_text is None:
        raise ValueError("training.document_mask needs the token that ends a document")
    config = {
        "loss": loss.model_dump(),
        "training": training.model_dump(),
        "order_seed": order_seed,
        "end_of_text": end_of_text,
        "threads": threads,
    }
    arrays = {"tokens": blocks.tokens, "lengths": blocks.lengths}
    run_on_ray_train(
        train_loop,
        config,
        arrays,
        {"model": model},
        output,
        workers=workers,
        resources_per_worker=resources_per_worker,
    )
    return TrainingReport(**json.loads((output / _REPORT).read_text()))


def train_loop(config: dict[str, Any]) -> None:
    """The train function that each Ray Train worker runs (see :func:`train` for what ``config`` holds)."""
    import ray.train
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
    start = Path(config["model"])
    base = whole_model(start)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if training.lora is not None:
        adapt(model, training.lora, start, config["order_seed"])
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    objective = CausalLMObjective(model)
    if training.document_mask:
        keep_documents_apart(model, config["end_of_text"])
    network = spread(objective, training.parallel, world)
    held = held_share(network)
    run = _Run(network, blocks, training, config["order_seed"], world)
    started = time.perf_counter()
    diverged = run.train(loss, context.get_world_rank())
    seconds = time.perf_counter() - started

    report = run.meter.report(
        training.epochs,
        world,
        seconds,
        diverged,
        output_head=objective.output_head,
        gammas=run.gammas,
        held_share=held,
    )
    output = Path(config["output"])
    if training.lora is None:
        save_whole(model, output, context.get_world_rank())
    else:
        save_adapter(model, output, base.name, context.get_world_rank())
    if context.get_world_rank() == 0:
        np.save(output / "losses.npy", run.meter.losses())
        np.save(output / "gradient_norms.npy", [float(norm) for norm in run.gradient_norms])
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
        self.gradient_norms: list[Tensor] = []  # of each step, ahead of clipping; the same on every rank

    def train(self, loss: Loss, rank: int) -> str | None:
        """Every epoch; returns why it stopped early, on every rank alike, or None."""
        step = 0
        for epoch in range(self._training.epochs):
            if isinstance(loss, DynamicTruncatedCrossEntropy):
                self.gammas.append(self._threshold(loss, epoch))
                if math.isnan(self.gammas[-1]):
                    return f"the target probabilities are not finite ahead of epoch {epoch}"
                of_epoch: PointwiseLoss | SequenceLoss = loss.at(self.gammas[-1])
            else:
                of_epoch = loss
            order = generator(self._order_seed, "epoch", epoch).permutation(len(self._blocks))
            for batch in batches(self._blocks, order, self._training, rank, self._world):
                if not self._step(step, batch, of_epoch):
                    return f"the gradient is not finite at step {step}"
                step += 1
        return None

    def _step(self, step: int, batch: Batch, loss: PointwiseLoss | SequenceLoss) -> bool:
        """One update of the weights, left out where the gradient is not finite."""
        import torch

        self._add_gradients(step, batch, loss)
        self.gradient_norms.append(clip_gradients(self._network, self._training.max_grad_norm))
        if not torch.isfinite(self.gradient_norms[-1]):
            return False
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return True

    def _add_gradients(self, step: int, batch: Batch, loss: PointwiseLoss | SequenceLoss) -> None:
        """The gradients of one step, of the loss divided by what it counts over all micro-batches and workers."""
        import torch

        count: Tensor | int = batch.targets
        kept = torch.zeros((), dtype=torch.int64, device=self._device)
        later = loss.normaliser == "kept" and len(batch.parts) > 1  # the count is known once the last part is through
        for number, (tokens, lengths) in enumerate(batch.parts, start=1):
            with unreduced(self._network, more_to_come=number < len(batch.parts)):
                with self._autocast:
                    sums: LossSums = self._network(tokens.to(self._device), lengths.to(self._device), loss)
                kept += sums.kept.sum()
                if loss.normaliser == "kept":
                    count = 1 if later else self._over_workers(kept).clamp_min(1)
                # Gradients are averaged over workers; the sum over workers is wanted.
                (sums.total * (self._world / count)).backward()
            self.meter.add(step, sums, loss.normaliser)
        if later:
            count = self._over_workers(kept).clamp_min(1)
            for parameter in self._network.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(count)

    def _over_workers(self, count: "Tensor") -> "Tensor":
        import torch.distributed as dist

        if self._world > 1:
            dist.all_reduce(count)
        return count

    def _threshold(self, loss: DynamicTruncatedCrossEntropy, epoch: int) -> float:
        """This epoch's γ. Each worker goes through the whole sample: their weights are the same, and so is γ."""
        import torch

        order = generator(self._order_seed, "threshold", epoch).permutation(len(self._blocks))[: loss.sample_blocks]
        objective = unwrapped(self._network)
        objective.eval()
        probabilities = []
        with torch.no_grad(), self._autocast:
            for batch in batches(self._blocks, order, self._training, 0, 1):
                for tokens, lengths in batch.parts:
                    sums = objective(tokens.to(self._device), lengths.to(self._device), CrossEntropy())
                    probabilities.append(sums.log_p[sums.valid].exp())
        objective.train()
        gamma = torch.tensor(loss.threshold(probabilities), dtype=torch.float64, device=self._device)
        return float(self._over_workers(gamma) / self._world)


class _Meter:
    """Sums over targets, kept on the device and reduced over the workers once, at the end."""

    BINS = 1000  # of the target probability, equal, over [0, 1]

    def __init__(self, steps: int, device: "torch.device") -> None:
        import torch

        # a row a step: loss, what the loss is divided by, kept targets, target probability, targets
        self._sums = torch.zeros(steps, 5, dtype=torch.float64, device=device)
        self._counts = torch.zeros(self.BINS, dtype=torch.int64, device=device)

    def add(self, step: int, sums: "LossSums", normaliser: str) -> None:
        """A micro-batch of this worker's, of a step."""
        import torch

        probability = sums.log_p.exp()
        kept, targets = sums.kept.sum(), sums.valid.sum()
        row = (sums.total.detach(), kept if normaliser == "kept" else targets, kept)
        for column, value in enumerate((*row, probability.masked_fill(~sums.valid, 0.0).sum(), targets)):
            self._sums[step, column] += value
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
        self,
        epochs: int,
        world: int,
        seconds: float,
        diverged: str | None,
        *,
        output_head: str,
        gammas: list[float],
        held_share: float,
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
            held_share=held_share,
            train_seconds=seconds,
            diverged=diverged,
        )
