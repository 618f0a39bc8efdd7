"""Members of the exponential family with one parameter, their mean (Dey and Donoho 2024)."""

from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fortifai_ray.families import KL_DIVERGENCE, PARAMETER_ERROR
from fortifai_ray.families.analytic.base import AnalyticFamily, Array, Model, Streams, ones_unless_given
from fortifai_ray.metrics import DISTRIBUTION, Metric


class ExponentialFamily(AnalyticFamily):
    """A one-parameter distribution of mean m, fitted by maximum likelihood: by the samples' mean m̂.

    0 (and 1 for Bernoulli) absorbs: a chain that gets there stays, and its ``kl_divergence`` is ∞. ``parameter_error``
    is (m̂ − m)²/m².
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "mean_ratio",
            "ratio",
            "fitted mean over the true one, m̂/m",
            "Dey and Donoho 2024",
            scale="log",
            group=DISTRIBUTION,
        ),
        PARAMETER_ERROR,
        KL_DIVERGENCE,
    )

    kind: Literal["exponential_family"] = "exponential_family"
    member: Literal["exponential", "poisson", "bernoulli"] = Field(description="the distribution")
    mean: float = Field(gt=0.0, allow_inf_nan=False, description="of the truth; an exponential's rate is its inverse")

    @model_validator(mode="after")
    def _bernoulli_has_a_probability(self) -> Self:
        if self.member == "bernoulli" and self.mean >= 1:
            raise ValueError(f"mean: of a Bernoulli distribution it lies between 0 and 1: {self.mean} does not")
        return self

    def human(self, n: int, streams: Streams) -> Array:
        return self._draw(np.full(len(streams.seeds), self.mean), n, streams, "human")

    def generate(self, model: Model, n: int, streams: Streams) -> Array:
        return self._draw(model["mean"], n, streams, "sample")

    def _draw(self, mean: Array, n: int, streams: Streams, purpose: str) -> Array:
        if self.member == "poisson":
            drawn = [own.poisson(m, n) for own, m in zip(streams.generators(purpose), mean, strict=True)]
            return np.stack(drawn)[..., None].astype(np.float64)
        uniforms = streams.uniform(purpose, (n,))
        if self.member == "exponential":
            return (-np.log1p(-uniforms) * mean[:, None])[..., None]
        return (uniforms < mean[:, None])[..., None].astype(np.float64)

    def fit(self, data: Array, weights: Array | None = None, generation: int = 0) -> Model:
        weights = ones_unless_given(weights, data)
        samples = np.ascontiguousarray(data[..., 0])
        return {"mean": (weights * samples).sum(-1) / weights.sum(-1)}

    def evaluate(self, model: Model, data: Array, generation: int = 0) -> dict[str, Array]:
        ratio = model["mean"] / self.mean
        return {
            "mean_ratio": ratio,
            "parameter_error": (ratio - 1) ** 2,
            "kl_divergence": self._kl_divergence(model["mean"]),
        }

    def _kl_divergence(self, fitted: Array) -> Array:
        m, ratio = self.mean, fitted / self.mean
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.member == "exponential":
                gap = np.log(ratio) + 1 / ratio - 1
            elif self.member == "poisson":
                gap = m * (ratio - 1 - np.log(ratio))
            else:
                gap = -m * np.log(ratio) - (1 - m) * np.log((1 - fitted) / (1 - m))
        absorbed = (fitted <= 0) | ((self.member == "bernoulli") & (fitted >= 1))
        return np.where(absorbed, np.inf, gap)

    def log_likelihood(self, model: Model, data: Array) -> Array:
        from scipy.special import gammaln, xlog1py, xlogy

        samples, mean = data[..., 0], model["mean"][:, None]
        if self.member == "poisson":
            return xlogy(samples, mean) - mean - gammaln(samples + 1)
        if self.member == "bernoulli":
            return xlogy(samples, mean) + xlog1py(1 - samples, -mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = -np.log(mean) - samples / mean
        return np.where(mean > 0, spread, np.where(samples > 0, -np.inf, np.inf))

    def truth(self) -> Model:
        return {"mean": np.array([self.mean])}
