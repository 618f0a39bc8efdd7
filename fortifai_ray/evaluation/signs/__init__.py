"""The signs of collapse: what a generation's synthetic corpus and its model show before perplexity does.

Here are what a study file says of them and what they come to; reading this imports neither NumPy nor Arrow.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import Field

from fortifai_ray.validation import Section


class SignsConfig(Section):
    """Which signs are computed of each generation, and on how much text.

    The signs of a corpus depend on its size. They are therefore computed on the first ``tokens`` generated tokens, and
    the human reference is cut to the same number; if either holds fewer, both are cut to the smaller one. In the same
    way the models score ``documents`` rows, drawn by the recipe's seed, the same in each generation.
    """

    corpus: bool = Field(True, description="signs that need no model")
    model: bool = Field(True, description="signs of the model on held-out human text and on the text that it wrote")
    tokens: int = Field(10_000_000, ge=1, description="generated tokens that the corpus's signs are computed on")
    smoothing: float = Field(0.5, gt=0.0, allow_inf_nan=False, description="pseudo-count of each n-gram, for the KL")
    self_bleu_documents: int = Field(1000, ge=2, le=1000, description="documents in self-BLEU, at most")
    documents: int = Field(128, ge=1, description="synthetic documents that the models score, at most")
    gamma: float = Field(0.3, gt=0.0, le=1.0, description="the threshold at which kept fractions are reported")
    calibration_bins: int = Field(15, ge=1, le=1000, description="bins of equal width over [0, 1]")


@dataclass(frozen=True)
class Signs:
    """The signs of one generation.

    Attributes:
        values: a number for each metric requested; None if it could not be computed.
        counts: how much was scored and how much was not: rows, tokens, targets.
        reasons: why a value is None, by metric.
        histograms: counts by bin, by name; the module that fills a histogram defines its edges.
    """

    values: dict[str, float | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)

    def __or__(self, other: "Signs") -> "Signs":
        """The union of both; they share no name."""
        return Signs(
            self.values | other.values,
            self.counts | other.counts,
            self.reasons | other.reasons,
            self.histograms | other.histograms,
        )


def finite(values: Mapping[str, float | None], reason: str, counts: dict[str, int] | None = None) -> Signs:
    """Signs with finite values only. Each other value becomes None; its reason is ``reason`` if it was None, else the
    value itself."""
    known = {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
    reasons = {
        name: reason if values[name] is None else f"not finite: {values[name]}"
        for name, value in known.items()
        if value is None
    }
    return Signs(known, counts or {}, reasons)
