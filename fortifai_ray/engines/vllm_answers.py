"""The proof of a swap from outside: vLLM's model answers as Transformers' model of the same file.

It covers what the comparison of parameters cannot (``vllm_proof``): that each value is in its place where vLLM keeps
them in an order of its own. A wrong order changes log-probabilities by a tenth and more.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fortifai_ray.engines.checkpoints import load_causal_lm
from fortifai_ray.engines.pretrained import WeightsError

if TYPE_CHECKING:
    import torch

ROWS, LENGTH = 4, 64  # so many tokens that each of some dozens of experts is asked
# Of the mean absolute difference of log-probabilities. In float32 the engines differ by 1e-6; some of vLLM's
# activations are approximations (BLOOM's: 1e-4).
TOLERANCE = 1e-3
# In half precision both round: vLLM may be so many times as far from the exact answer as Transformers is.
ROUNDING = 4


def check_answers(llm: Any, folder: Path, dtype: "torch.dtype", longest: int) -> None:
    """Compare the log-probabilities of some fixed rows of tokens.

    Args:
        llm: vLLM's, which holds the weights of ``folder``, and no adapter.
        folder: a whole model.
        dtype: of the engine's weights.
        longest: tokens of the longest row that the engine takes.

    Raises:
        WeightsError: they differ by more than rounding explains.
    """
    import torch
    from vllm.config import CompilationConfig, CompilationMode, VllmConfig, set_current_vllm_config

    # vLLM's generic models change Transformers' classes, which then ask for a configuration of vLLM's.
    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(mode=CompilationMode.NONE))):
        model = load_causal_lm(folder, dtype)
        rows = _rows(model.config.get_text_config().vocab_size, min(LENGTH, longest - 1))
        with torch.inference_mode():
            rounded = log_probabilities(model, rows)
            exact = rounded if dtype is torch.float32 else log_probabilities(model.float(), rows)
    error = np.abs(engine_log_probabilities(llm, rows) - exact).mean()
    allowed = TOLERANCE + ROUNDING * np.abs(rounded - exact).mean()
    if not error <= allowed:  # so that NaN fails too
        raise WeightsError(
            f"after loading {folder}, vLLM's {type(model).__name__} does not answer as the file's model: "
            f"log-probabilities differ by {error:.2g} on average, rounding explains {allowed:.2g}; "
            "engine.kind: huggingface serves it"
        )


def _rows(vocabulary: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, vocabulary, (ROWS, length)).tolist()


def log_probabilities(model: Any, rows: list[list[int]]) -> np.ndarray:
    """Of each token of each row but the first, given those before it; float64, one after the other."""
    import torch

    logits = model(torch.tensor(rows)).logits[:, :-1].double()
    targets = torch.tensor(rows)[:, 1:, None]
    return logits.log_softmax(-1).gather(2, targets).flatten().numpy()


def engine_log_probabilities(llm: Any, rows: list[list[int]]) -> np.ndarray:
    """:func:`log_probabilities`, of a ``vllm.LLM``."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    prompts = [{"prompt_token_ids": row} for row in rows]
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    return np.array(
        [
            known[token].logprob
            for output, row in zip(outputs, rows, strict=True)
            for known, token in zip(output.prompt_logprobs[1:], row[1:], strict=True)
        ]
    )
