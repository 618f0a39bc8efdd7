"""Training: one train function whatever the number of workers, the same numbers each time, losses as they say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from executors import executor
from safetensors.torch import load_file

from fortifai_ray.families.fitting import FitReport
from fortifai_ray.families.images.config import DataConfig, DiffusionConfig, TrainingConfig, VaeConfig
from fortifai_ray.families.images.data import HumanData
from fortifai_ray.families.images.models import create_model, load_model, save_model
from fortifai_ray.families.images.objective import cpu_generator, score_samples
from fortifai_ray.families.images.training import train
from fortifai_ray.losses import CrossEntropy, DynamicTruncatedCrossEntropy, Loss, TruncatedCrossEntropy
from fortifai_ray.seeds import derive_seed, generator

SETTINGS = TrainingConfig(epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VAE with random weights."""
    folder = tmp_path_factory.mktemp("vae")
    create_model(VaeConfig(channels=4, latent=4), (8, 8), 0, folder)
    return folder


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small diffusion model of points."""
    folder = tmp_path_factory.mktemp("diffusion")
    create_model(DiffusionConfig(data=DataConfig(source="blobs"), width=16, timesteps=20), (2,), 0, folder)
    return folder


def run(
    model: Path,
    output: Path,
    samples: np.ndarray,
    loss: Loss,
    settings: TrainingConfig = SETTINGS,
    workers: int = 1,
) -> FitReport:
    output.mkdir()
    return train(executor(workers), model, output, samples, loss, settings, 7)


def test_the_first_loss_is_the_models_own(vae: Path, digits: HumanData, tmp_path: Path) -> None:
    """The first step's loss is the negative ELBO of its batch, with its noise, per pixel: recomputed here.

    Sums of 16 × 64 float32 terms: 1e-5 relative is ample.
    """
    samples = np.array(digits.train[:40])
    report = run(vae, tmp_path / "out", samples, CrossEntropy())
    model = load_model(vae)
    batch = samples[generator(7, "epoch", 0).permutation(40)[:16]]
    noise = model.noise(16, cpu_generator(derive_seed(7, "noise", 0)))
    elbo = model.log_likelihood(torch.from_numpy(batch), noise).mean() / 64
    assert np.load(tmp_path / "out" / "losses.npy")[0] == pytest.approx(-float(elbo), rel=1e-5)
    assert (report.steps, report.targets, report.world_size) == (6, 2 * 40 * 64, 1)
    assert report.kept_fraction == 1.0


def test_training_repeats_bit_for_bit(vae: Path, digits: HumanData, tmp_path: Path) -> None:
    """The same step gives the same weights: what lets a killed sweep end with the same table."""
    for name in ("a", "b"):
        run(vae, tmp_path / name, np.array(digits.train[:40]), CrossEntropy())
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["vae", "diffusion"])
def test_it_learns(
    kind: str, request: pytest.FixtureRequest, digits: HumanData, blobs: HumanData, tmp_path: Path
) -> None:
    """Held-out samples become likelier, for the same noise."""
    model, human = request.getfixturevalue(kind), {"vae": digits, "diffusion": blobs}[kind]
    run(model, tmp_path / "out", np.array(human.train[:200]), CrossEntropy(), TrainingConfig(epochs=5, batch_size=20))
    before, after = (score_samples(load_model(path), human.held_out, 0).mean() for path in (model, tmp_path / "out"))
    assert after > before


def test_truncation_is_reported_and_divides(vae: Path, digits: HumanData, tmp_path: Path) -> None:
    """The pixel loss over the kept pixels is that over all, divided by the share kept; the KL term is not."""
    settings = TrainingConfig(epochs=1, batch_size=40)
    samples, reports = np.array(digits.train[:40]), {}
    for normaliser in ("valid", "kept"):
        loss = TruncatedCrossEntropy(gamma=0.5, normaliser=normaliser)
        reports[normaliser] = run(vae, tmp_path / normaliser, samples, loss, settings)
    valid, kept = reports["valid"], reports["kept"]
    assert 0.1 < valid.kept_fraction == kept.kept_fraction < 0.9
    model = load_model(vae)
    noise = model.noise(40, cpu_generator(derive_seed(7, "noise", 0)))
    order = generator(7, "epoch", 0).permutation(40)
    kl = float(model(torch.from_numpy(samples[order]), noise, CrossEntropy()).penalty.detach()) / (40 * 64)
    assert kept.train_loss - kl == pytest.approx((valid.train_loss - kl) / valid.kept_fraction, rel=1e-5)


def test_the_dynamic_threshold_follows_the_model(diffusion: Path, blobs: HumanData, tmp_path: Path) -> None:
    """γ is mean + α·std of the target probabilities, set anew each epoch, and rises as the model learns."""
    loss = DynamicTruncatedCrossEntropy(variant="intended", alpha=0.2)
    settings = TrainingConfig(epochs=6, batch_size=20, learning_rate=1e-2)
    report = run(diffusion, tmp_path / "out", np.array(blobs.train[:200]), loss, settings)
    assert len(report.gamma_by_epoch) == 6
    assert report.gamma_by_epoch[0] < report.gamma_by_epoch[-1] < 1.0
    assert 0.0 < report.kept_fraction < 1.0


def test_a_loss_that_is_not_finite_is_a_finding(vae: Path, digits: HumanData, tmp_path: Path) -> None:
    """Broken weights end the training with a reason, not with a crash."""
    model = load_model(vae)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    (tmp_path / "broken").mkdir()
    save_model(model, json.loads((vae / "network.json").read_text()), tmp_path / "broken")
    report = run(tmp_path / "broken", tmp_path / "out", np.array(digits.train[:40]), CrossEntropy())
    assert report.diverged == "the gradient is not finite at step 0"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
@pytest.mark.parametrize(
    ("kind", "loss"), [("vae", CrossEntropy()), ("diffusion", TruncatedCrossEntropy(gamma=0.6, normaliser="kept"))]
)
def test_two_workers_agree_with_one(
    kind: str, loss: Loss, request: pytest.FixtureRequest, digits: HumanData, blobs: HumanData, tmp_path: Path
) -> None:
    """A real two-worker TorchTrainer over gloo: the same losses, step by step, as one process with the same batches.

    33 samples in batches of 16: in each epoch's last step one worker has no sample at all. Both sum the same float32
    terms in another order, so a step differs by rounding (1e-6); the optimiser divides by the gradient's size and can
    turn a rounding into a step of one weight, so six steps at a rate of at most 2e-3 are given 1e-4. Where the loss is
    divided by the kept targets, those of both workers count.
    """
    model, human = request.getfixturevalue(kind), {"vae": digits, "diffusion": blobs}[kind]
    samples = np.array(human.train[:33])
    one = run(model, tmp_path / "one", samples, loss)
    two = run(model, tmp_path / "two", samples, loss, workers=2)
    assert (one.world_size, two.world_size) == (1, 2)
    assert (0.0 < one.kept_fraction < 1.0) == (loss.kind == "tce")
    assert (two.targets, two.steps) == (one.targets, one.steps)
    first, second = (np.load(tmp_path / name / "losses.npy") for name in ("one", "two"))
    assert second[0] == pytest.approx(first[0], rel=1e-6)
    assert second == pytest.approx(first, abs=1e-4)
    assert two.kept_fraction == pytest.approx(one.kept_fraction, abs=4 / one.targets)
