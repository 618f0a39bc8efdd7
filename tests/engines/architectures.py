"""Tiny random checkpoints of many architectures, made on the spot.

Every parameter is random, also those that a fresh model sets to zero or one (biases, norms), so that a tensor that a
loader leaves out, puts in the wrong place or reads in the wrong layout changes what the model answers.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCABULARY = 256
LONGEST = 256  # of the architectures that have a longest row
# The least that vLLM's CPU attention serves: heads of 32. Transformers' attribute names; a configuration class that
# names these otherwise (``n_embd``) translates them.
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FEED_FORWARD: dict[str, Any] = {"intermediate_size": 96, "max_position_embeddings": LONGEST}
GROUPED: dict[str, Any] = FEED_FORWARD | {"num_key_value_heads": 1}
EXPERTS: dict[str, Any] = GROUPED | {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
LINEAR_ATTENTION: dict[str, Any] = {
    "head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
LATENT: dict[str, Any] = EXPERTS | {
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 512,  # with 64 more, what vLLM's CPU attention over latents has kernels for
    "q_lora_rank": 32,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
}
STATE_SPACE_2: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}


@dataclass(frozen=True)
class Architecture:
    """One row of the matrix: a ``model_type`` of Transformers, with what its configuration needs to be tiny.

    ``settings`` come over :data:`COMMON`; those set to ``DEFAULT`` are left to the class. ``shards`` is the number of
    files that the weights are saved in, about. ``when`` are the settings, as attributes of the configuration, that tell
    a variant which vLLM serves otherwise than its architecture.
    """

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    shards: int = 1
    when: dict[str, Any] = field(default_factory=dict)


DEFAULT = object()
A = Architecture

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": A("gpt2", {"max_position_embeddings": LONGEST}),
    "gpt2-untied": A("gpt2", {"max_position_embeddings": LONGEST, "tie_word_embeddings": False}),
    "gptj": A("gptj", {"max_position_embeddings": LONGEST, "rotary_dim": 16}),
    "gpt_bigcode": A("gpt_bigcode", {"max_position_embeddings": LONGEST}),
    "gpt_bigcode-heads": A(
        "gpt_bigcode", {"max_position_embeddings": LONGEST, "multi_query": False, "num_key_value_heads": 2}
    ),
    "gpt_neo": A(
        "gpt_neo",
        {"max_position_embeddings": LONGEST, "window_size": 8, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox": A("gpt_neox", FEED_FORWARD),
    "gpt_neox-serial": A("gpt_neox", FEED_FORWARD | {"use_parallel_residual": False, "tie_word_embeddings": True}),
    "bloom": A("bloom"),
    "opt": A("opt", {"max_position_embeddings": LONGEST, "ffn_dim": 96, "word_embed_proj_dim": 64, "pad_token_id": 1}),
    "opt-projected": A(
        "opt",
        {
            "max_position_embeddings": LONGEST,
            "ffn_dim": 96,
            "word_embed_proj_dim": 32,
            "do_layer_norm_before": False,
            "pad_token_id": 1,
        },
    ),
    "mpt": A("mpt", {"max_seq_len": LONGEST, "expansion_ratio": 2}),
    "falcon": A("falcon", {"num_ln_in_parallel_attn": DEFAULT}),
    "falcon-alibi": A(
        "falcon",
        {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        when={"alibi": True},
    ),
    "falcon-heads": A("falcon", {"multi_query": False, "parallel_attn": False, "bias": True}),
    "falcon-new": A("falcon", {"new_decoder_architecture": True, "num_kv_heads": 1}),
    "codegen": A(
        "codegen", {"max_position_embeddings": LONGEST, "rotary_dim": 16, "num_attention_heads": 4, "hidden_size": 128}
    ),
    "phi": A("phi", FEED_FORWARD),
    "phi3": A("phi3", GROUPED),
    "phi3-long": A(
        "phi3",
        GROUPED
        | {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 16,
                "long_factor": [2.0] * 16,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "phimoe": A("phimoe", GROUPED | {"num_local_experts": 4}),
    "llama": A("llama", GROUPED),
    "llama-tied": A("llama", GROUPED | {"tie_word_embeddings": True}),
    "llama-bias": A("llama", GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "llama-odd": A("llama", GROUPED | {"vocab_size": 251, "intermediate_size": 90, "head_dim": 64}),
    "llama-odd-tied": A("llama", GROUPED | {"vocab_size": 251, "tie_word_embeddings": True}),
    "llama-shards": A("llama", GROUPED | {"num_hidden_layers": 3}, shards=4),
    "llama-rope3": A(
        "llama",
        GROUPED
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama-linear": A(
        "llama", GROUPED | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}
    ),
    "llama-dynamic": A(
        "llama",
        GROUPED | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        when={"rope_parameters.rope_type": "dynamic"},
    ),
    "llama-yarn": A(
        "llama",
        GROUPED
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": A("mistral", GROUPED | {"sliding_window": 16, "head_dim": 32}),
    "ministral": A(
        "ministral",
        GROUPED | {"head_dim": 32, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    ),
    "ministral3": A("ministral3", GROUPED | {"head_dim": 32}),
    "mixtral": A("mixtral", GROUPED | {"num_local_experts": 4}),
    "qwen2": A("qwen2", GROUPED),
    "qwen2-tied": A("qwen2", GROUPED | {"tie_word_embeddings": True}),
    "qwen2_moe": A("qwen2_moe", EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 48}),
    "qwen3": A("qwen3", GROUPED | {"head_dim": 32}),
    "qwen3_moe": A("qwen3_moe", EXPERTS | {"num_experts": 4, "head_dim": 32}),
    "qwen3_next": A(
        "qwen3_next", EXPERTS | LINEAR_ATTENTION | {"num_experts": 4, "shared_expert_intermediate_size": 48}
    ),
    "qwen3_5": A("qwen3_5_text", GROUPED | LINEAR_ATTENTION),
    "gemma": A("gemma", GROUPED | {"head_dim": 32}),
    "gemma2": A("gemma2", GROUPED | {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}),
    "gemma3": A("gemma3_text", GROUPED | {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}),
    "gemma3n": A(
        "gemma3n_text",
        GROUPED
        | {
            "head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "sliding_window": 16,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCABULARY,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    "gemma4": A(
        "gemma4_text",
        GROUPED
        | {
            "head_dim": 32,
            "global_head_dim": 32,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCABULARY,
        },
    ),
    "olmo": A("olmo", GROUPED),
    "olmo2": A("olmo2", GROUPED),
    "olmo3": A("olmo3", GROUPED | {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "olmoe": A("olmoe", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "flex_olmo": A("flex_olmo", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "stablelm": A("stablelm", GROUPED),
    "stablelm-bias": A("stablelm", GROUPED | {"use_qkv_bias": True}),
    "stablelm-norm": A("stablelm", GROUPED | {"qk_layernorm": True}, when={"qk_layernorm": True}),
    "granite": A(
        "granite",
        GROUPED
        | {
            "embedding_multiplier": 3.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.2,
            "tie_word_embeddings": True,
        },
    ),
    "granitemoe": A("granitemoe", GROUPED | {"num_local_experts": 4}),
    "granitemoeshared": A("granitemoeshared", GROUPED | {"num_local_experts": 4, "shared_intermediate_size": 48}),
    "granitemoehybrid": A(
        "granitemoehybrid",
        GROUPED
        | STATE_SPACE_2
        | {"num_local_experts": 4, "shared_intermediate_size": 48, "layer_types": ["mamba", "attention"]},
    ),
    "cohere": A("cohere", GROUPED | {"logit_scale": 0.5}),
    "cohere2": A("cohere2", GROUPED | {"sliding_window": 16}),
    "starcoder2": A("starcoder2", GROUPED),
    "smollm3": A("smollm3", GROUPED | {"no_rope_layers": [1, 0]}),
    "arcee": A("arcee", GROUPED),
    "helium": A("helium", GROUPED | {"head_dim": 32}),
    "glm": A("glm", GROUPED | {"head_dim": 32}),
    "glm4": A("glm4", GROUPED | {"head_dim": 32}),
    "glm4_moe": A(
        "glm4_moe",
        EXPERTS
        | {
            "head_dim": 32,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "nemotron": A("nemotron", GROUPED | {"head_dim": 32}),
    "ernie4_5": A("ernie4_5", GROUPED | {"head_dim": 32}),
    "ernie4_5_moe": A(
        "ernie4_5_moe",
        EXPERTS | {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1, "moe_num_shared_experts": 1},
    ),
    "exaone4": A("exaone4", GROUPED | {"head_dim": 32, "sliding_window": 16}),
    "apertus": A("apertus", GROUPED),
    "seed_oss": A("seed_oss", GROUPED | {"head_dim": 32}),
    "hunyuan": A("hunyuan_v1_dense", GROUPED | {"head_dim": 32}),
    "persimmon": A("persimmon", FEED_FORWARD),
    "biogpt": A("biogpt", FEED_FORWARD | {"pad_token_id": 1}),
    "xglm": A(
        "xglm",
        {
            "max_position_embeddings": LONGEST,
            "ffn_dim": 96,
            "pad_token_id": 1,
            "d_model": 64,
            "attention_heads": 2,
            "num_layers": 2,
        },
    ),
    "openai-gpt": A("openai-gpt", {"max_position_embeddings": LONGEST}),
    "nanochat": A("nanochat", GROUPED),
    "mamba": A("mamba", {"state_size": 8}),
    "mamba2": A(
        "mamba2", {"state_size": 16, "head_dim": 32, "num_heads": 4, "n_groups": 1, "num_attention_heads": DEFAULT}
    ),
    "falcon_mamba": A("falcon_mamba", {"state_size": 8}),
    "jamba": A(
        "jamba",
        GROUPED
        | {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": A("bamba", GROUPED | STATE_SPACE_2 | {"attn_layer_indices": [1]}),
    "falcon_h1": A("falcon_h1", GROUPED | STATE_SPACE_2 | {"head_dim": 32, "mamba_d_ssm": 128}),
    "zamba2": A(
        "zamba2",
        FEED_FORWARD
        | {
            "num_key_value_heads": 2,
            "n_mamba_heads": 4,
            "mamba_headdim": 32,
            "mamba_ngroups": 1,
            "mamba_d_state": 16,
            "layers_block_type": ["mamba", "hybrid"],
            "adapter_rank": 8,
        },
    ),
    "lfm2": A("lfm2", GROUPED | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "lfm2_moe": A(
        "lfm2_moe", EXPERTS | {"layer_types": ["conv", "full_attention"], "num_experts": 4, "num_dense_layers": 1}
    ),
    "recurrent_gemma": A(
        "recurrent_gemma",
        GROUPED
        | {"head_dim": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"], "lru_width": 64},
    ),
    "rwkv": A("rwkv", {"attention_hidden_size": 64, "intermediate_size": 96, "context_length": LONGEST}),
    "deepseek_v2": A("deepseek_v2", LATENT | {"q_lora_rank": None, "head_dim": 64}),
    "deepseek_v3": A("deepseek_v3", LATENT),
    "minicpm3": A("minicpm3", LATENT | {"scale_emb": 1.0, "dim_model_base": 64}),
    "gpt_oss": A(
        "gpt_oss",
        GROUPED
        | {
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "minimax_m2": A(
        "minimax_m2", GROUPED | {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 16}
    ),
    "llama4": A(
        "llama4_text",
        GROUPED | {"head_dim": 32, "num_local_experts": 2, "intermediate_size_mlp": 96, "attention_chunk_size": 128},
    ),
    "nemotron_h": A(
        "nemotron_h",
        GROUPED
        | {
            "head_dim": 32,
            "layers_block_type": ["mamba", "attention", "moe"],
            "num_hidden_layers": DEFAULT,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "n_groups": 1,
            "ssm_state_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "afmoe": A(
        "afmoe",
        EXPERTS
        | {"head_dim": 32, "num_experts": 4, "num_dense_layers": 1, "sliding_window": 16, "num_shared_experts": 1},
    ),
    "hy_v3": A("hy_v3", EXPERTS | {"head_dim": 32, "num_experts": 4}),
    "exaone_moe": A(
        "exaone_moe",
        EXPERTS
        | {
            "head_dim": 32,
            "num_experts": 4,
            "sliding_window": 16,
            "n_group": 1,
            "topk_group": 1,
            "num_shared_experts": 1,
        },
    ),
    "olmo_hybrid": A(
        "olmo_hybrid", GROUPED | LINEAR_ATTENTION | {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    ),
    "diffllama": A("diffllama", GROUPED | {"num_key_value_heads": 2, "head_dim": 32}),
    "jetmoe": A(
        "jetmoe",
        {
            "max_position_embeddings": LONGEST,
            "num_key_value_heads": 2,
            "kv_channels": 32,
            "intermediate_size": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "num_attention_heads": DEFAULT,
        },
    ),
    "vaultgemma": A("vaultgemma", GROUPED | {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}),
    "youtu": A("youtu", LATENT),
    "dots1": A(
        "dots1",
        EXPERTS
        | {
            "head_dim": 32,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "sliding_window": 16,
            "num_key_value_heads": 2,
        },
    ),
}


# What every run of the tests trains and samples: the most used, and one of each kind of layer, position, state, window
# and head. `make architectures` does so with all of them, after an upgrade of Transformers.
_OFTEN = (
    "gpt2 gptj gpt_bigcode gpt_neo gpt_neox bloom opt opt-projected mpt falcon falcon-alibi phi phi3 phimoe llama "
    "llama-tied llama-shards llama-dynamic mistral mixtral qwen2 qwen2_moe qwen3 qwen3_next gemma gemma2 gemma3 "
    "gemma3n olmo2 granite granitemoe cohere2 stablelm smollm3 glm4 nemotron biogpt mamba jamba bamba recurrent_gemma "
    "rwkv deepseek_v3 gpt_oss llama4"
)
TRIED = list(ARCHITECTURES) if "FORTIFAI_ARCHITECTURES" in os.environ else _OFTEN.split()


def make_architecture(folder: Path, name: str, seed: int = 0, **settings: Any) -> Path:
    """A random checkpoint of the architecture of this ``name`` in ``folder``: weights in float32, no tokenizer.

    Args:
        folder: is created.
        name: a key of :data:`ARCHITECTURES`.
        seed: of the weights.
        settings: of the configuration, over those of the table.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    row = ARCHITECTURES[name]
    merged = {key: value for key, value in (COMMON | row.settings | settings).items() if value is not DEFAULT}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(row.model_type, **merged), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():  # tied ones once
                parameter.add_(0.1 * torch.randn_like(parameter))
    size = sum(parameter.numel() for parameter in model.parameters()) * 4
    model.save_pretrained(folder, max_shard_size=max(size // row.shards, 1) if row.shards > 1 else "1GB")
    return folder
