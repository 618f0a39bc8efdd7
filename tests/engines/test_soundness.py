"""What is refused as a starting model, each in one line that names the folder and what would be right; what is not."""

import json
import shutil
from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fortifai_ray.engines.pretrained import WeightsError, load_network
from fortifai_ray.engines.soundness import check_attention, check_checkpoint
from fortifai_ray.engines.weight_files import INDEX, WHOLE

Damage = Callable[[Path], Any]
IDS = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def _bert(**settings: Any) -> Any:
    return transformers.BertConfig(**SIZES, **IDS, **settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models of random weights, by name."""
    tr = transformers
    llama = tr.LlamaConfig(**SIZES, **IDS)
    tied = tr.LlamaConfig(**SIZES, **IDS, tie_word_embeddings=True)
    gpt2 = tr.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=32, **IDS)
    mixtral = tr.MixtralConfig(**SIZES, **IDS, num_local_experts=4, num_key_value_heads=2)
    t5 = tr.T5Config(d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, **IDS)
    bart = tr.BartConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=32, **IDS,
    )  # fmt: skip
    neo = tr.GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], **IDS,
        max_position_embeddings=32,
    )  # fmt: skip
    models = {
        "llama": tr.LlamaForCausalLM(llama),
        "tied": tr.LlamaForCausalLM(tied),
        "gpt2": tr.GPT2LMHeadModel(gpt2),
        "gpt_neo": tr.GPTNeoForCausalLM(neo),
        "mixtral": tr.MixtralForCausalLM(mixtral),
        "llama body": tr.LlamaModel(llama),
        "tied body": tr.LlamaModel(tied),
        "gpt2 body": tr.GPT2Model(gpt2),
        "llama classifier": tr.LlamaForSequenceClassification(llama),
        "gpt2 classifier": tr.GPT2ForSequenceClassification(gpt2),
        "bert": tr.BertForMaskedLM(_bert()),
        "bert body": tr.BertModel(_bert()),
        "bert that says it is causal": tr.BertLMHeadModel(_bert()),
        "bert decoder": tr.BertLMHeadModel(_bert(is_decoder=True)),
        "roberta": tr.RobertaForCausalLM(tr.RobertaConfig(**SIZES, **IDS)),
        "electra": tr.ElectraForPreTraining(tr.ElectraConfig(**SIZES, **IDS, embedding_size=32)),
        "t5": tr.T5ForConditionalGeneration(t5),
        "bart": tr.BartForConditionalGeneration(bart),
        "bart that says it is causal": tr.BartForConditionalGeneration(bart),
        "vit": tr.ViTForImageClassification(tr.ViTConfig(**SIZES, image_size=8, patch_size=4)),
        "xlnet": tr.XLNetLMHeadModel(tr.XLNetConfig(d_model=32, n_layer=1, n_head=2, d_inner=48, **IDS)),
        "distilbert": tr.DistilBertModel(tr.DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=48, **IDS)),
    }  # fmt: skip
    root = tmp_path_factory.mktemp("made")
    for name, model in models.items():
        model.save_pretrained(root / name)
    models["llama"].save_pretrained(root / "sharded", max_shard_size="20KB")
    edit_config(root / "bart that says it is causal", architectures=["BartForCausalLM"])
    return {path.name: path for path in root.iterdir()}


def edit_config(folder: Path, name: str = "config.json", **settings: Any) -> None:
    content = json.loads((folder / name).read_text())
    kept = {key: value for key, value in (content | settings).items() if value is not None}
    (folder / name).write_text(json.dumps(kept))


def edit(*gone: str, dtype: torch.dtype | None = None, **changed: Any) -> Damage:
    """Leave out tensors, change others by a function of the tensor (dots as double underscores)."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / WHOLE)
        for name in gone:
            weights.pop(name)
        for name, change in changed.items():
            name = name.replace("__", ".")
            weights[name] = change(weights[name]) if callable(change) else change
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WHOLE)

    return damage


def renamed(change: Callable[[str], str]) -> Damage:
    def damage(folder: Path) -> None:
        save_file({change(name): tensor for name, tensor in load_file(folder / WHOLE).items()}, folder / WHOLE)

    return damage


def config(**settings: Any) -> Damage:
    return lambda folder: edit_config(folder, **settings)


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[3] = float("nan")
    return tensor


def first_shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def reindexed(change: Callable[[dict[str, str]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def twice_in_shards(folder: Path) -> None:
    one, two = sorted(folder.glob("model-*.safetensors"))[:2]
    save_file(load_file(two) | dict([next(iter(load_file(one).items()))]), two)


def cut(folder: Path) -> None:
    (folder / WHOLE).write_bytes((folder / WHOLE).read_bytes()[:-100])


def pointer(name: str) -> Damage:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548118077\n"
    return lambda folder: (folder / name).write_text(text)


def instead(name: str) -> Damage:
    return lambda folder: (folder / WHOLE).rename(folder / name)


REFUSED: list[tuple[str, Damage | None, tuple[str, ...]]] = [
    # tensors
    ("llama", edit(HEAD), ("lack the tensor lm_head.weight", "LlamaForCausalLM", "whole checkpoint")),
    ("llama", edit(EMBEDDING), ("lack the tensor model.embed_tokens.weight",)),
    ("tied", edit(EMBEDDING), ("lack the tensor", "embed_tokens")),
    ("llama", edit("model.norm.weight"), ("lack the tensor model.norm.weight",)),
    ("llama", config(num_hidden_layers=3), ("lack the tensors model.layers.2.input_layernorm.weight", "6 more")),
    ("llama", config(num_hidden_layers=1), ("hold the tensors model.layers.1.", "has no place for")),
    ("llama", config(attention_bias=True), ("lack the tensors model.layers.0.self_attn.k_proj.bias",)),
    ("llama", edit(vision_tower__patch__weight=torch.ones(3)), ("hold the tensor vision_tower.patch.weight",)),
    ("llama", edit(model__layers__0__self_attn__q_proj__bias=torch.ones(32)), ("q_proj.bias", "no place")),
    ("gpt2", edit("transformer.h.1.mlp.c_fc.weight"), ("lack the tensor transformer.h.1.mlp.c_fc.weight",)),
    ("llama", edit(model__norm__weight=lambda t: t[:31]), ("shape of model.norm.weight is [31]", "[32]")),
    ("llama", config(vocab_size=80), ("shape of lm_head.weight is [64, 32]", "[80, 32]")),
    ("llama", edit(embed_tokens__weight=torch.zeros(64, 32)), ("twice, as embed_tokens.weight and as model.embed",)),
    ("mixtral", edit("model.layers.0.block_sparse_moe.experts.1.w1.weight"), ("layers.0.mlp.experts", "not complete")),
    ("mixtral", edit(*(f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight" for e in range(4))), ("down_proj",)),
    ("mixtral", renamed(lambda name: name.replace("experts.1.", "experts.7.")), ("no experts.1", "experts.7")),
    ("llama body", None, ("lack the tensor lm_head.weight", "config.json says LlamaModel, the body without a head")),
    *(("llama", renamed(lambda name, prefix=prefix: prefix + name), (  # type: ignore[misc]
        "hold the tensors lm_head.weight", "18 more", f"prefix `{prefix}`")) for prefix in (
        "module.", "_orig_mod.", "model.model.", "student.")),
    ("tied", renamed(lambda name: name.replace("layers.", "layers._checkpoint_wrapped_module.")), (
        "prefix `_checkpoint_wrapped_module.`",)),
    ("tied", edit(lm_head__weight=torch.zeros(64, 32)), ("lm_head.weight", "differ", "tie_word_embeddings: false")),
    # numbers
    ("llama", edit(model__norm__weight=with_nan), ("model.norm.weight holds 1 numbers that are not finite",)),
    ("llama", edit(lm_head__weight=lambda t: (t * 1e39).half()), ("lm_head.weight holds", "not finite")),
    ("gpt2", edit(transformer__wte__weight=lambda t: with_nan(t.bfloat16())), ("transformer.wte.weight holds 1",)),
    # files
    ("sharded", lambda folder: first_shard(folder).unlink(), ("lacks 1 of the", "model-00001-of-")),
    ("sharded", lambda folder: (folder / INDEX).unlink(), (f"{INDEX} is missing",)),
    ("sharded", lambda folder: (folder / INDEX).write_text("{"), (INDEX, "cannot be read")),
    ("sharded", lambda folder: (folder / INDEX).write_text("{}"), (INDEX, "no weight_map")),
    ("sharded", reindexed(lambda placed: placed.update(more="model-00001-of-00001.safetensors")), ("lacks 1 of",)),
    ("sharded", reindexed(lambda placed: placed.pop("model.norm.weight")), ("norm.weight, of which the index",)),
    ("sharded", reindexed(lambda placed: placed.update({"more": placed[HEAD]})), ("lacks the tensor more",)),
    ("sharded", reindexed(lambda placed: placed.update({HEAD: "../model.safetensors"})), ("lacks 1 of the",)),
    ("sharded", twice_in_shards, ("is in two files",)),
    ("sharded", lambda folder: first_shard(folder).write_bytes(b""), ("model-00001-of-", "is empty")),
    ("sharded", lambda folder: shutil.copy(first_shard(folder), folder / "model-00009-of-00009.safetensors"), (
        "also holds model-00009", "does not name")),
    ("sharded", lambda folder: shutil.copy(first_shard(folder), folder / WHOLE), ("its weights twice",)),
    ("llama", lambda folder: shutil.copy(folder / WHOLE, folder / "model-00001-of-00001.safetensors"), ("twice",)),
    ("llama", cut, (WHOLE, "cannot be read", "a complete checkpoint is needed")),
    ("llama", lambda folder: (folder / WHOLE).write_bytes(b""), (WHOLE, "is empty")),
    ("llama", lambda folder: (folder / WHOLE).write_bytes(b"not safetensors at all"), (WHOLE, "cannot be read")),
    ("llama", lambda folder: save_file({}, folder / WHOLE), (WHOLE, "is empty")),
    ("llama", pointer(WHOLE), ("pointer of Git LFS", "git lfs pull")),
    ("llama", pointer("config.json"), ("pointer of Git LFS", "git lfs pull")),
    ("llama", lambda folder: (folder / WHOLE).unlink(), ("has no weights", "*.safetensors is needed")),
    ("llama", instead("pytorch_model.bin"), ("pytorch_model.bin", "pickles", "save_pretrained")),
    ("llama", instead("pytorch_model-00001-of-00002.bin"), ("pickles", "save_pretrained")),
    ("llama", instead("consolidated.00.pth"), ("pickles",)),
    ("llama", instead("llama.Q4_K_M.gguf"), ("GGUF", "named itself", "llama.Q4_K_M.gguf")),
    ("llama", instead("tf_model.h5"), ("TensorFlow",)),
    ("llama", instead("flax_model.msgpack"), ("Flax",)),
    ("llama", instead("model.fp16.safetensors"), ("model.fp16.safetensors is not read", WHOLE)),
    ("llama", instead("weights.safetensors"), ("weights.safetensors is not read", WHOLE)),
    # configurations
    ("llama", lambda folder: (folder / "config.json").unlink(), ("no config.json",)),
    ("llama", lambda folder: (folder / "config.json").write_text("model_type: llama"), ("config.json cannot be read",)),
    ("llama", lambda folder: (folder / "config.json").write_text('["llama"]'), ("config.json is no JSON mapping",)),
    ("llama", lambda folder: (folder / "config.json").write_bytes(b""), ("config.json is empty",)),
    ("llama", config(model_type=None), ("no model_type",)),
    ("llama", config(model_type="lama"), ("model_type: lama, which transformers",)),
    ("llama", config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}), ("model_type: mine", "never run")),
    ("llama", config(hidden_size="wide"), ("config.json cannot be used",)),
    ("llama", config(num_attention_heads=5), ("config.json cannot be used", "multiple")),
    ("llama", config(dtype="float33"), ("config.json cannot be used: dtype: float33:", "saved with this model")),
    ("llama", config(hidden_act="swoosh"), ("config.json cannot be used: hidden_act: swoosh:",)),
    ("gpt2", config(activation_function="swoosh"), ("config.json cannot be used: activation_function: swoosh:",)),
    ("llama", config(rope_parameters={"rope_type": "foo", "factor": 2}), ("rope_parameters.rope_type: foo:",)),
    ("llama", config(num_attention_heads=0), ("config.json cannot be used: num_attention_heads: 0:", "1 at least")),
    ("llama", config(hidden_size="64"), ("config.json cannot be used", "hidden_size", "expected int")),
    ("llama", lambda folder: (folder / "config.json").write_bytes(BOM_UTF8 + b"{}"), ("byte-order mark", "UTF-8")),
    ("llama", config(architectures="LlamaForCausalLM"), ('architectures: "LlamaForCausalLM"; a list',)),
    ("llama", config(architectures=["LlamaForCausalLM", 5]), ("architectures: [", "a list is needed")),
    ("llama", config(architectures=["MistralForCausalLM"]), ("MistralForCausalLM and model_type: llama", "LlamaFor")),
    ("llama", config(architectures=["MineForCausalLM"]), ("MineForCausalLM and model_type: llama", "one model")),
    ("llama", config(transformers_weights="other.safetensors"), ("transformers_weights",)),
    ("llama", config(quantization_config={"quant_method": "gptq", "bits": 4}), ("quantization_config", "gptq")),
    ("llama", config(quantization_config={"quant_method": "awq"}), ("quantization_config", "awq")),
    ("llama", config(quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes"}), ("bitsandbytes",)),
    ("llama", edit(lm_head__weight=lambda t: t.to(torch.float8_e4m3fn)), ("quantised (F8_E4M3)",)),
    ("llama", edit(lm_head__weight=lambda t: t.to(torch.int8)), ("quantised (I8)",)),
    ("llama", lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "big/one"}'), (
        "LoRA adapter", "big/one", "merge_and_unload")),
    # architectures
    *(
        (name, None, (said,))
        for name, said in (
            ("llama classifier", "LlamaForSequenceClassification, which is no causal language model"),
            ("gpt2 classifier", "GPT2ForSequenceClassification"),
            ("bert", "BertForMaskedLM"),
            ("bert body", "both sides"),
            ("bert that says it is causal", "both sides"),
            ("roberta", "both sides"),
            ("electra", "ElectraForPreTraining"),
            ("t5", "t5 is no architecture of causal language models"),
            ("bart", "BartForConditionalGeneration"),
            ("bart that says it is causal", "an encoder and a decoder"),
            ("vit", "vit is no architecture of causal language models"),
            ("xlnet", "both sides"),
            ("distilbert", "distilbert is no architecture"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "said"), REFUSED)
def test_what_is_no_whole_causal_lm_is_refused(
    made: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Damage | None,
    said: tuple[str, ...],
) -> None:
    """In one line, before anything is loaded; a model that passed is not made up in part."""
    folder = tmp_path / "given"
    shutil.copytree(made[name], folder)
    if damage is not None:
        damage(folder)
    with pytest.raises(WeightsError) as error:
        check_checkpoint(folder)
    message = str(error.value)
    assert "".join(capsys.readouterr()) == ""  # nothing of transformers' own
    assert str(folder) in message
    assert "\n" not in message
    assert len(message) < 600
    for part in said:
        assert part in message


def _masks(folder: Path) -> None:
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 32, 32).tril() for layer in range(2)}
    masks |= {f"h.{layer}.attn.masked_bias": torch.tensor(-float("inf")) for layer in range(2)}
    weights = {name.removeprefix("transformer."): tensor for name, tensor in load_file(folder / WHOLE).items()}
    save_file(weights | masks, folder / WHOLE)


def _neo_masks(folder: Path) -> None:
    masks = {f"transformer.h.{layer}.attn.attention.bias": torch.ones(1, 1, 32, 32).bool() for layer in range(2)}
    masks |= {f"transformer.h.{layer}.attn.attention.masked_bias": torch.tensor(-1e9) for layer in range(2)}
    save_file(load_file(folder / WHOLE) | masks, folder / WHOLE)


ACCEPTED: list[tuple[str, Damage | None]] = [
    ("llama", None),
    ("tied", None),
    ("gpt2", None),
    ("mixtral", None),
    ("sharded", None),
    ("bert decoder", None),
    ("tied body", None),
    ("gpt2 body", None),
    ("gpt2", _masks),  # as on the hub
    ("gpt_neo", _neo_masks),
    ("llama", renamed(lambda name: name.removeprefix("model."))),
    ("llama", edit(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))),
    ("tied", edit(EMBEDDING, lm_head__weight=torch.zeros(64, 32))),
    ("llama", edit(model__norm__weight=lambda t: t.bfloat16())),
    ("llama", config(architectures=None)),
    ("llama", config(architectures=["LLaMAForCausalLM"])),
    ("llama", config(auto_map={"AutoModelForCausalLM": "mine.Model", "AutoConfig": "mine.Config"})),
    ("llama", config(attn_implementation="somebody/kernels")),
    ("llama", config(_attn_implementation="flash_attention_3", experts_implementation="somebody/kernels")),
    ("llama", lambda folder: (folder / "pytorch_model.bin").write_bytes(b"pickle")),  # unread beside safetensors
    ("llama", lambda folder: shutil.copy(folder / WHOLE, folder / "consolidated.safetensors")),
]


@pytest.mark.parametrize(("name", "change"), ACCEPTED)
def test_what_is_whole_is_loaded_from_its_files(
    made: dict[str, Path], tmp_path: Path, name: str, change: Damage | None
) -> None:
    """Hubs' names without a prefix, masks and frequencies as buffers, one of two tied tensors, code beside."""
    folder = tmp_path / "given"
    shutil.copytree(made[name], folder)
    if change is not None:
        change(folder)
    check_checkpoint(folder)
    network = load_network(folder, "auto")
    check_attention(network, folder)
    first, second = (load_network(folder, torch.float32).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    held = {
        tensor.float().sum().item() for file in folder.glob("model*.safetensors") for tensor in load_file(file).values()
    }
    assert {tensor.float().sum().item() for tensor in network.state_dict().values() if tensor.ndim == 1} <= held


def test_a_changed_file_is_checked_again(made: dict[str, Path], tmp_path: Path) -> None:
    """What is remembered is a file's identity, not its name."""
    folder = tmp_path / "given"
    shutil.copytree(made["llama"], folder)
    check_checkpoint(folder)
    edit(model__norm__weight=with_nan)(folder)
    check_checkpoint(folder, values=False)
    with pytest.raises(WeightsError, match="not finite"):
        check_checkpoint(folder)


def test_attention_to_both_sides_is_seen(made: dict[str, Path]) -> None:
    """Whatever a configuration says: the network itself is asked."""
    network = transformers.BertLMHeadModel.from_pretrained(made["bert that says it is causal"]).eval()
    with pytest.raises(WeightsError, match="both sides"):
        check_attention(network, "here")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("llama", edit(HEAD)),
        ("llama", config(num_hidden_layers=1)),
        ("llama", config(vocab_size=80)),
        ("mixtral", edit("model.layers.0.block_sparse_moe.experts.1.w1.weight")),
        ("llama", lambda folder: (folder / WHOLE).unlink()),
        ("llama", instead("pytorch_model.bin")),
        ("llama", lambda folder: (folder / "adapter_config.json").write_text("{}")),
    ],
)
def test_nothing_is_made_up_in_loading(made: dict[str, Path], tmp_path: Path, name: str, damage: Damage) -> None:
    """The one loader raises, in one line, what the check would have said."""
    folder = tmp_path / "given"
    shutil.copytree(made[name], folder)
    damage(folder)
    with pytest.raises(WeightsError) as error:
        load_network(folder, torch.float32)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
