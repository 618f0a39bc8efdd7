"""Metrics in words: what one is called, what it counts, which way collapse moves it, and what it is grouped with.

The language family's are in the registry, :mod:`fortifai_ray.evaluation.metrics`, which has the last word on unit,
direction and scale; those of the other families, and a few shorter titles, are here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fortifai_ray.evaluation.metrics import METRICS, Metric
from fortifai_ray.statistics import is_log_scale

Direction = Literal["above", "below"]

_ARROWS = {"above": "Collapse moves it up (↑)", "below": "Collapse moves it down (↓)"}
_MODEL, _CORPUS, _BENCHMARKS = "The model", "The synthetic corpus", "Benchmarks"
_BOTH, _TRAINING = "The synthetic text under the models", "Training"
_DISTRIBUTION, _SAMPLES, _OTHER = "Distance from the true distribution", "Samples", "Other measurements"
_TRAINED = {"train_loss", "kept_fraction", "mean_target_probability", "target_probability_median"}
_WORDS = {
    "kl": "KL divergence",
    "bleu": "BLEU",
    "kr": "KR",
    "blimp": "BLiMP",
    "hellaswag": "HellaSwag",
    "gsm8k": "GSM8K",
    "fortifai": "(as ForTIFAI)",
}


@dataclass(frozen=True)
class MetricText:
    """``direction`` is the side to which collapse moves the metric, None where it is not known; ``log`` says that the
    metric multiplies from generation to generation."""

    title: str
    direction: Direction | None = None
    unit: str = ""
    group: str = _OTHER
    definition: str = ""
    log: bool = False

    @property
    def axis(self) -> str:
        """The title with its unit, where it does not name it already."""
        return self.title if self.unit in self.title else f"{self.title} ({self.unit})"

    @property
    def sense(self) -> str:
        """Which way collapse moves it, for a caption; empty where that is not known."""
        return _ARROWS[self.direction] if self.direction else ""


# Of the registered metrics, those whose name alone says too little; they carry their unit.
_TITLES = {
    "perplexity": "held-out perplexity (per token)",
    "kept_fraction": "kept fraction of target tokens",
    "train_loss": "training loss (nats)",
}

_SAMPLED: dict[str, MetricText] = {
    "trace_ratio": MetricText(
        "trace ratio (fitted covariance over the true one's)", "below", group=_DISTRIBUTION, log=True
    ),
    "log_variance_ratio": MetricText("mean log variance ratio", "below", "ln σ̂²/σ²", _DISTRIBUTION),
    "mean_error": MetricText("error of the mean", "above", group=_DISTRIBUTION),
    "kl_divergence": MetricText("KL divergence", "above", "nats", _DISTRIBUTION),
    "wasserstein": MetricText("2-Wasserstein distance", "above", group=_DISTRIBUTION),
    "total_variation": MetricText("total variation distance", "above", group=_DISTRIBUTION),
    "held_out_nll": MetricText("held-out negative log-likelihood", "above", "nats", _DISTRIBUTION),
    "excess_risk": MetricText("excess risk", "above", group=_DISTRIBUTION),
    "test_error": MetricText("test error", "above", group=_DISTRIBUTION),
    "parameter_error": MetricText("parameter error", "above", group=_DISTRIBUTION),
    "support": MetricText("support", "below", "outcomes", _SAMPLES),
    "support_ratio": MetricText("share of outcomes that survive", "below", group=_SAMPLES),
    "entropy": MetricText("entropy", "below", "nats", _SAMPLES),
    "heterozygosity": MetricText("heterozygosity (1 − Σp²)", "below", group=_SAMPLES),
    "modes": MetricText("modes that survive", "below", group=_SAMPLES),
    "elbo": MetricText("held-out ELBO", "below", "nats", _MODEL),
    "reconstruction_nll": MetricText("held-out reconstruction error", "above", "nats", _MODEL),
    "denoising_loss": MetricText("held-out denoising loss", "above", "per coordinate", _MODEL),
    "coverage": MetricText("coverage of human samples", "below", group=_SAMPLES),
    "class_entropy": MetricText("entropy of the classes", "below", "nats", _SAMPLES),
    "classes_present": MetricText("classes present", "below", group=_SAMPLES),
}


def describe(metric: str) -> MetricText:
    """A metric as an axis or a caption shows it; its own name where nothing is known of it.

    A breakdown (``kr_accuracy_fraction_1``) is told as what it breaks down.
    """
    if metric in _SAMPLED:
        return _SAMPLED[metric]
    whole = max((name for name in METRICS if _is_part(metric, name)), key=len, default=None)
    if whole is None:
        return MetricText(_title(metric), log=is_log_scale(metric))
    known = METRICS[whole]
    title = _TITLES.get(metric)
    return MetricText(
        title or _title(metric),
        known.direction,
        "" if title else known.unit,
        _group(known),
        known.definition,
        known.scale == "log",
    )


def is_bookkeeping(column: str) -> bool:
    """Whether a column only says how a metric was measured: an end of its interval (``blimp_accuracy_low``), or how
    many items were scored."""
    whole, _, last = column.rpartition("_")
    if last in ("low", "high"):
        return any(_is_part(whole, name) for name in METRICS)
    return last in ("scored", "truncated", "skipped")


def _is_part(metric: str, whole: str) -> bool:
    return metric == whole or metric.startswith(f"{whole}_")


def _group(metric: Metric) -> str:
    if metric.name in _TRAINED:
        return _TRAINING
    if metric.unit == "share of questions":
        return _BENCHMARKS
    return {"model": _MODEL, "corpus": _CORPUS, "both": _BOTH}[metric.needs]


def _title(metric: str) -> str:
    return " ".join(_WORDS.get(word, word) for word in metric.split("_"))
