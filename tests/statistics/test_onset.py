"""The onset of one chain, against the contract's words and as properties."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.crossing import Onset, collapse_confirmed, onset


def criterion(metric: str = "perplexity", direction: str = "above", confirm: int = 1) -> CollapseCriterion:
    return CollapseCriterion(metric=metric, threshold=2.0, direction=direction, confirm=confirm, relative_to="absolute")


LINEAR = criterion("kr_accuracy", "below")
positive = st.floats(0.1, 1e6)
curves = st.lists(positive, min_size=1, max_size=10)
broken_curves = st.lists(positive | st.sampled_from([math.nan, math.inf]), min_size=1, max_size=10)
confirms = st.integers(0, 3)


def by_the_contract(values: list[float], limit: float, confirm: int) -> int | None:
    """The crossing generation, word for word: the first crossing followed by ``confirm`` further crossings."""
    crossed = [not math.isfinite(value) or value > limit for value in values]
    for generation in range(len(values) - confirm):
        if all(crossed[generation : generation + confirm + 1]):
            return generation
    return None


def test_perplexity_is_interpolated_on_a_log_scale() -> None:
    # from 100 to 1600, two factors of four: 400 is half way
    assert onset([100, 100, 1600, 2000], 400, criterion()) == Onset(1.5, "collapsed", 3)


def test_an_accuracy_is_interpolated_linearly() -> None:
    result = onset([0.9, 0.8, 0.4, 0.4], 0.7, LINEAR)
    assert result.onset == pytest.approx(1.25, rel=1e-12)


def test_the_curve_of_the_design_facts() -> None:
    values = [329, 351, 517, 1114, 3993, 15072, 81374]
    expected = 2 + math.log(658 / 517) / math.log(1114 / 517)
    assert onset(values, 2 * 329, criterion()).onset == pytest.approx(expected, rel=1e-12)


def test_met_at_generation_0_is_onset_0() -> None:
    assert onset([500, 600], 400, criterion()) == Onset(0.0, "collapsed", 1)


def test_a_metric_that_equals_its_limit_has_not_crossed_it() -> None:
    assert onset([100, 400, 400], 400, criterion()).status == "survived"
    assert onset([100, 400, 401, 402], 400, criterion()).onset == 1.0  # left the limit right after generation 1


def test_a_crossing_that_is_taken_back_does_not_count() -> None:
    result = onset([100, 500, 300, 500, 500], 400, criterion())
    assert result.onset is not None
    assert 2 < result.onset < 3


def test_a_last_crossing_is_unconfirmed_unless_no_confirmation_is_asked() -> None:
    assert onset([100, 200, 800], 400, criterion()) == Onset(None, "unconfirmed", 2)
    assert onset([100, 200, 800], 400, criterion(confirm=0)).onset == 1.5
    assert onset([100, 200, 800, 900], 400, criterion(confirm=2)) == Onset(None, "unconfirmed", 3)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("direction", ["above", "below"])
def test_a_broken_generation_has_crossed_and_is_its_own_onset(broken: float, direction: str) -> None:
    limit = {"above": 400.0, "below": 10.0}[direction]
    assert onset([100, 200, broken, broken], limit, criterion(direction=direction)).onset == 2.0
    assert onset([100, 200, broken], limit, criterion(direction=direction)).status == "unconfirmed"
    assert onset([100, broken, 200, 200], limit, criterion(direction=direction)).status == "survived"
    assert onset([broken, broken], limit, criterion(direction=direction)).onset == 0.0


def test_a_generation_recorded_as_collapsed_needs_no_confirmation() -> None:
    assert onset([100, 200, math.nan], 400, criterion(confirm=3), recorded=True).onset == 2.0
    assert onset([100, 200, 250], 400, criterion(), recorded=True).onset == 2.0  # an empty corpus, not the metric
    assert onset([100, 800, math.nan], 400, criterion(confirm=3), recorded=True).onset == pytest.approx(2 / 3)


def test_a_step_to_zero_or_less_has_no_place_on_the_log_scale_and_is_linear() -> None:
    ratio = criterion("trace_ratio", "below")
    assert onset([1.0, 0.5, 0.0, 0.0], 0.1, ratio).onset == pytest.approx(1.8, rel=1e-12)
    assert onset([1.0, 0.5, -0.3, -1.0], 0.1, ratio).onset == pytest.approx(1.5, rel=1e-12)
    assert onset([1.0, 0.4, 0.025, 0.0], 0.1, ratio).onset == pytest.approx(1.5, rel=1e-12)  # the log scale, before it
    growing = onset([-1.0, 3.0, 9.0], 1.0, criterion("trace_ratio"))  # begins where there is no logarithm
    assert growing.onset == pytest.approx(0.5, rel=1e-12)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), positive, positive, confirms)
def test_a_stricter_limit_is_never_crossed_earlier_where_the_scale_changes(
    values: list[float], first: float, second: float, confirm: int
) -> None:
    rule = criterion("trace_ratio", "below", confirm)
    lax, strict = (onset(values, limit, rule) for limit in sorted((first, second), reverse=True))
    if strict.onset is not None:
        assert lax.onset is not None
        assert lax.onset <= strict.onset


def test_no_values_or_no_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        onset([], 400, criterion())
    with pytest.raises(ValueError, match="finite"):
        onset([100], math.nan, criterion())


@given(broken_curves, positive, confirms)
def test_the_onset_is_in_the_step_that_ends_at_the_contracts_crossing(
    values: list[float], limit: float, confirm: int
) -> None:
    generation = by_the_contract(values, limit, confirm)
    result = onset(values, limit, criterion(confirm=confirm))
    if generation is None:
        assert result.onset is None
        last_crossed = not math.isfinite(values[-1]) or values[-1] > limit
        assert result.status == ("unconfirmed" if last_crossed else "survived")
    else:
        assert result.onset is not None
        assert max(generation - 1, 0) <= result.onset <= generation


@given(curves, positive, confirms, st.integers(-20, 20))
def test_scaling_metric_and_limit_together_changes_nothing(
    values: list[float], limit: float, confirm: int, power: int
) -> None:
    scale = 2.0**power  # exact in floating point, so comparisons cannot flip
    plain, scaled = (
        onset([k * value for value in values], k * limit, criterion(confirm=confirm)) for k in (1.0, scale)
    )
    assert plain == scaled


@given(broken_curves, positive, positive, confirms)
def test_a_stricter_limit_is_never_crossed_earlier(
    values: list[float], first: float, second: float, confirm: int
) -> None:
    lax, strict = (onset(values, limit, criterion(confirm=confirm)) for limit in sorted((first, second)))
    if strict.onset is not None:
        assert lax.onset is not None
        assert lax.onset <= strict.onset


@given(curves, positive, confirms)
def test_below_is_above_turned_over(values: list[float], limit: float, confirm: int) -> None:
    above = onset(values, limit, criterion("score", "above", confirm))
    below = onset([-value for value in values], -limit, criterion("score", "below", confirm))
    assert above == below


@given(broken_curves, positive, confirms)
def test_stopping_at_the_confirmation_gives_the_full_chains_onset(
    values: list[float], limit: float, confirm: int
) -> None:
    rule = criterion(confirm=confirm)
    full = onset(values, limit, rule)
    seen = next((n for n in range(len(values) + 1) if collapse_confirmed(values[:n], limit, rule)), None)
    if seen is None:
        assert full.onset is None
    else:
        assert onset(values[:seen], limit, rule).onset == full.onset
        assert full.onset is not None
        assert seen == math.ceil(full.onset) + confirm + 1 or full.onset == math.floor(full.onset)


def test_a_limit_not_yet_known_confirms_nothing() -> None:
    assert not collapse_confirmed([100, 800, 900], None, criterion())
    assert collapse_confirmed([100, 800, 900], 400, criterion())
