"""Training losses: each is its own configuration, ``{kind: tce, gamma: 0.3}`` in a study file.

All but Lovász are pointwise, ℓ = f(log p_target): written once on a tensor of log-probabilities, knowing nothing of
models, logits or padding. That is what lets one memory-lean kernel (:mod:`fortifai_ray.losses.fused`) serve them all,
a user's own (:mod:`fortifai_ray.losses.user`) among them. Nothing here imports torch until it is needed.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter

from fortifai_ray.losses.base import LossConfig, PointwiseLoss, value_and_derivative
from fortifai_ray.losses.dynamic import DynamicTruncatedCrossEntropy
from fortifai_ray.losses.lovasz import LovaszSoftmax
from fortifai_ray.losses.pointwise import ClippedFocal, CrossEntropy, Entropy, Focal, TruncatedCrossEntropy
from fortifai_ray.losses.user import UserLoss, is_user_kind, register_loss, validate_user_loss

__all__ = [
    "ClippedFocal",
    "CrossEntropy",
    "DynamicTruncatedCrossEntropy",
    "Entropy",
    "Focal",
    "Loss",
    "LovaszSoftmax",
    "PointwiseLoss",
    "TruncatedCrossEntropy",
    "UserLoss",
    "register_loss",
    "value_and_derivative",
]

_OwnLoss: TypeAlias = (
    CrossEntropy | TruncatedCrossEntropy | Focal | Entropy | ClippedFocal | DynamicTruncatedCrossEntropy | LovaszSoftmax
)
_own: TypeAdapter[_OwnLoss] = TypeAdapter(Annotated[_OwnLoss, Field(discriminator="kind")])


def _validate(value: Any) -> LossConfig:
    if isinstance(value, Mapping) and is_user_kind(value.get("kind")):
        return validate_user_loss(value)
    return value if isinstance(value, UserLoss) else _own.validate_python(value)


def _dump(loss: LossConfig) -> dict[str, Any]:
    return loss.model_dump(mode="json")


Loss = Annotated[
    _OwnLoss | UserLoss,
    PlainValidator(_validate, json_schema_input_type=_OwnLoss | UserLoss),
    PlainSerializer(_dump),
]
"""Any loss, validated by its ``kind``: one of this package's, a registered name, or a path ``module:function``."""
