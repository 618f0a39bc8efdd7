"""Discrete distributions: where tails are lost for good (Seddik et al. 2024)."""

import math
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fortifai_ray.families import KL_DIVERGENCE
from fortifai_ray.families.analytic.base import AnalyticFamily, Array, Model, Streams, choose, ones_unless_given
from fortifai_ray.metrics import DISTRIBUTION, SAMPLES, Metric
from fortifai_ray.theory.discrete import true_probabilities


class Discrete(AnalyticFamily):
    """A categorical distribution, fitted by its frequencies. A sample is an outcome's number.

    Replacing is genetic drift, in which the mean of ``heterozygosity`` falls by a factor 1 − 1/n a generation (Wright
    1931). ``kl_divergence`` is ∞ once an outcome is lost.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "support",
            "outcomes",
            "outcomes with p̂ > 0",
            "Seddik et al. 2024",
            "below",
            group=SAMPLES,
            role="tails",
            rank=5,
        ),
        Metric(
            "support_ratio",
            "share of outcomes",
            "outcomes with p̂ > 0 over outcomes with p > 0",
            "Seddik et al. 2024",
            "below",
            "log",
            title="share of outcomes that survive",
            group=SAMPLES,
            role="tails",
            rank=4,
        ),
        Metric("entropy", "nats", "−Σ p̂ ln p̂", "Shannon 1948", "below", group=SAMPLES, role="variety", rank=4),
        Metric(
            "heterozygosity",
            "1 − Σp²",
            "1 − Σ p̂², the probability that two draws differ",
            "Nei 1973",
            "below",
            title="heterozygosity (1 − Σp²)",
            group=SAMPLES,
            role="variety",
            rank=3,
        ),
        KL_DIVERGENCE,
        Metric(
            "total_variation",
            "distance",
            "½ Σ |p̂ − p|, p̂ fitted and p true",
            "Levin and Peres 2017, proposition 4.2",
            "above",
            title="total variation distance",
            group=DISTRIBUTION,
        ),
    )

    kind: Literal["discrete"] = "discrete"
    outcomes: int = Field(ge=2, description="how many outcomes the truth has")
    probabilities: Literal["uniform", "zipf"] | list[Annotated[float, Field(ge=0.0, le=1.0)]] = Field(
        "uniform", description="all alike, in proportion to rank^−`exponent` (zipf), or numbers that sum to 1"
    )
    exponent: float | None = Field(None, gt=0.0, allow_inf_nan=False, description="of zipf's law; null: 1")

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if isinstance(self.probabilities, list):
            if len(self.probabilities) != self.outcomes:
                raise ValueError(f"probabilities: {len(self.probabilities)} of them for {self.outcomes} outcomes")
            if abs(math.fsum(self.probabilities) - 1) > 1e-9:
                raise ValueError(f"probabilities: they sum to {math.fsum(self.probabilities)}, not to 1")
        if self.probabilities != "zipf" and self.exponent is not None:
            raise ValueError("exponent: belongs to probabilities: zipf")
        return self

    def truth(self) -> Model:
        return {"probabilities": true_probabilities(self.probabilities, self.outcomes, self.exponent or 1.0)[None]}

    def human(self, n: int, streams: Streams) -> Array:
        return choose(streams.uniform("human", (n,)), self.truth()["probabilities"])[..., None].astype(np.float64)

    def fit(self, data: Array, weights: Array | None = None, generation: int = 0) -> Model:
        weights = ones_unless_given(weights, data)
        outcomes = data[..., 0].astype(np.int64)
        chains, count = len(data), self.outcomes
        slots = outcomes + count * np.arange(chains)[:, None]
        counts = np.bincount(slots.ravel(), weights.ravel(), minlength=chains * count).reshape(chains, count)
        return {"probabilities": counts / counts.sum(-1, keepdims=True)}

    def evaluate(self, model: Model, data: Array, generation: int = 0) -> dict[str, Array]:
        fitted, true = model["probabilities"], self.truth()["probabilities"]
        support = (fitted > 0).sum(-1).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = np.where(true > 0, true * (np.log(np.where(true > 0, true, 1.0)) - np.log(fitted)), 0.0)
        return {
            "support": support,
            "support_ratio": support / (true > 0).sum(),
            "entropy": -(fitted * np.log(np.where(fitted > 0, fitted, 1.0))).sum(-1),
            "heterozygosity": 1 - (fitted**2).sum(-1),
            "kl_divergence": gap.sum(-1),
            "total_variation": np.abs(fitted - true).sum(-1) / 2,
        }

    def generate(self, model: Model, n: int, streams: Streams) -> Array:
        return choose(streams.uniform("outcome", (n,)), model["probabilities"])[..., None].astype(np.float64)

    def distance(self, model: Model, other: Model, streams: Streams) -> Array:
        """The Jensen-Shannon divergence in nats, from 0 to ln 2 (Lin 1991)."""
        one, two = model["probabilities"], other["probabilities"]
        middle = (one + two) / 2
        gaps = [
            np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0) / np.where(p > 0, middle, 1.0)), 0.0) for p in (one, two)
        ]
        return (gaps[0].sum(-1) + gaps[1].sum(-1)) / 2

    def log_likelihood(self, model: Model, data: Array) -> Array:
        with np.errstate(divide="ignore"):
            logs = np.log(model["probabilities"])
        outcomes = data[..., 0].astype(np.int64)
        return np.take_along_axis(np.broadcast_to(logs, (len(outcomes), self.outcomes)), outcomes, axis=1)
