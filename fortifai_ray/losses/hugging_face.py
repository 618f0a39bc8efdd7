"""A loss inside a Hugging Face causal LM: after ``use_fused_loss(model, loss)``, the model's own loss is that one.

The model's class is exchanged for a subclass of the same name, as PyTorch's ``fully_shard`` does, so that saved
checkpoints, ``generate``, copies and replicas of the model stay what they are.
"""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fortifai_ray.errors import UserError, in_short
from fortifai_ray.losses.base import LossConfig, PointwiseLoss
from fortifai_ray.losses.causal_lm import OutputHead, UnknownHead, find_head
from fortifai_ray.losses.loops import as_targets, divided, next_tokens, pointwise


@dataclass
class _State:
    """What a model with a fused loss carries, as its attribute ``_fused_loss``."""

    loss: PointwiseLoss
    softcap: float | None
    original: type  # the model's own class
    loss_type: str | None  # the model's own


def use_fused_loss(model: Any, loss: PointwiseLoss | None) -> Any:
    """Make ``loss`` a Hugging Face causal LM's own loss, computed without whole logits; return the model.

    The model is changed in place: ``model(input_ids=…, labels=…).loss`` is the loss, so ``Trainer``, accelerate and
    loops of one's own need no further word. The sum is divided by ``num_items_in_batch`` where the loop gives it, and
    else by the batch's own targets. While the model trains, ``logits`` are None; in evaluation they are whole, as
    usual, and ``loss`` is this loss (``skip_logits=True`` leaves them out there too). Without labels, the model is as
    it was.

    ``use_fused_loss(model, None)`` makes the model what it was; another loss replaces the first. An adapter's model
    (PEFT) may be given too, and an adapter may be added later, unless it changes the output head.

    Raises UserError, and changes nothing, where the fused head cannot serve the loss (Lovász) or the model: the head
    must be a linear layer, with or without a bias and a soft cap, fed by the model's body. Of Transformers' models that
    holds for Llama, Qwen, Gemma, GPT-2, OPT, Phi and most others; not where logits are scaled (Granite, Cohere) or a
    router's loss is added (mixtures of experts with ``output_router_logits``).
    """
    if isinstance(model, LossConfig):
        raise UserError("use_fused_loss(model, loss): the model comes first, then the loss")
    inner = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    state: _State | None = getattr(inner, "_fused_loss", None)
    if loss is not None:
        loss = pointwise(loss)
        if state is not None:
            state.loss = loss
        else:
            _install(inner, loss)
    elif state is not None:
        inner.__class__ = state.original
        inner.loss_type = state.loss_type
        del inner._fused_loss
    return model


def _install(model: Any, loss: PointwiseLoss) -> None:
    name = type(model).__name__
    try:
        head = _head(model)
    except UnknownHead as reason:
        raise UserError(f"the fused loss does not serve {name}: {reason}") from None
    if "forward" in vars(model):
        raise UserError(
            f"{name}'s forward was replaced already (by accelerate, TRL, …): call use_fused_loss before that"
        )
    cls = type(model)
    model._fused_loss = _State(loss, head.softcap, cls, getattr(model, "loss_type", None))
    # Trainer counts the labels after the first only where it knows that the loss shifts them (not of GPT-2's class).
    model.loss_type = "ForCausalLM"
    model.__class__ = _subclass(cls)  # type: ignore[arg-type]


def _head(model: Any) -> OutputHead:
    """The model's output head; raises :class:`UnknownHead` with the reason why the fused loss cannot serve it."""
    if not (hasattr(model, "get_output_embeddings") and hasattr(model, "config")):
        raise UnknownHead("it is no model of Hugging Face's Transformers")
    config = model.config
    if getattr(config, "is_encoder_decoder", False) or config.get_text_config() is not config:
        raise UnknownHead("it is not a language model of text alone")
    if getattr(config, "output_router_logits", False):
        raise UnknownHead("its own loss has a router's loss in it (output_router_logits)")
    _check_weight(model.get_output_embeddings())
    try:
        return find_head(model)
    except UnknownHead:
        raise
    except Exception as error:  # a model's code may ask for anything, and fail in any way
        raise UnknownHead(f"it cannot be run on tokens alone: {in_short(error)}") from error


def _check_weight(linear: Any) -> nn.Linear:
    """The layer, if it is a linear one with its whole weight at hand; raises :class:`UnknownHead` if not."""
    if type(linear) is not nn.Linear:  # a subclass may do anything
        raise UnknownHead(f"its output head is {type(linear).__name__}, not a plain linear layer")
    weight = linear.weight
    if type(weight) not in (Tensor, nn.Parameter) or weight.dim() != 2 or weight.is_meta:
        raise UnknownHead("the weight of its output head is not here as a whole (sharded or offloaded)")
    return linear


@functools.cache
def _subclass(cls: type[Any]) -> type:
    """A model's class with the loss in its ``forward``, under the name and signature that it has."""
    names = [p.name for p in inspect.signature(cls.forward).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs |= zip(names[1:], args, strict=False)
        state: _State | None = vars(self).get("_fused_loss")
        if state is None:
            return cls.forward(self, **kwargs)
        if kwargs.get("labels") is None and kwargs.get("shift_labels") is None:
            if "num_items_in_batch" in kwargs:
                raise UserError(
                    "the trainer computes another loss than the model's (compute_loss_func or label smoothing), which "
                    "use_fused_loss cannot serve: leave that out, or undo with use_fused_loss(model, None)"
                )
            return cls.forward(self, **kwargs)
        return _forward(self, state, kwargs)

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if name == "forward" and _module_of(value) == "trl":
            raise UserError(
                "TRL's SFTTrainer computes its own loss, which would replace that of use_fused_loss: give the trainer "
                "compute_loss_func=loss.for_trainer(), and the model without use_fused_loss"
            )
        cls.__setattr__(self, name, value)  # type: ignore[call-arg]

    members = {"forward": forward, "__setattr__": __setattr__, "accepts_loss_kwargs": True}
    return type(cls.__name__, (cls,), {**members, "__module__": cls.__module__, "__qualname__": cls.__qualname__})


def _module_of(function: Any) -> str:
    """The package whose code a function is, whatever it says of itself."""
    found = getattr(getattr(function, "__func__", function), "__globals__", {}).get("__name__", "")
    return str(found).partition(".")[0]


def _forward(model: Any, state: _State, kwargs: dict[str, Any]) -> Any:
    """A forward pass with labels."""
    if kwargs.get("output_router_logits"):
        raise UserError("output_router_logits: the fused loss has no router's loss in it; leave that out, or undo it")
    labels, shifted = kwargs.pop("labels", None), kwargs.pop("shift_labels", None)
    items, skip = kwargs.pop("num_items_in_batch", None), kwargs.pop("skip_logits", None)
    targets = next_tokens(labels) if shifted is None else shifted
    as_mapping = kwargs.pop("return_dict", None)
    if as_mapping is None:
        as_mapping = model.config.return_dict
    if not model.config.return_dict:
        kwargs["return_dict"] = True
    if model.training if skip is None else skip:
        output = _without_logits(model, state, targets, items, kwargs)
    else:
        whole = state.original.forward(model, **kwargs)  # type: ignore[attr-defined]
        targets = as_targets(targets, whole.logits.shape[-1])
        sums = state.loss.sums(whole.logits, targets.to(whole.logits.device))
        output = type(whole)(**{**whole, "loss": divided(sums, state.loss, items)})
    return output if as_mapping else output.to_tuple()


def _without_logits(model: Any, state: _State, targets: Tensor, items: Any, kwargs: dict[str, Any]) -> Any:
    """The output of a forward pass by the model's body and the fused head."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    kwargs.pop("logits_to_keep", None)
    if kwargs.get("use_cache") is None:
        kwargs["use_cache"] = False
    body = model.base_model(**kwargs)
    try:
        head = OutputHead(_check_weight(model.get_output_embeddings()), state.softcap)
    except UnknownHead as reason:
        raise UserError(f"the fused loss no longer serves {type(model).__name__}: {reason}") from None
    hidden = body.last_hidden_state.to(head.linear.weight.device)
    targets = as_targets(targets, head.linear.weight.shape[0])
    loss: Any = divided(head.sums(hidden, targets.to(hidden.device), state.loss), state.loss, items)
    parts = {key: body.get(key) for key in ("past_key_values", "hidden_states", "attentions")}
    return CausalLMOutputWithPast(loss=loss, **parts)
