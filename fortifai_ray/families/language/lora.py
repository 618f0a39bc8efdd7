"""Low-rank adapters in training: put over a frozen model, gone on with, and written without it."""

import json
from pathlib import Path
from typing import Any

from fortifai_ray.engines.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_parameters,
    is_adapter,
    put_adapter,
)
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import LoraConfig


def adapt(model: Any, lora: LoraConfig, start: Path, seed: int) -> None:
    """Freeze ``model``, a Hugging Face causal LM, and put adapters into it: those of the folder ``start``, or new ones
    by ``seed`` where that holds a whole model.

    Raises:
        UserError: ``lora.targets`` are not linear layers of the model's body.
    """
    import peft
    import torch

    check_targets(model, lora)
    if is_adapter(start):
        put_adapter(model, start)
        return
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        task_type=peft.TaskType.CAUSAL_LM,
    )
    torch.manual_seed(seed)
    peft.LoraModel(model, config, "default")


def check_targets(model: Any, lora: LoraConfig) -> None:
    """Raise :class:`UserError` where ``lora.targets`` are not linear layers of the model's body; weights need not be
    there."""
    from torch import nn

    if isinstance(lora.targets, str):
        return
    head = model.get_output_embeddings()
    linear = {name.rpartition(".")[2]: module for name, module in model.named_modules() if type(module) is nn.Linear}
    there = sorted(name for name, module in linear.items() if module is not head)
    for name in lora.targets:
        if name not in there:
            raise UserError(
                f"training.lora.targets: {name} is no linear layer of {type(model).__name__}'s body; it has "
                f"{', '.join(there)}"
            )


def save_adapter(model: Any, folder: Path, base: str, rank: int) -> None:
    """Write the adapters of ``model`` into ``folder`` in PEFT's format, from rank 0; every worker takes part.

    ``base`` names the model's own folder, which stands beside ``folder``.
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
        config["target_modules"] = sorted(config["target_modules"])  # a set, whose order changes from run to run
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, default=str))
