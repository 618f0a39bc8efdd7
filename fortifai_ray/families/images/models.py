"""A model as a folder: its weights in safetensors, and the network that they belong to."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fortifai_ray.families.images.config import DiffusionConfig, VaeConfig
from fortifai_ray.families.images.diffusion import Diffusion
from fortifai_ray.families.images.objective import GenerativeModel
from fortifai_ray.families.images.vae import Vae

VERSION = 1  # bump when the same seed gives another model

_WEIGHTS = "model.safetensors"
_NETWORK = "network.json"


def model_identity(config: VaeConfig | DiffusionConfig, shape: tuple[int, ...]) -> dict[str, Any]:
    """What determines a model apart from its weights. Of the data, only the form of its samples matters."""
    network = config.model_dump(mode="json", exclude={"data"})
    return {"network": network, "shape": list(shape), "binarise": config.data.binarise}


def create_model(config: VaeConfig | DiffusionConfig, shape: tuple[int, ...], seed: int, folder: Path) -> None:
    """Write a model with random weights by ``seed`` into ``folder``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(model_identity(config, shape))
    save_model(model, model_identity(config, shape), folder)


def build_model(identity: dict[str, Any]) -> GenerativeModel:
    """The network of :func:`model_identity`, with weights drawn by torch's global generator."""
    content = {**identity["network"], "data": {"source": "digits", "binarise": identity["binarise"]}}
    shape = tuple(identity["shape"])
    if content["kind"] == "vae":
        return Vae(VaeConfig.model_validate(content), shape)
    return Diffusion(DiffusionConfig.model_validate(content), shape)


def save_model(model: GenerativeModel, identity: dict[str, Any], folder: Path) -> None:
    """Write weights and network into ``folder``."""
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, folder / _WEIGHTS
    )
    (folder / _NETWORK).write_text(json.dumps(identity))


def load_model(folder: Path, device: torch.device | None = None) -> GenerativeModel:
    """The model in ``folder``, in float32."""
    model = build_model(load_identity(folder))
    model.load_state_dict(load_file(folder / _WEIGHTS))
    return model if device is None else model.to(device)


def load_identity(folder: Path) -> dict[str, Any]:
    """:func:`model_identity` of the model in ``folder``."""
    return json.loads((folder / _NETWORK).read_text())
