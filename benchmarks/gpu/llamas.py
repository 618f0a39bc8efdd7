"""Llamas with random weights, of the sizes that are measured, and the operations of a training step on them."""

from typing import Any

from benchmarks.gpu.record import device

SHAPES: dict[str, dict[str, Any]] = {
    "1B": {  # Llama 3.2 1B
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "25M": {
        "vocab_size": 12_288,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "toy": {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
}


def make(size: str, longest: int = 2048, seed: int = 0) -> Any:
    """A Llama on the device, in float32; its head is tied to its embeddings, and no token ends its texts."""
    import torch
    import transformers

    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config: Any = transformers.LlamaConfig(
        **SHAPES[size], max_position_embeddings=longest, tie_word_embeddings=True, **ends
    )
    torch.manual_seed(seed)
    with torch.device(device()):
        return transformers.LlamaForCausalLM(config)


def training_flops(network: Any, block: int) -> float:
    """Operations per token of a forward and backward pass: 6 per weight of a matrix (an embedding that is tied to the
    head once, as the head), and causal attention's 6·T·D a layer. What is computed again is not counted (Chowdhery et
    al. 2022, PaLM, appendix B: model FLOPs)."""
    matrices = sum(weight.numel() for weight in network.parameters() if weight.dim() == 2)
    config = network.config
    return 6.0 * matrices + 6.0 * config.num_hidden_layers * block * config.hidden_size
