"""Denoisers: networks that predict the noise in a noisy sample, given how far the noising has gone."""

import math

import torch
from torch import Tensor, nn

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
