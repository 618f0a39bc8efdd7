"""The collapse criterion: which metric, against what, beyond which threshold, confirmed by how many generations."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

RelativeTo = Literal["baseline_generation_0", "own_generation_0", "absolute"]
Direction = Literal["above", "below"]


def is_log_scale(metric: str) -> bool:
    """Whether a metric's onset is interpolated on a log scale: perplexities and ratios (``trace_ratio``), by name.

    Both multiply from generation to generation, so that their logarithm is the natural scale. The rule: the name is
    ``perplexity`` or ``ratio``, or ends in ``_perplexity`` or ``_ratio``, or starts with ``perplexity_``.
    """
    return metric.rpartition("_")[2] in ("perplexity", "ratio") or metric.startswith("perplexity_")


class CollapseCriterion(BaseModel):
    """A generation meets the criterion when its metric lies strictly ``direction`` the limit.

    The limit is the threshold itself (``absolute``) or the threshold times the metric of generation 0: the baseline's
    with the same seed (``baseline_generation_0``, so that a worse start earns no slack) or the chain's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(min_length=1)
    threshold: FiniteFloat
    direction: Direction
    relative_to: RelativeTo = "baseline_generation_0"
    confirm: Annotated[int, Field(strict=True, ge=0)] = 1

    @model_validator(mode="after")
    def _threshold_has_a_sign_that_makes_sense(self) -> "CollapseCriterion":
        if self.threshold <= 0 and self.relative_to != "absolute":
            raise ValueError(f"threshold must be above 0 for relative_to: {self.relative_to} (got {self.threshold})")
        if self.threshold <= 0 and self.log_scale:
            raise ValueError(f"threshold must be above 0 for {self.metric}, which is positive (got {self.threshold})")
        return self

    @property
    def log_scale(self) -> bool:
        """Whether the onset is interpolated on a log scale (:func:`is_log_scale`)."""
        return is_log_scale(self.metric)

    def limit(self, own: float | None, baseline: float | None) -> float | None:
        """The limit in the metric's own units, from the metric at generation 0 of the chain and of its baseline.

        None where the generation it is relative to was not measured, or is not a finite positive number: there is
        then nothing to be twice as large as.
        """
        if self.relative_to == "absolute":
            return self.threshold
        reference = own if self.relative_to == "own_generation_0" else baseline
        if reference is None or not math.isfinite(reference) or reference <= 0:
            return None
        limit = self.threshold * reference
        return limit if math.isfinite(limit) else None
