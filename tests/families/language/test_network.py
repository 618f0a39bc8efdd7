"""What a dry run knows of a model: its engine, head, adapters and limits, from its configuration alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from engines.architectures import ARCHITECTURES, make_architecture
from engines.helpers import needs_vllm

from fortifai_ray.errors import UserError
from fortifai_ray.families.language import network as network_module
from fortifai_ray.families.language.config import ModelConfig, TrainingConfig
from fortifai_ray.families.language.models import skeleton
from fortifai_ray.families.language.network import check_training, describe_model, engine_for, trial
from fortifai_ray.families.language.recipe import LanguageRecipe

HERE = ("vllm", "it serves this model")


def made(tmp_path: Path, name: str, **settings: Any) -> ModelConfig:
    return ModelConfig(path=str(make_architecture(tmp_path / name, name, **settings)))


def recipe(model: ModelConfig, **sections: Any) -> LanguageRecipe:
    return LanguageRecipe(
        family={"kind": "language", "model": model.model_dump()}, corpus={"source": "pydoc"}, generations=2, **sections
    )


@pytest.mark.parametrize(
    ("name", "training", "said"),
    [
        ("gpt2", {}, ["GPT2LMHeadModel", "at most 256 tokens", "generates on vLLM", "fused output head"]),
        ("bloom", {}, ["BloomForCausalLM", "rows of any length"]),
        ("mamba", {}, ["MambaForCausalLM", "rows of any length"]),
        ("granite", {}, ["plain output head, whose logits are whole in memory (its logits are not"]),
        ("gpt2", {"lora": {"targets": "all-linear"}}, ["adapters on 8 layers (c_attn, c_fc, c_proj)"]),
        ("gpt2", {"lora": {"targets": ["c_attn"], "rank": 4}}, ["adapters on 2 layers (c_attn), 2,048 parameters"]),
        ("mixtral", {"lora": {}}, ["adapters on 4 layers (q_proj, v_proj)", "experts and their routers stay"]),
    ],
)
def test_a_model_is_described(tmp_path: Path, name: str, training: dict[str, Any], said: list[str]) -> None:
    """Size, longest row, engine, head and adapters: what a user would otherwise learn from a failure, or never."""
    text = "\n".join(describe_model(made(tmp_path, name), TrainingConfig(**training), HERE))
    for part in said:
        assert part in text


def test_parameters_are_counted(tmp_path: Path) -> None:
    """A tied head once; the preset's by its formula, which needs no torch."""
    model = made(tmp_path, "llama-tied")
    network = skeleton(model)
    assert network is not None
    size = sum(parameter.numel() for parameter in network.parameters())
    assert f"{size:,} parameters" in describe_model(model, TrainingConfig(), HERE)[0]
    preset = ModelConfig(preset="llama-tiny", vocab_size=32000, layers=3)  # the vocabulary of a bare configuration
    network = skeleton(preset)
    assert network is not None
    size = sum(parameter.numel() for parameter in network.parameters())
    assert f"{size:,} parameters" in describe_model(preset, TrainingConfig(), HERE)[0]


@pytest.mark.parametrize(
    ("name", "training", "message"),
    [
        ("bloom", {"document_mask": True}, "training.document_mask: BloomForCausalLM attends across"),
        ("mamba", {"document_mask": True}, "training.document_mask: MambaForCausalLM attends across"),
        ("openai-gpt", {"gradient_checkpointing": True}, "training.gradient_checkpointing: OpenAIGPTLMHeadModel"),
        ("biogpt", {"parallel": "fsdp"}, "training.parallel: BioGptForCausalLM does not name its layers"),
        ("gpt2", {"lora": {}}, "training.lora.targets: q_proj is no linear layer .* it has c_attn, c_fc, c_proj"),
    ],
)
def test_what_the_network_cannot_do_is_told_before_anything_starts(
    tmp_path: Path, name: str, training: dict[str, Any], message: str
) -> None:
    """Each of these fails in training too, after the engines have started."""
    with pytest.raises(UserError, match=message):
        check_training(made(tmp_path, name), TrainingConfig(**training))


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "phi3"])
def test_a_large_network_is_tried_small(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers and few tokens say the same of the head as all of it."""
    monkeypatch.setattr(network_module, "_WHOLE", 0)
    model = made(tmp_path, name, num_hidden_layers=2 if "layer_types" in ARCHITECTURES[name].settings else 6)
    tried = trial(model)
    assert tried is not None
    assert tried.config.num_hidden_layers == 2
    assert "fused output head" in describe_model(model, TrainingConfig(), HERE)[1]
    monkeypatch.setattr(network_module, "_TRIED", 0)
    trial.cache_clear()
    assert "found when training starts" in describe_model(model, TrainingConfig(), HERE)[1]
    trial.cache_clear()


def test_a_hubs_model_is_not_known_yet() -> None:
    """Nothing is fetched to describe it."""
    (line,) = describe_model(ModelConfig(hub="some/model"), TrainingConfig(), HERE)
    assert line.startswith("model: some/model: generates on vLLM (it serves this model); its head and layers are known")


@needs_vllm
def test_auto_takes_the_engine_that_serves_the_model(tmp_path: Path) -> None:
    """vLLM where it does, else the Hugging Face engine, said in one line; the same for any number of GPUs."""
    assert engine_for(ModelConfig(preset="llama-tiny"), adapters=True) == HERE
    served, refused = made(tmp_path, "llama"), made(tmp_path, "gpt2", num_attention_heads=4)  # heads of 16
    assert recipe(served).writer.kind == "vllm"
    assert recipe(served).notices == ()
    one = recipe(refused)
    assert one.writer.kind == "huggingface"
    (line,) = one.notices
    assert line.startswith(f"{refused.path} generates on the Hugging Face engine: vLLM on a CPU has no attention for")
    assert recipe(refused, engine={"kind": "huggingface"}).notices == ()
    asked = recipe(refused, engine={"kind": "vllm"})
    with pytest.raises(
        UserError, match=r"^study: engine\.kind: vllm does not serve .*gpt2: vLLM on a CPU has no attention"
    ):
        asked.check_resources(0.0, "study")
    asked.check_resources(1.0, "study")  # it has, on a GPU


@needs_vllm
def test_adapters_that_vllm_does_not_take_are_merged(tmp_path: Path) -> None:
    """vLLM serves GPT-2, but none of its adapters: with ``training.lora`` the other engine generates."""
    model, lora = made(tmp_path, "gpt2"), {"lora": {"targets": "all-linear"}}
    adapted = recipe(model, training=lora)
    assert (adapted.writer.kind, adapted.writer.lora_rank) == ("huggingface", None)
    assert "vLLM takes no adapters of gpt2" in adapted.notices[0]
    with pytest.raises(UserError, match=r"vllm does not serve .* vLLM takes no adapters of gpt2"):
        recipe(model, training=lora, engine={"kind": "vllm"}).check_resources(0.0, "study")
    llama = recipe(made(tmp_path, "llama"), training={"lora": {"rank": 4}})
    assert (llama.writer.kind, llama.writer.lora_rank) == ("vllm", 4)


def test_a_recipes_hash_does_not_know_the_reason(tmp_path: Path) -> None:
    """Stages hold the resolved kind and nothing of why: an ordinary recipe's are what they were."""
    written = json.loads(recipe(ModelConfig(preset="llama-tiny"), engine={"kind": "vllm"}).writer.model_dump_json())
    assert written["kind"] == "vllm"
    assert written.keys() == {"kind", "dtype", "max_num_seqs", "rows_per_call", "max_model_len", "kv_cache_bytes",
                              "prefix_caching"}  # fmt: skip
