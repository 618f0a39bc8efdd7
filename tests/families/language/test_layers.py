"""Llama's decoder layer as one operation: the numbers of transformers' own, of every architecture and length that it
serves; every other layer and call is transformers' own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engines.architectures import make_architecture
from torch import Tensor

from fortifai_ray.engines.pretrained import load_network
from fortifai_ray.families.language import layers
from fortifai_ray.families.language.adapters import adapt
from fortifai_ray.families.language.config import LoraConfig
from fortifai_ray.families.language.models import keep_documents_apart
from fortifai_ray.losses import CrossEntropy
from fortifai_ray.losses.causal_lm import CausalLMObjective

LLAMAS = ["llama", "llama-odd", "llama-odd-tied", "llama-rope3", "llama-dynamic", "llama-yarn"]
SERVED = [*LLAMAS, "qwen2-tied", "mistral"]
OTHERS = ["gemma3", "gpt2", "opt", "qwen3", "llama-bias", "qwen2_moe", "phi3"]


def network(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    if not (folder / name).exists():
        make_architecture(folder / name, name)
    return load_network(folder / name, dtype).train()


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(0, 250, (rows, length), generator=torch.Generator().manual_seed(length))


def sums_and_gradients(model: Any, rows: Tensor) -> list[Tensor]:
    """The hidden states, and the gradient of each weight of a loss that weighs every one of them otherwise."""
    hidden = model.base_model(input_ids=rows, use_cache=False).last_hidden_state
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)).to(hidden.dtype)
    parameters = list(model.base_model.parameters())
    return [hidden.detach(), *torch.autograd.grad((hidden * weights).sum(), parameters)]


def errors(found: list[Tensor], exact: list[Tensor]) -> Tensor:
    """Of each tensor: the root mean square of its error, of its size."""
    pairs = zip(found, exact, strict=True)
    return torch.stack([(one.double() - two).norm() / two.norm() for one, two in pairs])


@pytest.mark.parametrize("name", SERVED)
def test_outputs_and_gradients_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Against float64, no further off than four times what transformers' own layers are in float32, tensor by tensor:
    both round the same sums, in another order. Lengths around a block of queries and beyond two."""
    exact, own, ours = network(tmp_path, name, torch.float64), network(tmp_path, name), network(tmp_path, name)
    assert layers.quicken(ours) == ours.config.num_hidden_layers
    served: list[int] = []
    apply = layers._apply
    for length in (1, 2, 16, 64, 65, 131):
        rows = tokens(3, length)
        expected = sums_and_gradients(exact, rows)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers, "_apply", lambda *a, length=length: (served.append(length), apply(*a))[1])
            found = errors(sums_and_gradients(ours, rows), expected)
        allowed = 4 * errors(sums_and_gradients(own, rows), expected) + 4 * torch.finfo(torch.float32).eps
        # With one token each score's share is 1, and the gradients of query and key are nothing but rounding.
        judged = [n for n, size in enumerate(expected) if length > 1 or size.norm() > 1e-6]
        assert (found[judged] <= allowed[judged]).all(), (length, found / allowed)
    within = (1, 2) if name == "mistral" else (1, 2, 16, 64, 65, 131)  # of mistral's window of 16 tokens
    assert set(served) == set(within)


@pytest.mark.parametrize("name", ["llama-odd-tied", "qwen2-tied"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.6, 0.7, 1.0])
def test_tokens_without_gradient_cost_the_last_layer_nothing(kept: float, name: str, tmp_path: Path) -> None:
    """The gradients of the whole pass, as far off float64 as those, and products over no more rows than have a
    gradient; over all of them where that is most, bit for bit."""
    exact, whole, ours = network(tmp_path, name, torch.float64), network(tmp_path, name), network(tmp_path, name)
    assert layers.quicken(whole)
    assert layers.quicken(ours, drops=True)
    rows, generator = tokens(3, 70), torch.Generator().manual_seed(2)
    weights = torch.randn(3, 70, ours.config.hidden_size, generator=generator)
    weights *= (torch.rand(3, 70, generator=generator).argsort(1) < round(kept * 70))[..., None]
    counted: list[int] = []
    product = layers.product

    def gradients(model: Any) -> list[Tensor]:
        hidden = model.base_model(input_ids=rows, use_cache=False).last_hidden_state
        counted.clear()
        return list(torch.autograd.grad((hidden * weights.to(hidden.dtype)).sum(), list(model.base_model.parameters())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "product", lambda left, *a: (counted.append(len(left)), product(left, *a))[1])
        dense, found = gradients(whole), gradients(ours)
    if kept > layers._FEW:
        assert all(torch.equal(one, two) for one, two in zip(dense, found, strict=True))
        assert set(counted) == {210}
        return
    # Four of the last layer's, by its inner weights, output and query; then those of the layers before it.
    assert counted[:4] == [3 * round(kept * 70)] * 4
    assert set(counted[4:]) <= {210}
    expected = gradients(exact)
    if kept == 0.0:
        assert all(not one.any() for one in found)
        return
    allowed = 4 * errors(dense, expected) + 4 * torch.finfo(torch.float32).eps
    assert (errors(found, expected) <= allowed).all()


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_stay_as_they_are(name: str, tmp_path: Path) -> None:
    """Another norm, activation, order, or biases where Llama has none."""
    own, model = network(tmp_path, name).eval(), network(tmp_path, name).eval()
    assert layers.quicken(model) == 0
    assert torch.equal(model(input_ids=tokens(2, 9)).logits, own(input_ids=tokens(2, 9)).logits)


def _dropout(model: Any) -> None:
    for module in model.modules():
        module.attention_dropout = 0.1


def _frozen(model: Any) -> None:
    model.base_model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    model.base_model.layers[1].input_layernorm.weight.requires_grad_(False)


def _adapted(model: Any) -> None:
    adapt(model, LoraConfig(rank=2, alpha=2, targets=("v_proj",)), Path("nowhere"), 0)


def _eager(model: Any) -> None:
    model.set_attn_implementation("eager")


def _scaled(model: Any) -> None:
    """A layer of the same class that computes something else."""
    model.base_model.layers[0].register_forward_hook(lambda *arguments: 1.1 * arguments[2])


@pytest.mark.parametrize("change", [_dropout, _frozen, _adapted, _eager, _scaled])
def test_a_layer_that_is_not_llamas_alone_stays_as_it_is(change: Any, tmp_path: Path) -> None:
    model = network(tmp_path, "llama")
    change(model)
    assert layers.quicken(model) == 0
    assert not any("forward" in vars(module) for module in model.base_model.layers)


def _in_bfloat16(model: Any, rows: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=rows, use_cache=False).logits


def _with_documents_apart(model: Any, rows: Tensor) -> Tensor:
    keep_documents_apart(model, 7)
    return model(input_ids=rows, use_cache=False).logits


def _padded(model: Any, rows: Tensor) -> Tensor:
    return model(input_ids=rows, attention_mask=rows > 20, use_cache=False).logits


def _generating(model: Any, rows: Tensor) -> Tensor:
    return model.eval().generate(rows, max_new_tokens=3, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize("call", [_in_bfloat16, _with_documents_apart, _padded, _generating])
def test_other_calls_are_transformers_own(call: Any, tmp_path: Path) -> None:
    """Bit for bit: other precisions, masks and caches. (The last norm, which has neither, is put back.)"""
    own, model = network(tmp_path, "llama"), network(tmp_path, "llama")
    assert layers.quicken(model)
    del model.base_model.norm.forward
    rows = tokens(2, 30)
    rows[:, 11] = 7
    assert torch.equal(call(model, rows), call(own, rows))


def test_the_loss_and_every_gradient_through_the_fused_head_come_again_bit_for_bit(tmp_path: Path) -> None:
    """And with activations computed again."""
    found = []
    for again in (False, False, True):
        model = network(tmp_path, "llama-tied")
        if again:
            model.gradient_checkpointing_enable()
        layers.quicken(model)
        objective = CausalLMObjective(model)
        objective(tokens(3, 70), torch.full((3,), 70), CrossEntropy()).total.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
