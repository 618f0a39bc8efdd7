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
from fortifai_ray.losses import Loss
from fortifai_ray.seeds import generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VERSION = 1  # bump when the same data and settings give another model

_REPORT = "training.json"
_loss_adapter: TypeAdapter[Loss] = TypeAdapter(Loss)


@dataclass(frozen=True)
class TrainingReport:
    """What one generation's training came to. Losses are means per target, in nats."""

    train_loss: float  # over the last epoch
    kept_fraction: float  # over all epochs
    mean_target_probability: float  # over all epochs
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
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    config = {
        "model": str(model.absolute()),
        "output": str(output.absolute()),
        "tokens": blocks.tokens,
        "lengths": blocks.lengths,
        "loss": loss.model_dump(),
        "training": training.model_dump(),
        "order_seed": order_seed,
        "threads": threads,
    }
    if workers > 1:  # the blocks go once into the object store, not once into each worker's configuration
        config |= {"tokens": ray.put(blocks.tokens), "lengths": ray.put(blocks.lengths)}
    use_gpu = bool(resources_per_worker and resources_per_worker.get("GPU"))
    scaling = ray.train.ScalingConfig(
        num_workers=workers if workers > 1 else 0,
        use_gpu=use_gpu,
        resources_per_worker=resources_per_worker if workers > 1 else None,
    )
    run_config = ray.train.RunConfig(storage_path=str(output.absolute() / ".ray"), name="fit") if workers > 1 else None
    TorchTrainer(train_loop, train_loop_config=config, scaling_config=scaling, run_config=run_config).fit()
    return TrainingReport(**json.loads((output / _REPORT).read_text()))


def train_loop(config: dict[str, Any]) -> None:
    """The train function that each Ray Train worker runs (see :func:`train` for what ``config`` holds)."""
    import ray
    import ray.train.torch
    import torch
    import torch.distributed as dist
    import transformers

    torch.set_num_threads(config["threads"])
    training = TrainingConfig(**config["training"])
    loss = _loss_adapter.validate_python(config["loss"])
    fetch = ray.get if isinstance(config["tokens"], ray.ObjectRef) else lambda value: value
    blocks = Blocks(fetch(config["tokens"]), fetch(config["lengths"]))
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if world > 1:
        assert dist.get_world_size() == world, "the process group is not the worker group"
    device = ray.train.torch.get_device()

    torch.manual_seed(config["order_seed"])  # dropout, where a model has it
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32)
    network = ray.train.torch.prepare_model(network)
    network.train()
    steps = math.ceil(len(blocks) / training.batch_size) * training.epochs
    optimizer, schedule = _optimizer(network, training, steps)
    meter = _Meter(steps, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=_use_bfloat16(training, device))

    started, diverged = time.perf_counter(), None
    for step, (tokens, lengths, targets) in enumerate(_batches(blocks, training, config["order_seed"], rank, world)):
        with autocast:
            log_p, mask = _target_log_probabilities(network, tokens.to(device), lengths.to(device))
        values = loss(log_p).masked_fill(~mask, 0.0).sum()
        # DistributedDataParallel averages gradients over workers; the sum over workers is wanted.
        (values * (world / targets)).backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), training.max_grad_norm)
        if not torch.isfinite(norm):  # the same on every rank, since gradients are already reduced
            diverged = f"the gradient is not finite at step {step}"
            break
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        meter.add(step, values.detach(), log_p.detach(), mask, loss)
    seconds = time.perf_counter() - started

    report = meter.report(training.epochs, world, seconds, diverged)
    if rank == 0:
        output = Path(config["output"])
        (network.module if world > 1 else network).save_pretrained(output)
        np.save(output / "losses.npy", meter.losses())
        (output / _REPORT).write_text(json.dumps(asdict(report)))


def _batches(
    blocks: Blocks, training: TrainingConfig, order_seed: int, rank: int, world: int
) -> Iterator[tuple["Tensor", "Tensor", int]]:
    """This rank's share of each global batch, and the number of targets in the whole of it."""
    import torch

    for epoch in range(training.epochs):
        order = generator(order_seed, "epoch", epoch).permutation(len(blocks))
        for start in range(0, len(order), training.batch_size):
            batch = order[start : start + training.batch_size]
            targets = int((blocks.lengths[batch] - 1).clip(0).sum())
            mine = batch[rank::world]
            lengths = blocks.lengths[mine]
            if len(mine) == 0:  # fewer rows than ranks: a row without targets keeps this rank in step with the others
                mine, lengths = batch[:1], np.zeros(1, dtype=np.int64)
            yield torch.from_numpy(blocks.tokens[mine]).long(), torch.from_numpy(lengths), max(targets, 1)


def _target_log_probabilities(
    network: "torch.nn.Module", tokens: "Tensor", lengths: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """log p of each next token, float32, and which of them are text: both of shape (rows, block_size − 1)."""
    import torch
    import torch.nn.functional as F

    logits = network(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    log_p = -F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(logits.shape[:2])
    positions = torch.arange(1, tokens.shape[1], device=tokens.device)
    return log_p, positions < lengths[:, None]


def _optimizer(
    network: "torch.nn.Module", training: TrainingConfig, steps: int
) -> tuple["torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"]:
    import torch
    import transformers

    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[training.optimizer]
    optimizer = kind(network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True)
    schedule = transformers.get_scheduler(
        training.schedule, optimizer, num_warmup_steps=round(training.warmup_ratio * steps), num_training_steps=steps
    )
    return optimizer, schedule


def _use_bfloat16(training: TrainingConfig, device: "torch.device") -> bool:
    import torch

    if training.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return training.precision == "bfloat16"


class _Meter:
    """Sums over targets, kept on the device and reduced over the workers once, at the end."""

    def __init__(self, steps: int, device: "torch.device") -> None:
        import torch

        # a row a step: loss, kept targets, target probability, targets
        self._sums = torch.zeros(steps, 4, dtype=torch.float64, device=device)

    def add(self, step: int, loss_sum: "Tensor", log_p: "Tensor", mask: "Tensor", loss: Loss) -> None:
        row = self._sums[step]
        row[0] = loss_sum
        row[1] = (loss.kept(log_p) & mask).sum()
        row[2] = log_p.exp().masked_fill(~mask, 0.0).sum()
        row[3] = mask.sum()

    def losses(self) -> np.ndarray:
        """Mean loss per target by step, over all workers: float64 of shape (steps,)."""
        sums = self._sums.cpu().numpy()
        return sums[:, 0] / sums[:, 3].clip(1)

    def report(self, epochs: int, world: int, seconds: float, diverged: str | None) -> TrainingReport:
        if world > 1:
            import torch.distributed as dist

            dist.all_reduce(self._sums)
        total = self._sums.sum(0).tolist()
        last = self._sums[-(len(self._sums) // epochs) :].sum(0).tolist()
        return TrainingReport(
            train_loss=last[0] / max(last[3], 1.0),
            kept_fraction=total[1] / max(total[3], 1.0),
            mean_target_probability=total[2] / max(total[3], 1.0),
            steps=int((self._sums[:, 3] > 0).sum()),
            targets=int(total[3]),
            world_size=world,
            train_seconds=seconds,
            diverged=diverged,
        )
