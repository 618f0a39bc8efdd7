"""The scores of one generation's model: what it makes of held-out human samples, and what its own samples are like."""

import math
import time
from pathlib import Path

import numpy as np
import torch

from fortifai_ray.families.images import measures
from fortifai_ray.families.images.data import HumanData
from fortifai_ray.families.images.measures import as_rows, classify
from fortifai_ray.families.images.models import load_model
from fortifai_ray.families.images.objective import GenerativeModel, draw_samples, here, score_blocks, score_samples
from fortifai_ray.families.images.vae import Vae, latent_statistics
from fortifai_ray.storage.store import Stage

VERSION = 1  # bump when the same model and samples give other scores


def evaluate(
    model: Path, human: HumanData, classifier: Stage | None, samples: int, seed: int, *, threads: int = 1
) -> dict[str, float]:
    """Every metric of a model (a folder), and ``evaluate_seconds``; not all are finite where the model has diverged.

    Noise is by ``seed`` and the same for each generation, so that what changes from one to the next is the model.
    ``samples`` are drawn; where fewer are held out, as many as those are compared.
    """
    torch.set_num_threads(threads)
    network = load_model(model, here())
    started = time.perf_counter()
    scores = vae_scores(network, human, seed) if isinstance(network, Vae) else denoising_scores(network, human, seed)
    drawn = as_rows(draw_samples(network, samples, seed, "evaluate"))
    if not np.isfinite(drawn).all():
        return {**scores, "trace_ratio": math.nan, "evaluate_seconds": time.perf_counter() - started}
    scores |= sample_scores(drawn, human)
    if classifier is not None:
        count, classes = int(classifier.outputs["classes"]), classify(drawn, classifier.path)
        scores["class_entropy"] = measures.class_entropy(classes, count)
        scores["classes_present"] = measures.classes_present(classes, count)
    return {**scores, "evaluate_seconds": time.perf_counter() - started}


@torch.inference_mode()
def vae_scores(network: Vae, human: HumanData, seed: int) -> dict[str, float]:
    """The ELBO on the held-out images and its halves, in nats per image, and statistics of their latent posteriors."""
    bounds = [network.bound(rows, noise) for rows, noise in score_blocks(network, human.held_out, seed, "held_out")]
    reconstruction, kl, mean, log_variance = (torch.cat(part).double() for part in zip(*bounds, strict=True))
    return {
        "elbo": float((reconstruction - kl).mean()),
        "reconstruction_nll": -float(reconstruction.mean()),
        "kl_divergence": float(kl.mean()),
        **latent_statistics(mean, log_variance),
    }


def denoising_scores(network: GenerativeModel, human: HumanData, seed: int) -> dict[str, float]:
    """The simple loss on the held-out samples, ‖ε − ε̂‖² per coordinate: 1 for a model that predicts no noise at all."""
    scores = score_samples(network, human.held_out, seed, "held_out")
    return {"denoising_loss": -2.0 * float(scores.mean()) / network.dimensions}


def sample_scores(drawn: np.ndarray, human: HumanData) -> dict[str, float]:
    """Spread, distance and coverage of samples (rows of float) against human ones."""
    held_out = as_rows(human.held_out)
    count = min(len(held_out), len(drawn))
    everyone = np.concatenate([as_rows(np.asarray(human.train)), held_out])
    return {
        "trace_ratio": measures.trace_of_covariance(drawn) / measures.trace_of_covariance(everyone),
        "wasserstein": measures.sliced_wasserstein(drawn[:count], held_out[:count]),
        "coverage": measures.coverage(held_out[:count], drawn[:count]),
    }
