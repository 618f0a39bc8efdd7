"""The fused head on Hugging Face's own architectures: used where it gives the model's own logits, refused elsewhere."""

from typing import Any

import pytest
import torch
import transformers

from fortifai_ray.losses import CrossEntropy, LovaszSoftmax, TruncatedCrossEntropy
from fortifai_ray.losses.causal_lm import CausalLMObjective, UnknownHead, find_head

VOCABULARY = 300
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GEMMA = {**_SHAPE, "head_dim": 16}
_OPT = {"ffn_dim": 48, "word_embed_proj_dim": 16, "max_position_embeddings": 64, "dropout": 0.0}
SERVED: dict[str, Any] = {
    "llama, tied": transformers.LlamaConfig(**_SHAPE, tie_word_embeddings=True),
    "llama, untied": transformers.LlamaConfig(**_SHAPE, tie_word_embeddings=False),
    "qwen2": transformers.Qwen2Config(**_SHAPE),
    "qwen3": transformers.Qwen3Config(**_SHAPE, head_dim=16),
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    ),
    "gemma2, soft cap": transformers.Gemma2Config(**_GEMMA, final_logit_softcapping=30.0),
    "gemma3": transformers.Gemma3TextConfig(**_GEMMA),
    "opt, projected": transformers.OPTConfig(**{**_SHAPE, **_OPT}),
    "phi, with a bias": transformers.PhiConfig(**_SHAPE),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "granite scales its logits": (transformers.GraniteConfig(**_SHAPE, logits_scaling=8.0), "its logits are not"),
    "cohere scales its logits": (transformers.CohereConfig(**_SHAPE, logit_scale=0.5), "its logits are not"),
    "bert's head has a layer more": (
        transformers.BertConfig(**_SHAPE, is_decoder=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        "not fed with what its body gives",
    ),
}


def make(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCABULARY, (4, 12), generator=random), torch.tensor([12, 7, 1, 0])


def reference(model: Any, loss: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The sum over next tokens that are text, row by row, from the model's own logits; and its gradients."""
    total = torch.zeros(())
    for row, length in zip(*batch(), strict=True):
        log_p = model(row[None]).logits[0, :-1].float().log_softmax(-1).gather(1, row[1:, None]).squeeze(1)
        total = total + loss(log_p[: max(int(length) - 1, 0)]).sum()
    model.zero_grad()
    total.backward()
    return total.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", [*SERVED, *REFUSED])
def test_loss_and_every_gradient_are_those_of_the_models_own_logits(name: str) -> None:
    """Both paths, half of the targets truncated; each parameter gets a gradient, as DistributedDataParallel needs."""
    model = make(SERVED[name] if name in SERVED else REFUSED[name][0])
    objective = CausalLMObjective(model)
    assert objective.output_head.startswith("fused" if name in SERVED else "plain: ")
    with torch.no_grad():
        counted = objective(*batch(), CrossEntropy())
    loss = TruncatedCrossEntropy(gamma=counted.log_p[counted.valid].exp().median().item() * (1 + 1e-4))
    expected, gradients = reference(model, loss)
    model.zero_grad()
    sums = objective(*batch(), loss)
    sums.total.backward()
    assert counted.valid.sum(1).tolist() == [11, 6, 0, 0]
    assert 0 < sums.kept.sum() < 17
    assert sums.total.item() == pytest.approx(expected.item(), rel=1e-5)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for parameter, gradient in gradients.items():
        got = model.get_parameter(parameter).grad
        # Two layers in float32, summed over some hundred terms in another order.
        assert (got - gradient).abs().max() <= 1000 * torch.finfo(torch.float32).eps * largest, parameter


@pytest.mark.parametrize("name", REFUSED)
def test_an_unknown_head_is_refused_with_the_reason(name: str) -> None:
    """Anything done to the logits beyond a linear layer and a soft cap shows, whatever the configuration calls it."""
    config, reason = REFUSED[name]
    with pytest.raises(UnknownHead, match=reason):
        find_head(make(config))


def test_a_cap_that_nobody_declared_is_seen() -> None:
    """Logits of a new model are small, where a cap of 30 changes nothing: the check scales them up."""
    model = make(SERVED["gemma2, soft cap"])
    assert find_head(model).softcap == 30.0

    def cap(module: Any, inputs: Any, output: Any) -> Any:
        output.logits = 30.0 * torch.tanh(output.logits / 30.0)
        return output

    capped = make(SERVED["qwen2"])
    capped.register_forward_hook(cap)
    with pytest.raises(UnknownHead, match="soft cap alone"):
        find_head(capped)
    assert capped.training


def test_a_broken_model_takes_the_plain_path() -> None:
    """Weights that are NaN agree with nothing: the loss is then NaN, which training reports."""
    model = make(SERVED["qwen2"])
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    objective = CausalLMObjective(model)
    assert objective.output_head.startswith("plain")
    assert objective(*batch(), CrossEntropy()).total.isnan()


def test_lovasz_is_taken_by_sequence() -> None:
    """Each sequence's own loss, weighted by its targets: no worker needs to know another's rows."""
    model = make(SERVED["llama, tied"])
    tokens, lengths = batch()
    sums = CausalLMObjective(model)(tokens, lengths, LovaszSoftmax())
    logits = model(tokens).logits
    by_row = [LovaszSoftmax()(logits[row, : n - 1], tokens[row, 1:n]) * (n - 1) for row, n in ((0, 12), (1, 7))]
    assert sums.total.item() == pytest.approx(sum(loss.item() for loss in by_row), rel=1e-5)
    sums.total.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(sums.kept, sums.valid)
