"""Which models vLLM serves, known without starting or importing it (its import takes 5.5 s).

``architectures.json`` says what came of trying each architecture with vLLM on a CPU (``scripts/architectures.py``).
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from fortifai_ray.engines.pretrained import causal_config

TABLE = Path(__file__).with_name("architectures.json")
# Numbers per head that vLLM's CPU attention has kernels for.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# Architectures whose adapters vLLM takes, by their model_type: what all-linear adapts, compared with merged weights.
ADAPTED = {"gemma", "gemma2", "gemma3_text", "gpt_neox", "granite", "llama", "ministral", "ministral3", "mistral"}
ADAPTED |= {"olmo", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2"}


def why_not_vllm(config_folder: Path, *, gpu: bool = False) -> str | None:
    """Why vLLM does not serve the model of a ``config.json``, in half a line; None where it does.

    Args:
        config_folder: holds the ``config.json``; weights are not needed.
        gpu: whether the engine runs on a GPU; vLLM has other kernels there.
    """
    config = causal_config(config_folder)
    why_not = tried(config)
    if gpu and why_not and "on a CPU" in why_not:
        why_not = None
    return why_not or (None if gpu else _no_attention(config.get_text_config()))


def tried(config: Any) -> str | None:
    """What came of trying the architecture of a configuration of Transformers: why vLLM does not serve it, or None."""
    rows = [row for row in outcomes().values() if row["model_type"] == config.model_type]
    variants = [row for row in rows if row["when"] and all(_is(config, *wanted) for wanted in row["when"].items())]
    plain = [row for row in rows if not row["when"]]
    if not rows:
        return f"{config.model_type} is not among the architectures that were tried with vLLM"
    return next((f"{row['why_not']} ({config.model_type})" for row in variants or plain if row["why_not"]), None)


@cache
def outcomes() -> dict[str, dict[str, Any]]:
    """The table: what came of each architecture, by its name in the tests."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def _is(config: Any, path: str, wanted: Any) -> bool:
    section, _, key = path.partition(".")
    value = getattr(config, section, None)
    return (value or {}).get(key) == wanted if key else value == wanted


def _no_attention(text: Any) -> str | None:
    heads = getattr(text, "num_attention_heads", None)
    size = getattr(text, "head_dim", None) or (heads and text.hidden_size // heads)
    if not size or size in CPU_HEAD_SIZES:
        return None
    sizes = ", ".join(map(str, CPU_HEAD_SIZES))
    return f"vLLM on a CPU has no attention for heads of size {size}, only for {sizes}"


def why_no_adapters(config_folder: Path) -> str | None:
    """Why vLLM takes no adapters of the model of a ``config.json``, in half a line; None where it does."""
    kind = causal_config(config_folder).model_type
    return None if kind in ADAPTED else f"vLLM takes no adapters of {kind}, as far as was tried"
