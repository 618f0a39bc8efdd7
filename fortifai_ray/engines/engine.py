"""Engines: their settings, the calls that they answer, and the protocol of every kind of engine."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, Self

from pydantic import AfterValidator, Field, model_validator

from fortifai_ray.engines.watermark import WatermarkConfig
from fortifai_ray.storage.store import Folder
from fortifai_ray.validation import Section

if TYPE_CHECKING:  # a study file is read without Arrow
    import pyarrow as pa


def _within(low: float, high: float, what: str, low_open: bool = False) -> AfterValidator:
    """A range check whose message states the valid range."""

    def check(value: float) -> float:
        if not low <= value <= high or (low_open and value == low):  # so that NaN fails too
            raise ValueError(f"{value} is out of range: {what}")
        return value

    return AfterValidator(check)


# In effect greedy. The preset llama-docs, a weak model, writes the same 112 tokens with two seeds in 42 of 100 rows at
# temperature 0.01 (10 at 0.05), which is also the lowest at which vLLM draws; in all of them with top_p 0.01 at
# temperature 1, in 69 with 0.1 at 0.5 (6 with 0.1 at 1).
_COLDEST, _NARROWEST, _SHARPEST = 0.01, 0.01, 0.5
NO_DRAW = 1e-5  # temperatures below this are 0, as in vLLM: logits divided by them may overflow


class DecodingConfig(Section):
    """How a corpus is drawn from a model."""

    temperature: Annotated[float, _within(0.0, 100.0, "temperature is 0 (greedy) to 100; 1.0 is plain sampling")] = (
        Field(1.0, description="divides the logits; 0 is greedy decoding")
    )
    top_p: Annotated[float, _within(0.0, 1.0, "top_p lies in (0, 1]; 1.0 keeps everything", low_open=True)] = Field(
        1.0, description="nucleus mass kept (Holtzman et al., 2020), in (0, 1]; 1 keeps everything"
    )
    top_k: Annotated[int, _within(0, 2**31 - 1, "top_k is 0 (the whole vocabulary) or a positive count")] = Field(
        0, description="candidates kept; 0 keeps the whole vocabulary"
    )
    max_new_tokens: Annotated[int, _within(1, 2**20, "max_new_tokens is at least 1")] = Field(
        112, description="tokens generated per row"
    )
    context_tokens: Annotated[int, _within(1, 2**20, "context_tokens is at least 1: a row starts from some text")] = (
        Field(16, description="tokens of text that a row starts from, across blocks where it is more than a block")
    )
    prompts: Literal["human", "training_set"] = Field(
        "human",
        exclude_if=lambda value: value == "human",  # some recipes are older than the key
        description="the text that rows start from. human: generation 0's, the same contexts in each generation; "
        "training_set: that of the generation which writes, a context every `max_new_tokens`, so that the rows rewrite "
        "it (ForTIFAI)",
    )
    repetition_penalty: Annotated[
        float, _within(0.0, 100.0, "repetition_penalty is above 0; 1.0 is none", low_open=True)
    ] = Field(1.0, description="divides the logits of tokens already in the row (Keskar et al., 2019); 1 is none")
    num_beams: Annotated[int, _within(1, 64, "num_beams is 1 (no beam search) to 64")] = Field(
        1,
        description="beams of a beam search, which draws nothing: temperature, top_k and top_p keep their defaults; "
        "on the Hugging Face engine (vLLM's has no repetition penalty); 1 is no beam search",
    )
    ignore_eos: bool = Field(
        True,
        description="generate `max_new_tokens` whatever is drawn, so that every row of every generation has the same "
        "size and a chain's synthetic ratio is exactly the recipe's",
    )

    min_new_tokens: Annotated[int, _within(0, 2**20, "min_new_tokens is 0 (none) or a number of tokens")] = Field(
        0,
        exclude_if=lambda value: value == 0,  # some recipes are older than the key
        description="tokens of a row before which its end-of-text token is not drawn; as many as max_new_tokens: never "
        "(transformers' and vLLM's own min_new_tokens; ForTIFAI). 0: drawn as any other",
    )

    watermark: WatermarkConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,  # some recipes are older than the key
        description="rows are marked as they are written, by green lists (Kirchenbauer et al. 2023); `{}`: as usual",
    )

    @model_validator(mode="after")
    def _a_mark_can_be_made(self) -> Self:
        if self.watermark is None:
            return self
        for key, plain in (("num_beams", 1), ("repetition_penalty", 1.0)):
            if (given := getattr(self, key)) != plain:
                raise ValueError(f"watermark: {key}: {given:g} changes the same logits: leave one of the two out")
        if self.watermark.context > self.context_tokens:
            raise ValueError(
                f"watermark.context: a row begins with context_tokens: {self.context_tokens}, fewer than the "
                f"{self.watermark.context} that seed its first list; at most {self.context_tokens} is right"
            )
        return self

    @model_validator(mode="after")
    def _the_least_is_no_more_than_the_most(self) -> Self:
        least, most = self.min_new_tokens, self.max_new_tokens
        if least > most:
            raise ValueError(f"min_new_tokens: {least} is more than max_new_tokens, {most}")
        if self.ignore_eos and least not in (0, most):
            raise ValueError(
                f"min_new_tokens: with ignore_eos, every row has {most} tokens: {most} (no end-of-text token is drawn) "
                f"or 0 is right, or ignore_eos: false for rows of {least} to {most}"
            )
        return self

    @model_validator(mode="after")
    def _beams_draw_nothing(self) -> Self:
        drawn = ("temperature", "top_p", "top_k")
        if self.num_beams > 1 and any(getattr(self, key) != type(self).model_fields[key].default for key in drawn):
            raise ValueError("beam search draws nothing: leave temperature, top_p and top_k out, or num_beams at 1")
        return self

    @property
    def deterministic(self) -> str | None:
        """The setting, with its value, for which equal prompts get equal rows whatever the seed, or in effect; None
        where rows are drawn."""
        settled = {
            "num_beams": self.num_beams > 1,
            "temperature": self.temperature <= _COLDEST,
            "top_k": self.top_k == 1,
            "top_p": self.top_p <= _NARROWEST ** max(self.temperature, _SHARPEST),
        }
        return next((f"{name}: {getattr(self, name):g}" for name, settles in settled.items() if settles), None)


EngineKind = Literal["auto", "vllm", "huggingface"]


def resolve_kind(kind: EngineKind) -> Literal["vllm", "huggingface"]:
    """Replace ``auto`` by the engine of this machine: vLLM where it is installed."""
    if kind == "auto":
        return "vllm" if find_spec("vllm") else "huggingface"
    return kind


class EngineConfig(Section):
    """The settings of an engine that generates."""

    kind: EngineKind = Field(
        "auto", description="auto: vLLM where it is installed and serves the model on a CPU, else transformers"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: float32 on a CPU, so that a killed and resumed study gives the same tokens bit for bit, and "
        "bfloat16 on a GPU",
    )
    max_num_seqs: int = Field(
        256, ge=1, description="rows decoded together; 256 keep a core's matrix products busy, more only add memory"
    )
    rows_per_call: int = Field(
        1024,
        ge=1,
        description="rows of one engine call, the unit of work that is distributed and retried; a corpus depends on "
        "it, but not on the number of engines",
    )
    max_model_len: int | None = Field(
        None, ge=2, description="longest row (context and generated tokens); null: the model's maximum, at most 2,048"
    )
    kv_cache_bytes: int | None = Field(
        None,
        ge=1 << 20,
        description="memory for keys and values; null: enough for `max_num_seqs` rows of `max_model_len` tokens, at "
        "most 1 GiB on a CPU; on a GPU, the engine's share of the free memory",
    )
    prefix_caching: bool = Field(
        False,
        description="keep the keys and values of shared prompt beginnings within a call; prompts here are short and "
        "differ from each other, and hashing them costs a few per cent",
    )
    lora_rank: int | None = Field(
        None, ge=1, le=512, exclude_if=lambda value: value is None, description="that of `training.lora`: leave it out"
    )


@dataclass(frozen=True)
class EngineCall:
    """One unit of generation, self-contained: an answer depends on nothing else.

    Attributes:
        call_id: names the call in waits and errors; unique.
        checkpoint: a Hugging Face folder with safetensors, or an adapter's (:mod:`fortifai_ray.engines.checkpoints`).
        weights_version: the identity of those weights. An engine that holds this version does not reload.
        prompts: ``seed: int64, prompt_ids: list<int32>``, a row per request.
        decoding: how the tokens are drawn.
        engine: the configuration of the engine that answers; an engine configured differently restarts.
    """

    call_id: str
    checkpoint: Folder
    weights_version: str
    prompts: "pa.Table"
    decoding: DecodingConfig
    engine: EngineConfig


@dataclass(frozen=True)
class EngineAnswer:
    """What an engine generated.

    Attributes:
        generated_ids: ``list<int32>``, one per prompt, in the order of the prompts. A row that ended early ends with
            its end-of-text token.
        weights_version: the version that the engine held when it generated.
        started, finished: wall-clock seconds (``time.time``) of the generation alone: no waiting, no loading.
        load_seconds: time spent starting or swapping weights for this call; 0 where the engine held them already.
    """

    generated_ids: "pa.ListArray"
    weights_version: str
    started: float
    finished: float
    load_seconds: float


class Engine(Protocol):
    """A model that generates, in one process. Not thread-safe: one call at a time.

    Attributes:
        architecture: the one that it was started for (:func:`fortifai_ray.engines.checkpoints.architecture`); empty
            while it is not running.
    """

    architecture: str

    def start(self, config_folder: Path) -> None:
        """Start for the architecture in ``config_folder``, which need not hold weights.

        A running model is shut down first.
        """

    def stop(self) -> None:
        """Shut down and free memory."""

    def load(self, checkpoint: Path) -> None:
        """Load a checkpoint's weights and verify them.

        The checkpoint, or an adapter's model, has the architecture that the engine was started for.

        Raises:
            WeightsError: the checkpoint lacks a tensor, or the engine does not hold its weights afterwards.
        """

    def generate(self, prompts: list[list[int]], seeds: list[int], decoding: DecodingConfig) -> list[list[int]]:
        """Generate from each prompt. Row *i*'s noise depends on ``seeds[i]`` alone.

        Raises:
            ValueError: a prompt is empty, or prompt and new tokens exceed the engine's longest row.
        """


def check_lengths(prompts: list[list[int]], decoding: DecodingConfig, longest: int) -> None:
    """Refuse rows that do not fit an engine sized for ``longest`` tokens.

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
