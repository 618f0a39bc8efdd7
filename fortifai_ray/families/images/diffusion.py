"""A denoising diffusion model that predicts the noise (Ho et al. 2020), for points and for small images."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fortifai_ray.families.images.config import DiffusionConfig
from fortifai_ray.families.images.objective import GenerativeModel, Noise, Sums, sum_loss
from fortifai_ray.losses import PointwiseLoss

_PASSES = 8  # timesteps at which a sample is scored
_EMBEDDING = 64  # numbers that embed a timestep


class Diffusion(GenerativeModel):
    """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, and a network that predicts ε from x_t and t (Ho et al. 2020, equations 4 and 14).

    A coordinate's noise has the Gaussian log-probability log p = −½(ε − ε̂)² relative to its mode, so p is 1 for a
    perfect prediction; a loss f applies to that, coordinate by coordinate. Cross entropy is half of DDPM's simple
    loss, and TCE leaves out the coordinates predicted to within √(−2 ln γ).
    """

    alpha_bar: Tensor

    def __init__(self, config: DiffusionConfig, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self._is_image = len(shape) == 2
        self._timesteps = config.timesteps
        self._visits = np.unique(
            np.linspace(0, config.timesteps - 1, config.sampling_steps or config.timesteps).round()
        )
        self._eta = {"ancestral": 1.0, "ddim": 0.0}[config.sampler]
        alpha_bar = noise_schedule(config.schedule, config.timesteps)
        self._bars = alpha_bar.tolist()  # for sampling, which would otherwise wait for the device at each timestep
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)
        width = config.width or (16 if self._is_image else 128)
        self.denoiser = ImageDenoiser(width) if self._is_image else PointDenoiser(shape[0], width)

    def noise(self, rows: int, source: torch.Generator) -> Noise:
        """One number in [0, 1) per row, which selects the timestep, and ε, (rows, dimensions)."""
        return torch.rand(rows, generator=source), torch.randn(rows, self.dimensions, generator=source)

    def forward(self, samples: Tensor, noise: Noise, loss: PointwiseLoss) -> Sums:
        when, epsilon = noise
        log_p = self._log_probability(self._signal(samples), (when * self._timesteps).long(), epsilon)
        return sum_loss(loss, log_p, log_p.new_zeros(len(log_p)))

    def score_noise(self, rows: int, source: torch.Generator) -> Noise:
        """As :meth:`noise`, with ε for each pass: (rows, passes, dimensions)."""
        return torch.rand(rows, generator=source), torch.randn(rows, _PASSES, self.dimensions, generator=source)

    @torch.inference_mode()
    def log_likelihood(self, samples: Tensor, noise: Noise) -> Tensor:
        """Minus the denoising loss, −½‖ε − ε̂‖² of each sample, averaged over eight timesteps spread over the schedule.

        It takes the place of log p(x): the variational bound without its weights (Ho et al. 2020, equations 12 and 14).
        """
        signal, (offset, epsilon) = self._signal(samples), noise
        total = signal.new_zeros(len(signal))
        for step in range(_PASSES):
            time = ((step + offset) / _PASSES * self._timesteps).long().clamp(max=self._timesteps - 1)
            total += self._log_probability(signal, time, epsilon[:, step]).sum(1)
        return total / _PASSES

    def sample(self, rows: int, draw: Callable[..., Tensor]) -> Tensor:
        """From x_T ~ N(0, I) down to x_0: Song et al. 2021, equations 12 and 16, with η = 1 (ancestral) or 0 (DDIM).

        With every timestep visited and η = 1 this is DDPM's sampler with the posterior's own variance β̃_t. For images,
        the predicted x_0 is kept within the pixels' range, as in Ho et al.'s code.
        """
        x = draw("normal", (rows, self.dimensions))
        for time, before in zip(self._visits[::-1], [*self._visits[-2::-1], None], strict=True):
            now, then = self._bar(time), self._bar(before)
            epsilon = self._predict(x, torch.full((rows,), int(time), device=x.device))
            clean = (x - math.sqrt(1 - now) * epsilon) / math.sqrt(now)
            if self._is_image:
                clean = clean.clamp(-1, 1)
                epsilon = (x - math.sqrt(now) * clean) / math.sqrt(1 - now)
            sigma = self._eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
            x = math.sqrt(then) * clean + math.sqrt(max(0.0, 1 - then - sigma**2)) * epsilon
            x = x + sigma * draw("normal", tuple(x.shape))
        x = x.reshape(rows, *self.shape)
        return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) if self._is_image else x

    def _bar(self, time: float | None) -> float:
        """ᾱ at a timestep; 1 ahead of the first."""
        return 1.0 if time is None else self._bars[int(time)]

    def _signal(self, samples: Tensor) -> Tensor:
        """Samples ready to be noised: (rows, dimensions), pixels in [−1, 1]."""
        signal = samples.float().flatten(1)
        return signal / 127.5 - 1 if self._is_image else signal

    def _log_probability(self, signal: Tensor, time: Tensor, epsilon: Tensor) -> Tensor:
        noisy = add_noise(signal, self.alpha_bar[time], epsilon)
        return -0.5 * (epsilon - self._predict(noisy, time)).square()

    def _predict(self, x: Tensor, time: Tensor) -> Tensor:
        inputs = x.reshape(len(x), 1, *self.shape) if self._is_image else x
        return self.denoiser(inputs, time.float() / self._timesteps).flatten(1).float()


def add_noise(signal: Tensor, alpha_bar: Tensor, epsilon: Tensor) -> Tensor:
    """x_t ~ q(x_t | x_0), (rows, dimensions), for ᾱ_t by row (Ho et al. 2020, equation 4)."""
    return alpha_bar.sqrt()[:, None] * signal + (1 - alpha_bar).sqrt()[:, None] * epsilon


def noise_schedule(kind: str, timesteps: int) -> Tensor:
    """ᾱ_t for t = 0 … T − 1, float32 of shape (T,): falls from near 1 to near 0.

    ``linear``: β from 10⁻⁴ to 0.02 over 1,000 steps (Ho et al. 2020, §4), scaled by 1000/T so that any T ends at about
    the same noise; ``cosine``: Nichol and Dhariwal 2021, equation 17. β is cut at 0.999.
    """
    if kind == "linear":
        beta = np.linspace(1e-4, 0.02, timesteps) * (1000 / timesteps)
    else:
        at = np.cos((np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = 1 - at[1:] / at[:-1]
    return torch.from_numpy(np.cumprod(1 - np.clip(beta, 0.0, 0.999)).astype(np.float32))


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
    """Two normalised convolutions with the time embedding added between them, and a residual connection."""

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
