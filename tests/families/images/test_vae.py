"""The VAE's objective: any loss on the pixels, the KL term untouched, and numbers that can be checked by hand."""

import math

import numpy as np
import pytest
import torch

from fortifai_ray.families.images.config import DataConfig, VaeConfig
from fortifai_ray.families.images.data import HumanData
from fortifai_ray.families.images.objective import cpu_generator, draw_samples, score_samples
from fortifai_ray.families.images.vae import Vae, active_units, kl_divergence, pixel_log_probability
from fortifai_ray.losses import CrossEntropy, Focal, PointwiseLoss, TruncatedCrossEntropy


def make_vae(binarise: bool = False) -> Vae:
    torch.manual_seed(0)
    data = DataConfig(source="digits", binarise=binarise)
    return Vae(VaeConfig(data=data, channels=4, latent=3), (8, 8))


def plain(model: Vae, samples: np.ndarray, z_noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel probabilities under the decoder, and the posterior's KL by row, in plain NumPy from the definitions."""
    with torch.no_grad():
        statistics = model.encoder(torch.from_numpy(samples / 255.0).float()[:, None]).double().numpy()
        mean, log_variance = np.split(statistics, 2, axis=1)
        z = mean + z_noise * np.exp(log_variance / 2)
        logits = model.decoder(torch.from_numpy(z).float()).double().numpy()
    kl = [
        sum(0.5 * (m**2 + math.exp(v) - 1 - v) for m, v in zip(mean_row, variance_row, strict=True))
        for mean_row, variance_row in zip(mean.tolist(), log_variance.tolist(), strict=True)
    ]
    return 1 / (1 + np.exp(-logits)), np.array(kl)


@pytest.mark.parametrize(
    "loss", [CrossEntropy(), TruncatedCrossEntropy(gamma=0.55), Focal(gamma=2.0)], ids=lambda loss: loss.kind
)
def test_the_pixel_loss_is_that_of_the_definition(digits: HumanData, loss: PointwiseLoss) -> None:
    """Against a plain reference in NumPy: −[x log p + (1 − x) log(1 − p)] as −log p_target, then f of it; and the KL.

    Logits are float32 (2⁻²⁴ relative each); sums of 5 × 64 terms of size 1 are exact to 1e-4 with room to spare.
    """
    model, samples = make_vae(), np.array(digits.train[:5])
    noise = torch.randn(5, 3, generator=cpu_generator(1))
    probability, kl = plain(model, samples, noise.numpy())
    x = samples.reshape(5, -1) / 255
    log_p = x * np.log(probability) + (1 - x) * np.log(1 - probability)
    p = np.exp(log_p)
    wanted = {
        "cross_entropy": -log_p,
        "tce": np.where(p > 0.55, 0.0, -log_p),
        "focal": -((1 - p) ** 2) * log_p,
    }[loss.kind]
    sums = model(torch.from_numpy(samples), (noise,), loss)
    assert sums.total.item() == pytest.approx(wanted.sum(), rel=1e-4)
    assert sums.penalty.item() == pytest.approx(kl.sum(), rel=1e-4)
    assert int(sums.kept) == (p <= 0.55).sum() if loss.kind == "tce" else int(sums.kept) == p.size
    assert np.allclose(sums.log_p.numpy(), log_p, atol=1e-5)


def test_gamma_one_is_cross_entropy(digits: HumanData) -> None:
    """To the bit, in value and gradient."""
    found: list[tuple[float, list[torch.Tensor | None]]] = []
    for loss in (CrossEntropy(), TruncatedCrossEntropy(gamma=1.0)):
        model = make_vae()
        sums = model(torch.from_numpy(np.array(digits.train[:20])), model.noise(20, cpu_generator(1)), loss)
        (sums.total + sums.penalty).backward()
        found.append((sums.total.item(), [part.grad for part in model.parameters()]))
    assert found[0][0] == found[1][0]
    pairs = zip(found[0][1], found[1][1], strict=True)
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


def test_truncated_pixels_have_no_gradient() -> None:
    """Exactly 0 on each pixel's logit where p > γ, and not elsewhere. A pixel at 0.5 never has p above 1/2."""
    logits = torch.tensor([[4.0, -4.0, 0.1, 4.0, 4.0]], requires_grad=True)
    pixels = torch.tensor([[1.0, 1.0, 1.0, 0.5, 0.999]])
    loss = TruncatedCrossEntropy(gamma=0.9)
    log_p = pixel_log_probability(logits, pixels)
    loss(log_p).sum().backward()
    assert logits.grad is not None
    assert (logits.grad == 0).tolist() == [[True, False, False, False, True]]
    assert loss.kept(log_p).tolist() == [[False, True, True, True, False]]


def test_with_every_pixel_truncated_only_the_kl_term_learns(digits: HumanData) -> None:
    """The loss on the pixels touches no weight, and the KL term is what it was: the decoder has no gradient at all."""
    model = make_vae()
    samples, noise = torch.from_numpy(np.array(digits.train[:10])), model.noise(10, cpu_generator(1))
    sums = model(samples, noise, TruncatedCrossEntropy(gamma=1e-9))
    assert (sums.total.item(), int(sums.kept)) == (0.0, 0)
    (sums.total + sums.penalty).backward()
    assert all(not part.grad.any() for part in model.decoder.parameters() if part.grad is not None)
    assert model.encoder[0].weight.grad is not None
    assert model.encoder[0].weight.grad.any()
    assert sums.penalty.item() == model(samples, noise, CrossEntropy()).penalty.item()


def test_the_kl_divergence_is_the_integral() -> None:
    """E_q[log q − log p], by a million draws, within four standard errors."""
    mean, log_variance = torch.tensor([[0.7, -1.1]]).double(), torch.tensor([[-0.8, 0.5]]).double()
    draws = mean + (log_variance / 2).exp() * torch.randn(1_000_000, 2, generator=cpu_generator(0)).double()
    log_q = -0.5 * ((draws - mean) ** 2 / log_variance.exp() + log_variance).sum(1)
    differences = log_q + 0.5 * draws.square().sum(1)
    error = float(differences.std()) / 1000
    assert float(kl_divergence(mean, log_variance)) == pytest.approx(float(differences.mean()), abs=4 * error)


def test_the_score_is_the_elbo(digits: HumanData) -> None:
    """By row: likelier images score higher than noise, and a row's score does not depend on those after it."""
    model = make_vae()
    samples = np.array(digits.train[:300])
    scores = score_samples(model, samples, 3, "score")
    assert scores.shape == (300,)
    assert score_samples(model, samples[:7], 3, "score") == pytest.approx(scores[:7], rel=1e-5)
    source = cpu_generator(0)
    bound = model.bound(torch.from_numpy(samples[:5]), model.noise(5, source))
    assert (
        model.log_likelihood(torch.from_numpy(samples[:5]), model.noise(5, cpu_generator(0))).tolist()
        == (bound.reconstruction - bound.kl).tolist()
    )


def test_samples_are_of_the_human_datas_kind() -> None:
    """Grey levels where the human images are grey; drawn pixels, of the decoder's mean, where they are binarised.

    Means of 25,600 images' 64 pixels in common: four standard errors of the drawn ones, plus half a grey level.
    """
    grey, drawn = (draw_samples(make_vae(binarise), 25_600, 0) for binarise in (False, True))
    assert grey.dtype == drawn.dtype == np.uint8
    assert set(np.unique(drawn)) == {0, 255}
    assert len(np.unique(grey)) > 10
    # z differs between the two (the drawn ones take more numbers from the generator), so its spread counts as well.
    error = 4 * np.sqrt(2) * 0.5 / np.sqrt(25_600) + 0.5 / 255
    assert np.abs(grey.mean(0) - drawn.mean(0)).max() / 255 < error
    assert np.array_equal(draw_samples(make_vae(), 300, 0)[:10], draw_samples(make_vae(), 10, 0))


def test_units_are_active_where_their_mean_moves() -> None:
    """Variance over the data above 0.01."""
    means = torch.zeros(100, 3)
    means[::2, 0], means[::2, 1] = 1.0, 0.1  # variances 0.25 and 0.0025
    assert active_units(means) == 1
