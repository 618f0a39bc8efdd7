"""A loss in somebody else's training loop: a callable for Hugging Face's ``Trainer``, and a ``torch.nn.Module``.

Both give the sums of this package's own training, divided as the loop asks. The form that never has whole logits in
memory is :func:`fortifai_ray.losses.hugging_face.use_fused_loss`.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fortifai_ray.errors import UserError, in_short
from fortifai_ray.losses.fused import LossSums, fused_linear_sums

IGNORE = -100  # the label of padding, as transformers and torch have it
Reduction = Literal["mean", "sum"]


class BatchLoss(Protocol):
    """What is asked of a loss here: :class:`fortifai_ray.losses.base.LossConfig` has it."""

    @property
    def normaliser(self) -> str: ...

    def sums(self, logits: Tensor, targets: Tensor) -> LossSums: ...


class TrainerLoss:
    """A loss as Trainer's ``compute_loss_func``, as ``TruncatedCrossEntropy(gamma=0.9).for_trainer()`` gives it.

    For causal LMs: the label at position t + 1 is the target of the logits at position t, as in transformers' own loss.
    """

    def __init__(self, loss: BatchLoss) -> None:
        check_value(loss)
        self.loss = loss

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            outputs: a causal LM's: a mapping with ``logits`` (rows, T, V), or a tuple that begins with them.
            labels: (rows, T), −100 where a token is no target.
            num_items_in_batch: what the sum is divided by, if given: the targets of all batches of an optimiser step.

        Raises UserError without labels or where shapes do not fit, and where the loss is divided by the kept targets
        but an optimiser step has several batches, whose kept targets nobody has counted.
        """
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[0]
        if not isinstance(logits, Tensor):
            raise UserError("outputs: they have no logits; with use_fused_loss give the trainer no compute_loss_func")
        if labels is None or logits.shape[:-1] != labels.shape:
            found = "none" if labels is None else f"shape {tuple(labels.shape)}"
            raise UserError(f"labels: {found}, where the logits of shape {tuple(logits.shape)} need one for each token")
        return divided(
            self.loss.sums(logits, next_tokens(as_targets(labels, logits.shape[-1]))), self.loss, num_items_in_batch
        )


class LossModule(nn.Module):
    """A loss as a module, for Lightning, torchtitan and loops of one's own.

    Unlike :class:`TrainerLoss` it does not shift labels: the label beside a position is that position's target. The
    mean is over this batch's targets (the kept ones with ``normaliser: kept``); with ``reduction="sum"`` the loop
    divides, once, by the targets of a step over all batches and processes.
    """

    def __init__(self, loss: BatchLoss, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_value(loss)
        if reduction not in get_args(Reduction):
            raise UserError(f"reduction: {reduction!r} is not one of {', '.join(get_args(Reduction))}")
        self.loss, self.reduction = loss, reduction

    def forward(
        self,
        logits_or_hidden: Tensor,
        labels_or_weight: Tensor,
        labels: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """The loss of ``(logits, labels)``, or of ``(hidden, weight, labels)`` without whole logits in memory.

        Args:
            logits_or_hidden: logits (…, V), or the hidden states (…, D) that the output head is given.
            labels_or_weight: labels (…), −100 where there is no target; or the head's weight (V, D).
            labels: (…), with a weight.
            bias: (V,), the head's, with a weight.
            softcap: with a weight, logits z become softcap·tanh(z/softcap).

        Raises UserError where shapes do not fit, and for a weight with a loss that needs whole logits.
        """
        if labels is None:
            if logits_or_hidden.shape[:-1] != labels_or_weight.shape or bias is not None or softcap is not None:
                shapes = f"{tuple(logits_or_hidden.shape)} and {tuple(labels_or_weight.shape)}"
                raise UserError(
                    f"expected logits (…, V) and labels (…), or hidden states, a weight and labels: {shapes}"
                )
            targets = as_targets(labels_or_weight, logits_or_hidden.shape[-1])
            return self._reduced(self.loss.sums(logits_or_hidden, targets))
        loss, labels = pointwise(self.loss), as_targets(labels, labels_or_weight.shape[0])
        try:
            sums = fused_linear_sums(
                logits_or_hidden, labels_or_weight, labels, loss, bias, softcap, ignore_index=IGNORE
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        return self._reduced(sums)

    def extra_repr(self) -> str:
        return f"{self.loss!r}, reduction={self.reduction!r}"

    def _reduced(self, sums: LossSums) -> Tensor:
        return sums.total if self.reduction == "sum" else sums.mean(self.loss.normaliser)


def as_targets(labels: Tensor, classes: int) -> Tensor:
    """Labels as targets, of torch's own type for them.

    Raises UserError where they are no whole numbers; on a CPU, where looking costs nothing, also where one is neither a
    class nor padding: a GPU ends the process with an assertion of its own.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"labels: whole numbers are needed, not {str(labels.dtype).removeprefix('torch.')}")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = labels[(labels != IGNORE) & ((labels < 0) | (labels >= classes))]
        if len(wrong):
            raise UserError(
                f"labels: {wrong[0].item()} is no class, 0 to {classes - 1}, nor {IGNORE}, which stands for no target"
            )
    return labels.long()


def next_tokens(labels: Tensor) -> Tensor:
    """The target of each position (rows, T): the label after it; none for the last."""
    return F.pad(labels[..., 1:], (0, 1), value=IGNORE)


def divided(sums: LossSums, loss: BatchLoss, items: Tensor | int | None) -> Tensor:
    """The sum over ``items`` targets, or, without, over those that the loss's normaliser counts in this batch."""
    if items is None:
        return sums.mean(loss.normaliser)
    items = torch.as_tensor(items, device=sums.total.device)
    if loss.normaliser == "kept":
        if bool((items != sums.valid.sum()).any()):
            raise UserError(
                f"normaliser: kept divides by the kept targets of an optimiser step, here of {items.max()} targets in "
                f"several batches: train without gradient accumulation on one process, or with normaliser: valid"
            )
        return sums.mean("kept")
    return sums.total / items.clamp_min(1)


def check_value(loss: Any) -> None:
    """Raise UserError unless ``loss`` is a loss of this package's kind that has a value for a single batch."""
    if not hasattr(loss, "sums") or isinstance(loss, type):
        shown = in_short(ValueError(repr(loss))) if isinstance(loss, str | int | float | type) else type(loss).__name__
        raise UserError(f"{shown} is no loss: expected one such as TruncatedCrossEntropy(gamma=0.9)")
    loss.sums(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))


def pointwise(loss: Any) -> Any:
    """The loss, if the fused head serves it: a function of each target's log-probability. Raises UserError if not."""
    check_value(loss)
    if hasattr(loss, "kept"):
        return loss
    raise UserError(f"the loss {loss.kind} needs whole logits, which the fused head never has: use .for_trainer()")
