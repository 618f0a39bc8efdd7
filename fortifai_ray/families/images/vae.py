"""A convolutional VAE with Bernoulli pixels, trained with any loss of a pixel's log-probability."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fortifai_ray.families.images.config import VaeConfig
from fortifai_ray.families.images.objective import GenerativeModel, Noise, Sums, sum_loss
from fortifai_ray.losses import PointwiseLoss


class Bound(NamedTuple):
    """The two halves of the ELBO by sample, in nats, and the posterior that they come from."""

    reconstruction: Tensor  # (rows,) E log p(x | z), one draw of z
    kl: Tensor  # (rows,) KL(q(z | x) ‖ p(z))
    mean: Tensor  # (rows, latent)
    log_variance: Tensor  # (rows, latent)


class Vae(GenerativeModel):
    """ELBO(x) = E_q log p(x | z) − KL(q(z | x) ‖ N(0, I)) (Kingma and Welling 2014, equation 3 and appendix B).

    A pixel x in [0, 1] has log p = x log p̂ + (1 − x) log(1 − p̂), where p̂ is the decoder's: the Bernoulli cross entropy,
    which for a grey pixel is the expected log-probability of a 0 or 1 drawn from it. A loss f applies to that, pixel
    by pixel; the KL term is unchanged. So TCE leaves out the pixels that are predicted with p > γ. For a grey pixel, p
    is at most exp(−H(x)), with H the entropy of its grey level: 1/2 for x = 1/2, which TCE with γ ≥ 1/2 never drops.

    A sample is the decoder's mean p̂ as a grey level (Shumailov et al. 2024), or pixels drawn from it where the human
    data are binarised: either way, it has the form of the human data.
    """

    def __init__(self, config: VaeConfig, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self._draws_pixels = config.data.binarise
        channels, quarter = config.channels, shape[0] // 4
        features = 2 * channels * quarter**2
        self.encoder = nn.Sequential(
            nn.Conv2d(1, channels, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(features, 2 * config.latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, features),
            nn.SiLU(),
            nn.Unflatten(1, (2 * channels, quarter, quarter)),
            nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1),
            nn.Flatten(),
        )
        self.latent = config.latent

    def noise(self, rows: int, source: torch.Generator) -> Noise:
        """One standard normal draw of the latent variable per row."""
        return (torch.randn(rows, self.latent, generator=source),)

    def forward(self, samples: Tensor, noise: Noise, loss: PointwiseLoss) -> Sums:
        pixels, mean, log_variance = self._encode(samples)
        logits = self._decode(mean, log_variance, noise)
        return sum_loss(loss, pixel_log_probability(logits, pixels), kl_divergence(mean, log_variance))

    def bound(self, samples: Tensor, noise: Noise) -> Bound:
        """The ELBO's halves of samples of shape (rows, side, side), uint8."""
        pixels, mean, log_variance = self._encode(samples)
        logits = self._decode(mean, log_variance, noise)
        reconstruction = pixel_log_probability(logits, pixels).sum(1)
        return Bound(reconstruction, kl_divergence(mean, log_variance), mean, log_variance)

    @torch.inference_mode()
    def log_likelihood(self, samples: Tensor, noise: Noise) -> Tensor:
        """The ELBO of each sample."""
        bound = self.bound(samples, noise)
        return bound.reconstruction - bound.kl

    def sample(self, rows: int, draw: Callable[..., Tensor]) -> Tensor:
        """uint8 of shape (rows, side, side), from z ~ N(0, I)."""
        probability = self.decoder(draw("normal", (rows, self.latent))).sigmoid()
        if self._draws_pixels:
            probability = (draw("uniform", tuple(probability.shape)) < probability).float()
        return (probability * 255).round().to(torch.uint8).reshape(rows, *self.shape)

    def _encode(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels = samples.float() / 255
        mean, log_variance = self.encoder(pixels[:, None]).float().chunk(2, dim=1)
        return pixels.flatten(1), mean, log_variance

    def _decode(self, mean: Tensor, log_variance: Tensor, noise: Noise) -> Tensor:
        return self.decoder(mean + noise[0] * (log_variance / 2).exp()).float()


def pixel_log_probability(logits: Tensor, pixels: Tensor) -> Tensor:
    """log p of each pixel, (rows, pixels), in nats: x log p̂ + (1 − x) log(1 − p̂) for x in [0, 1] and p̂ = σ(logit)."""
    return -F.binary_cross_entropy_with_logits(logits, pixels, reduction="none")


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_variance)) ‖ N(0, I)) by row, in nats (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """Latent dimensions whose posterior mean varies over the data by more than ``threshold`` (Burda et al. 2016, §5.2).

    ``means`` is (rows, latent).
    """
    return int((means.var(0, correction=0) > threshold).sum())


def latent_statistics(means: Tensor, log_variances: Tensor) -> dict[str, float]:
    """Mean norm of the means, mean variance and number of active units of posteriors (rows, latent)."""
    return {
        "latent_mean_norm": float(means.norm(dim=1).mean()),
        "latent_variance": float(log_variances.exp().mean()),
        "active_units": float(active_units(means)),
    }
