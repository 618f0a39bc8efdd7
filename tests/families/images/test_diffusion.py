"""The diffusion model: the forward process against its closed form, the loss by hand, and a sampler that is exact."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fortifai_ray.families.images.config import DiffusionConfig
from fortifai_ray.families.images.data import HumanData
from fortifai_ray.families.images.diffusion import Diffusion, add_noise, noise_schedule
from fortifai_ray.families.images.objective import cpu_generator, draw_samples, score_samples
from fortifai_ray.losses import CrossEntropy, TruncatedCrossEntropy


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("timesteps", [10, 100, 1000])
def test_the_schedule_goes_from_signal_to_noise(kind: str, timesteps: int) -> None:
    """ᾱ falls at each step, from near 1 to less than a thousandth; at T = 1,000 the linear one is Ho et al.'s."""
    alpha_bar = noise_schedule(kind, timesteps).double()
    assert (alpha_bar.diff() < 0).all()
    assert alpha_bar[0] > 0.95
    assert alpha_bar[-1] < 1e-3
    if (kind, timesteps) == ("linear", 1000):
        beta = np.linspace(1e-4, 0.02, 1000)
        assert alpha_bar[500] == pytest.approx(np.exp(np.log1p(-beta)[:501].sum()), rel=1e-6)


@pytest.mark.parametrize("time", [0, 30, 99])
def test_the_forward_process_has_its_closed_form(time: int) -> None:
    """T small steps x_t = √(1 − β_t) x_{t−1} + √β_t ε and the jump of :func:`add_noise` have the same mean √ᾱ x_0 and
    variance 1 − ᾱ: both within four standard errors of 100,000 draws."""
    alpha_bar = noise_schedule("linear", 100).double()
    alphas = alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]])
    source, count, start = cpu_generator(0), 100_000, 1.7
    walked = torch.full((count, 1), start).double()
    for alpha in alphas[: time + 1]:
        walked = alpha.sqrt() * walked + (1 - alpha).sqrt() * torch.randn(count, 1, generator=source)
    epsilon = torch.randn(count, 1, generator=source).double()
    jumped = add_noise(torch.full((count, 1), start).double(), alpha_bar[time].expand(count), epsilon)
    variance = float(1 - alpha_bar[time])
    for x in (walked, jumped):
        mean = math.sqrt(float(alpha_bar[time])) * start
        assert float(x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / count))
        assert float(x.var()) == pytest.approx(variance, abs=4 * variance * math.sqrt(2 / count))


def test_cross_entropy_is_half_the_simple_loss(blobs: HumanData) -> None:
    """½‖ε − ε̂‖² by hand; TCE leaves out exactly the coordinates with |ε − ε̂| < √(−2 ln γ), and their gradient."""
    torch.manual_seed(0)
    model = Diffusion(DiffusionConfig(width=16, timesteps=10), (2,))
    samples = torch.from_numpy(np.array(blobs.train[:50]))
    noise = model.noise(50, cpu_generator(1))
    when, epsilon = noise
    time = (when * 10).long()
    bar = model.alpha_bar[time][:, None]
    guess = model.denoiser(bar.sqrt() * samples + (1 - bar).sqrt() * epsilon, time / 10)
    error = (epsilon - guess).detach()
    assert model(samples, noise, CrossEntropy()).total.item() == pytest.approx(
        0.5 * float(error.square().sum()), rel=1e-5
    )
    gamma = 0.8
    kept = error.abs() >= math.sqrt(-2 * math.log(gamma))
    sums = model(samples, noise, TruncatedCrossEntropy(gamma=gamma))
    assert 0 < int(sums.kept) == int(kept.sum()) < kept.numel()
    assert sums.total.item() == pytest.approx(0.5 * float((error.square() * kept).sum()), rel=1e-5)
    sums.total.backward()
    by_hand = torch.autograd.grad((0.5 * (epsilon - guess).square() * kept).sum(), model.denoiser.enter.weight)[0]
    assert torch.allclose(model.denoiser.enter.weight.grad, by_hand, rtol=1e-4, atol=1e-5)


class _Exact(nn.Module):
    """The best prediction of the noise in N(mean, spread²) data: E[ε | x_t], which is linear in x_t."""

    def __init__(self, model: Diffusion, mean: float, spread: float) -> None:
        super().__init__()
        self._bar, self._mean, self._spread = model.alpha_bar, mean, spread
        self._timesteps = len(model.alpha_bar)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        bar = self._bar[(time * self._timesteps).round().long()][:, None]
        return (1 - bar).sqrt() * (x - bar.sqrt() * self._mean) / (bar * self._spread**2 + 1 - bar)


@pytest.mark.parametrize(("sampler", "steps"), [("ancestral", None), ("ancestral", 100), ("ddim", None), ("ddim", 100)])
def test_the_samplers_are_exact_for_a_gaussian(sampler: str, steps: int | None) -> None:
    """With the exact denoiser of N(1, ½²) data, samples have that mean and spread, whichever sampler.

    Two coordinates of 5,120 rows, within four standard errors, and 2 % for the discretisation (200 or 100 timesteps).
    """
    config = DiffusionConfig(width=16, timesteps=200, sampler=sampler, sampling_steps=steps)
    model = Diffusion(config, (2,))
    model.denoiser = _Exact(model, 1.0, 0.5)
    model.register_parameter("device_holder", nn.Parameter(torch.zeros(1)))
    samples = draw_samples(model, 5_120, 0).astype(np.float64)
    assert samples.mean() == pytest.approx(1.0, abs=4 * 0.5 / math.sqrt(samples.size) + 0.02)
    assert samples.std() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2 * samples.size) + 0.02)


def test_the_score_is_the_denoising_loss_of_a_sample(blobs: HumanData) -> None:
    """For a denoiser that always says 0 it is −½‖ε‖²: of mean −1 and variance 1 by pass in two dimensions, and eight
    passes are taken of each sample. A row's score does not depend on how many follow it.
    """
    model = Diffusion(DiffusionConfig(width=16, timesteps=50), (2,))
    for part in model.denoiser.leave.parameters():
        nn.init.zeros_(part)
    samples = np.array(blobs.train[:1000])
    scores = score_samples(model, samples, 0)
    error = math.sqrt(1.0 / 8 / 1000)  # ½χ² with two degrees of freedom has variance 1
    assert scores.mean() == pytest.approx(-1.0, abs=4 * error)
    assert scores.std() == pytest.approx(math.sqrt(1.0 / 8), rel=0.15)
    assert np.array_equal(score_samples(model, samples[:10], 0), scores[:10])


def test_images_are_drawn_as_pixels() -> None:
    """uint8 of the human images' shape; the first are the same however many are drawn."""
    torch.manual_seed(0)
    model = Diffusion(DiffusionConfig(width=4, timesteps=5), (8, 8))
    samples = draw_samples(model, 20, 0)
    assert (samples.shape, samples.dtype) == ((20, 8, 8), np.uint8)
    assert np.array_equal(draw_samples(model, 3, 0), samples[:3])
    assert not np.array_equal(draw_samples(model, 3, 1), samples[:3])
