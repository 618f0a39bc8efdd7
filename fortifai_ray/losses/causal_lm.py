"""A loss on a Hugging Face causal LM: by the fused kernel where the model's head is known to be a linear layer.

No model code is copied. The model's own body computes the hidden states, and the kernel replaces its head only after a
check on this very model that the head is a linear layer, optionally followed by a soft cap.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fortifai_ray.losses.base import PointwiseLoss, SequenceLoss
from fortifai_ray.losses.fused import LossSums, fused_linear_sums

IGNORE = -100


@dataclass(frozen=True)
class OutputHead:
    """Logits are ``linear(hidden)``, capped by ``softcap`` if that is a number."""

    linear: nn.Linear
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, V) logits of (…, D) hidden states."""
        logits = self.linear(hidden)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def sums(self, hidden: Tensor, targets: Tensor, loss: PointwiseLoss) -> LossSums:
        """The loss of targets (…) under the logits of (…, D) hidden states, which are never whole in memory."""
        return fused_linear_sums(hidden, self.linear.weight, targets, loss, self.linear.bias, self.softcap)


class UnknownHead(Exception):
    """Why the fused kernel does not serve a model's head."""


def find_head(model: Any) -> OutputHead:
    """The output head of a Hugging Face causal LM.

    It is checked on a few tokens, with hidden states scaled up so that a cap, a scale or any other operation on the
    logits becomes visible. Raises :class:`UnknownHead` with the reason where the fused kernel cannot replace it.
    """
    linear = model.get_output_embeddings()
    if type(linear) is not nn.Linear:  # a subclass may do anything
        raise UnknownHead(f"its output head is {type(linear).__name__}, not a plain linear layer")
    if model.base_model is model:
        raise UnknownHead("it has no body apart from its head")
    config = model.config.get_text_config()
    head = OutputHead(linear, getattr(config, "final_logit_softcapping", None))
    training = model.training
    model.eval()
    try:
        _check_head(model, head)
    finally:
        model.train(training)
    return head


@torch.no_grad()
def _check_head(model: Any, head: OutputHead, largest: float = 100.0) -> None:
    """Raise :class:`UnknownHead` unless ``head`` gives the model's own logits, also where they are ``largest``."""
    linear = head.linear
    tokens = torch.arange(min(8, linear.out_features), device=linear.weight.device)[None]
    seen: list[Tensor] = []

    def amplify(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        scaled = inputs[0] * (largest / F.linear(inputs[0], linear.weight).abs().max())
        seen.extend((inputs[0], scaled))
        return (scaled,)

    handle = linear.register_forward_pre_hook(amplify)
    try:
        logits = model(input_ids=tokens, use_cache=False).logits
    finally:
        handle.remove()
    try:
        hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    except (AttributeError, TypeError) as error:
        raise UnknownHead(f"its body cannot be called by itself: {error}") from error
    if len(seen) != 2 or not _agree(seen[0], hidden):
        raise UnknownHead("its head is not fed with what its body gives")
    if not _agree(logits, head.logits(seen[1])):
        raise UnknownHead("its logits are not those of its linear layer and soft cap alone")


def _agree(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of a few hundred operations, relative to the largest value. NaN never agrees."""
    return a.shape == b.shape and bool((a - b).abs().max() <= 100 * torch.finfo(a.dtype).eps * b.abs().max())


class CausalLMObjective(nn.Module):
    """A causal LM and the loss of its next tokens as one module, so that DistributedDataParallel, wrapped around it,
    sees every use of a parameter. ``output_head`` names the path that pointwise losses take, and why."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._head: OutputHead | None = None
        try:
            self._head = find_head(model)
            self.output_head = "fused"
        except UnknownHead as reason:
            self.output_head = f"plain: {reason}"

    def forward(self, tokens: Tensor, lengths: Tensor, loss: PointwiseLoss | SequenceLoss) -> LossSums:
        """Sums of the loss over the next tokens of ``tokens`` (rows, block_size): (rows, block_size − 1) targets. Only
        the first ``lengths`` (rows,) tokens of a row are text."""
        targets = _next_tokens(tokens, lengths)
        if self._head is None or isinstance(loss, SequenceLoss):
            return loss.sums(self.model(input_ids=tokens, use_cache=False).logits[:, :-1], targets)
        hidden = self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
        return self._head.sums(hidden, targets, loss)


def _next_tokens(tokens: Tensor, lengths: Tensor) -> Tensor:
    positions = torch.arange(1, tokens.shape[1], device=tokens.device)
    return tokens[:, 1:].masked_fill(positions >= lengths[:, None], IGNORE)
