"""What every architecture must show: it swaps checkpoints, answers as Transformers does, and refuses broken ones."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from engines.architectures import make_architecture
from engines.fresh_engine import altered_tensor
from fortifai_ray.engines.checkpoints import load_causal_lm
from fortifai_ray.engines.engine import DecodingConfig
from fortifai_ray.engines.pretrained import WeightsError
from fortifai_ray.engines.vllm_answers import engine_log_probabilities, log_probabilities
from fortifai_ray.engines.vllm_engine import VllmEngine

PROMPTS = [[5, 17, 101, 33, 9], [200, 3, 77, 42, 8, 150, 61, 12, 90]]
STEPS = 12


@dataclass(frozen=True)
class Outcome:
    """Of one architecture.

    Attributes:
        difference: the largest absolute difference of a log-probability from Transformers', after a swap.
        regret: by how much a greedy token's logit falls short of Transformers' largest, at most.
        by_answers: whether a swap is proven by comparing answers also, besides every value.
        accepted: broken checkpoints that were not refused: the tensors that were missing or altered.
    """

    difference: float
    regret: float
    by_answers: bool
    accepted: list[str]


def try_swaps(engine: VllmEngine, name: str, root: Path) -> Outcome:
    """Start an engine with random weights, load one checkpoint, swap it for another, and break that in many ways.

    Raises:
        ValueError, WeightsError: vLLM does not serve the architecture.
    """
    first, second = (make_architecture(root / f"{name}-{seed}", name, seed) for seed in (1, 2))
    engine.start(first)
    by_answers = []
    genuine = engine._check_answers
    engine._check_answers = lambda folder: (by_answers.append(folder), genuine(folder))  # type: ignore[method-assign]
    try:
        engine.load(first)
        engine.load(second)
        difference, regret = against_transformers(engine, second)
        tensors = load_file_of(second)
        accepted = [f"without {tensor}" for tensor in one_of_each(tensors) if loads(engine, without(second, tensor))]
        accepted += [
            f"altered {tensor}" for tensor in one_of_each(tensors) if not altered_tensor(engine, second, tensor)
        ]
        engine.load(first)  # it recovers
    finally:
        del engine._check_answers
    return Outcome(difference, regret, bool(by_answers), accepted)


def against_transformers(engine: VllmEngine, folder: Path) -> tuple[float, float]:
    """The two differences of :class:`Outcome`."""
    import torch

    model: Any = load_causal_lm(folder, torch.float32)
    model.set_attn_implementation("eager")
    vocabulary = model.config.get_text_config().vocab_size
    rows = np.random.default_rng(7).integers(3, vocabulary, (3, 48)).tolist()
    answered = engine.generate(PROMPTS, [0, 1], DecodingConfig(temperature=0.0, max_new_tokens=STEPS))
    with torch.inference_mode():
        exact = log_probabilities(model, rows)
        regrets = [_regret(model, prompt, new) for prompt, new in zip(PROMPTS, answered, strict=True)]
    difference = np.abs(engine_log_probabilities(engine._llm, rows) - exact).max()
    return float(difference), max(regrets)


def _regret(model: Any, prompt: list[int], new: list[int]) -> float:
    import torch

    logits = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1]
    return float((logits.max(-1).values - logits.gather(1, torch.tensor(new)[:, None])[:, 0]).max())


def load_file_of(folder: Path) -> dict[str, Any]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def one_of_each(tensors: dict[str, Any]) -> list[str]:
    """One tensor of each kind: those that differ only by a number (a layer's, an expert's) are of a kind; the last."""
    return sorted({re.sub(r"\d+", "#", name): name for name in sorted(tensors)}.values())


def without(folder: Path, tensor: str) -> Path:
    """A copy of ``folder`` that lacks a tensor."""
    broken = folder.with_name("broken")
    shutil.rmtree(broken, ignore_errors=True)
    broken.mkdir()
    shutil.copy(folder / "config.json", broken)
    tensors = load_file_of(folder)
    del tensors[tensor]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    return broken


def loads(engine: VllmEngine, folder: Path) -> bool:
    if not engine.architecture:
        engine.start(folder)
    try:
        engine.load(folder)
    except WeightsError:
        return False
    return True
