"""What every engine offers, and the call that reaches it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from fortifai_ray.engines.config import DecodingConfig, EngineConfig
from fortifai_ray.storage.transfer import Folder

# Keys of a config.json that do not change what the network computes, or that the call itself settles.
TRIVIA = frozenset(
    {
        "_name_or_path",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


class WeightsError(RuntimeError):
    """A checkpoint whose tensors are missing, misshapen or not the ones the engine holds after loading."""


@dataclass(frozen=True)
class EngineCall:
    """One unit of generation, complete in itself: an answer depends on nothing else.

    Attributes:
        call_id: names the call in waits and errors; unique.
        checkpoint: a Hugging Face folder with safetensors, or an adapter's (:mod:`fortifai_ray.engines.adapters`).
        weights_version: the identity of those weights. An engine that holds this version does not load again.
        prompts: ``seed: int64, prompt_ids: list<int32>``, a row per request.
        decoding: how the tokens are drawn.
        engine: the engine that is to answer; one that is configured otherwise is started anew.
    """

    call_id: str
    checkpoint: Folder
    weights_version: str
    prompts: pa.Table
    decoding: DecodingConfig
    engine: EngineConfig


@dataclass(frozen=True)
class EngineAnswer:
    """What an engine generated.

    Attributes:
        generated_ids: ``list<int32>``, one per prompt, in the order asked. A row that ended early ends with its
            end-of-text token.
        weights_version: the version the engine held when it generated.
        started, finished: wall-clock seconds (``time.time``) of the generation alone: no waiting, no loading.
        load_seconds: what starting or swapping weights took for this call; 0 where the engine held them already.
    """

    generated_ids: pa.ListArray
    weights_version: str
    started: float
    finished: float
    load_seconds: float


class Engine(Protocol):
    """A model that answers, in one process. Not thread-safe: one call at a time.

    Attributes:
        architecture: what it was started for, as :func:`architecture` names it; empty while it is not running.
    """

    architecture: str

    def start(self, config_folder: Path) -> None:
        """Get ready for the architecture in ``config_folder``; its weights need not be there.

        What ran before is shut down first.
        """
        ...

    def stop(self) -> None:
        """Shut down and free the memory."""
        ...

    def load(self, checkpoint: Path) -> None:
        """Put a checkpoint's weights in place and verify that they are there.

        The checkpoint has the architecture that the engine was started for; of an adapter, its model has.

        Raises:
            WeightsError: the checkpoint lacks a tensor, or the engine does not hold what the checkpoint says.
        """
        ...

    def generate(self, prompts: list[list[int]], seeds: list[int], decoding: DecodingConfig) -> list[list[int]]:
        """Generate for each prompt. Row *i*'s noise depends on ``seeds[i]`` alone.

        Raises:
            ValueError: a prompt is empty, or prompt and new tokens exceed the longest row the engine takes.
        """
        ...


def architecture(folder: Path) -> str:
    """The identity of a network's architecture: a hash of its ``config.json`` without the trivia.

    Keys that are left out count as their defaults, so a hub's terse file and what training saved from it agree.

    Raises:
        FileNotFoundError: ``folder`` has no ``config.json``.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    config = _without_trivia(AutoConfig.from_pretrained(folder).to_dict())
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _without_trivia(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in TRIVIA}
    return {key: _without_trivia(value) if isinstance(value, dict) else value for key, value in kept.items()}


def end_of_text_ids(folder: Path) -> list[int]:
    """The token ids that end a text: of ``generation_config.json``, else of ``config.json``."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        ids = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if ids is not None:
            return [int(i) for i in (ids if isinstance(ids, list) else [ids])]
    return []


def check_lengths(prompts: list[list[int]], decoding: DecodingConfig, longest: int) -> None:
    """Refuse rows that no engine sized for ``longest`` tokens can answer in full.

    Raises:
        ValueError: a prompt is empty or too long.
    """
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths, default=1) < 1:
        raise ValueError("a prompt is empty: every row needs at least one context token")
    needed = max(lengths, default=0) + decoding.max_new_tokens
    if needed > longest:
        raise ValueError(
            f"rows of {needed} tokens (prompt and max_new_tokens) do not fit an engine sized for {longest}: "
            "shorten context_tokens or max_new_tokens, or raise the engine's max_model_len if the model allows it"
        )
