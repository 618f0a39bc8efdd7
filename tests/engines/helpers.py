"""What the engine tests share: small random Llamas, prompts, and a way to ask."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from fortifai_ray.engines.engine import DecodingConfig, EngineAnswer, EngineCall, EngineConfig
from fortifai_ray.engines.pool import EnginePool

VOCABULARY = 256
# The prefix cache is on, as the harder case: what it holds must not survive a swap.
ENGINE = EngineConfig(max_num_seqs=64, prefix_caching=True, rows_per_call=24)
GREEDY = DecodingConfig(temperature=0.0, max_new_tokens=12)
SAMPLED = DecodingConfig(temperature=1.0, max_new_tokens=20)
LONG = 300  # two whole blocks of vLLM's CPU cache (128 tokens) and a rest

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (extra cpu or gpu)")


def make_prompts(rows: int, length: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, (rows, length)).tolist()


def make_checkpoint(folder: Path, seed: int, *, tied: bool, heads: int = 4) -> Path:
    """A random Llama whose initialisation is wide enough that its distributions are far from uniform."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: Path, seed: int, targets: list[str] | str, rank: int = 4) -> Path:
    """A random adapter of the model in ``base``, which stands beside ``folder``, strong enough to change its answers;
    written by PEFT itself."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.peft_config["default"].base_model_name_or_path = base.name
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Reference:
    """Answers of fresh engines, keyed by checkpoint and kind of decoding, and how wrong swaps were refused."""

    greedy: dict[str, list[list[int]]]
    sampled: dict[str, list[list[int]]]
    stale_head: str
    altered: dict[str, str]
    unaltered: str
    prompts: list[list[int]]


_calls = iter(range(10**6))


def ask(
    pool: EnginePool,
    checkpoint: Path,
    prompts: list[list[int]],
    decoding: DecodingConfig,
    seeds: list[int] | None = None,
    engine: EngineConfig = ENGINE,
) -> EngineAnswer:
    """One call, under the folder's name as its version."""
    table = pa.table(
        {
            "seed": pa.array(seeds or range(len(prompts)), pa.int64()),
            "prompt_ids": pa.array(prompts, pa.list_(pa.int32())),
        }
    )
    call_id = f"test/{next(_calls)}"
    return pool.generate(EngineCall(call_id, str(checkpoint), checkpoint.name, table, decoding, engine))


def next_probabilities(checkpoint: Path, prompt: list[int], temperature: float) -> np.ndarray:
    """The model's distribution of the next token, ``[vocabulary]``, float64, from transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(checkpoint)(torch.tensor([prompt])).logits[0, -1]
    return (logits.double() / temperature).softmax(-1).numpy()


def chi_square_p_value(drawn: np.ndarray, probabilities: np.ndarray) -> float:
    """Of the counts of ``drawn`` tokens; tokens expected less than five times are pooled."""
    expected = probabilities * len(drawn)
    counts = np.bincount(drawn, minlength=len(probabilities))
    rare = expected < 5
    counts, expected = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    return float(scipy.stats.chisquare(counts, expected).pvalue)
