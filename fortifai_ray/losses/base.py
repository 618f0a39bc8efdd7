"""What losses share: their configuration, the registry of their kinds, and their forms for other training loops."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from fortifai_ray.errors import UserError
from fortifai_ray.losses.derivative import value_and_derivative
from fortifai_ray.metrics import Metric
from fortifai_ray.validation import Section, validated

if TYPE_CHECKING:  # the command line validates study files without paying for the import
    from torch import Tensor

    from fortifai_ray.losses.fused import LossSums
    from fortifai_ray.losses.loops import LossModule, Reduction, TrainerLoss

Normaliser = Literal["valid", "kept"]

KINDS: dict[str, type["LossConfig"]] = {}
"""The losses of this package by kind: a subclass whose ``kind`` has a default registers itself."""


def _not_by_a_trainer(call: Callable[..., "Tensor"]) -> Callable[..., "Tensor"]:
    """A loss's own function, which refuses what Hugging Face's Trainer gives to a ``compute_loss_func``."""

    @functools.wraps(call)
    def checked(*args: Any, **settings: Any) -> "Tensor":
        if "num_items_in_batch" in settings:
            raise UserError("compute_loss_func: give the trainer loss.for_trainer(), not the loss itself")
        return call(*args, **settings)

    return checked


class LossConfig(Section):
    """A loss as a study file describes it: its kind, its numbers, and the count its sum is divided by."""

    metrics: ClassVar[tuple[Metric, ...]] = ()  # what training with this loss measures, in addition to the family's
    kind: str
    normaliser: Normaliser = Field(
        "valid",
        description="the count that the sum is divided by, once, over all workers: every target that is not padding "
        "(ForTIFAI's mean), or only the targets kept, which contribute a gradient",
    )

    if not TYPE_CHECKING:  # the typed signature is pydantic's

        def __init__(self, /, *args: Any, **settings: Any) -> None:
            """Raises UserError for a setting that is wrong, unknown or missing."""
            if args:
                keys = ", ".join(f"{key}=…" for key in type(self).model_fields if key not in ("kind", "normaliser"))
                raise UserError(f"{type(self).__name__}: settings are given by name{': ' * bool(keys)}{keys}")
            try:
                return super().__init__(**settings)
            except ValidationError as error:
                wrong = error
            validated(type(self), settings, type(self).__name__)
            raise wrong

        # A study's sections are validated without calling this, which keeps the places of their mistakes.
        __init__.__pydantic_base_init__ = True

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        kind = cls.model_fields["kind"].default
        if isinstance(kind, str):
            KINDS[kind] = cls
        if "__call__" in vars(cls):
            cls.__call__ = _not_by_a_trainer(vars(cls)["__call__"])  # type: ignore[method-assign]

    def identity(self) -> dict[str, Any]:
        """What of this loss determines a trained model: its settings, and the source code of a user's own loss."""
        return self.model_dump(mode="json")

    def sums(self, logits: "Tensor", targets: "Tensor") -> "LossSums":
        """This loss of targets (…) under whole logits (…, V), undivided; a target of −100 is padding.

        Raises UserError where the loss has no such form.
        """
        raise UserError(f"the loss {self.kind} has no value for a single batch")

    def for_trainer(self) -> "TrainerLoss":
        """This loss as the ``compute_loss_func`` of Hugging Face's ``Trainer`` or TRL's ``SFTTrainer``, from whole
        logits: see :class:`fortifai_ray.losses.loops.TrainerLoss`.

        Raises UserError where the loss has no value for a single batch.
        """
        from fortifai_ray.losses.loops import TrainerLoss

        return TrainerLoss(self)

    def as_module(self, reduction: "Reduction" = "mean") -> "LossModule":
        """This loss as a ``torch.nn.Module`` of ``(logits, labels)`` or ``(hidden, weight, labels)``: see
        :class:`fortifai_ray.losses.loops.LossModule`.

        Raises UserError where the loss has no value for a single batch, or for another reduction than mean and sum.
        """
        from fortifai_ray.losses.loops import LossModule

        return LossModule(self, reduction)


class PointwiseLoss(LossConfig, ABC):
    """ℓ = f(log p) of each target separately. Its gradient on the logits is f′(log p)·(onehot − softmax)."""

    @abstractmethod
    def __call__(self, log_p: "Tensor") -> "Tensor":
        """f(log p), in nats: same shape as ``log_p``. What it detaches counts as a constant in f′."""

    def kept(self, log_p: "Tensor") -> "Tensor":
        """Which targets contribute a gradient, f′(log p) ≠ 0: boolean, of the shape of ``log_p``. NaN counts as kept,
        so that it stays visible."""
        return value_and_derivative(self, log_p)[1] != 0

    def sums(self, logits: "Tensor", targets: "Tensor") -> "LossSums":
        """As :meth:`LossConfig.sums`, target by target."""
        from fortifai_ray.losses.fused import plain_sums

        return plain_sums(logits, targets, self)


class SequenceLoss(LossConfig, ABC):
    """A loss of one sequence's targets together, which needs whole logits: the fused kernel does not serve it."""

    @abstractmethod
    def __call__(self, logits: "Tensor", targets: "Tensor", ignore_index: int = -100) -> "Tensor":
        """Of ``targets`` (N,) under ``logits`` (N, V): a scalar; 0, with a gradient of 0, where no target is valid."""

    def sums(self, logits: "Tensor", targets: "Tensor") -> "LossSums":
        """As :meth:`LossConfig.sums`, of rows (rows, N, V) or one row (N, V): each row's loss times its number of
        targets, all of which count as kept."""
        import torch

        from fortifai_ray.losses.fused import plain_sums

        counted = plain_sums(logits.detach(), targets, torch.neg)
        rows = zip(logits, targets, strict=True) if targets.dim() > 1 else [(logits, targets)]
        of_rows = torch.stack([self(row.float(), of_row) for row, of_row in rows])
        return counted._replace(total=(of_rows * counted.valid.sum(-1)).sum())
