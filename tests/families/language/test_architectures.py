"""Every architecture is trained, adapted, saved and read again; its fused head gives what its own logits say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engines.architectures import TRIED, make_architecture

from fortifai_ray.engines.checkpoints import load_causal_lm
from fortifai_ray.engines.pretrained import load_network
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.adapters import adapt, adapted_layers, save_adapter
from fortifai_ray.families.language.config import LoraConfig
from fortifai_ray.families.language.models import keep_documents_apart, save_whole
from fortifai_ray.losses import CrossEntropy
from fortifai_ray.losses.causal_lm import CausalLMObjective

LORA = LoraConfig(rank=4, alpha=8, targets="all-linear")
PLAIN = {"granite", "cohere", "cohere2", "recurrent_gemma", "llama4"}  # scaled or capped under another name; no body
LLAMA = "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"
# The layers that all-linear adapts, of architectures that are not built like Llama.
ADAPTED = {
    "gpt2": "c_attn c_fc c_proj",
    "gptj": "fc_in fc_out k_proj out_proj q_proj v_proj",
    "gpt_bigcode": "c_attn c_fc c_proj",
    "gpt_neo": "c_fc c_proj k_proj out_proj q_proj v_proj",
    "gpt_neox": "dense dense_4h_to_h dense_h_to_4h query_key_value",
    "bloom": "dense dense_4h_to_h dense_h_to_4h query_key_value",
    "falcon": "dense dense_4h_to_h dense_h_to_4h query_key_value",
    "opt-projected": "fc1 fc2 k_proj out_proj project_in project_out q_proj v_proj",
    "mpt": "Wqkv down_proj out_proj up_proj",
    "phi": "dense fc1 fc2 k_proj q_proj v_proj",
    "phi3": "down_proj gate_up_proj o_proj qkv_proj",
    "mamba": "in_proj",  # its kernels take the weights of the others for themselves
    "jamba": "down_proj gate_proj in_proj k_proj o_proj q_proj router up_proj v_proj",
    "mixtral": "k_proj o_proj q_proj v_proj",  # experts and their router are no layers
    "phimoe": "k_proj o_proj q_proj v_proj",
    "granitemoe": "k_proj o_proj q_proj v_proj",
    "qwen2_moe": "down_proj gate_proj k_proj o_proj q_proj shared_expert_gate up_proj v_proj",
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2", "stablelm"), LLAMA),
}
# A state runs on from one document into the next, and so does attention that no position restarts.
STATES = {"mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "falcon_h1", "zamba2", "nemotron_h", "granitemoehybrid"}
STATES |= {"lfm2", "lfm2_moe", "recurrent_gemma", "rwkv", "qwen3_next", "qwen3_5", "olmo_hybrid"}
NO_POSITIONS = {
    "bloom",
    "mpt",
    "falcon",
    "falcon-alibi",
    "falcon-new",
    "falcon-heads",
    "opt",
    "opt-projected",
    "biogpt",
    "xglm",
}
NO_POSITIONS |= {"openai-gpt", "gpt_oss", "afmoe"}


@pytest.fixture(scope="module", params=TRIED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the architecture's checkpoint, in a folder of its own, as a store has one."""
    return make_architecture(tmp_path_factory.mktemp(name) / "base", name)


@pytest.fixture
def batch(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows longer than the table's windows (16), of unequal length."""
    random = torch.Generator().manual_seed(1)
    return torch.randint(3, 250, (4, 20), generator=random), torch.tensor([20, 17, 7, 1])


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def test_no_kernel_of_attention_leaves_anything_out(name: str, folder: Path, batch: Any) -> None:
    """The network that is trained and scored has the logits of attention written out, e.g. with Gemma 2's soft cap."""
    model = load_network(folder, torch.float32)
    ours = logits(model, batch[0])
    model.set_attn_implementation("eager")
    assert (ours - logits(model, batch[0])).abs().max() <= 1000 * torch.finfo(torch.float32).eps * ours.abs().max()


def test_the_fused_head_gives_the_models_own_loss(name: str, folder: Path, batch: Any) -> None:
    """Loss and every gradient, against transformers' logits: without dropout, which each forward pass draws anew."""
    model = load_network(folder, torch.float32)
    objective = CausalLMObjective(model)
    assert objective.output_head.startswith("plain" if name in PLAIN else "fused"), objective.output_head
    sums = objective(*batch, CrossEntropy())
    sums.total.backward()
    got = gradients(model)
    model.zero_grad()
    tokens, lengths = batch
    targets = tokens[:, 1:].masked_fill(torch.arange(1, 20) >= lengths[:, None], -100)
    own = model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(own, targets.flatten(), reduction="sum")
    expected.backward()
    # 41 losses of float32, through two layers: see tests/losses/test_causal_lm.py
    assert sums.total.item() == pytest.approx(expected.item(), rel=1e-5)
    wanted = gradients(model)
    largest = max(gradient.abs().max() for gradient in wanted.values())
    assert got.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        assert (got[parameter] - gradient).abs().max() <= 1000 * torch.finfo(torch.float32).eps * largest, parameter


def test_it_learns_and_comes_back_as_it_was_saved(name: str, folder: Path, batch: Any, tmp_path: Path) -> None:
    """Four steps lower the loss; the folder that training writes holds this very model."""
    model = load_network(folder, torch.float32)
    objective = CausalLMObjective(model.train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        sums = objective(*batch, CrossEntropy())
        optimizer.zero_grad()
        (sums.total / sums.valid.sum()).backward()
        optimizer.step()
        losses.append(sums.total.item())
    assert losses[-1] < losses[0]
    (tmp_path / "out").mkdir()
    save_whole(model, tmp_path / "out", 0)
    again = load_network(tmp_path / "out", torch.float32)
    assert logits(model.eval(), batch[0]).equal(logits(again, batch[0]))


def test_its_adapter_is_trained_and_merged(name: str, folder: Path, batch: Any) -> None:
    """Every adapted layer is one that the network calls: each gets a gradient, and the merged weights say the same."""
    model = load_network(folder, torch.float32)
    layers = sorted({layer.rpartition(".")[2] for layer in adapted_layers(model, LORA)})
    if name in ADAPTED:
        assert " ".join(layers) == ADAPTED[name]
    adapt(model, LORA, folder, 0)
    with torch.no_grad():
        for place, parameter in model.named_parameters():
            if ".lora_B." in place:  # begins at zero, where an adapter changes nothing
                parameter.normal_(std=0.1)
    CausalLMObjective(model)(*batch, CrossEntropy()).total.backward()
    trained = {place: p for place, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in place for place in trained)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
    out = folder.parent / "adapter"
    out.mkdir()
    save_adapter(model, out, folder.name, 0)
    adapted, merged = logits(model, batch[0]), logits(load_causal_lm(out, torch.float32), batch[0])
    assert (adapted - merged).abs().max() <= 1000 * torch.finfo(torch.float32).eps * merged.abs().max()
    again = load_network(folder, torch.float32)
    adapt(again, LORA, out, 0)  # as the next generation begins
    assert logits(again, batch[0]).equal(adapted)


def test_documents_are_kept_apart_or_the_mask_is_refused(name: str, folder: Path) -> None:
    """No architecture attends across documents in silence."""
    model = load_network(folder, torch.float32)
    if name in STATES | NO_POSITIONS:
        with pytest.raises(UserError, match=r"training\.document_mask: \w+ attends across the documents"):
            keep_documents_apart(model, 0)
    else:
        keep_documents_apart(model, 0)


@pytest.mark.parametrize(
    ("name", "target"),
    [("gpt2", "q_proj"), ("mamba", "out_proj"), ("phimoe", "router"), ("mixtral", "experts"), ("jamba", "dt_proj")],
)
def test_a_layer_that_takes_no_adapter_is_refused(name: str, target: str, tmp_path: Path) -> None:
    """With those that do: also where it is a layer, but one that adapted would train nothing."""
    model = load_network(make_architecture(tmp_path / name, name), torch.float32)
    listed = ADAPTED[name].split()[0]
    with pytest.raises(UserError, match=rf"targets: {target} is no linear layer .* adapter; it has {listed}"):
        adapted_layers(model, LoraConfig(targets=(target,)))
