"""The causal LM that a chain starts from, as a Hugging Face folder."""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

from fortifai_ray.families.language.config import ModelConfig
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.storage.store import file_sha256

VERSION = 1  # bump when the same seed gives another model

_HEAD_SIZE = 32  # the smallest that vLLM's CPU attention serves
_CONTEXT = 512


def preset_shape(model: ModelConfig) -> dict[str, Any]:
    """The Llama of a preset: by default about one million parameters, most of them in four decoder layers.

    Small enough for a collapse in minutes on one core, deep enough to learn local grammar.
    """
    heads = model.hidden_size // _HEAD_SIZE
    return {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.hidden_size * 11 // 4,
        "num_hidden_layers": model.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": _CONTEXT,
        "tie_word_embeddings": True,
    }


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """What determines the starting model apart from its seed: the preset's shape, or the checkpoint's content."""
    if model.preset:
        return {"preset": preset_shape(model), "vocab_size": model.vocab_size}
    if model.path:
        files = [*sorted(Path(model.path).glob("*.safetensors")), Path(model.path) / "config.json"]
        return {file.name: file_sha256(file) for file in files}
    return {"hub": model.hub, "revision": model.revision}


def known_config(model: ModelConfig) -> dict[str, Any] | None:
    """What is known of the model's ``config.json`` ahead of anything; None where only the hub knows it."""
    if model.preset:
        return preset_shape(model)
    if model.path:
        return json.loads((Path(model.path) / "config.json").read_text())
    return None


def context_length(model: ModelConfig) -> int | None:
    """The longest row of tokens that the model takes; None where that is not known ahead of anything."""
    config = known_config(model) or {}
    return next((int(config[key]) for key in ("max_position_embeddings", "n_positions") if key in config), None)


@lru_cache(maxsize=4)  # a study's recipes are checked one by one, and nearly all of them have the same model
def skeleton(model: ModelConfig) -> Any | None:
    """The network without weights, on PyTorch's meta device; None where only the hub knows its shape."""
    if model.hub:
        return None
    import torch
    import transformers

    if model.preset:
        config: Any = transformers.LlamaConfig(**preset_shape(model))
    else:
        config = transformers.AutoConfig.from_pretrained(model.checkpoint)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def create_model(model: ModelConfig, corpus: Corpus, seed: int, folder: Path) -> None:
    """Write the starting model into ``folder``: random weights by ``seed`` for a preset, else the checkpoint's own."""
    import torch
    import transformers

    if model.preset:
        torch.manual_seed(seed)
        network: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_preset_shape(model, corpus)))
    else:
        network = transformers.AutoModelForCausalLM.from_pretrained(
            model.checkpoint, revision=model.revision, use_safetensors=True
        )
    network.save_pretrained(folder)


def write_config(model: ModelConfig, corpus: Corpus, folder: Path) -> None:
    """Write the starting model's ``config.json`` alone: what an engine needs to start ahead of any weights."""
    folder.mkdir(parents=True, exist_ok=True)
    if model.preset:  # written by hand: the driver would import torch, for three seconds, to write the same
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_preset_shape(model, corpus)}
        (folder / "config.json").write_text(json.dumps(config))
    elif model.path:
        shutil.copy(Path(model.path) / "config.json", folder)
    else:
        import transformers

        transformers.AutoConfig.from_pretrained(model.checkpoint, revision=model.revision).save_pretrained(folder)


def _preset_shape(model: ModelConfig, corpus: Corpus) -> dict[str, Any]:
    vocab_size = len(json.loads((corpus.tokenizer_path / "tokenizer.json").read_text())["model"]["vocab"])
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), corpus.end_of_text)
    return {**preset_shape(model), "vocab_size": vocab_size, **ends}
