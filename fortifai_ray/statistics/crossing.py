"""Collapse onset: where a metric first crosses its limit and stays beyond it.

The onset is the first crossing that ``confirm`` further crossings follow, interpolated between the generations around
it. Of any of several criteria as one it is the earliest onset (:func:`earliest`). Edge cases:

- Crossing is strict: a metric that equals its limit has not crossed it.
- A criterion that is ``outside`` has two limits; a crossing of either confirms one of the other, and the onset is
  interpolated at the limit that is crossed.
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

from fortifai_ray.statistics.criterion import Collapse, CollapseCriterion, Limit

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Ruling = Literal["collapsed", "no_room_left", "too_far", "open"]
Status = Literal["collapsed", "unconfirmed", "survived", "failed"]


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


@dataclass(frozen=True)
class Evidence:
    """What is known of one chain under one criterion: the arguments of :func:`judge`."""

    values: Sequence[float]
    limit: Limit | None
    recorded: bool = False


def onset(values: Sequence[float], limit: Limit, criterion: CollapseCriterion, *, recorded: bool = False) -> Onset:
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
    if not np.isfinite(limit).all():
        raise ValueError(f"the limit of {criterion.metric} must be a finite number (got {limit})")
    status, at = _status([Evidence(values, limit, recorded)], criterion)
    assert status != "failed", "there are values and a limit"
    return Onset(at if status == "collapsed" else None, status, len(values) - 1)


def judge(
    values: Sequence[float], limit: Limit | None, criterion: CollapseCriterion, *, recorded: bool = False
) -> Status:
    """The status that :func:`fortifai_ray.statistics.chains.chain_table` gives one chain, without a table.

    Arguments as for :func:`onset`; ``failed`` where there is no verdict: no values, or a limit of None (its reference
    is missing or broken) and no broken generation 0.
    """
    return judge_any([Evidence(values, limit, recorded)], criterion)


def judge_any(evidence: Sequence[Evidence], criterion: Collapse) -> Status:
    """:func:`judge` for a criterion of either kind, from the evidence for each of its members."""
    return _status(evidence, criterion)[0]


def _status(evidence: Sequence[Evidence], criterion: Collapse) -> tuple[Status, float]:
    """The status of one chain, and up to when it is known to be faithful."""
    verdicts = [_crossings_of_one(one, member) for one, member in zip(evidence, criterion.members, strict=True)]
    verdict = earliest(verdicts)
    faithful = float(verdict.faithful[0])
    if not math.isnan(verdict.onset[0]):
        return "collapsed", faithful
    if any(math.isnan(one.faithful[0]) for one in verdicts):
        return "failed", faithful
    return "unconfirmed" if verdict.pending[0] else "survived", faithful


def _crossings_of_one(evidence: Evidence, criterion: CollapseCriterion) -> Crossings:
    count = len(evidence.values)
    unknown = (math.nan, math.nan) if criterion.direction == "outside" else math.nan
    limit = unknown if evidence.limit is None else evidence.limit
    return sure_crossings(
        np.asarray(evidence.values, dtype=np.float64).reshape(1, -1) if count else np.full((1, 1), math.nan),
        np.array([limit], dtype=np.float64),
        observed=np.array([count]),
        recorded=np.array([count - 1 if evidence.recorded and count else count + 1]),
        criterion=criterion,
    )


def collapse_confirmed(
    values: Sequence[float], limit: Limit | None, criterion: CollapseCriterion, *, recorded: bool = False
) -> bool:
    """Whether the collapse of a running chain is confirmed, so that no further generation moves its onset.

    Arguments as for :func:`onset`; with a limit of None (its reference is not known yet), nothing is confirmed.
    """
    return limit is not None and judge(values, limit, criterion, recorded=recorded) == "collapsed"


def ruling(
    values: Sequence[float],
    limit: Limit | None,
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


def ruling_on_any(
    evidence: Sequence[Evidence],
    criterion: Collapse,
    generations: int,
    *,
    never_recorded: bool = False,
    largest_step: float | None = None,
) -> Ruling:
    """:func:`ruling` for a criterion of either kind, from the evidence for each of its members.

    Any of several criteria is decided where no later generation moves the earliest onset, or where none of them can be
    met any more: a confirmed collapse under one leaves it open while an earlier crossing of another may be confirmed.
    """
    rulings = {
        ruling(one.values, one.limit, member, generations, never_recorded=never_recorded, largest_step=largest_step)
        for one, member in zip(evidence, criterion.members, strict=True)
    }
    if "collapsed" in rulings:
        return "collapsed" if judge_any(evidence, criterion) == "collapsed" else "open"
    if "open" in rulings:
        return "open"
    return "too_far" if "too_far" in rulings else "no_room_left"  # if one rests on the largest step, all do


def _crossings_at_the_end(values: Sequence[float], limit: Limit, criterion: CollapseCriterion) -> int:
    """The number of consecutive crossings at the end."""
    crossed = _crossed(np.asarray(values, dtype=np.float64), *_range(np.array(limit), criterion))
    faithful = np.flatnonzero(~crossed)
    return len(values) - 1 - int(faithful[-1]) if len(faithful) else len(values)


def _reaches(value: float, limit: Limit, steps: int, largest: float, criterion: CollapseCriterion) -> bool:
    """Whether ``steps`` steps of the largest size lead from ``value`` beyond a limit, to within rounding."""
    low, high = _range(np.array(limit), criterion)
    distances = [(sign, float(edge)) for sign, edge in ((-1.0, low), (1.0, high)) if math.isfinite(edge)]
    if criterion.log_scale:
        if value <= 0 or any(edge <= 0 for _, edge in distances):
            return True  # no factor leads from or to zero: nothing can be ruled out
        return any(sign * math.log(edge / value) < steps * math.log(largest) + 1e-12 for sign, edge in distances)
    return any(sign * (edge - value) < steps * largest + 1e-12 * max(1.0, abs(edge)) for sign, edge in distances)


def find_crossings(
    values: Floats, limits: Floats, *, observed: Integers, recorded: Integers, criterion: CollapseCriterion
) -> Crossings:
    """Onsets of many chains at once.

    Args:
        values: (chains, generations), arbitrary where not observed.
        limits: (chains,), or (chains, 2) where the direction is outside; NaN where unknown: only broken generations
            cross.
        observed: (chains,), the number of generations observed, from 0 on.
        recorded: (chains,), the generation recorded as collapsed; at or after ``observed`` for none.
    """
    chains, generations = values.shape
    index = np.arange(generations + criterion.confirm)
    crossed = np.zeros((chains, index.size), dtype=np.bool_)
    low, high = _range(limits, criterion)
    crossed[:, :generations] = _crossed(values, low[:, None], high[:, None])
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
    at = _interpolate(values, low, high, first, criterion.log_scale)
    return Crossings(
        onset=np.where(any_confirmed, at, np.nan),
        pending=pending,
        faithful=np.where(any_confirmed | pending, at, np.where(observed > 0, observed - 1.0, np.nan)),
    )


def sure_crossings(
    values: Floats, limits: Floats, *, observed: Integers, recorded: Integers, criterion: CollapseCriterion
) -> Crossings:
    """:func:`find_crossings` with NaN as ``onset`` and ``faithful`` where there is no verdict: nothing was observed, or
    the limit is unknown, so that an earlier crossing cannot be ruled out, unless there is no earlier generation."""
    found = find_crossings(values, limits, observed=observed, recorded=recorded, criterion=criterion)
    low, high = _range(limits, criterion)
    known = ~(np.isnan(low) | np.isnan(high)) | (found.onset == 0)
    return Crossings(np.where(known, found.onset, np.nan), found.pending, np.where(known, found.faithful, np.nan))


def earliest(crossings: Sequence[Crossings]) -> Crossings:
    """Any of several criteria as one, from the :func:`sure_crossings` of the same chains under each.

    A chain is known to be faithful as far as it is under every criterion. Where a confirmed onset lies no later, that
    is its onset. An earlier crossing of another criterion that is still to be confirmed, or generations in which
    another was not observed, leave it pending. ``faithful`` is 0 where there is no verdict under one of several
    criteria: it may have been met at once.
    """
    if len(crossings) == 1:
        return crossings[0]
    onset = np.min([np.where(np.isnan(one.onset), np.inf, one.onset) for one in crossings], axis=0)
    faithful = np.min([np.nan_to_num(one.faithful, nan=0.0) for one in crossings], axis=0)
    confirmed = onset <= faithful
    pending = ~confirmed & (np.isfinite(onset) | np.any([one.pending for one in crossings], axis=0))
    return Crossings(np.where(confirmed, onset, np.nan), pending, faithful)


def _range(limits: Floats, criterion: CollapseCriterion) -> tuple[Floats, Floats]:
    """(…,) The lowest and the highest faithful value, from limits (…,), or (…, 2) where the direction is outside."""
    if criterion.direction == "outside":
        return limits[..., 0], limits[..., 1]
    endless = np.where(np.isnan(limits), np.nan, np.inf)
    return (-endless, limits) if criterion.direction == "above" else (limits, endless)


def _crossed(values: Floats, low: Floats, high: Floats) -> Booleans:
    return ~np.isfinite(values) | (values < low) | (values > high)


def _interpolate(values: Floats, low: Floats, high: Floats, first: Integers, log_scale: bool) -> Floats:
    """Where between ``first - 1`` and ``first`` a limit was crossed; 0 for a crossing at generation 0."""
    rows = np.arange(values.shape[0])
    before, after = values[rows, np.maximum(first - 1, 0)], values[rows, first]
    limits = np.where(after > high, high, low)
    crossed = (after > high) | (after < low)
    with np.errstate(all="ignore"):  # values outside the scale become non-finite, and are replaced below
        fraction = (limits - before) / (after - before)
        if log_scale:
            logarithmic = np.log(limits / before) / np.log(after / before)
            fraction = np.where((before > 0) & (after > 0) & (limits > 0), logarithmic, fraction)
        known = crossed & np.isfinite(fraction) & np.isfinite(after)
    fraction = np.clip(np.where(known, fraction, 1.0), 0.0, 1.0)
    return np.where(first == 0, 0.0, first - 1 + fraction)
