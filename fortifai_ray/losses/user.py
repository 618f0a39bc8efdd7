"""A user's own loss: a function of the log-probability, given by a registered name or a dotted path.

In ``my_losses.py``, beside the study file or installed::

    from fortifai_ray.losses import register_loss

    @register_loss("squared")
    def squared(log_p, scale: float = 1.0):
        return scale * log_p**2

and in the study file ``loss: {kind: "my_losses:squared", scale: 0.5}``. Its derivative comes from autograd, so the
fused kernel serves it too. On a cluster, the module must be importable by the workers.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from fortifai_ray.losses.base import PointwiseLoss
from fortifai_ray.user_code import find_user_code, names_code, source_hash
from fortifai_ray.validation import mistake

if TYPE_CHECKING:
    from torch import Tensor

_Function = TypeVar("_Function", bound=Callable[..., "Tensor"])
_registered: dict[str, str] = {}


def register_loss(name: str) -> Callable[[_Function], _Function]:
    """Register a function of the log-probability as ``kind: name``, and return it unchanged.

    The function takes a tensor of log-probabilities and returns f of each, in the same shape; its further parameters
    are the loss's settings. Raises ValueError for a name with a colon, which would read as a path.
    """
    if ":" in name or not name:
        raise ValueError(f"a loss is registered under a plain name, not {name!r}")

    def register(function: _Function) -> _Function:
        _registered[name] = f"{function.__module__}:{function.__qualname__}"
        return function

    return register


def is_user_kind(kind: Any) -> bool:
    """Whether a loss's kind is a user's own: a registered name or a dotted path."""
    return names_code(kind) or (isinstance(kind, str) and kind in _registered)


class UserLoss(PointwiseLoss):
    """ℓ = f(log p) for a user's f; f′ by autograd. Further keys are f's parameters."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str = Field(description="`module:function`, or the name under which f is registered")

    def __call__(self, log_p: "Tensor") -> "Tensor":
        return _find(self.kind)(log_p, **(self.model_extra or {}))

    def identity(self) -> dict[str, Any]:
        """Settings, and a hash of the whole module that defines the function (not of what that module imports)."""
        return {**self.model_dump(mode="json"), "source": source_hash(_find(self.kind))}


def validate_user_loss(content: Mapping[str, Any]) -> UserLoss:
    """A user's loss, checked: its module is imported, its settings must fit the function's signature, and the function
    is called on three log-probabilities.

    Raises ValidationError, at the key that is wrong.
    """
    kind = _registered.get(content["kind"], content["kind"])
    own = {key: value for key, value in content.items() if key not in PointwiseLoss.model_fields}
    try:
        function = _find(kind)
        parameters = _parameters(function, kind)
    except ValueError as error:
        raise mistake("loss", "kind", str(error), kind) from None
    for key in own:
        if key not in parameters.model_fields:
            known = ", ".join(parameters.model_fields) or "nothing further"
            raise mistake("loss", key, f"unknown key: {kind} takes {known}", own[key])
    settings = parameters.model_validate(own).model_dump()
    loss = UserLoss.model_validate({**content, "kind": kind, **settings})
    try:
        _try(loss)
    except Exception as error:
        raise mistake("loss", "kind", f"{kind} is no function of the log-probability: {error}", kind) from error
    return loss


def _find(kind: str) -> Callable[..., "Tensor"]:
    function = find_user_code(kind, "loss")
    if not inspect.isfunction(function):
        raise ValueError(f"{kind} is not a function")
    return function


def _parameters(function: Callable[..., "Tensor"], kind: str) -> type[BaseModel]:
    """A model that validates the function's parameters after the first."""
    signature = inspect.signature(function)
    first, *rest = signature.parameters.values() if signature.parameters else (None,)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        raise ValueError(f"{kind} takes no log-probability")
    fields: dict[str, Any] = {}
    for parameter in rest:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"{kind} must name its parameters, for a study file to set them: not {parameter}")
        if parameter.name in PointwiseLoss.model_fields:
            raise ValueError(f"{kind}'s parameter {parameter.name} means something else in a study file: rename it")
        hint = Any if isinstance(parameter.annotation, str) else parameter.annotation
        annotation = Any if hint is parameter.empty else hint
        fields[parameter.name] = (annotation, ... if parameter.default is parameter.empty else parameter.default)
    return create_model(kind, __config__=ConfigDict(allow_inf_nan=False), **fields)


def _try(loss: UserLoss) -> None:
    import torch

    from fortifai_ray.losses.derivative import value_and_derivative

    log_p = torch.tensor([-3.0, -0.5, -0.01], dtype=torch.float64)
    value, derivative = value_and_derivative(loss, log_p)
    if value.shape != log_p.shape:
        raise ValueError(f"it returns shape {tuple(value.shape)} for shape {tuple(log_p.shape)}")
    if not (value.isfinite().all() and derivative.isfinite().all()):
        raise ValueError(f"at log p = {log_p.tolist()} it returns {value.tolist()}, with slope {derivative.tolist()}")
