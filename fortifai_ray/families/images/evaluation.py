"""The scores of one generation's model: held-out human samples under it, and its own samples against human ones.

Measures take samples as rows (n, dimensions) of float: pixels in [0, 1], or coordinates.
"""

import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fortifai_ray.families.images.data import HumanData
from fortifai_ray.families.images.models import load_model
from fortifai_ray.families.images.objective import GenerativeModel, draw_samples, here, score_blocks, score_samples
from fortifai_ray.families.images.vae import Vae, latent_statistics
from fortifai_ray.seeds import derive_seed, generator
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import Stage, StageKey

VERSION = 1  # bump when the same model and samples give other scores
CLASSIFIER_VERSION = 1  # bump when the same samples give another classifier

_PROJECTIONS = 128
_NEIGHBOURS = 5  # k of the coverage, Naeem et al.'s
_WEIGHTS = "classifier.npz"
_ROWS = 5000  # that the classifier is trained on, at most
_SETTINGS: dict[str, Any] = {"hidden_layer_sizes": (64,), "max_iter": 60, "learning_rate_init": 3e-3}


def evaluate(
    model: Path, human: HumanData, classifier: Stage | None, samples: int, seed: int, *, threads: int = 1
) -> dict[str, float]:
    """Every metric of a model (a folder), and ``evaluate_seconds``; some are not finite where the model has diverged.

    ``seed`` determines the noise, which is the same for each generation, so that only the model changes. ``samples``
    are drawn and compared with as many held-out ones, or with all of those where there are fewer.
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
        scores["class_entropy"] = class_entropy(classes, count)
        scores["classes_present"] = classes_present(classes, count)
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
        "trace_ratio": trace_of_covariance(drawn) / trace_of_covariance(everyone),
        "wasserstein": sliced_wasserstein(drawn[:count], held_out[:count]),
        "coverage": coverage(held_out[:count], drawn[:count]),
    }


def trace_of_covariance(rows: np.ndarray) -> float:
    """Trace of the maximum-likelihood covariance: the total variance."""
    return float(rows.var(axis=0, dtype=np.float64).sum())


def sliced_wasserstein(first: np.ndarray, second: np.ndarray) -> float:
    """The sliced 2-Wasserstein distance (Bonneel et al. 2015) of two sets of equal size.

    The root of the mean, over 128 fixed random directions, of the squared distance between the sorted projections. Two
    finite samples of one distribution are a positive distance apart, which grows as they get smaller.
    """
    assert first.shape == second.shape
    directions = generator(0, "projections", first.shape[1]).normal(size=(first.shape[1], _PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    gaps = np.sort(first @ directions, axis=0) - np.sort(second @ directions, axis=0)
    return float(np.sqrt(np.square(gaps).mean()))


def coverage(human: np.ndarray, samples: np.ndarray) -> float:
    """The share of the human rows that have a sample nearer than their fifth-nearest other human row.

    Coverage with k = 5 (Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models"). For as
    many other human rows it would be near 1 − 2⁻⁵ = 0.97; lost modes are left uncovered.
    """
    from sklearn.neighbors import NearestNeighbors

    radius = NearestNeighbors(n_neighbors=_NEIGHBOURS).fit(human).kneighbors()[0][:, -1]
    nearest = NearestNeighbors(n_neighbors=1).fit(samples).kneighbors(human)[0][:, 0]
    return float((nearest < radius).mean())


def class_entropy(classes: np.ndarray, count: int) -> float:
    """Entropy in nats of the histogram of ``classes`` in 0 … count − 1; ln(count) where all are equally frequent."""
    shares = np.bincount(classes, minlength=count) / len(classes)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum()) + 0.0  # not −0 for a single class


def classes_present(classes: np.ndarray, count: int) -> float:
    """Number of classes with at least a tenth of an even share: fewer may be mistakes."""
    return float((np.bincount(classes, minlength=count) >= len(classes) / (10 * count)).sum())


def prepare_classifier(human: HumanData, steps: Steps) -> Stage | None:
    """The stage of a small classifier of the human samples, which finds the classes of a model's samples.

    It is the same for every chain on these samples; None where they have no classes. Its outputs hold its ``accuracy``
    on the held-out samples.
    """
    labels = human.train_labels
    if labels is None:
        return None
    key = StageKey("classifier", CLASSIFIER_VERSION, {"data": human.hash})
    return steps.run(key, "train the classifier", lambda folder: _train(human, labels, folder))


def _train(human: HumanData, labels: np.ndarray, folder: Path) -> dict[str, Any]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    started = time.perf_counter()
    rows = np.sort(generator(0, "classifier").permutation(len(labels))[:_ROWS])
    network = MLPClassifier(**_SETTINGS, random_state=derive_seed(0, "classifier") % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes is fixed on purpose
        network.fit(as_rows(human.train[rows]), labels[rows])
    # As plain arrays: nothing stored is ever unpickled.
    weights = {f"w{i}": part.astype(np.float32) for i, part in enumerate(network.coefs_)}
    biases = {f"b{i}": part.astype(np.float32) for i, part in enumerate(network.intercepts_)}
    np.savez(folder / _WEIGHTS, **weights, **biases, classes=network.classes_)
    assert human.held_out_labels is not None
    accuracy = float((classify(human.held_out, folder) == human.held_out_labels).mean())
    return {"accuracy": accuracy, "classes": len(network.classes_), "classifier_seconds": time.perf_counter() - started}


def classify(samples: np.ndarray, folder: Path) -> np.ndarray:
    """The class of each sample: int64 of shape (n,)."""
    with np.load(folder / _WEIGHTS) as stored:
        hidden = np.maximum(as_rows(samples) @ stored["w0"] + stored["b0"], 0.0)
        scores, classes = hidden @ stored["w1"] + stored["b1"], stored["classes"]
    # With two classes, scikit-learn has one output: the second class's logit.
    chosen = scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(np.int64)
    return classes[chosen]


def as_rows(samples: np.ndarray) -> np.ndarray:
    """Samples as float32 rows (n, dimensions): pixels in [0, 1], coordinates as they are."""
    rows = samples.reshape(len(samples), -1).astype(np.float32)
    return rows / 255 if samples.dtype == np.uint8 else rows
