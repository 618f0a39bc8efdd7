"""What is known of a model's network before anything starts: its engine, its output head, its adapters, its limits.

A network too large to be made for this is tried with two of its layers and random weights.
"""

import copy
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from fortifai_ray.engines.pretrained import local_folder
from fortifai_ray.engines.served import why_no_adapters, why_not_vllm
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.adapters import adapted_layers
from fortifai_ray.families.language.config import LoraConfig, ModelConfig, TrainingConfig
from fortifai_ray.families.language.models import context_length, keep_documents_apart, preset_shape, skeleton

_WHOLE = 50_000_000  # parameters of a network that is tried whole: 200 MB
_TRIED = 300_000_000  # the most that are made for a trial


@lru_cache(maxsize=64)
def engine_refusal(model: ModelConfig, *, adapters: bool = False, gpu: bool = False) -> str | None:
    """Why vLLM does not serve a model, in half a line; None where it does, or where nothing is known of it yet."""
    if model.preset is not None:
        return None  # Llama
    folder = model.folder or local_folder(model.checkpoint, model.revision)
    if folder is None:
        return None
    return why_not_vllm(folder, gpu=gpu) or (why_no_adapters(folder) if adapters else None)


def engine_for(model: ModelConfig, *, adapters: bool) -> tuple[str, str]:
    """The kind of engine that ``engine.kind: auto`` takes, and why, in half a line.

    It does not depend on whether engines have GPUs, so that a chain's stages are the same on any machine.
    """
    if not find_spec("vllm"):
        return "huggingface", "vLLM is not installed"
    refusal = engine_refusal(model, adapters=adapters)
    return ("vllm", "it serves this model") if refusal is None else ("huggingface", refusal)


def check_training(model: ModelConfig, training: TrainingConfig) -> None:
    """Check what training asks of the network itself. Nothing is known of a hub's model.

    Raises:
        UserError: it has no such layers to adapt, cannot keep documents apart, recompute activations or be sharded.
    """
    asked = (training.lora, training.document_mask, training.gradient_checkpointing, training.parallel == "fsdp")
    network = skeleton(model) if any(asked) else None
    if network is None:
        return
    kind = type(network).__name__
    if training.lora is not None:
        adapted_layers(network, training.lora)
    if training.gradient_checkpointing and not network.supports_gradient_checkpointing:
        raise UserError(f"training.gradient_checkpointing: {kind} does not support it; leave it out")
    if training.parallel == "fsdp" and not network._no_split_modules:
        raise UserError(f"training.parallel: {kind} does not name its layers, by which fsdp shards; ddp is right here")
    tried = trial(model) if training.document_mask else None
    if tried is not None:
        keep_documents_apart(copy.deepcopy(tried), 0)


def describe_model(model: ModelConfig, training: TrainingConfig, engine: tuple[str, str]) -> tuple[str, ...]:
    """What a dry run says of a model: its size, longest row, engine, output head and adapters.

    Args:
        model: of which this is said.
        training: what is done with it.
        engine: the kind that generates, and why.
    """
    kind, why = engine
    name = model.name
    written = f"generates on {'vLLM' if kind == 'vllm' else 'the Hugging Face engine'} ({why})"
    network: Any = None if model.random and not training.lora else skeleton(model)  # without importing torch
    if model.hub:
        return (f"model: {name}: {written}; its head and layers are known once it is here",)
    limit = context_length(model)
    rows = f"rows of at most {limit:,} tokens" if limit else "rows of any length"
    size, kind = _preset_size(model), "LlamaForCausalLM"
    if not model.random:
        size, kind = sum(parameter.numel() for parameter in network.parameters()), type(network).__name__
    return (
        f"model: {name}: {kind}, {size:,} parameters, {rows}; {written}",
        f"training: {_head(model)}" + (f"; {_adapters(network, training.lora, size)}" if training.lora else ""),
    )


def _preset_size(model: ModelConfig) -> int:
    """Parameters of a preset's Llama, whose head is tied."""
    shape = preset_shape(model)
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    return model.vocab_size * width + model.layers * (4 * width**2 + 3 * width * inner + 2 * width) + width


def _head(model: ModelConfig) -> str:
    if model.random:
        return "fused output head"
    from fortifai_ray.losses.causal_lm import UnknownHead, find_head

    tried = trial(model)
    if tried is None:
        return "its output head, fused or plain, is found when training starts"
    try:
        find_head(tried)
    except UnknownHead as reason:
        return f"plain output head, whose logits are whole in memory ({reason})"
    return "fused output head"


def _adapters(network: Any, lora: LoraConfig, size: int) -> str:
    layers = adapted_layers(network, lora)
    names = sorted({name.rpartition(".")[2] for name in layers})
    shapes: list[Any] = [layer.weight.shape for layer in layers.values()]
    added = lora.rank * sum(rows + columns for rows, columns in shapes)
    experts = any(name.endswith(".experts") for name, _ in network.named_modules())
    stay = "; experts and their routers stay as they are" if experts else ""
    return f"adapters on {len(layers)} layers ({', '.join(names)}), {added:,} parameters, {added / size:.1%}{stay}"


@lru_cache(maxsize=4)
def trial(model: ModelConfig) -> Any | None:
    """A network of the model's architecture with random weights, on the CPU; None where it cannot be made small."""
    network = skeleton(model)
    if network is None:
        return None
    import torch

    try:
        config = copy.deepcopy(network.config)
        if sum(parameter.numel() for parameter in network.parameters()) > _WHOLE:
            _shrink(config.get_text_config())
            with torch.device("meta"):
                smaller = type(network)(config)
            if sum(parameter.numel() for parameter in smaller.parameters()) > _TRIED:
                return None
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = type(network)(config).float().eval()
            with torch.no_grad():
                for parameter in made.parameters():  # what begins at zero hides what is done to it
                    parameter.add_(0.02 * torch.randn_like(parameter))
    except Exception:  # a configuration may need all its layers, for reasons of its own
        return None
    return made


def _shrink(config: Any) -> None:
    """Two layers, and few tokens."""
    layers = config.num_hidden_layers
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(config, key, value[:2])
    config.num_hidden_layers = 2
    config.vocab_size = min(config.vocab_size, 1024)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, key, None)
