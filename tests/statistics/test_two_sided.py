"""A criterion outside [a, b], and any of several criteria as one: the onset, what censors it, when a chain may stop,
and the way through the tables, all by brute force or against one-sided criteria."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fortifai_ray.results.schema import CRITERION_COLUMNS
from fortifai_ray.search.points import CollapsePoint, collapse_points
from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.conclusions import conclusions
from fortifai_ray.statistics.criterion import AnyOf, Collapse, CollapseCriterion, criteria_of, criterion_rows
from fortifai_ray.statistics.critical import critical_ratios
from fortifai_ray.statistics.crossing import Evidence, Onset, judge_any, onset, ruling_on_any
from fortifai_ray.statistics.fidelity import fidelity_table, ratio_profile
from fortifai_ray.statistics.order import crossing_order, first_crossings, onset_orders

LOW, HIGH = 2.0, 4.0
BASELINE = {"loss.kind": "cross_entropy"}
RANGE = {"threshold": [0.5, 2.0], "direction": "outside"}


def outside(metric: str = "perplexity", confirm: int = 1, **changes: Any) -> CollapseCriterion:
    keys = {"metric": metric, "threshold": [LOW, HIGH], "direction": "outside", "relative_to": "absolute"}
    return CollapseCriterion.model_validate({**keys, "confirm": confirm, **changes})


def above(metric: str, confirm: int, threshold: float = HIGH) -> CollapseCriterion:
    return outside(metric, confirm, threshold=threshold, direction="above")


def curve_of(*metrics: Sequence[float | None], reason_at: int | None = None, chain: str = "a") -> pl.DataFrame:
    """One chain's generations; the metrics are perplexity, then kr_accuracy."""
    count = len(metrics[0])
    columns = dict(zip(("perplexity", "kr_accuracy"), metrics, strict=False))
    reasons = ["broken" if g == reason_at else None for g in range(count)]
    table = {"chain_id": chain, "seed": 0, "loss.kind": "cross_entropy", "generation": range(count), **columns}
    schema = {**dict.fromkeys(columns, pl.Float64), "collapse_reason": pl.String}
    sizes = [1_000 * g for g in range(count)]
    return pl.DataFrame({**table, "synthetic_size_cum": sizes, "collapse_reason": reasons}, schema_overrides=schema)


def row_of(table: pl.DataFrame, criterion: Collapse, generations: int = 8) -> dict[str, Any]:
    return chain_table(table, [criterion], BASELINE, ["loss.kind", "seed"], generations).row(0, named=True)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, 3, 12, 12], 1 + math.log(4 / 3) / math.log(4)),  # up, on a log scale
        ([3, 3, 0.75, 0.75], 1 + math.log(3 / 2) / math.log(4)),  # down
        ([3, 3, 12, 0.5], 1 + math.log(4 / 3) / math.log(4)),  # a crossing of one limit confirms one of the other
        ([3, 1, 12, 3, 3, 1, 1], math.log(3 / 2) / math.log(3)),
        ([3, 12, 3, 1, 1], 2 + math.log(3 / 2) / math.log(3)),  # taken back once
        ([1, 12], 0.0),
        ([3, math.nan, 12], 1.0),
        ([3, math.inf, 1], 1.0),
        ([2, 4, 2, 4], None),  # the limits themselves are inside
        ([3, 3, 12], None),
    ],
)
def test_the_onset_lies_where_the_limit_is_left_that_is_crossed(values: list[float], expected: float | None) -> None:
    found = onset(values, (LOW, HIGH), outside()).onset
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-12))


def test_a_linear_metric_is_interpolated_linearly() -> None:
    criterion = outside("kr_accuracy")
    assert onset([3, 5, 5], (LOW, HIGH), criterion).onset == pytest.approx(0.5)
    assert onset([3, -1, -1], (LOW, HIGH), criterion).onset == pytest.approx(0.25)


broken = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, LOW, HIGH])
curves = st.lists(st.floats(0.1, 50) | broken, min_size=1, max_size=9)
confirms = st.integers(0, 3)


@given(curves, confirms, st.sampled_from(["perplexity", "kr_accuracy"]), st.booleans())
def test_where_one_limit_is_out_of_reach_it_is_the_one_sided_criterion(
    values: list[float], confirm: int, metric: str, recorded: bool
) -> None:
    def of(direction: str, limit: float | tuple[float, float]) -> Onset:
        return onset(values, limit, outside(metric, confirm, threshold=limit, direction=direction), recorded=recorded)

    assert of("outside", (LOW, 1e9)) == of("below", LOW)
    assert of("outside", (1e-9, HIGH)) == of("above", HIGH) or 0.0 in values


@given(curves, confirms, st.sampled_from(["perplexity", "kr_accuracy"]))
def test_the_onset_is_in_the_step_that_ends_at_the_contracts_crossing(
    values: list[float], confirm: int, metric: str
) -> None:
    """Word for word: the first crossing of either limit that ``confirm`` further crossings follow."""
    crossed = [not math.isfinite(value) or not LOW <= value <= HIGH for value in values]
    at = next((g for g in range(len(values) - confirm) if all(crossed[g : g + confirm + 1])), None)
    found = onset(values, (LOW, HIGH), outside(metric, confirm))
    if at is None:
        assert found.status == ("unconfirmed" if crossed[-1] else "survived")
    else:
        assert found.onset is not None
        assert max(at - 1, 0) <= found.onset <= at


def test_limits_are_factors_on_the_reference_and_beyond_chance() -> None:
    trace = CollapseCriterion.model_validate({"metric": "trace_ratio", **RANGE})
    assert trace.limit(9.0, 3.0) == (1.5, 6.0)
    assert [trace.limit(1.0, wrong) for wrong in (None, math.nan, 0.0, -1.0, math.inf)] == [None] * 5
    chance = CollapseCriterion.model_validate({"metric": "kr_accuracy", **RANGE, "chance": 0.25})
    assert chance.limit(None, 0.65) == pytest.approx((0.45, 1.05))
    assert chance.limit(None, 0.25) is None  # it has nothing to lose
    assert chance.limit(None, 0.1) is None
    references = [0.65, 0.25, 0.1, math.nan]
    assert np.isnan(chance.limits(np.array(references))).all(axis=1).tolist() == [False, True, True, True]


ONE = {"metric": "perplexity", "threshold": 2.0, "direction": "above"}
TWO = {"metric": "trace_ratio", **RANGE}


@pytest.mark.parametrize(
    "wrong",
    [
        *({**TWO, "threshold": given} for given in (2.0, [2.0, 0.5], [1.0, 1.0], [1.0], [0.5, 1.0, 2.0], [], ["a", 2])),
        *({**TWO, "threshold": given} for given in ([2.0, 3.0], [0.1, 0.9], [0.0, 2.0], [-1.0, 2.0], [True, 2.0])),
        *({**TWO, "threshold": given, "relative_to": "absolute"} for given in ([-1.0, 2.0], [1.0, math.inf])),
        *({**ONE, "threshold": given} for given in ([1.0, 2.0], [2.0], None, "high", {})),
        {**TWO, "chance": 0.25, "threshold": [0.5, 1.0]},
        {**TWO, "chance": 0.25, "relative_to": "absolute"},
        *({"any_of": given} for given in ([], [ONE], ONE, None, "perplexity", [ONE, ONE], [ONE, 3])),
        *(
            {"any_of": [ONE, given]}
            for given in ({"any_of": [ONE, TWO]}, {**TWO, "threshold": 1.0}, {"metric": "loss"})
        ),
        *({"any_of": [ONE, TWO], key: value} for key, value in (("metric", "loss"), ("confirm", 2))),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        (AnyOf if "any_of" in wrong else CollapseCriterion).model_validate(wrong)


def test_the_words_name_both_limits_and_every_criterion() -> None:
    two = CollapseCriterion.model_validate({"metric": "kr_accuracy", **RANGE})
    assert two.words == "KR accuracy outside 0.5× to 2× the baseline's generation 0, confirmed by 1 further generation"
    either = AnyOf.model_validate({"any_of": [outside("kr_accuracy", 0), above("loss", 0)]})
    assert either.words == "KR accuracy outside 2 to 4 or loss above 4, at the first crossing"
    apart = AnyOf.model_validate({"any_of": [outside("kr_accuracy", 0), above("loss", 1)]}).words
    assert "at the first crossing; or loss" in apart
    assert apart.endswith("confirmed by 1 further generation")


def test_any_of_below_and_above_one_metric_is_outside_where_no_crossing_needs_another() -> None:
    """With ``confirm: 0`` a crossing stands by itself, so the two ways of writing it agree."""
    either = AnyOf(any_of=(outside(confirm=0, threshold=LOW, direction="below"), above("perplexity", 0)))
    rng = np.random.default_rng(1)
    for _ in range(40):
        values = np.exp(rng.normal(1.05, 0.35, size=7)).tolist()
        names = ("onset", "status", "censored", "fi_generations", "fi_synthetic", "limits")
        rows = [row_of(curve_of(values), one) for one in (either, outside(confirm=0))]
        assert [rows[0][name] for name in names] == [rows[1][name] for name in names]


def test_an_unconfirmed_crossing_of_one_criterion_bounds_the_confirmed_onset_of_another() -> None:
    """Perplexity crosses at 1.5 and is confirmed there; the accuracy crossed at 0.5, and might yet be."""
    either = AnyOf(any_of=(above("perplexity", 0), above("kr_accuracy", 3)))
    row = row_of(curve_of([1, 1, 16, 16], [3, 5, 5, 5]), either)
    assert (row["status"], row["onset"], row["fi_generations"], row["fi_synthetic"]) == ("unconfirmed", None, 0.5, 500)
    confirmed = row_of(curve_of([1, 1, 16, 16, 16], [3, 5, 5, 5, 5]), either)
    assert (confirmed["status"], confirmed["onset"]) == ("collapsed", 0.5)
    taken_back = row_of(curve_of([1, 1, 16, 16], [3, 5, 5, 3]), either)
    assert (taken_back["status"], taken_back["onset"]) == ("collapsed", 1.5)


def test_a_criterion_that_was_not_observed_leaves_the_rest_open() -> None:
    either = AnyOf(any_of=(above("perplexity", 0), above("kr_accuracy", 0)))
    row = row_of(curve_of([1, 1, 1, 16], [3, 3, None, None]), either)
    assert (row["status"], row["fi_generations"]) == ("unconfirmed", 1.0)
    assert row_of(curve_of([1, 1, 1], [None, None, None]), either)["status"] == "failed"
    assert row_of(curve_of([16, 16], [None, None]), either)["onset"] == 0.0  # nothing is earlier
    relative = AnyOf(
        any_of=(above("perplexity", 0), CollapseCriterion.model_validate({**TWO, "metric": "kr_accuracy"}))
    )
    assert row_of(curve_of([1, 16, 16], [0.0, 1.0, 1.0]), relative)["status"] == "failed"  # no reference


CONTINUED = [1.0, LOW, 3.5, 20.0, math.nan]
values = st.sampled_from([1.0, 2.5, LOW, HIGH, 3.5, 20.0, math.nan, 0.0])
pairs = st.lists(st.tuples(values, values), min_size=1, max_size=5)


def verdict(criterion: Collapse, chain: Sequence[tuple[float, float]], recorded: bool) -> dict[str, Any]:
    table = curve_of(*zip(*chain, strict=True), reason_at=len(chain) - 1 if recorded else None)
    return row_of(table, criterion, len(chain))


@settings(max_examples=12)
@given(pairs, st.integers(0, 1), st.integers(0, 1), st.booleans())
def test_no_continuation_collapses_before_the_bound_and_none_moves_an_onset(
    chain: list[tuple[float, float]], first: int, second: int, two_sided: bool
) -> None:
    """By brute force: all continuations by up to two generations, the last recorded as collapsed or not."""
    one = outside("perplexity", first) if two_sided else above("perplexity", first)
    either = AnyOf(any_of=(one, outside("kr_accuracy", second)))
    now = verdict(either, chain, False)
    steps = list(itertools.product(CONTINUED, [1.0, 3.5]))
    further = [more for length in (1, 2) for more in itertools.product(steps, repeat=length)]
    tables = [
        curve_of(*zip(*chain, *more, strict=True), reason_at=at, chain=f"{number}-{at}")
        for number, more in enumerate(further)
        for at in (None, len(chain) + len(more) - 1)
    ]
    later = chain_table(pl.concat(tables), [either], BASELINE, ["loss.kind", "seed"], len(chain) + 2)
    if now["status"] == "collapsed":
        assert later["onset"].unique().to_list() == [now["onset"]]
        return
    assert later["fi_generations"].min() >= now["fi_generations"]
    assert now["fi_generations"] <= len(chain) - 1
    if now["status"] == "unconfirmed":  # the bound is the best: some continuation collapses exactly there
        assert later["onset"].min() == now["fi_generations"]
    else:
        assert now["fi_generations"] == len(chain) - 1


@settings(max_examples=60)
@given(pairs, st.integers(0, 2), st.integers(0, 2), st.booleans(), st.sampled_from([None, 1.5, 4.0]))
def test_a_chain_stops_only_where_its_whole_course_says_the_same(
    chain: list[tuple[float, float]], first: int, second: int, combined: bool, step: float | None
) -> None:
    one, two = outside("perplexity", first), above("kr_accuracy", second)
    criterion: Collapse = AnyOf(any_of=(one, two)) if combined else one
    whole = verdict(criterion, chain, False)
    logs = np.log([max(pair[0], 1e-3) for pair in chain])
    bounded = step is None or (np.isfinite(logs).all() and (np.abs(np.diff(logs)) <= math.log(step)).all())
    linear = step is None or not combined or (np.abs(np.diff([pair[1] for pair in chain])) <= step).all()
    for seen in range(1, len(chain) + 1):
        evidence = [
            Evidence([pair[place] for pair in chain[:seen]], (LOW, HIGH) if place == 0 else HIGH)
            for place in range(len(criterion.members))
        ]
        assert judge_any(evidence, criterion) == verdict(criterion, chain[:seen], False)["status"]
        ruling = ruling_on_any(evidence, criterion, len(chain), never_recorded=True, largest_step=step)
        if ruling == "collapsed":
            assert whole["status"] == "collapsed"
            assert verdict(criterion, chain[:seen], False)["onset"] == whole["onset"]
        elif ruling == "no_room_left" or (ruling == "too_far" and bounded and linear):
            assert whole["status"] != "collapsed"


def study(criteria: Sequence[Collapse], seeds: int = 5) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Chains whose trace ratio shrinks under cross entropy and grows under TCE; and a perplexity that grows."""
    noises = np.random.default_rng(2).normal(size=seeds)
    rows = [
        {
            "chain_id": f"{loss}-{seed}",
            "seed": seed,
            "loss.kind": loss,
            "generation": g,
            "trace_ratio": math.exp(slope * g * (1 + 0.1 * noise)),
            "perplexity": 300 * math.exp(0.2 * g),
            "synthetic_size_cum": 100 * g,
        }
        for loss, slope in (("cross_entropy", -0.2), ("tce", 0.1))
        for seed, noise in enumerate(noises)
        for g in range(12)
    ]
    generations = pl.DataFrame(rows)
    return generations, chain_table(generations, criteria, BASELINE, ["loss.kind", "seed"], 12)


def test_both_kinds_go_through_every_table() -> None:
    one = CollapseCriterion.model_validate(ONE)
    two = CollapseCriterion.model_validate(TWO)
    either = AnyOf(any_of=(one, two))
    criteria = [two, either, one]
    generations, chains = study(criteria)
    assert criteria_of(chains) == criteria
    assert [chains.filter(criterion_rows(each)).height for each in criteria] == [10, 10, 10]
    first = chains.filter(criterion_rows(two)).row(0, named=True)
    names = ("threshold", "threshold_high", "direction", "limit")
    assert [first[name] for name in names] == [0.5, 2.0, "outside", None]
    assert first["limits"] == [0.5, 2.0]
    combined = chains.filter(criterion_rows(either))
    assert combined["metric"].null_count() == 10
    assert combined["limits"][0].to_list() == [600.0, 0.5, 2.0]
    onsets = [chains.filter(criterion_rows(each))["onset"] for each in (one, two)]
    assert combined["onset"].to_list() == [min(pair) for pair in zip(*onsets, strict=True)]

    fidelity = fidelity_table(chains, ["loss.kind", "seed"], BASELINE)
    assert set(criteria_of(fidelity)) == set(criteria)
    ratio = fidelity.filter(criterion_rows(two), pl.col("unit") == "generations", ~pl.col("is_baseline"))
    assert ratio["fi_ratio"].item() == pytest.approx(2.0, rel=0.01)  # a slope of 0.1 takes twice as long as one of 0.2
    said = conclusions(fidelity, chains)
    assert [one.criterion for one in said] == [each.words for each in criteria]

    expected = ["first" if mine < theirs else "second" for mine, theirs in zip(*onsets, strict=True)]
    assert onset_orders(chains, one, two)["order"].to_list() == expected
    assert first_crossings(chains, ["loss.kind", "seed"])["n_criteria"].to_list() == [3] * 10
    assert crossing_order(chains, ["loss.kind", "seed"]).height == 2 * 6
    with pytest.raises(ValueError, match="several"):
        ratio_profile(generations, two, None, BASELINE, ["loss.kind", "seed"], 12)


def test_collapse_points_keep_both_kinds_apart() -> None:
    criteria = [CollapseCriterion.model_validate(TWO), AnyOf.model_validate({"any_of": [ONE, TWO]})]
    cells = [{"loss.kind": "cross_entropy"}, {"loss.kind": "tce"}]
    points = [
        (cell, criterion, CollapsePoint(value, value - 0.1, value + 0.1, 0.9, "exact", 10, 100))
        for place, cell in enumerate(cells)
        for criterion, value in zip(criteria, (0.2 + 0.2 * place, 0.3 + 0.3 * place), strict=True)
    ]
    table = collapse_points(points, "regime.synthetic_ratio")
    assert criteria_of(table) == criteria
    ratios = critical_ratios(table, ["loss.kind", "regime.synthetic_ratio"], BASELINE)
    assert ratios["ratio"].to_list() == pytest.approx([1.0, 1.0, 2.0, 2.0])


def test_a_table_that_lacks_the_columns_of_both_kinds_is_one_of_one_sided_criteria() -> None:
    one = CollapseCriterion.model_validate(ONE)
    _, chains = study([one])
    older = chains.drop("threshold_high", "any_of", "limits")
    assert criteria_of(older) == [one]
    assert older.filter(criterion_rows(one)).height == 10
    whole, lacking = (fidelity_table(table, ["loss.kind", "seed"], BASELINE) for table in (chains, older))
    assert lacking.equals(whole)
    assert set(CRITERION_COLUMNS) <= set(whole.columns)
    assert crossing_order(older, ["loss.kind", "seed"]).is_empty()


def test_a_ruling_that_rests_on_the_largest_step_says_so() -> None:
    """One member without room for its confirmation, the other too far for steps so large: a larger step decides."""
    criterion = AnyOf(any_of=(outside("perplexity", 1), above("kr_accuracy", 0)))
    evidence = [Evidence([2.5], (LOW, HIGH)), Evidence([1.0], HIGH)]
    assert ruling_on_any(evidence, criterion, 2, never_recorded=True, largest_step=1.5) == "too_far"
