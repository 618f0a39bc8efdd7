"""What a VAE and a diffusion model share: the sums that training divides, drawing samples, and scoring them.

A *target* is a pixel for the VAE, a coordinate of the noise for the diffusion model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fortifai_ray.losses import PointwiseLoss
from fortifai_ray.seeds import derive_seed

BLOCK = 256  # rows that share one noise generator when samples are drawn or scored

Noise = tuple[Tensor, ...]


class Sums(NamedTuple):
    """Sums over one worker's share of a batch."""

    total: Tensor  # Σ f(log p) over the targets, with its graph
    penalty: Tensor  # added to any loss (the VAE's KL term, in nats), with its graph
    kept: Tensor  # targets that contribute a gradient
    log_p: Tensor  # (rows, targets a row), without a graph


def sum_loss(loss: PointwiseLoss, log_p: Tensor, penalty: Tensor) -> Sums:
    """The sums of a loss on log-probabilities (rows, targets a row) and of a penalty (rows,)."""
    known = log_p.detach()
    return Sums(loss(log_p).sum(), penalty.sum(), loss.kept(known).sum(), known)


class GenerativeModel(nn.Module, ABC):
    """A model of samples. ``shape`` is one sample's: (side, side) of uint8 pixels, or (2,) of float32 coordinates.

    Randomness is passed in as ``noise`` drawn on the CPU: the same numbers on every device and for any number of
    workers.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    @property
    def dimensions(self) -> int:
        """Pixels or coordinates of a sample."""
        return int(np.prod(self.shape))

    @abstractmethod
    def noise(self, rows: int, source: torch.Generator) -> Noise:
        """The noise of a training step on ``rows`` samples: tensors whose first axis is the rows."""

    def score_noise(self, rows: int, source: torch.Generator) -> Noise:
        """The noise of a score of ``rows`` samples: as :meth:`noise`."""
        return self.noise(rows, source)

    @abstractmethod
    def forward(self, samples: Tensor, noise: Noise, loss: PointwiseLoss) -> Sums:
        """The loss of samples as stored, of shape (rows, …)."""

    @abstractmethod
    def sample(self, rows: int, draw: Callable[..., Tensor]) -> Tensor:
        """``rows`` samples as stored; ``draw(kind, shape)`` returns the noise, kind "normal" or "uniform"."""

    @abstractmethod
    def log_likelihood(self, samples: Tensor, noise: Noise) -> Tensor:
        """The score that ranks samples, (rows,): a bound on log p(x), or a stand-in for it; in nats."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def here() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cpu_generator(seed: int) -> torch.Generator:
    """A generator on the CPU, whatever device uses the numbers."""
    return torch.Generator().manual_seed(seed)


def draw_samples(model: GenerativeModel, count: int, seed: int, *purpose: str | int) -> np.ndarray:
    """``count`` samples as stored: of shape (count, …).

    Row i does not depend on ``count``: noise belongs to blocks of rows, and each block is drawn whole.
    """
    parts = [np.zeros((0, *model.shape), dtype=np.float32 if len(model.shape) == 1 else np.uint8)]
    model = model.eval()
    with torch.inference_mode():
        for block in range(-(-count // BLOCK)):
            source = cpu_generator(derive_seed(seed, *purpose, block))

            def draw(kind: str, shape: tuple[int, ...], source: torch.Generator = source) -> Tensor:
                make = {"normal": torch.randn, "uniform": torch.rand}[kind]
                return make(shape, generator=source).to(model.device)

            parts.append(model.sample(BLOCK, draw).cpu().numpy())
    return np.concatenate(parts[1:] or parts)[:count]


def score_samples(model: GenerativeModel, samples: np.ndarray, seed: int, *purpose: str | int) -> np.ndarray:
    """:meth:`GenerativeModel.log_likelihood` of each sample, float64 of shape (n,), with noise by (seed, row)."""
    scores = [
        model.log_likelihood(rows, noise).double().cpu().numpy()
        for rows, noise in score_blocks(model, samples, seed, *purpose)
    ]
    return np.concatenate([np.zeros(0), *scores])


def score_blocks(
    model: GenerativeModel, samples: np.ndarray, seed: int, *purpose: str | int
) -> Iterator[tuple[Tensor, Noise]]:
    """Samples in blocks on the model's device, each with its noise."""
    model.eval()
    for start in range(0, len(samples), BLOCK):
        rows = torch.from_numpy(np.array(samples[start : start + BLOCK])).to(model.device)
        source = cpu_generator(derive_seed(seed, *purpose, start // BLOCK))
        yield rows, tuple(part[: len(rows)].to(model.device) for part in model.score_noise(BLOCK, source))
