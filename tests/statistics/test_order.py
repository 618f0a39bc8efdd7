"""What collapses first: the order of criteria in a chain, and its share over the chains of a cell."""

from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.order import collapsed_by, crossing_order, first_crossings, onset_bounds, onset_orders

VARIED = ["loss.kind", "loss.gamma", "seed"]
CROSS_ENTROPY = {"loss.kind": "cross_entropy"}
LATE = 9
MILD, SEVERE = (CollapseCriterion(metric="perplexity", threshold=t, direction="above", confirm=1) for t in (2, 4))
FACTS = CollapseCriterion(metric="facts", threshold=0.5, direction="below", relative_to="absolute", confirm=2)
Study = Callable[..., pl.DataFrame]

# A chain under one criterion: its status, and its onset or up to when it is known to be faithful.
Judged = tuple[str, float | None]
AT = {at: ("collapsed", at) for at in (0.0, 3.0, 5.0, 5.5, 6.0)}


def survived(last: float) -> Judged:
    return ("survived", last)


def unconfirmed(last: float) -> Judged:
    return ("unconfirmed", last)


FAILED: Judged = ("failed", None)
BOTH_CONFIRM_2 = [
    CollapseCriterion(metric=name, threshold=0.5, direction="below", relative_to="absolute", confirm=2)
    for name in ("facts", "grammar")
]


def judged(a: Judged, b: Judged) -> pl.DataFrame:
    """A chains table of one chain under two criteria, both with ``confirm: 2``."""
    rows = []
    for criterion, (status, at) in zip(BOTH_CONFIRM_2, (a, b), strict=True):
        known = status == "collapsed"
        row = {"chain_id": "x", "seed": 0, **criterion.model_dump(), "status": status}
        rows.append(row | {"onset": at if known else None, "fi_generations": at})
    floats = dict.fromkeys(("onset", "fi_generations", "chance"), pl.Float64)
    return pl.DataFrame(rows, schema_overrides=floats)


def two_metrics(study: Study, chains: dict[int, tuple[list[float], list[float]]]) -> pl.DataFrame:
    """A chains table of cross entropy under MILD and FACTS, from {seed: (perplexities, facts)}."""
    generations = study({("ce", seed): perplexity for seed, (perplexity, _) in chains.items()})
    facts = [value for _, row in chains.values() for value in row]
    table = generations.with_columns(facts=pl.Series(facts, dtype=pl.Float64))
    return chain_table(table, [MILD, FACTS], CROSS_ENTROPY, VARIED, LATE + 1)


def steps(onset: int | None, low: float, high: float, length: int = LATE + 1) -> list[float]:
    """``low``, then ``high`` from generation ``onset`` on."""
    return [low if onset is None or g < onset else high for g in range(length)]


def test_the_first_crossing_of_each_chain(study: Study) -> None:
    chains = two_metrics(
        study,
        {
            0: (steps(2, 100, 900), steps(5, 1, 0)),  # perplexity first
            1: (steps(5, 100, 900), steps(2, 1, 0)),  # facts first
            2: (steps(0, 100, 900), steps(0, 1, 0)),  # facts at the start; perplexity is its own reference
            3: (steps(None, 100, 900), steps(None, 1, 0)),  # neither
            4: (steps(None, 100, 900), steps(3, 1, 0)),  # facts; perplexity survived all along
            5: (steps(8, 100, 900), steps(8, 0.55, 0)),  # facts cross at 7.1 unconfirmed: they may turn out to be first
            6: (steps(8, 100, 900), steps(8, 1, 0)),  # facts cross at 7.5 unconfirmed, after perplexity's 7.3
        },
    )
    result = first_crossings(chains, VARIED)
    assert result["metric"].to_list() == ["perplexity", "facts", "facts", None, "facts", None, "perplexity"]
    assert result["order"].to_list() == ["first", "first", "first", "none", "first", "open", "first"]
    assert result["n_criteria"].to_list() == [2] * 7
    assert result["n_collapsed"].to_list() == [2, 2, 1, 0, 1, 1, 1]


def test_shares_count_what_is_open_against_either_end(study: Study) -> None:
    perplexity_first = {seed: (steps(2, 100, 900), steps(5, 1, 0)) for seed in range(7)}
    facts_first = {7: (steps(5, 100, 900), steps(2, 1, 0)), 8: (steps(None, 100, 900), steps(2, 1, 0))}
    unknown = {9: (steps(None, 100, 900), steps(None, 1, 0))}
    order = crossing_order(two_metrics(study, perplexity_first | facts_first | unknown), VARIED, level=0.9)
    facts, perplexity = order.iter_rows(named=True)
    assert (perplexity["metric"], perplexity["other_metric"]) == ("perplexity", "facts")
    counts = [perplexity[name] for name in ("n_chains", "n_before", "n_after", "n_tied", "n_open")]
    assert counts == [10, 7, 2, 0, 1]
    assert perplexity["share"] == pytest.approx(7 / 9)
    assert perplexity["share_low"] == pytest.approx(stats.binomtest(7, 10).proportion_ci(0.9).low, rel=1e-9)
    assert perplexity["share_high"] == pytest.approx(stats.binomtest(8, 10).proportion_ci(0.9).high, rel=1e-9)
    assert facts["share"] == pytest.approx(2 / 9)
    assert facts["share_low"] == pytest.approx(1 - perplexity["share_high"], rel=1e-9)


def test_ties_are_in_the_share_of_neither(study: Study) -> None:
    both_at_once = {seed: (steps(0, 900, 900), steps(0, 1, 0)) for seed in range(2)}
    generations = two_metrics(study, both_at_once)
    at_start = generations.with_columns(
        onset=pl.lit(0.0), status=pl.lit("collapsed"), censored=pl.lit(False), fi_generations=pl.lit(0.0)
    )
    order = crossing_order(at_start, VARIED)
    assert order["n_tied"].to_list() == [2, 2]
    assert order["share"].to_list() == [0.0, 0.0]
    assert first_crossings(at_start, VARIED)["order"].to_list() == ["tie", "tie"]


def test_failed_chains_are_left_out_and_nothing_is_no_row(study: Study) -> None:
    chains = two_metrics(study, {0: (steps(2, 100, 900), steps(5, 1, 0))})
    failed = chains.with_columns(status=pl.lit("failed"), onset=None, censored=None, fi_generations=None)
    assert crossing_order(failed, VARIED).is_empty()
    assert first_crossings(failed, VARIED)["order"].to_list() == ["none"]
    assert crossing_order(chains.clear(), VARIED).columns == crossing_order(chains, VARIED).columns
    with pytest.raises(ValueError, match="level"):
        crossing_order(chains, VARIED, level=90)


@given(st.lists(st.integers(1, 8) | st.none(), min_size=1, max_size=8), st.floats(1.1, 3.0))
def test_a_milder_threshold_of_one_metric_is_never_crossed_later(
    study: Study, onsets: list[int | None], rate: float
) -> None:
    curves = {
        ("ce", seed): [100.0 if onset is None or g < onset else 100.0 * rate ** (g - onset + 1) for g in range(10)]
        for seed, onset in enumerate(onsets)
    }
    chains = chain_table(study(curves), [MILD, SEVERE], CROSS_ENTROPY, VARIED, 10)
    mild, severe = crossing_order(chains, VARIED).sort("threshold").iter_rows(named=True)
    assert (mild["n_after"], severe["n_before"]) == (0, 0)
    assert (mild["share_low"] or 0) <= (mild["share"] if mild["share"] is not None else 0) + 1e-12


# Of the first criterion and of the second; the order; whether the first precedes, and whether the second does.
CASES = [
    (AT[3.0], AT[5.0], "first", True, False),
    (AT[5.0], AT[5.0], "tie", False, False),
    (AT[0.0], AT[0.0], "tie", False, False),
    (AT[3.0], survived(9), "first", True, False),
    (AT[5.0], survived(5), "first", True, False),  # seen not to cross at 5: it crosses later
    (AT[0.0], survived(0), "first", True, False),
    (AT[5.5], survived(5), "open", None, None),  # the other was not followed as far
    (AT[5.0], unconfirmed(7), "first", True, False),
    (AT[6.0], unconfirmed(6.5), "first", True, False),  # its crossings began after 6
    (AT[5.5], unconfirmed(5), "open", None, None),  # its crossing may turn out to be its collapse
    (AT[5.0], unconfirmed(5), "open", None, False),  # it does not collapse before 5; perhaps at 5
    (AT[0.0], unconfirmed(0), "open", None, False),
    (AT[6.0], unconfirmed(3), "open", None, None),
    (survived(9), survived(9), "open", None, None),
    (survived(3), unconfirmed(9), "open", None, None),
    (unconfirmed(9), unconfirmed(9), "open", None, None),
    (AT[3.0], FAILED, "open", None, None),
    (AT[0.0], FAILED, "open", None, False),  # nothing is before generation 0
    (FAILED, FAILED, "open", None, None),
]
TURNED = {"first": "second", "second": "first", "tie": "tie", "open": "open"}


@pytest.mark.parametrize(("a", "b", "order", "before", "after"), CASES)
def test_every_answer_follows_the_one_rule(
    a: Judged, b: Judged, order: str, before: bool | None, after: bool | None
) -> None:
    """A chain's order, that of the swapped pair, the share over chains and the first of all give one answer."""
    table, (first, second) = judged(a, b), BOTH_CONFIRM_2
    assert onset_orders(table, first, second).row(0) == ("x", 0, order, before)
    assert onset_orders(table, second, first).row(0) == ("x", 0, TURNED[order], after)
    if FAILED in (a, b):
        assert crossing_order(table, ["seed"]).is_empty()
        return
    counts = crossing_order(table, ["seed"]).row(by_predicate=pl.col("metric") == "facts", named=True)
    kinds = {"n_before": "first", "n_after": "second", "n_tied": "tie", "n_open": "open"}
    assert {name: counts[name] for name in kinds} == {name: int(kind == order) for name, kind in kinds.items()}
    result = first_crossings(table, ["seed"]).row(0, named=True)
    nothing = "collapsed" not in (a[0], b[0])
    assert result["order"] == ("none" if nothing else "first" if order in ("first", "second") else order)
    assert result["metric"] == {"first": "facts", "second": "grammar", "tie": "facts"}.get(order)


@pytest.mark.parametrize(
    ("chain", "by", "expected"),
    [
        (AT[5.0], 5, True),
        (AT[5.5], 5, False),
        (survived(5), 5, False),
        (survived(5), 6, None),
        (unconfirmed(5), 4, False),
        (unconfirmed(5), 5, None),  # its crossing may turn out to be its collapse, at 5 exactly
        (unconfirmed(5), 7, None),
        (FAILED, 0, None),
    ],
)
def test_whether_a_chain_had_collapsed_by_a_generation(chain: Judged, by: int, expected: bool | None) -> None:
    bounds = onset_bounds(judged(chain, chain).head(1))
    assert bounds.select(collapsed_by(by)).item() is expected
