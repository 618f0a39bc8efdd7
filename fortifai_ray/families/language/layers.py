"""Llama's decoder layer as one operation with a backward pass of its own, for training in float32 on a CPU.

transformers' layer is some forty operations, each of which reads and writes all tokens' numbers and keeps some for the
backward pass. Here sums go along with products, a head's pairs are rotated as complex numbers, attention leaves out
most of what comes later in a row, and the backward pass computes again what is cheap: the norms and the activated gate.
The numbers are the same up to rounding.
"""

import math
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fortifai_ray.losses.products import product, product_plus

_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")
_FEW = 0.6  # of a step's tokens: choosing four fifths of them takes as long as it saves


class _Shape(NamedTuple):
    """What a layer's weights do not say."""

    width: int  # of a head
    scale: float  # of its scores
    eps: float  # of the first norm
    eps2: float
    drops: bool  # whether the gradient on its outputs may be 0 for many tokens


def quicken(network: Any, *, drops: bool = False) -> int:
    """Let the decoder layers of ``network`` that are known here compute in this way; returns how many do.

    They do where it is right, call by call: in float32 on a CPU, each token attending to all before it. Nothing is
    changed in a layer with adapters, dropout, frozen weights or another activation, nor where the first layer's outputs
    would not be those of transformers' own.

    Where the loss ``drops`` targets, the last layer's gated half, query and output are computed backwards only for
    tokens whose target is kept. All others reach it through keys and values alone, and layers before it by them.
    """
    layers = [layer for layer in network.modules() if type(layer).__name__ in _LAYERS and _is_known(layer)]
    if not layers or not _agrees(layers[0], network.base_model.rotary_emb):
        return 0
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    layers[-1].drops = drops
    last: Any = getattr(network.base_model, "norm", None)
    if type(last) is type(layers[0].input_layernorm):
        last.forward = MethodType(_norm_forward, last)
    return len(layers)


def _is_known(layer: Any) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    read = (attention.q_proj, attention.k_proj, attention.v_proj)
    others = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return (
        all(type(linear) is nn.Linear for linear in (*read, *others))
        and all(linear.bias is None for linear in others)
        and len({linear.bias is None for linear in read}) == 1
        and all(weight.requires_grad and weight.dtype == torch.float32 for weight in layer.parameters())
        and layer.self_attn.config._attn_implementation == "sdpa"
        and layer.self_attn.config.hidden_act == "silu"
        and not attention.attention_dropout
        and attention.head_dim % 2 == 0
    )


@torch.no_grad()
def _agrees(layer: Any, rotary: Any) -> bool:
    """Whether a layer's outputs are those of its class, up to the rounding of a few hundred operations."""
    width = layer.self_attn.q_proj.in_features
    hidden = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))
    angles = rotary(hidden, position_ids=torch.arange(5)[None])
    expected = layer(hidden, position_embeddings=angles)
    error = (_apply(layer, hidden, angles) - expected).abs().max()
    return bool(error <= 100 * torch.finfo(torch.float32).eps * expected.abs().max())


def _forward(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **others: Any,
) -> Tensor:
    """As the layer's class has it."""
    alone = attention_mask is None and past_key_values is None
    if alone and position_embeddings is not None and _is_plain(hidden_states):
        return _apply(layer, hidden_states, position_embeddings)
    return type(layer).forward(
        layer,
        hidden_states,
        attention_mask=attention_mask,
        position_ids=position_ids,
        past_key_values=past_key_values,
        use_cache=use_cache,
        position_embeddings=position_embeddings,
        **others,
    )


def _norm_forward(norm: Any, hidden_states: Tensor) -> Tensor:
    """As the norm's class has it."""
    if not _is_plain(hidden_states):
        return type(norm).forward(norm, hidden_states)
    return _Norm.apply(hidden_states, norm.weight, norm.variance_epsilon)


def _is_plain(hidden: Tensor) -> bool:
    return hidden.dtype == torch.float32 and hidden.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _apply(layer: Any, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    attention, mlp, width = layer.self_attn, layer.mlp, layer.self_attn.head_dim
    read = (attention.q_proj, attention.k_proj, attention.v_proj)
    eps = (layer.input_layernorm.variance_epsilon, layer.post_attention_layernorm.variance_epsilon)
    cosine, sine = (part[..., : width // 2] for part in angles)  # (1 or rows, tokens, width / 2)
    return _Layer.apply(
        hidden,
        torch.complex(cosine, sine),
        _Shape(width, attention.scaling, *eps, getattr(layer, "drops", False)),
        layer.input_layernorm.weight,
        *(linear.weight for linear in read),
        *(linear.bias for linear in read),
        attention.o_proj.weight,
        layer.post_attention_layernorm.weight,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
    )


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, turn: Tensor, shape: _Shape, norm: Tensor, wq: Tensor, wk: Tensor, wv: Tensor,
        bq: Tensor | None, bk: Tensor | None, bv: Tensor | None, wo: Tensor, norm2: Tensor, gate: Tensor, up: Tensor,
        down: Tensor,
    ) -> Tensor:  # fmt: skip
        rows, flat = len(hidden), hidden.reshape(-1, hidden.shape[-1])
        normed = _normed(flat, norm, shape.eps)
        q, k = (
            _rotated(product(normed, _paired(weight, shape), _paired(bias, shape)), turn, rows, shape)
            for weight, bias in ((wq, bq), (wk, bk))
        )
        v = product(normed, wv, bv)
        attended, sums = _attend(_heads(q, rows, shape), _heads(k, rows, shape), _heads(v, rows, shape), shape.scale)
        middle = product_plus(_flat(attended), wo, flat)
        normed = _normed(middle, norm2, shape.eps2)
        first, second = product(normed, gate), product(normed, up)
        result = product_plus(F.silu(first).mul_(second), down, middle)
        ctx.shape, ctx.biased = shape, bq is not None
        ctx.save_for_backward(
            flat, turn, q, k, v, attended, middle, first, second, norm, wq, wk, wv, wo, norm2, gate, up, down, *sums
        )
        return result.view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (flat, turn, q, k, v, attended, middle, first, second, norm, wq, wk, wv, wo, norm2, gate, up, down, *sums) = (
            ctx.saved_tensors
        )
        rows, shape, last = len(gradient), ctx.shape, gradient.reshape(-1, gradient.shape[-1])
        some = _with_gradient(last) if shape.drops else None
        # The gated half.
        last, middle, first, second = (_of(part, some) for part in (last, middle, first, second))
        active, on_active = F.silu(first), product(last, down.T)
        on_second = on_active * active
        on_down = last.T @ active.mul_(second)
        on_first = torch.ops.aten.silu_backward(on_active.mul_(second), first)
        del active, on_active
        normed, scaled, inverse = _norm_again(middle, norm2, shape.eps2)
        on_gate, on_up = on_first.T @ normed, on_second.T @ normed
        on_normed = product_plus(on_second, up.T, product(on_first, gate.T))
        on_middle, on_norm2 = _norm_backward(on_normed, scaled, inverse, norm2, last)
        del on_first, on_second
        # The attending half.
        on_wo = on_middle.T @ _of(_flat(attended), some)
        on_attended = _among(product(on_middle, wo.T), some, len(flat))
        on_attended, *heads = (_heads(part, rows, shape) for part in (on_attended, q, k, v))
        on_q, on_k, on_v = map(_flat, _attend_backward(on_attended, heads, attended, sums, shape.scale))
        on_q, on_k = (_rotated(part, turn.conj_physical(), rows, shape) for part in (on_q, on_k))
        normed, scaled, inverse = _norm_again(flat, norm, shape.eps)
        of_some = _of(on_q, some)
        on_wq = _unpaired(of_some.T @ _of(normed, some), shape)
        on_weights = (on_wq, _unpaired(on_k.T @ normed, shape), on_v.T @ normed)
        on_biases: tuple[Tensor | None, ...] = (None, None, None)
        if ctx.biased:
            on_biases = (_unpaired(on_q.sum(0), shape), _unpaired(on_k.sum(0), shape), on_v.sum(0))
        on_normed = _among(product(of_some, _paired(wq, shape).T), some, len(flat))
        on_normed = product_plus(on_k, _paired(wk, shape).T, on_normed)
        on_normed = product_plus(on_v, wv.T, on_normed)
        on_middle = _among(on_middle, some, len(flat))
        on_hidden, on_norm = _norm_backward(on_normed, scaled, inverse, norm, on_middle)
        of_attention = (on_norm, *on_weights, *on_biases, on_wo)
        return on_hidden.view_as(gradient), None, None, *of_attention, on_norm2, on_gate, on_up, on_down


def _with_gradient(gradient: Tensor) -> Tensor | None:
    """The rows (k,) of (n, D) that are not 0; None where they are nearly all, so that to choose them gains nothing."""
    some = gradient.any(1).nonzero().squeeze(1)
    return some if len(some) <= _FEW * len(gradient) else None


def _of(part: Tensor, some: Tensor | None) -> Tensor:
    return part if some is None else part[some]


def _among(part: Tensor, some: Tensor | None, count: int) -> Tensor:
    """(count, …), 0 but for the rows ``some``, which are those of ``part``."""
    return part if some is None else part.new_zeros(count, *part.shape[1:]).index_copy_(0, some, part)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        ctx.eps = eps
        ctx.save_for_backward(flat, weight)
        return _normed(flat, weight, eps).view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight = ctx.saved_tensors
        _, scaled, inverse = _norm_again(flat, weight, ctx.eps)
        on_hidden, on_weight = _norm_backward(gradient.reshape(flat.shape).clone(), scaled, inverse, weight, None)
        return on_hidden.view_as(gradient), on_weight, None


def _inverse(hidden: Tensor, eps: float) -> Tensor:
    """1 over the root of the mean square of each row: (n, 1)."""
    length = torch.linalg.vector_norm(hidden, dim=1, keepdim=True)
    return length.square_().div_(hidden.shape[1]).add_(eps).rsqrt_()


def _normed(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (hidden * _inverse(hidden, eps)).mul_(weight)


def _norm_again(hidden: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(normed, before its weight, 1 over the root mean squares)."""
    inverse = _inverse(hidden, eps)
    scaled = hidden * inverse
    return scaled * weight, scaled, inverse


def _norm_backward(
    on_normed: Tensor, scaled: Tensor, inverse: Tensor, weight: Tensor, beside: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients on the hidden states, ``beside`` added to them, and on the weight. ``on_normed`` is overwritten."""
    both = on_normed * scaled
    on_weight = both.sum(0)
    share = torch.mv(both, weight).div_(-len(weight))[:, None]
    on_scaled = on_normed.mul_(weight).addcmul_(scaled, share)
    on_hidden = on_scaled.mul_(inverse) if beside is None else torch.addcmul(beside, on_scaled, inverse)
    return on_hidden, on_weight


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, list[Tensor]]:
    """Each token to all before it and itself; heads of keys and values may be fewer than of queries. Returns (rows,
    heads, tokens, width) and what the backward pass needs of each block of queries."""
    attended, sums = torch.empty_like(q), []
    for first, last in _blocks(q.shape[2]):
        of_block, of_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, :, first:last], k[:, :, :last], v[:, :, :last], 0.0, not first, attn_mask=_mask(first, last),
            scale=scale,
        )  # fmt: skip
        attended[:, :, first:last] = of_block
        sums.append(of_sums)
    return attended, sums


def _attend_backward(
    on_attended: Tensor, heads: list[Tensor], attended: Tensor, sums: list[Tensor], scale: float
) -> list[Tensor]:
    """The gradients on ``heads``: query, keys and values."""
    q, k, v = heads
    on_q, of_others = torch.empty_like(q), list[Tensor]()
    for (first, last), of_sums in reversed(list(zip(_blocks(q.shape[2]), sums, strict=True))):
        block = (slice(None), slice(None), slice(first, last))
        on_q[block], *of_block = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            on_attended[block], q[block], k[:, :, :last], v[:, :, :last], attended[block], of_sums, 0.0, not first,
            attn_mask=_mask(first, last), scale=scale,
        )  # fmt: skip
        of_others = of_others or of_block  # the last block's are those of all keys
        if last < q.shape[2]:
            for to, part in zip(of_others, of_block, strict=True):
                to[:, :, :last] += part
    return [on_q, *of_others]


def _blocks(tokens: int) -> list[tuple[int, int]]:
    """First and last token of each block of queries: PyTorch's kernel goes through up to 512 keys for each of them,
    whether or not they come later, so that it is called with fewer."""
    size = max(64, tokens // 8)
    return [(first, min(first + size, tokens)) for first in range(0, tokens, size)]


def _mask(first: int, last: int) -> Tensor | None:
    """What is added to the scores of queries ``first`` to ``last`` with keys up to ``last``: −∞ for later ones. None
    for the first block, to which the kernel's own rule applies."""
    return torch.full((last - first, last), -math.inf).triu_(first + 1) if first else None


def _heads(flat: Tensor, rows: int, shape: _Shape) -> Tensor:
    """(rows · tokens, heads · width) as (rows, heads, tokens, width)."""
    return flat.view(rows, len(flat) // rows, -1, shape.width).transpose(1, 2)


def _flat(heads: Tensor) -> Tensor:
    rows, _, tokens, _ = heads.shape
    return heads.transpose(1, 2).reshape(rows * tokens, -1)


def _rotated(flat: Tensor, turn: Tensor, rows: int, shape: _Shape) -> Tensor:
    """Heads (rows · tokens, heads · width) with their pairs multiplied by ``turn`` (1 or rows, tokens, width / 2), in
    place."""
    pairs = torch.view_as_complex(flat.view(rows, turn.shape[1], -1, 2))
    pairs *= turn.repeat(1, 1, pairs.shape[2] // turn.shape[2])
    return flat


def _paired(weight: Tensor | None, shape: _Shape) -> Any:
    """A weight's rows in another order: the i-th of a head's first half, then the i-th of its second, which are rotated
    together. Scores are sums over all of them, whatever their order. None stays None."""
    if weight is None:
        return None
    return weight.view(-1, 2, shape.width // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _unpaired(weight: Tensor, shape: _Shape) -> Tensor:
    return weight.view(-1, shape.width // 2, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
