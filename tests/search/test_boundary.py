"""The search of one cell: right about as often as it says, cheap, restorable, and honest where there is no answer."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from fortifai_ray.search.boundary import BoundaryFinder
from fortifai_ray.search.points import Probe
from fortifai_ray.study.search import BoundarySearch
from tests.search.laws import (
    ENDS,
    SHOULDERS,
    ZONES,
    Curve,
    Discrete,
    Law,
    holds,
    logistic,
    low_ceiling,
    search,
    searches,
    searches_of,
    steps,
    without,
)
from tests.search.random_laws import KINDS, draw

SETTINGS = BoundarySearch(over="regime.synthetic_ratio", low=0.0, high=1.0, tolerance=0.02)


MISLEADING = ("plateau 0.6", "floor 0.3", "kinds 45:55", "ceiling 0.45", "dip to 0.6")


def at_least(count: int, share: float = 0.90) -> float:
    """So many of ``count`` searches that say the truth with the given probability do so, at the 0.1% point."""
    return float(binom.ppf(0.001, count, share))


@pytest.mark.parametrize(
    "law", [logistic(0.62, 0.02, shared=0.8), low_ceiling(0.88, 0.02), Discrete()], ids=lambda law: law.name
)
def test_the_interval_covers_as_often_as_it_says_at_a_fraction_of_the_grid(law: Law) -> None:
    """It settles within the tolerance, has looked at the whole range, and takes a quarter of a grid's chains."""
    count = 30
    points = [finder.result() for finder in searches(law, count)]
    assert sum(holds(point, law.boundary) for point in points) >= at_least(count)
    for point in points:
        assert (point.bound, point.ended) == ("exact", "settled")
        assert point.high - point.low <= 2 * SETTINGS.tolerance + 1e-9
        assert point.low <= point.critical <= point.high
        assert point.audit_width <= 1 / 32
        assert point.generations_run == point.chains_run * law.generations
        assert point.generations_run <= 51 * point.seeds_used * law.generations / 4


@pytest.mark.parametrize("law", [*(SHOULDERS[name] for name in MISLEADING), *ENDS.values()], ids=lambda law: law.name)
def test_no_shoulder_floor_or_end_of_the_range_misleads_it(law: Law) -> None:
    """Whatever the curve's form, what it says is true as often as it says; and it is exact only once it is settled."""
    count = 16
    points = [finder.result() for finder in searches(law, count, budget=400)]
    assert sum(holds(point, law.boundary) for point in points) >= at_least(count)
    for point in points:
        assert (point.bound == "exact") <= (point.ended == "settled")
        assert (point.critical is None) == (point.bound == "undetermined")
        if point.bound == "exact":
            assert point.high - point.low <= 2 * SETTINGS.tolerance + 1e-9


def test_what_it_says_of_curves_drawn_at_random_is_true_as_often_as_it_says() -> None:
    """Plateaus, ledges, staircases, kinds of seed, dips, zones, hills, any monotone curve, over ranges, in directions
    and with tolerances of their own: true in 90 of 100 searches, and so is what it calls exact."""
    rng, each = np.random.default_rng(0), 5
    drawn = [draw(kind, rng) for kind in KINDS if kind != "weak zone" for _ in range(each)]
    points = [finder.result() for finder in searches_of([(one.law, {**one.settings, "budget": 160}) for one in drawn])]
    true = [holds(point, one.law.boundary) for point, one in zip(points, drawn, strict=True)]
    exact = [held for point, held in zip(points, true, strict=True) if point.bound == "exact"]
    assert sum(true) >= at_least(len(true))
    assert len(exact) >= each * 3  # smooth, steep or with shoulders far from one half: it settles on those
    assert sum(exact) >= at_least(len(exact))


@pytest.mark.parametrize("level", [0.47, 0.5])
def test_a_curve_that_lingers_beside_one_half_is_not_called_exact(level: float) -> None:
    """A plateau over 0.4 to 0.8 takes 2/(level − ½)² chains to tell from one half with the evidence that is asked for
    four tolerances outside an interval: here 2,000 and more. Chance settles it in 1 of 50 searches at most."""
    law, count = steps("lingering", (0.4, 0.005, level), (0.8, 0.005, 1 - level)), 16
    points = [finder.result() for finder in searches(law, count, budget=200)]
    assert sum(point.bound == "exact" for point in points) <= binom.ppf(0.999, count, 0.02)


@pytest.mark.parametrize("law", ZONES.values(), ids=lambda law: law.name)
def test_the_audit_finds_a_zone_wherever_it_is(law: Law) -> None:
    """A zone of 0.07 far from the boundary, in which all but two chains of a hundred do the opposite: the audit's 0.03
    is narrower, so that two places or more lie in it."""
    points = [finder.result() for finder in searches(law, 12)]
    assert [point.ended for point in points] == ["refused"] * len(points)


def test_the_audit_reports_what_it_has_not_seen() -> None:
    """With a budget for the scan alone, a zone as wide as a quarter of the range may have been missed."""
    assert search(logistic(0.6, 0.01), 0, budget=5).result().audit_width == pytest.approx(0.25)


def test_a_place_still_in_doubt_was_not_seen() -> None:
    """A zone of 0.07 that the budget was too small to prove: no narrower one is said to have been seen."""
    law = without(logistic(0.35, 0.01), "hollow", 0.53, 0.6, 0.0)
    budgets = [budget for budget in range(50, 130, 10) for _ in range(3)]
    found = [one.result() for one in searches_of([(law, {"budget": budget}) for budget in budgets])]
    doubtful = [point for point in found if point.ended == "budget" and None not in (point.low, point.high)]
    assert len(doubtful) >= 3
    assert all(point.audit_width >= 0.07 for point in doubtful)


def test_a_wide_curve_takes_no_more_than_its_slope_asks_for() -> None:
    """Five tolerances wide. At the ends of an interval around the boundary a share of half ± h/(4·width) collapses, and
    n of them tell it from one half at either end, with 95%, where 1.645·½/√n is that: 200 for both. A search does not
    know where they are, and looks again and again; most of them settle with four times as many."""
    law, floor = logistic(0.5, 0.06), 2 * (1.645 / 2 * 4 * 0.06 / SETTINGS.tolerance) ** 2
    ended = [finder.result().ended for finder in searches(law, 10, budget=round(4 * floor))]
    assert ended.count("settled") >= 6


def test_few_seeds_used_again_and_again_do_not_make_it_sure_of_itself() -> None:
    """With all of the noise shared within 10 seeds no search can know the median of all seeds to ±0.02: their own
    median strays by 1.25·σ/√10 = 0.04. Most searches must see that, and not end within the tolerance."""
    law = logistic(0.6, 0.055, shared=0.999)
    points = [search(law, repeat, seeds=10, budget=60).result() for repeat in range(3)]
    assert sum(point.ended == "budget" for point in points) >= 2
    assert all(point.seeds_used <= 10 for point in points)


def test_the_answers_order_changes_nothing() -> None:
    """A round depends on the answers before it, not on which came first: a second run asks for the same chains."""
    law = logistic(0.4, 0.03)

    def run(order: Callable[[list[Probe]], list[Probe]]) -> BoundaryFinder:
        finder = BoundaryFinder(SETTINGS)
        while not finder.done:
            for probe in order(finder.ask()):
                finder.tell(probe, law.collapsed(probe.value, probe.seed), 6)
        return finder

    assert run(lambda probes: probes).state() == run(lambda probes: probes[::-1]).state()


@pytest.mark.parametrize("stop", [0, 1, 7, 23])
def test_a_restored_search_goes_on_as_if_nothing_had_happened(stop: int) -> None:
    """Through JSON, in the middle of a round: what ran is still waited for, and asked again only when released."""
    law = logistic(0.4, 0.02)
    whole = search(law, 0)
    finder, answered, running = BoundaryFinder(SETTINGS.model_copy(update={"budget": 600})), 0, list[Probe]()
    while answered < stop or not running:
        running += finder.ask()
        if answered < stop:
            probe = running.pop(0)
            finder.tell(probe, law.collapsed(probe.value, probe.seed), 6)
            answered += 1
    restored = BoundaryFinder.from_state(json.loads(json.dumps(finder.state())))
    assert restored.state() == finder.state()
    assert restored.ask() == []
    restored.release()
    assert sorted(restored.ask()) == sorted(running)
    restored.release()
    while not restored.done:
        for probe in restored.ask():
            restored.tell(probe, law.collapsed(probe.value, probe.seed), 6)
    assert restored.result() == whole.result()


def test_answers_of_another_search_are_refused() -> None:
    """A state whose answers this search would not have asked for is not taken for its own."""
    state = search(logistic(0.4, 0.02), 0).state()
    state["first_seed"] = 5
    with pytest.raises(ValueError, match="not those that this search asks for"):
        BoundaryFinder.from_state(state)


def test_an_answer_that_nobody_waits_for_is_refused() -> None:
    """Told twice, or never asked."""
    finder = BoundaryFinder(SETTINGS)
    (probe,) = finder.ask(1)
    finder.tell(probe, True, 6)
    for wrong in (probe, Probe(3, 0.03, 99)):
        with pytest.raises(ValueError, match="waits for an answer"):
            finder.tell(wrong, True, 6)


@pytest.mark.parametrize(
    ("value", "bound", "critical", "low", "high"),
    [(False, "lower", 1.0, 1.0, None), (True, "upper", 0.0, None, 0.0)],
)
def test_a_boundary_outside_the_range_is_a_bound(
    value: bool, bound: str, critical: float, low: float | None, high: float | None
) -> None:
    """Nothing collapsed: r* is above the range. Everything did: below it."""
    finder = search(Curve("constant", lambda _: float(value), float("nan")), 0)
    point = finder.result()
    assert (point.bound, point.critical, point.low, point.high) == (bound, critical, low, high)
    assert point.chains_run <= 60


HALF = Curve("one half", lambda _: 0.5, float("nan"))
NEVER, ALWAYS = (Curve(str(share), lambda _, share=share: share, float("nan")) for share in (0.0, 1.0))


@pytest.mark.parametrize(
    ("law", "settings", "bound", "ended", "critical", "low", "high"),
    [
        (logistic(0.4, 0.001), {}, "exact", "settled", True, True, True),
        (logistic(0.4, 0.001), {"low": 0.333, "high": 0.876}, "exact", "settled", True, True, True),
        (logistic(0.5, 0.04), {"budget": 150}, "undetermined", "budget", None, True, True),
        (steps("ceiling", (0.3, 0.005, 0.4)), {"budget": 100}, "lower", "budget", True, True, None),
        (steps("floor", (-1.0, 0.005, 0.6), (0.7, 0.005, 0.4)), {"budget": 100}, "upper", "budget", True, None, True),
        (HALF, {"budget": 120}, "undetermined", "budget", None, None, None),
        (NEVER, {}, "lower", "settled", 1.0, 1.0, None),
        (NEVER, {"low": 0.333, "high": 0.876}, "lower", "settled", 0.87, 0.87, None),
        (ALWAYS, {}, "upper", "settled", 0.0, None, 0.0),
        (NEVER, {"direction": "falls"}, "upper", "settled", 0.0, None, 0.0),
        (ALWAYS, {"direction": "falls"}, "lower", "settled", 1.0, 1.0, None),
        (ALWAYS, {"direction": "detect", "budget": 120}, "undetermined", "settled", None, None, None),
    ],
)  # fmt: skip
def test_a_point_says_which_of_its_ends_are_known(
    law: Curve,
    settings: dict[str, float | int | str | None],
    bound: str,
    ended: str,
    critical: float | bool | None,
    low: float | bool | None,
    high: float | bool | None,
) -> None:
    """Settled or not, with a boundary in the range or none: an end is null exactly where the range ended before it was
    found, and the critical value of a bound is its known end. True: any value that agrees with the law."""
    point = search(law, 0, **settings).result()
    assert (point.bound, point.ended) == (bound, ended)
    for found, wanted in ((point.critical, critical), (point.low, low), (point.high, high)):
        assert (found is not None) if wanted is True else found == wanted
    assert holds(point, law.boundary)
    if bound != "exact" and point.critical is not None:
        assert point.critical == (point.low if bound == "lower" else point.high)
    if bound == "exact":
        assert point.low <= point.critical <= point.high


def test_without_a_direction_nothing_collapsed_says_nothing() -> None:
    """Above the range or below it: unknown as long as nobody knows which way collapse goes, and no chain would tell."""
    point = search(Curve("never", lambda _: 0.0, float("nan")), 0, over="loss.gamma", low=0.05, budget=120).result()
    assert (point.bound, point.critical, point.ended) == ("undetermined", None, "settled")


def test_the_direction_is_found() -> None:
    """A key with which collapse falls, without a direction in the settings."""
    law = Curve("falls", lambda v: float(v < 0.37), 0.37)
    point = search(law, 0, over="decoding.temperature").result()
    assert point.bound == "exact"
    assert point.low <= law.boundary <= point.high


@pytest.mark.parametrize("direction", [None, "detect"])
@pytest.mark.parametrize(
    "law",
    [
        Curve("island", lambda v: float(0.4 < v < 0.6), float("nan")),
        Curve("hole", lambda v: float(not 0.5 < v < 0.8), float("nan")),
    ],
    ids=["island", "hole"],
)
def test_a_key_that_is_not_monotone_is_refused_with_the_evidence(law: Law, direction: str | None) -> None:
    """It reports no boundary, but the answers that contradict one."""
    point = search(law, 0, direction=direction).result()
    assert (point.ended, point.bound, point.critical) == ("refused", "undetermined", None)
    assert "collapsed at regime.synthetic_ratio = 0" in str(point.evidence)


def test_chains_that_fail_take_no_part_and_do_not_run_on_for_ever() -> None:
    """A failed chain is no answer; where most fail, the cell is given up."""
    finder = BoundaryFinder(SETTINGS)
    while not finder.done:
        for probe in finder.ask():
            finder.tell(probe, None)
    assert finder.result().ended == "failed"
    assert finder.result().bound == "undetermined"
    assert finder.result().chains_run <= 10


def test_whole_numbers_and_log_scales() -> None:
    """Human samples kept, from 10 to 10,000: whole values, an interval of ten per cent either way."""
    law = Curve("kept", lambda v: float(v < 700), 700)
    settings = BoundarySearch(over="regime.human", low=10, high=10_000, tolerance=0.1, scale="log")
    finder = BoundaryFinder(settings, whole=True)
    while not finder.done:
        for probe in finder.ask():
            assert probe.value == int(probe.value)
            finder.tell(probe, law.collapsed(probe.value, probe.seed), 6)
    point = finder.result()
    assert point.low <= 700 <= point.high
    assert point.high / point.low <= 1.2215  # e^0.2
