"""When a chain's verdict is certain before its horizon, so that a search need not run it to the end.

*Collapsed and confirmed* is certain for any metric: nothing that follows moves an onset that was confirmed.

*Cannot collapse* takes a premise. A metric measured at a generation says nothing of the next one by itself: training
may diverge, a mode may be lost. So there is no such rule for metrics in general, and none is made up from curves that
look flat. Two rules are offered, each with its premise, both exact under it:

``no room left``
    A crossing needs ``confirm`` crossings after it, all within the horizon. Once the generation from which that is
    still possible has passed without a crossing that lasts, no value of what is left can make an onset. Premise: no
    generation to come is *recorded* as collapsed (such a generation confirms itself: diverged training, an empty
    corpus). Families that are fitted in closed form to samples never record one while samples are drawn.
``too far``
    A bound on how far the metric moves towards the limit in one generation: ``largest_step``, declared in the study
    (a factor for metrics on a log scale, a difference for others). A chain that even at that pace crosses too late to
    be confirmed cannot collapse. Premise: the bound, and the one above.

A chain that is ended by either of them is marked as such: it survived, and its fidelity interval, cut short on purpose,
is no measurement.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.crossing import collapse_confirmed

Ruling = Literal["collapsed", "no_room_left", "too_far", "open"]


class SurvivalRules(BaseModel):
    """What a study vouches for, so that chains that cannot collapse any more may end early."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    never_recorded: bool = Field(
        False,
        description="no generation is recorded as collapsed (diverged, empty corpus) that was not measured before",
    )
    largest_step: FiniteFloat | None = Field(
        None, gt=0, description="how far the metric moves in a generation at most: a factor on a log scale"
    )

    @model_validator(mode="after")
    def _steps_are_all_there_is(self) -> "SurvivalRules":
        if self.largest_step is not None and not self.never_recorded:
            raise ValueError(
                "largest_step bounds nothing where a generation may be recorded as collapsed: "
                "say never_recorded: true as well"
            )
        return self


@dataclass(frozen=True)
class Verdict:
    """``ruling`` on a chain, and ``certain``: whether the chain may end."""

    ruling: Ruling

    @property
    def certain(self) -> bool:
        return self.ruling != "open"

    @property
    def collapsed(self) -> bool | None:
        """None while it is open."""
        return None if self.ruling == "open" else self.ruling == "collapsed"


def verdict(
    values: Sequence[float], limit: float | None, criterion: CollapseCriterion, generations: int, rules: SurvivalRules
) -> Verdict:
    """The verdict on a chain that still runs.

    Args:
        values: the metric at generations 0, 1, … so far, none of them recorded as collapsed.
        limit: in the metric's units, from :meth:`CollapseCriterion.limit`; None where it is not known.
        generations: that the chain has until its horizon, generation 0 included.
        rules: the premises that hold.

    Raises:
        ValueError: a factor per generation that does not exceed 1, for a metric on a log scale.
    """
    if rules.largest_step is not None and criterion.log_scale and rules.largest_step <= 1:
        raise ValueError(f"largest_step is a factor for {criterion.metric}, above 1 (got {rules.largest_step:g})")
    if collapse_confirmed(values, limit, criterion):
        return Verdict("collapsed")
    if not rules.never_recorded or limit is None or not values:
        return Verdict("open")
    run = _crossings_at_the_end(values, limit, criterion)
    last = generations - 1 - criterion.confirm  # the latest generation at which an onset can still begin
    if len(values) - run > last:
        return Verdict("no_room_left")
    if run == 0 and rules.largest_step is not None and math.isfinite(values[-1]):
        steps = last - (len(values) - 1)
        if not _reaches(values[-1], limit, steps, rules.largest_step, criterion):
            return Verdict("too_far")
    return Verdict("open")


def _crossings_at_the_end(values: Sequence[float], limit: float, criterion: CollapseCriterion) -> int:
    """How many generations at the end have crossed, one after the other."""
    run = 0
    for value in reversed(values):
        beyond = value > limit if criterion.direction == "above" else value < limit
        if math.isfinite(value) and not beyond:
            break
        run += 1
    return run


def _reaches(value: float, limit: float, steps: int, largest: float, criterion: CollapseCriterion) -> bool:
    """Whether ``steps`` steps of the largest size lead from ``value`` beyond the limit, to within rounding."""
    sign = 1.0 if criterion.direction == "above" else -1.0
    if criterion.log_scale:
        if value <= 0 or limit <= 0:
            return True  # no factor leads from or to there: nothing is known
        return sign * math.log(limit / value) < steps * math.log(largest) + 1e-12
    return sign * (limit - value) < steps * largest + 1e-12 * max(1.0, abs(limit))
