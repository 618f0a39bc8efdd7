"""A model as a folder: its weights in safetensors, and what network they belong to."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fortifai_ray.families.images.config import DiffusionConfig, VaeConfig
from fortifai_ray.families.images.diffusion import Diffusion
from fortifai_ray.families.images.objective import GenerativeModel
from fortifai_ray.families.images.vae import Vae

VERSION = 1  # bump when the same seed gives another model

_WEIGHTS = "model.safetensors"
_NETWORK = "network.json"


def model_identity(config: VaeConfig | DiffusionConfig, shape: tuple[int, ...]) -> dict[str, Any]:
    """What determines a model apart from its weights. Of the data only what its samples look like."""
    network = config.model_dump(mode="json", exclude={"data"})
    return {"network": network, "shape": list(shape), "binarise": config.data.binarise}


def create_model(config: VaeConfig | DiffusionConfig, shape: tuple[int, ...], seed: int, folder: Path) -> None:
    """Write a model with random weights by ``seed`` into ``folder``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(model_identity(config, shape))
    save_model(model, model_identity(config, shape), folder)


def build_model(identity: dict[str, Any]) -> GenerativeModel:
    """The network of :func:`model_identity`, with weights by torch's own generator."""
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
    """The model that lies in ``folder``, in float32."""
    model = build_model(load_identity(folder))
    model.load_state_dict(load_file(folder / _WEIGHTS))
    return model if device is None else model.to(device)


def load_identity(folder: Path) -> dict[str, Any]:
    """:func:`model_identity` of the model that lies in ``folder``."""
    return json.loads((folder / _NETWORK).read_text())


# Denoisers: networks that predict the noise in a noisy sample, given how far the noising has gone.

_EMBEDDING = 64


class TimeEmbedding(nn.Module):
    """Sines and cosines of the timestep, through one layer (Ho et al. 2020, appendix B; Vaswani et al. 2017)."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = _EMBEDDING // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.project = nn.Sequential(nn.Linear(_EMBEDDING, width), nn.SiLU())

    def forward(self, time: Tensor) -> Tensor:
        """(rows, width) of ``time`` in [0, 1], (rows,)."""
        angles = 1000.0 * time[:, None] * self.frequencies
        return self.project(torch.cat([angles.sin(), angles.cos()], dim=1))


class PointDenoiser(nn.Module):
    """An MLP with three residual layers, for points (rows, d)."""

    def __init__(self, dimensions: int, width: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(width)
        self.enter = nn.Linear(dimensions, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(3)
        )
        self.leave = nn.Sequential(nn.SiLU(), nn.Linear(width, dimensions))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden, when = self.enter(x), self.time(time)
        for layer in self.layers:
            hidden = hidden + layer(hidden + when)
        return self.leave(hidden)


class _Block(nn.Module):
    """Two normalised convolutions with the time added between them, and a way round them."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(4, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1))
        self.time = nn.Linear(embedding, channels)
        self.second = nn.Sequential(nn.GroupNorm(4, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor, when: Tensor) -> Tensor:
        return x + self.second(self.first(x) + self.time(when)[:, :, None, None])


class ImageDenoiser(nn.Module):
    """A U-Net of one halving, for images (rows, 1, side, side) with an even side (Ho et al. 2020's, scaled down)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        embedding = 4 * width
        self.time = TimeEmbedding(embedding)
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down_block = _Block(width, embedding)
        self.down = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.middle = nn.ModuleList(_Block(2 * width, embedding) for _ in range(2))
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.up_block = _Block(width, embedding)
        self.leave = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        when = self.time(time)
        wide = self.down_block(self.enter(x), when)
        deep = self.down(wide)
        for block in self.middle:
            deep = block(deep, when)
        return self.leave(self.up_block(self.join(torch.cat([wide, self.up(deep)], dim=1)), when))
