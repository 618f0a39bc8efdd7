"""Training losses: each is its own configuration, ``{kind: tce, gamma: 0.3}`` in a study file.

All but Lovász are pointwise, ℓ = f(log p_target): written once as a function of a tensor of log-probabilities, without
knowledge of models, logits or padding. That lets one memory-lean kernel (:mod:`fortifai_ray.losses.fused`) serve them
all, including a user's own (:mod:`fortifai_ray.losses.user`). A loss registers itself by its ``kind`` where it is
defined; nothing else lists them. Nothing here imports torch until it is needed.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Union

from pydantic import PlainValidator, SerializeAsAny

from fortifai_ray.losses.base import KINDS, LossConfig, PointwiseLoss, SequenceLoss
from fortifai_ray.losses.derivative import value_and_derivative
from fortifai_ray.losses.kinds import (
    ClippedFocal,
    CrossEntropy,
    DynamicTruncatedCrossEntropy,
    Entropy,
    Focal,
    LovaszSoftmax,
    TruncatedCrossEntropy,
)
from fortifai_ray.losses.user import UserLoss, is_user_kind, register_loss, validate_user_loss
from fortifai_ray.validation import hint, mistake, shown

__all__ = [
    "ClippedFocal",
    "CrossEntropy",
    "DynamicTruncatedCrossEntropy",
    "Entropy",
    "Focal",
    "Loss",
    "LovaszSoftmax",
    "PointwiseLoss",
    "SequenceLoss",
    "TruncatedCrossEntropy",
    "UserLoss",
    "register_loss",
    "value_and_derivative",
]


def _validate(value: Any) -> LossConfig:
    if isinstance(value, LossConfig):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"a loss is a mapping such as {{kind: tce, gamma: 0.3}}, not {shown(value)}")
    kind = value.get("kind")
    if is_user_kind(kind):
        return validate_user_loss(value)
    if kind is None:
        raise mistake("loss", "kind", f"this key is needed and missing (kinds: {', '.join(KINDS)})", value)
    if not isinstance(kind, str) or kind not in KINDS:
        own = "; a loss of your own is named module:function"
        raise mistake("loss", "kind", f"there is no loss {shown(kind)}{hint(str(kind), KINDS, own)}", kind)
    return KINDS[kind].model_validate(value)


_AnyKind: Any = Union[tuple([*KINDS.values(), UserLoss])]  # noqa: UP007 (made from the registry)

Loss = Annotated[
    PointwiseLoss | SequenceLoss | DynamicTruncatedCrossEntropy,
    PlainValidator(_validate, json_schema_input_type=_AnyKind),
    SerializeAsAny(),
]
"""Any loss, validated by its ``kind``: one of this package's, a registered name, or a path ``module:function``."""
