"""Curation: which of the synthetic data a generation wrote may enter the next training set.

A curated chain generates more than it needs and keeps the share ``keep`` with the best scores. Each family computes
scores of its own (the log-likelihood of a sample, or the mean per token, under some model); the selection is the same.
"""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fortifai_ray.validation import Section


class NoCuration(Section):
    """All generated data may be trained on."""

    kind: Literal["none"] = "none"

    def to_generate(self, size: float) -> float:
        """Units to generate so that ``size`` of them remain."""
        return size


class _Ranked(NoCuration):
    keep: float = Field(0.5, gt=0.0, le=1.0, description="share of the generated data that is kept")

    def to_generate(self, size: float) -> float:
        return math.ceil(size / self.keep)


class Verifier(_Ranked):
    """A verifier scores each item by its log-likelihood, and the best are kept (Feng et al. 2024; Yi et al. 2025)."""

    kind: Literal["verifier"] = "verifier"  # type: ignore[assignment]
    by: Literal["generation_0", "truth"] = Field(
        "generation_0",
        description="the verifier: the chain's own generation 0, which saw only human data, or the truth if known",
    )
    select: Literal["likeliest", "typical"] = Field(
        "likeliest",
        description="keep the highest scores, or those closest to the human training data's median score (which "
        "rejects both gibberish and the bland text that a likelihood alone prefers)",
    )


class Surplexity(_Ranked):
    """Keep the items that most surprise the model that wrote them (Gambetta et al. 2024, Learning by Surprise)."""

    kind: Literal["surplexity"] = "surplexity"  # type: ignore[assignment]


Curation = Annotated[NoCuration | Verifier | Surplexity, Field(discriminator="kind")]


def select(scores: np.ndarray, count: int, curation: Verifier | Surplexity, typical: float | np.ndarray) -> np.ndarray:
    """The ``count`` best items, in the order in which they were written.

    Args:
        scores: (..., items) log-likelihoods: under the verifier, or under the model that wrote the items (surplexity).
        typical: (...) the human data's median score, for ``select: typical``.

    Returns:
        (..., count) indices into the items, ascending; all items where there are fewer. Ties go to the earlier item.
    """
    if isinstance(curation, Surplexity):
        badness = scores  # low likelihood is high surprise
    elif curation.select == "typical":
        badness = np.abs(scores - np.asarray(typical)[..., None])
    else:
        badness = -scores
    best = np.argsort(badness, axis=-1, kind="stable")[..., :count]
    return np.sort(best, axis=-1)
