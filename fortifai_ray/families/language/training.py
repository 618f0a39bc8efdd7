"""Training one generation of a causal LM: batches of blocks, the model spread over workers, recorded probabilities.

Several workers each hold a whole copy of the model (DDP) or a shard of it (FSDP2). Sharded, a decoder layer's weights
are gathered just before they are used and freed afterwards. Everything outside the decoder layers (embeddings, last
norm, output head) is one group, gathered for the whole of the forward pass: so the head's weight is whole when the
fused loss multiplies by it, and a head that is tied to the embeddings stays so.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from fortifai_ray.engines.checkpoints import whole_model
from fortifai_ray.engines.pretrained import load_network
from fortifai_ray.errors import UserError
from fortifai_ray.families.fitting import EpochLoss, Fit, FitReport, read_report, write_report
from fortifai_ray.families.language.adapters import adapt, save_adapter
from fortifai_ray.families.language.blocks import Blocks
from fortifai_ray.families.language.config import TrainingConfig
from fortifai_ray.families.language.keeping import BestEpoch, Measure
from fortifai_ray.families.language.models import keep_documents_apart, save_whole
from fortifai_ray.losses import CrossEntropy, DynamicTruncatedCrossEntropy, Loss, TruncatedCrossEntropy
from fortifai_ray.recipe.executor import Executor, Workers
from fortifai_ray.storage.store import Folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fortifai_ray.losses.causal_lm import CausalLMObjective
    from fortifai_ray.losses.fused import LossSums

VERSION = 3  # bump when the same data and settings give another model
_TRUNCATED_VERSION = 4  # the same, of losses that truncate

_HISTOGRAM = "target_probability.json"
_BINS = 1000  # of the target probability, equal, over [0, 1]


def truncates(loss: Loss) -> bool:
    """Whether a loss drops targets, by its kind: TCE does (but with γ = 1, which is cross entropy)."""
    if isinstance(loss, TruncatedCrossEntropy):
        return loss.gamma < 1.0
    return isinstance(loss, DynamicTruncatedCrossEntropy)


def version(loss: Loss) -> int:
    """That of the stage of a model trained with ``loss``."""
    return _TRUNCATED_VERSION if truncates(loss) else VERSION


@dataclass(frozen=True)
class TrainingReport(FitReport):
    """One generation's training. Losses are means per valid or kept target, as the loss's normaliser says.

    The whole histogram of the target probability, over all epochs and before each step, is in the file
    ``target_probability.json``.
    """

    target_probability_q25: float | None
    target_probability_median: float | None
    target_probability_q75: float | None
    output_head: str  # "fused", or "plain: " and why
    held_share: float  # of the weights, by rank 0 between steps: 1 unless they are sharded
    kept_epoch: int | None = None  # with training.keep: best, from 0
    epoch_values: list[float | None] = field(default_factory=list)  # of keep_by; None for what is not finite


def train(
    executor: Executor,
    model: Folder,
    output: Path,
    blocks: Blocks,
    loss: Loss,
    training: TrainingConfig,
    order_seed: int,
    *,
    end_of_text: int | None = None,
    measure: Measure | None = None,
) -> TrainingReport:
    """Train ``model`` (a Hugging Face folder) on ``blocks``; write the result, a Hugging Face folder, to ``output``.

    With ``training.lora`` an adapter is trained and written, and ``model`` may be one, whose training continues. The
    folder of the model it belongs to must end up beside ``output`` (:mod:`fortifai_ray.engines.checkpoints`).
    ``order_seed`` shuffles the blocks, epoch by epoch. ``end_of_text`` is the token that ends a document, which
    ``training.document_mask`` needs, ``measure`` what chooses an epoch, for ``training.keep: best``. Raises ValueError
    where one is missing.
    """
    if (training.keep == "best") != (measure is not None):
        raise ValueError("training.keep: best, and no other, needs a measure")
    if training.document_mask and end_of_text is None:
        raise ValueError("training.document_mask needs the token that ends a document")
    settings: dict[str, Any] = {
        "loss": loss,
        "training": training,
        "order_seed": order_seed,
        "end_of_text": end_of_text,
    }
    settings |= {} if measure is None else {"measure": measure}
    arrays = {"tokens": blocks.tokens, "lengths": blocks.lengths}
    arrays |= {} if blocks.weights is None else {"weights": blocks.weights}
    executor.fit(train_loop, settings, arrays, model, output)
    return TrainingReport(**read_report(output))


def train_loop(
    workers: Workers,
    *,
    model: Path,
    output: Path,
    tokens: np.ndarray,
    lengths: np.ndarray,
    loss: Loss,
    training: TrainingConfig,
    order_seed: int,
    end_of_text: int | None,
    measure: Measure | None = None,
    weights: np.ndarray | None = None,
) -> None:
    """Run by every training worker (see :func:`train`)."""
    import torch

    from fortifai_ray.families.language.layers import quicken
    from fortifai_ray.losses.causal_lm import CausalLMObjective

    torch.manual_seed(order_seed)  # for dropout
    base = whole_model(model)
    network = load_network(base, torch.float32)
    if training.lora is not None:
        adapt(network, training.lora, model, order_seed)
    if training.gradient_checkpointing:
        network.gradient_checkpointing_enable()
    quicken(network, drops=truncates(loss))
    objective = CausalLMObjective(network)
    if training.document_mask:
        assert end_of_text is not None
        keep_documents_apart(network, end_of_text)
    blocks = Blocks(tokens, lengths, weights)
    fit = LanguageFit(spread(objective, training, workers), blocks, training, order_seed, workers)
    held = _held_share(fit.network)

    def save(folder: Path) -> None:
        if training.lora is None:
            save_whole(network, folder, workers.rank)
        else:
            save_adapter(network, folder, base.name, workers.rank)

    if measure is not None:
        fit.best = BestEpoch(measure, save, output, workers, None if training.lora is None else base)
    report = fit.run(loss)
    if fit.best is None or not fit.best.finish(diverged=report.diverged is not None):
        save(output)
    if workers.rank == 0:
        fit.write(output, report, objective.output_head, held)


class Batch(NamedTuple):
    """One rank's share of a step's blocks. ``parts`` are its micro-batches, tokens (rows, block_size) and lengths
    (rows,), equally many on every rank; ``targets`` counts the targets of all ranks, ``weight`` multiplies their mean
    loss. ``part_weights`` are those of the micro-batches' targets, and ``targets`` their sum, where the parts of the
    training set are weighed: a micro-batch then has blocks of one weight alone."""

    parts: "list[tuple[Tensor, Tensor]]"
    targets: float
    weight: float
    part_weights: Sequence[float]


def batches(blocks: Blocks, order: np.ndarray, training: TrainingConfig, rank: int, world: int) -> Iterator[Batch]:
    """One rank's share of each step's blocks, which follow ``order`` (indices of blocks)."""
    for start in range(0, len(order), training.batch_size):
        batch = order[start : start + training.batch_size]
        targets = (blocks.lengths[batch] - 1).clip(0)
        parts = min(training.gradient_accumulation, -(-len(batch) // world))
        shares = np.array_split(batch[rank::world], parts)
        weight = len(batch) / training.batch_size if training.short_steps == "share" else 1.0
        total, part_weights = float(targets.sum()), [1] * parts
        if blocks.weights is not None:
            total, values = float(targets @ blocks.weights[batch]), np.unique(blocks.weights).tolist()
            shares = [share[blocks.weights[share] == value] for share in shares for value in values]
            part_weights = values * parts
        yield Batch([_rows(blocks, share, batch[:1]) for share in shares], total or 1.0, weight, part_weights)


def _rows(blocks: Blocks, share: np.ndarray, any_row: np.ndarray) -> "tuple[Tensor, Tensor]":
    """The rows of a micro-batch; an empty one gets a row without targets, which keeps this rank in step."""
    import torch

    lengths = blocks.lengths[share]
    if len(share) == 0:
        share, lengths = any_row, np.zeros(1, dtype=np.int64)
    return torch.from_numpy(blocks.tokens[share]).long(), torch.from_numpy(lengths)


class LanguageFit(Fit[Batch]):
    """One worker's share of a language model's training: blocks of tokens, of which the next token is the target."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("loss", "divisor", "kept", "probability", "targets")
    training: TrainingConfig

    def __init__(
        self, network: "nn.Module", blocks: Blocks, training: TrainingConfig, order_seed: int, workers: Workers
    ) -> None:
        import torch

        super().__init__(network, len(blocks), training, order_seed, workers)
        self._blocks = blocks
        self.best: BestEpoch | None = None
        self._counts = torch.zeros(_BINS, dtype=torch.int64, device=self.device)  # of targets, by their probability

    def batches(
        self, order: np.ndarray, rank: int, world: int, purpose: tuple[str | int, ...], first: int
    ) -> Iterator[Batch]:
        return batches(self._blocks, order, self.training, rank, world)

    def after_epoch(self, epoch: int) -> None:
        if self.best is not None:
            self.best.after(epoch)

    def add_gradients(self, step: int, batch: Batch, loss: EpochLoss) -> None:
        """The gradients of the loss divided by its count of targets over all micro-batches and workers."""
        import torch

        count: Tensor | float = batch.targets
        kept = torch.zeros((), dtype=torch.int64, device=self.device)
        later = loss.normaliser == "kept" and len(batch.parts) > 1  # the count is known after the last part
        for number, ((tokens, lengths), own) in enumerate(zip(batch.parts, batch.part_weights, strict=True), start=1):
            with _unreduced(self.network, more_to_come=number < len(batch.parts)):
                with self.autocast:
                    sums: LossSums = self.network(tokens.to(self.device), lengths.to(self.device), loss)
                kept = kept + own * sums.kept.sum()
                if loss.normaliser == "kept":
                    count = 1 if later else self._or_one(self.workers.sum(kept))
                # Gradients are averaged over workers; the sum over workers is wanted.
                (sums.total * (self.workers.world * batch.weight * own / count)).backward()
            self._record(step, sums, loss.normaliser, own)
        if later:
            count = self._or_one(self.workers.sum(kept))
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(count)

    @staticmethod
    def _or_one(count: "Tensor") -> "Tensor":
        """A count of targets to divide by."""
        return count.masked_fill(count == 0, 1.0)

    def target_probabilities(self, module: Any, batch: Batch) -> "list[Tensor]":
        probabilities = []
        for tokens, lengths in batch.parts:
            sums = module(tokens.to(self.device), lengths.to(self.device), CrossEntropy())
            probabilities.append(sums.log_p[sums.valid].exp())
        return probabilities

    def train_loss(self, last_epoch: "Tensor") -> float:
        total = dict(zip(self.COLUMNS, last_epoch.sum(0).tolist(), strict=True))
        return total["loss"] / max(total["divisor"], 1.0)

    def reduce(self) -> None:
        super().reduce()
        self.workers.sum(self._counts)

    def write(self, output: Path, report: FitReport, output_head: str, held_share: float) -> None:
        """The report and, over all workers, the loss and gradient norm by step and the histogram, into ``output``."""
        losses, divisors = (self.column(name).cpu().numpy() for name in ("loss", "divisor"))
        np.save(output / "losses.npy", losses / divisors.clip(1))  # nats per target: float64 of shape (steps,)
        np.save(output / "gradient_norms.npy", [float(norm) for norm in self.gradient_norms])
        histogram = {"edges": np.linspace(0.0, 1.0, _BINS + 1).round(9).tolist(), "counts": self._counts.tolist()}
        (output / _HISTOGRAM).write_text(json.dumps(histogram))
        whole = TrainingReport(
            **vars(report),
            target_probability_q25=self._quantile(0.25),
            target_probability_median=self._quantile(0.5),
            target_probability_q75=self._quantile(0.75),
            output_head=output_head,
            held_share=held_share,
            kept_epoch=None if self.best is None else self.best.kept,
            epoch_values=[] if self.best is None else [x if math.isfinite(x) else None for x in self.best.values],
        )
        write_report(whole, output)

    def _record(self, step: int, sums: "LossSums", normaliser: str, weight: float) -> None:
        """Record one micro-batch of a step, whose targets have a weight in the loss."""
        import torch

        probability = sums.log_p.exp()
        kept, targets = sums.kept.sum(), sums.valid.sum()
        values = {
            "loss": weight * sums.total.detach(),
            "divisor": weight * (kept if normaliser == "kept" else targets),
            "kept": kept,
            "probability": probability.masked_fill(~sums.valid, 0.0).sum(),
            "targets": targets,
        }
        self.record(step, values)
        bins = (probability.nan_to_num(0.0) * _BINS).long().clamp(0, _BINS - 1)
        counted = torch.where(sums.valid & ~probability.isnan(), bins, _BINS)  # an extra bin for padding
        self._counts += counted.flatten().bincount(minlength=_BINS + 1)[:_BINS]

    def _quantile(self, level: float) -> float | None:
        """A quantile of the target probability, exact to the width of a bin; None without targets."""
        below = np.concatenate([[0], np.cumsum(self._counts.cpu().numpy())])
        return float(np.interp(level * below[-1], below, np.linspace(0.0, 1.0, _BINS + 1))) if below[-1] else None


def spread(objective: "CausalLMObjective", training: TrainingConfig, workers: Workers) -> "nn.Module":
    """``objective`` on this worker's device, spread over the workers as ``training.parallel`` says.

    Alone, a worker holds the whole model. Raises :class:`UserError` for a model that cannot be sharded by layers.
    """
    if training.parallel == "fsdp" and workers.world > 1:
        return _sharded(objective, workers)
    return workers.prepare(objective)


def _sharded(objective: "CausalLMObjective", workers: Workers) -> "nn.Module":
    """Each worker holds its share of the weights, gradients and optimiser moments, in float32."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = workers.device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mesh = init_device_mesh(device.type, (workers.world,))
    for layer in _decoder_layers(objective.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return objective


def _decoder_layers(model: Any) -> "list[nn.Module]":
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UserError(
            f"training.parallel: {type(model).__name__} does not name its layers, so it cannot be sharded by them; "
            "ddp is right here"
        )
    return layers


def _held_share(network: "nn.Module") -> float:
    """The share of the model's weights that this worker holds between steps: 1 unless they are sharded."""
    from torch.distributed.tensor import DTensor

    parameters = list(network.parameters())
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
    return held / sum(p.numel() for p in parameters)


def _unreduced(network: "nn.Module", more_to_come: bool) -> AbstractContextManager[None]:
    """Around a micro-batch's forward and backward pass: gradients stay on this worker while there is ``more_to_come``.

    Shards are reduced every time nevertheless: the whole model's gradients would not fit on one worker.
    """
    from torch.nn.parallel import DistributedDataParallel

    return network.no_sync() if more_to_come and isinstance(network, DistributedDataParallel) else nullcontext()
