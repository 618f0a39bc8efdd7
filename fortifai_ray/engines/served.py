"""Which models vLLM serves, known without starting or importing it (its import takes 5.5 s)."""

from pathlib import Path

from fortifai_ray.engines.pretrained import causal_config

# Numbers per head that vLLM's CPU attention has kernels for.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)

# Architectures whose adapters vLLM takes, by their model_type: what all-linear adapts, compared with merged weights.
ADAPTED = frozenset({"llama"})


def why_not_vllm(config_folder: Path, *, gpu: bool = False) -> str | None:
    """Why vLLM does not serve the model of a ``config.json``, in half a line; None where it does.

    Args:
        config_folder: holds the ``config.json``; weights are not needed.
        gpu: whether the engine runs on a GPU; vLLM has other kernels there.
    """
    text = causal_config(config_folder).get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    size = getattr(text, "head_dim", None) or (heads and text.hidden_size // heads)
    if not gpu and size and size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        return f"vLLM on a CPU has no attention for heads of size {size}, only for {sizes}"
    return None


def why_no_adapters(config_folder: Path) -> str | None:
    """Why vLLM takes no adapters of the model of a ``config.json``, in half a line; None where it does."""
    kind = causal_config(config_folder).model_type
    return None if kind in ADAPTED else f"vLLM takes no adapters of {kind}, as far as was tried"
