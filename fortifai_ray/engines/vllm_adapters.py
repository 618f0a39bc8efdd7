"""Inside the vLLM worker: the proof that an adapter is in use, completely.

Of an adapter whose tensors go astray, vLLM at most logs a line, and the model answers without them.
"""

from pathlib import Path
from typing import Any

import torch
from vllm.lora.utils import parse_fine_tuned_lora_name

from fortifai_ray.engines.checkpoints import ADAPTER_CONFIG, Checkpoint, read_scale
from fortifai_ray.engines.pretrained import WeightsError
from fortifai_ray.engines.vllm_layers import held_columns, held_slice


def verify_adapter(manager: Any, number: int, folder: Path) -> None:
    """Verify that each layer holds, for the adapter of this ``number``, exactly the tensors of ``folder``.

    Raises:
        WeightsError: a tensor of the file is in no layer, or differs from the layer's.
    """
    slot = manager.lora_index_to_id.index(number)
    wanted = _pairs(manager, folder)
    for name, module in manager.modules.items():
        if not hasattr(module, "n_slices"):  # the output head, never adapted
            continue
        owner, _, leaf = name.rpartition(".")
        parts = manager.packed_modules_mapping.get(leaf, [leaf])
        for slice_, part in enumerate(parts):
            down, up = wanted.pop(f"{owner}.{part}", (None, None))
            _verify_slice(module, slice_, slot, down, up, f"{owner}.{part}", folder)
    if wanted:
        raise WeightsError(f"{folder} adapts {', '.join(sorted(wanted)[:3])}, which are not layers that vLLM adapts")


def _pairs(manager: Any, folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and scaled B of each adapted layer of the file, by vLLM's name for the layer."""
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    mapper = None if mapper is None else mapper.get_rename_mapper()
    scale, dtype = read_scale(folder), manager.lora_config.lora_dtype
    halves: dict[str, dict[bool, torch.Tensor]] = {}
    for name, tensor in Checkpoint(folder).tensors():
        layer, is_down = parse_fine_tuned_lora_name(name, mapper)
        halves.setdefault(layer, {})[is_down] = tensor.to(dtype)
    return {layer: (pair[True], pair[False] * scale) for layer, pair in halves.items()}


def _verify_slice(
    module: Any, slice_: int, slot: int, down: torch.Tensor | None, up: torch.Tensor | None, name: str, folder: Path
) -> None:
    held_down, held_up = module.lora_a_stacked[slice_][slot, 0], module.lora_b_stacked[slice_][slot, 0]
    expected_down, expected_up = torch.zeros_like(held_down), torch.zeros_like(held_up)
    if down is not None and up is not None:
        first, last = held_columns(module.base_layer, down.shape[1])
        rows = held_slice(module.base_layer, slice_, up)
        expected_down[: len(down), : last - first] = down[:, first:last]
        expected_up[: len(rows), : up.shape[1]] = rows
    if not (held_down.equal(expected_down) and held_up.equal(expected_up)):
        raise WeightsError(f"after loading {folder}, {name} does not hold the adapter of {ADAPTER_CONFIG}")
