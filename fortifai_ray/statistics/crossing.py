"""Collapse onset: where a metric first crosses its limit and stays beyond it.

The onset is the first crossing that ``confirm`` further crossings follow, interpolated between the generations around
it. Edge cases:

- Crossing is strict: a metric that equals its limit has not crossed it.
- A generation whose metric is NaN or infinite counts as crossed in either direction: its model is broken.
- A generation recorded as collapsed (diverged training, empty corpus) ends its chain, so no later generation can
  confirm it. It counts as crossed and as confirmed, and confirms the crossings directly before it.
- The onset is the crossing generation itself, the latest it can be, where the point of crossing is unknown: the metric
  there or before is NaN or infinite, or has not crossed although the generation was recorded as collapsed.
- Zero and negative values have no logarithm (a ratio that underflowed, a negative estimate): on a log scale, a step
  that begins or ends there is interpolated linearly, that step alone.

A chain whose collapse is not confirmed is censored at the last point at which it is known to be faithful
(:attr:`Crossings.faithful`), so that its fidelity interval is a lower bound whatever comes next: the last generation
observed, or, where the chain ends in crossings, the point at which the first of those crossed, interpolated as an
onset is. A later generation may confirm that crossing, and nothing can confirm an earlier one.

:func:`ruling` says when the verdict on a running chain is certain, so that it need not run to its horizon. A confirmed
collapse is certain for any metric: nothing that follows moves the onset. That a chain *cannot* collapse takes a
premise: a metric measured at a generation says nothing of the next one by itself, since training may diverge or a mode
be lost. So there is no such rule for metrics in general. Two rules are offered, each exact under its premise:

``no_room_left``
    A crossing needs ``confirm`` crossings after it, all within the horizon. Once the last generation from which that is
    possible has passed without a crossing that lasts, no later value can make an onset. Premise: no later generation is
    *recorded* as collapsed (such a generation confirms itself). Families that are fitted in closed form to samples
    never record one while samples are drawn.
``too_far``
    A bound on how far the metric moves towards the limit in one generation, the study's ``largest_step``: a factor on a
    log scale, else a difference. A chain that even at that pace crosses too late to be confirmed cannot collapse.
    Premises: the bound, and the one above.

Such a chain is marked: its fidelity interval, cut short on purpose, is a lower bound and no measurement.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fortifai_ray.statistics.criterion import CollapseCriterion, Direction

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Ruling = Literal["collapsed", "no_room_left", "too_far", "open"]


@dataclass(frozen=True)
class Onset:
    """When one chain collapsed: ``onset`` in generations, None unless collapsed; ``last``: the last one observed."""

    onset: float | None
    status: Literal["collapsed", "unconfirmed", "survived"]
    last: int


@dataclass(frozen=True)
class Crossings:
    """Onsets of many chains: ``onset`` (chains,), NaN unless confirmed; ``pending`` (chains,), whether the chain
    ends in a crossing that is not confirmed; ``faithful`` (chains,), the onset, or else up to when the chain is known
    to be faithful, NaN where nothing was observed."""

    onset: Floats
    pending: Booleans
    faithful: Floats


def onset(values: Sequence[float], limit: float, criterion: CollapseCriterion, *, recorded: bool = False) -> Onset:
    """The onset of one chain from its metric at generations 0, 1, … as far as it went.

    Args:
        values: the metric of each generation. NaN counts as crossed: leave out generations that were not measured.
        limit: in the metric's units, from :meth:`CollapseCriterion.limit`.
        recorded: the last of these generations was recorded as collapsed, and ended the chain.

    Raises:
        ValueError: no values, or a limit that is not a finite number.
    """
    if len(values) == 0:
        raise ValueError("onset needs the metric of at least one generation")
    if not np.isfinite(limit):
        raise ValueError(f"the limit of {criterion.metric} must be a finite number (got {limit})")
    at, pending = _crossing_of_one(values, limit, criterion, recorded)
    if not math.isnan(at):
        return Onset(at, "collapsed", len(values) - 1)
    return Onset(None, "unconfirmed" if pending else "survived", len(values) - 1)


def judge(
    values: Sequence[float], limit: float | None, criterion: CollapseCriterion, *, recorded: bool = False
) -> Literal["collapsed", "unconfirmed", "survived", "failed"]:
    """The status that :func:`fortifai_ray.statistics.chains.chain_table` gives one chain, without a table.

    Arguments as for :func:`onset`; ``failed`` where there is no verdict: no values, or a limit of None (its reference
    is missing or broken) and no broken generation 0.
    """
    if len(values) == 0:
        return "failed"
    if limit is not None:
        return onset(values, limit, criterion, recorded=recorded).status
    return "collapsed" if _crossing_of_one(values, math.nan, criterion, recorded)[0] == 0 else "failed"


def _crossing_of_one(
    values: Sequence[float], limit: float, criterion: CollapseCriterion, recorded: bool
) -> tuple[float, bool]:
    count = len(values)
    crossings = find_crossings(
        np.asarray(values, dtype=np.float64)[None, :],
        np.array([limit]),
        observed=np.array([count]),
        recorded=np.array([count - 1 if recorded else count]),
        criterion=criterion,
    )
    return float(crossings.onset[0]), bool(crossings.pending[0])


def collapse_confirmed(
    values: Sequence[float], limit: float | None, criterion: CollapseCriterion, *, recorded: bool = False
) -> bool:
    """Whether the collapse of a running chain is confirmed, so that no further generation moves its onset.

    Arguments as for :func:`onset`; with a limit of None (its reference is not known yet), nothing is confirmed.
    """
    return (
        limit is not None and len(values) > 0 and onset(values, limit, criterion, recorded=recorded).onset is not None
    )


def ruling(
    values: Sequence[float],
    limit: float | None,
    criterion: CollapseCriterion,
    generations: int,
    *,
    never_recorded: bool = False,
    largest_step: float | None = None,
) -> Ruling:
    """What is certain of a chain that still runs; ``open`` where nothing is. See the module.

    Args:
        values: the metric at generations 0, 1, … so far, none of them recorded as collapsed.
        limit: in the metric's units, from :meth:`CollapseCriterion.limit`; None where it is not known.
        generations: how many the chain has until its horizon, generation 0 included.
        never_recorded, largest_step: the premises that hold (:class:`fortifai_ray.study.search.SurvivalRules`).

    Raises:
        ValueError: a factor per generation that does not exceed 1, for a metric on a log scale.
    """
    if largest_step is not None and criterion.log_scale and largest_step <= 1:
        raise ValueError(f"largest_step is a factor for {criterion.metric}, above 1 (got {largest_step:g})")
    if collapse_confirmed(values, limit, criterion):
        return "collapsed"
    if not never_recorded or limit is None or not values:
        return "open"
    run = _crossings_at_the_end(values, limit, criterion)
    last = generations - 1 - criterion.confirm  # the latest generation at which an onset can still begin
    if len(values) - run > last:
        return "no_room_left"
    if run == 0 and largest_step is not None and math.isfinite(values[-1]):
        steps = last - (len(values) - 1)
        if not _reaches(values[-1], limit, steps, largest_step, criterion):
            return "too_far"
    return "open"


def _crossings_at_the_end(values: Sequence[float], limit: float, criterion: CollapseCriterion) -> int:
    """The number of consecutive crossings at the end."""
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
            return True  # no factor leads from or to zero: nothing can be ruled out
        return sign * math.log(limit / value) < steps * math.log(largest) + 1e-12
    return sign * (limit - value) < steps * largest + 1e-12 * max(1.0, abs(limit))


def find_crossings(
    values: Floats, limits: Floats, *, observed: Integers, recorded: Integers, criterion: CollapseCriterion
) -> Crossings:
    """Onsets of many chains at once.

    Args:
        values: (chains, generations), arbitrary where not observed.
        limits: (chains,), NaN where unknown: only broken generations cross.
        observed: (chains,), the number of generations observed, from 0 on.
        recorded: (chains,), the generation recorded as collapsed; at or after ``observed`` for none.
    """
    chains, generations = values.shape
    index = np.arange(generations + criterion.confirm)
    crossed = np.zeros((chains, index.size), dtype=np.bool_)
    crossed[:, :generations] = ~np.isfinite(values) | _beyond(values, limits[:, None], criterion.direction)
    crossed &= index < observed[:, None]
    crossed |= (index >= recorded[:, None]) & (recorded < observed)[:, None]
    confirmed = crossed[:, :generations].copy()
    for further in range(1, criterion.confirm + 1):
        confirmed &= crossed[:, further : further + generations]
    any_confirmed = confirmed.any(axis=1)
    last = np.maximum(observed - 1, 0)
    pending = ~any_confirmed & (observed > 0) & crossed[np.arange(chains), last]
    faithful_then = ~crossed & (index < observed[:, None])
    last_faithful = np.where(faithful_then.any(axis=1), index.size - 1 - np.argmax(faithful_then[:, ::-1], axis=1), -1)
    first = np.where(any_confirmed, np.argmax(confirmed, axis=1), np.where(pending, last_faithful + 1, 0))
    at = _interpolate(values, limits, first, criterion)
    return Crossings(
        onset=np.where(any_confirmed, at, np.nan),
        pending=pending,
        faithful=np.where(any_confirmed | pending, at, np.where(observed > 0, observed - 1.0, np.nan)),
    )


def _beyond(values: Floats, limits: Floats, direction: Direction) -> Booleans:
    return values > limits if direction == "above" else values < limits


def _interpolate(values: Floats, limits: Floats, first: Integers, criterion: CollapseCriterion) -> Floats:
    """Where between ``first - 1`` and ``first`` the limit was crossed; 0 for a crossing at generation 0."""
    rows = np.arange(values.shape[0])
    before, after = values[rows, np.maximum(first - 1, 0)], values[rows, first]
    crossed = _beyond(after, limits, criterion.direction)
    with np.errstate(all="ignore"):  # values outside the scale become non-finite, and are replaced below
        fraction = (limits - before) / (after - before)
        if criterion.log_scale:
            logarithmic = np.log(limits / before) / np.log(after / before)
            fraction = np.where((before > 0) & (after > 0) & (limits > 0), logarithmic, fraction)
        known = crossed & np.isfinite(fraction) & np.isfinite(after)
    fraction = np.clip(np.where(known, fraction, 1.0), 0.0, 1.0)
    return np.where(first == 0, 0.0, first - 1 + fraction)
