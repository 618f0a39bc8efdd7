"""Small models and tokenizers written as GGUF on the spot, by the package's own writer, as llama.cpp converts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END, START = "<|endoftext|>", "<|im_start|>"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLITS: dict[str, Any] = {  # the published tokenizers' own, by GGUF's names
    "gpt-2": _BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES]),
    "llama-bpe": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    ),
}
TEXT = "In 1994, and in  1995, it wasn't: 3,141 of 59265\n\n  were over 50%; the town's 12  mills made 7\t kinds. " * 3


def make_tokenizer(split: str = "smollm") -> Tokenizer:
    """A byte-level BPE tokenizer trained on a sentence, with the end of text as token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = SPLITS[split], decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END, START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def make_llama(tied: bool = True, **settings: Any) -> Any:
    """A Llama of random weights with grouped heads, whose rows GGUF orders otherwise."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **(
                {"vocab_size": 300, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6}
                | {"rope_theta": 5e4, "tie_word_embeddings": tied, "initializer_range": 0.1}
                | sizes
                | ids
                | settings
            )
        )
    ).eval()


def write_gguf(
    file: Path,
    network: Any,
    tokenizer: Tokenizer | None = None,
    *,
    kind: str = "F32",
    split: str | None = "smollm",
    family: str = "llama",
    fields: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    lacking: str = "",
) -> Path:
    """Write a Llama as GGUF: its matrices as ``kind`` (F32, F16, Q8_0, …), the rest as float32.

    Args:
        file: to write.
        network: the Llama.
        tokenizer: its vocabulary is written; none where it is None.
        kind: of the matrices.
        split: what the file says of how text is split; nothing where it is None.
        family: what it says its architecture is.
        fields: more keys of it.
        extra: more tensors of it.
        lacking: a tensor that is left out.
    """
    import gguf

    config, writer = network.config, gguf.GGUFWriter(file, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer, split)
    for key, value in (fields or {}).items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](key, value)
    for name, tensor in {**_tensors(network), **(extra or {})}.items():
        if name != lacking:
            quantised = gguf.GGMLQuantizationType[kind if tensor.ndim == 2 else "F32"]
            writer.add_tensor(name, gguf.quants.quantize(tensor, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, split: str | None) -> None:
    import json

    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    if split is not None:
        writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in (END, START) else 1 for token in tokens])  # 3: a control token
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)


def _tensors(network: Any) -> dict[str, np.ndarray]:
    import gguf

    config = network.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    found = {}
    for name, parameter in network.named_parameters():
        tensor = parameter.detach().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # the halves that rotate together stand side by side
            rows = tensor.reshape(heads, 2, -1, tensor.shape[1])
            tensor = np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(tensor.shape)
        found[f"{names.get_name(name, try_suffixes=('.weight',))}"] = tensor
    return found
