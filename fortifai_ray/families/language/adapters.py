"""Adapters in training (LoRA, by PEFT): which layers take one, adding them to a network, and writing them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.engines.checkpoints import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_parameters,
    is_adapter,
    layers_as_named,
    put_adapter,
)
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import LoraConfig

if TYPE_CHECKING:
    from torch import nn


def adapt(model: Any, lora: LoraConfig, start: Path, seed: int) -> None:
    """Freeze ``model``, a Hugging Face causal LM, and add adapters: those in the folder ``start``, or new ones by
    ``seed`` where that holds a whole model.

    Raises:
        UserError: ``lora.targets`` are not linear layers of the model's body.
    """
    import peft
    import torch

    layers = adapted_layers(model, lora)
    if is_adapter(start):
        put_adapter(model, start)
        return
    given = list(layers) if isinstance(lora.targets, str) else list(lora.targets)
    others = [name for name, _ in model.named_modules() if name not in layers and name.rpartition(".")[2] in given]
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=given,
        exclude_modules=others or None,
        fan_in_fan_out=all(_is_transposed(layer) for layer in layers.values()),
        task_type=peft.TaskType.CAUSAL_LM,
    )
    torch.manual_seed(seed)
    with layers_as_named(model):
        peft.LoraModel(model, config, "default")


def adapted_layers(model: Any, lora: LoraConfig) -> "dict[str, nn.Module]":
    """The layers that ``lora.targets`` names, by their full names. Needs no weights.

    Raises:
        UserError: a target is no layer that takes an adapter; names those that do.
    """
    layers = _linear_layers(model)
    if not layers:
        raise UserError(
            f"training.lora: {type(model).__name__} has no linear layers that take an adapter: leave it out"
        )
    if isinstance(lora.targets, str):
        return layers
    short = sorted({name.rpartition(".")[2] for name in layers})
    for name in lora.targets:
        if name not in short:
            raise UserError(
                f"training.lora.targets: {name} is no linear layer of {type(model).__name__}'s body that takes an "
                f"adapter; it has {', '.join(short)} (all-linear: all of them)"
            )
    return {name: layer for name, layer in layers.items() if name.rpartition(".")[2] in lora.targets}


def _linear_layers(model: Any) -> "dict[str, nn.Module]":
    """The layers of a causal LM's body that take an adapter: linear (GPT-2's hold their weights transposed), and called
    as layers.

    Without the output head; what is linear by its class and gives something else (a router: a choice of experts); and
    the layers of a Mamba mixer whose weights its kernels take for themselves, all but the first. Experts are no layers:
    each layer's are one tensor, which stays as it is.
    """
    from torch import nn

    head, taken = model.get_output_embeddings(), set[int]()
    for parent in model.modules():
        mixer = all(isinstance(getattr(parent, name, None), nn.Parameter) for name in ("A_log", "D"))
        for short, layer in parent.named_children():
            if _is_linear(layer) and layer is not head and (short == "in_proj" or not mixer):
                taken.add(id(layer))
    return {name: layer for name, layer in model.named_modules() if id(layer) in taken}


def _is_linear(layer: Any) -> bool:
    import torch
    from torch import nn

    if type(layer) is nn.Linear or _is_transposed(layer):
        return True
    if not isinstance(layer, nn.Linear):
        return False
    try:
        output = layer(torch.zeros(1, 1, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device))
    except Exception:  # a class may do anything
        return False
    return isinstance(output, torch.Tensor) and output.shape == (1, 1, layer.out_features)


def _is_transposed(layer: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return type(layer) is Conv1D


def save_adapter(model: Any, folder: Path, base: str, rank: int) -> None:
    """Write the adapters of ``model`` into ``folder`` in PEFT's format, from rank 0. Every worker must call it.

    ``base`` names the model's own folder, beside ``folder``.
    """
    from safetensors.torch import save_file
    from torch.distributed.tensor import DTensor

    weights = {}
    for name, parameter in adapter_parameters(model).items():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if rank == 0:
            weights[name] = whole.detach().cpu().contiguous()
    if rank == 0:
        save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config = model.peft_config["default"].to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
        for key in ("target_modules", "exclude_modules"):  # sets, whose order changes from run to run
            config[key] = sorted(config[key]) if config[key] else config[key]
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, default=str))
