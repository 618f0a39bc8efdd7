"""fidelity.parquet: medians, means and ratios per cell, with censoring kept as what it is."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.fidelity import fidelity_table
from fortifai_ray.statistics.intervals import geometric_mean, mean, ratio_of_means

VARIED = ["loss.kind", "loss.gamma", "seed"]
CROSS_ENTROPY = {"loss.kind": "cross_entropy"}
ABSOLUTE = CollapseCriterion(metric="score", threshold=0.5, direction="above", relative_to="absolute", confirm=0)
HORIZON = 9
Study = Callable[..., pl.DataFrame]


def curve(interval: float | None) -> list[float]:
    """A metric that crosses 0.5 exactly at ``interval`` (linear scale), or never."""
    if interval is None:
        return [0.0] * (HORIZON + 1)
    before = math.ceil(interval) - 1
    if before < 0:
        return [1.0]
    share = interval - before  # of the last step before the crossing, from 0 up to 0.5 / share at its end
    return [0.0] * (before + 1) + [0.5 / share * (1 + 1e-12)]


def table(study: Study, **intervals: list[float | None]) -> dict[tuple[str, str], dict[str, object]]:
    """{(loss, unit): row} of the fidelity table for the given intervals, one per seed."""
    curves = {(name, seed): curve(value) for name, values in intervals.items() for seed, value in enumerate(values)}
    generations = study(curves).rename({"perplexity": "score"})
    chains = chain_table(generations, [ABSOLUTE], CROSS_ENTROPY, VARIED, HORIZON + 1)
    return by_cell(fidelity_table(chains, VARIED, CROSS_ENTROPY))


def by_cell(fidelity: pl.DataFrame) -> dict[tuple[str, str], dict[str, object]]:
    names = {("cross_entropy", None): "ce", ("tce", 0.3): "tce", ("tce", 0.9): "tce9"}
    return {(names[row["loss.kind"], row["loss.gamma"]], row["unit"]): row for row in fidelity.iter_rows(named=True)}


def test_the_ratio_is_the_geometric_mean_of_the_seeds_ratios(study: Study) -> None:
    result = table(study, ce=[2, 4, 3], tce=[4, 4, 6])
    row = result["tce", "generations"]
    assert row["seed_ratios"] == pytest.approx([2, 1, 2], rel=1e-9)
    assert row["fi_ratio"] == pytest.approx(2 ** (2 / 3), rel=1e-9)
    assert (row["bound"], row["n_pairs"], row["n_chains"], row["n_censored"], row["level"]) == ("exact", 3, 3, 0, 0.9)
    assert row["fi_median"] == pytest.approx(4, rel=1e-9)
    assert row["fi_mean"] == pytest.approx(14 / 3, rel=1e-9)
    assert result["tce", "synthetic"]["fi_ratio"] == pytest.approx(row["fi_ratio"])
    assert result["tce", "synthetic"]["fi_mean"] == pytest.approx(14_000 / 3, rel=1e-9)


def test_the_baselines_own_ratio_is_exactly_one_whatever_became_of_it(study: Study) -> None:
    for intervals in ([2, 3], [None, None], [0, 0], [2, None], [1, 2, 3, 4, 5, 6], [1, 2, None, None]):
        row = table(study, ce=intervals)["ce", "generations"]
        assert (row["fi_ratio"], row["fi_ratio_bound"], row["bound"]) == (1.0, "exact", "exact")
        assert row["n_pairs"] == len(intervals)
        ends = (None, None) if len(intervals) < 3 else (1.0, 1.0)
        assert (row["fi_ratio_low"], row["fi_ratio_high"]) == ends


@pytest.mark.parametrize(
    ("ce", "tce", "bounds", "bound", "ratio"),
    [
        ([3, 3], [None, 6], ["lower", "exact"], "lower", math.sqrt(3 * 2)),
        ([None, 3], [3, 6], ["upper", "exact"], "upper", math.sqrt(1 / 3 * 2)),
        ([None, None], [None, None], ["undetermined"] * 2, "undetermined", None),
        ([3, None], [None, 3], ["lower", "upper"], "undetermined", None),
        ([3, None], [6, None], ["exact", "undetermined"], "undetermined", None),
        ([0, 3], [3, 3], ["undetermined", "exact"], "undetermined", None),  # a multiple of nothing
        ([0, 0], [0, 0], ["undetermined"] * 2, "undetermined", None),
        ([3, 3], [0, 3], ["exact", "exact"], "exact", 0.0),  # but 0 is no mean of ratios
        ([None, 3], [0, 3], ["exact", "exact"], "exact", 0.0),  # none of however much is none
    ],
)
def test_what_censoring_and_zero_make_of_the_ratio(
    study: Study, ce: list[float | None], tce: list[float | None], bounds: list[str], bound: str, ratio: float | None
) -> None:
    row = table(study, ce=ce, tce=tce)["tce", "generations"]
    assert (row["seed_bounds"], row["bound"]) == (bounds, bound)
    expected = None if ratio is None else pytest.approx(ratio, rel=1e-9)
    assert row["bound_ratio"] == expected
    told = bool(ratio)
    assert (row["fi_ratio"], row["fi_ratio_bound"]) == (expected if told else None, bound if told else "undetermined")
    assert row["estimator"] == (None if not told else "geometric mean" if bound == "exact" else "bound")
    assert [value is None for value in row["seed_ratios"]] == [kind == "undetermined" for kind in bounds]


def test_the_table_has_the_columns_of_the_contract(study: Study) -> None:
    contract = (
        "level n_chains n_censored n_pairs fi_median fi_mean fi_ratio fi_ratio_low fi_ratio_high estimator "
        "fi_ratio_bound seed_ratios seed_bounds bound_ratio bound mean_ratio mean_ratio_low mean_ratio_high "
        "mean_difference mean_difference_low mean_difference_high mean_ratio_horizon "
        "metric threshold relative_to direction confirm unit"
    )
    row = table(study, ce=[2], tce=[3])["tce", "generations"]
    assert set(contract.split()) <= row.keys()
    assert row["level"] == 0.90


CE, TCE = [2, 3, 4, 2.5, 3.5, 4.5, 3], [3, 4, 7, 2.6, 5, 6, 8]


def test_an_interval_takes_three_pairs_and_is_the_claims(study: Study) -> None:
    two = table(study, ce=CE[:2], tce=TCE[:2])["tce", "generations"]
    assert (two["fi_ratio_low"], two["fi_ratio_high"], two["estimator"]) == (None, None, "geometric mean")
    for pairs in (3, 6, 7):
        row = table(study, ce=CE[:pairs], tce=TCE[:pairs])["tce", "generations"]
        ratios = np.array(TCE[:pairs]) / np.array(CE[:pairs])
        expected = geometric_mean(ratios, 0.9)
        ends = (row["fi_ratio"], row["fi_ratio_low"], row["fi_ratio_high"])
        assert ends == pytest.approx((expected.measured, expected.low, expected.high), rel=1e-9)
        assert (row["fi_ratio_bound"], row["estimator"]) == ("exact", "geometric mean, Student t")


def test_equal_ratios_have_an_interval_of_no_width_once_they_are_five(study: Study) -> None:
    """At 90 %, the median of five pairs lies between the smallest and the largest; three may all lie to one side."""
    few = table(study, ce=[2, 3, 4], tce=[4, 6, 8])["tce", "generations"]
    assert (few["fi_ratio"], few["fi_ratio_low"], few["estimator"]) == (pytest.approx(2), None, "geometric mean")
    row = table(study, ce=[1, 2, 2.5, 3, 4], tce=[2, 4, 5, 6, 8])["tce", "generations"]
    assert (row["fi_ratio_low"], row["fi_ratio_high"]) == pytest.approx((2, 2), rel=1e-9)
    assert row["estimator"] == "median pair, order statistics"


@pytest.mark.parametrize(
    ("ce", "tce", "bound"),
    [
        (CE, [*TCE[:6], None], "lower"),
        ([*CE[:6], None], TCE, "upper"),
        ([*CE[:6], None], [*TCE[:6], None], "undetermined"),
        ([*CE[:5], None, 3], [*TCE[:5], 8, None], "undetermined"),
        ([*CE[:4], None, None, 3], [*TCE[:4], 8, None, None], "undetermined"),
    ],
)
def test_one_censored_chain_leaves_an_estimate_from_all_of_them(
    study: Study, ce: list[float | None], tce: list[float | None], bound: str
) -> None:
    """It takes half of the chains of each side, whatever the pairs' own bounds say; those stand beside it."""
    row = table(study, ce=ce, tce=tce)["tce", "generations"]
    assert (row["fi_ratio_bound"], row["bound"]) == ("exact", bound)
    assert row["estimator"] == "censored log-normal, profile likelihood"
    assert row["fi_ratio_low"] < row["fi_ratio"] < row["fi_ratio_high"]
    if bound == "lower":
        assert row["bound_ratio"] < row["fi_ratio"]
    if bound == "upper":
        assert row["bound_ratio"] > row["fi_ratio"]


def test_where_most_chains_of_one_side_are_censored_the_ratio_is_a_bound(study: Study) -> None:
    """Of what the pairs say, without a model: a law's tail says nothing of where the typical chain collapses."""
    logs = np.log(9 / np.array(CE))
    row = table(study, ce=CE, tce=[None] * 7)["tce", "generations"]
    assert (row["fi_ratio_bound"], row["bound"], row["fi_ratio_high"]) == ("lower", "lower", None)
    assert row["estimator"] == "bound, Student t"
    assert row["fi_ratio"] == pytest.approx(math.exp(logs.mean()), rel=1e-9)
    assert row["fi_ratio_low"] == pytest.approx(math.exp(mean(logs, 0.8).low), rel=1e-9)  # one end has both ends' 10 %
    upper = table(study, ce=[None] * 7, tce=TCE)["tce", "generations"]
    assert (upper["fi_ratio_bound"], upper["bound"], upper["fi_ratio_low"]) == ("upper", "upper", None)
    assert upper["fi_ratio"] <= upper["fi_ratio_high"] < 1
    some = table(study, ce=CE, tce=[*TCE[:3], *[None] * 4])["tce", "generations"]
    assert (some["fi_ratio_bound"], some["fi_ratio"]) == ("lower", some["bound_ratio"])
    open_pair = table(study, ce=[*CE[:6], None], tce=[None] * 7)["tce", "generations"]  # one says nothing, six do
    assert (open_pair["bound"], open_pair["fi_ratio_bound"]) == ("undetermined", "lower")
    assert open_pair["estimator"] == "bound, order statistics"
    assert open_pair["fi_ratio_low"] == pytest.approx(9 / 4.5)  # the second smallest of seven
    assert open_pair["fi_ratio"] == pytest.approx(9 / 3.5)


@pytest.mark.parametrize(
    ("ce", "tce"),
    [
        ([4, None, None], [None, 8, None]),
        ([3, *[None] * 9], [6, *[None] * 9]),
        ([3, 4, *[None] * 38], [6, 5, *[None] * 38]),
        ([*CE[:2], *[None] * 5], [None] * 7),
    ],
)
def test_from_a_few_collapses_nothing_is_told_of_the_others(
    study: Study, ce: list[float | None], tce: list[float | None]
) -> None:
    row = table(study, ce=ce, tce=tce)["tce", "generations"]
    assert (row["fi_ratio"], row["fi_ratio_low"], row["fi_ratio_high"]) == (None, None, None)
    assert (row["fi_ratio_bound"], row["estimator"]) == ("undetermined", None)


def test_many_pairs_need_no_model(study: Study) -> None:
    """From 30 pairs on the interval lies between order statistics of what the pairs say, for any law."""
    ce = np.linspace(2, 4, 40)
    tce: list[float | None] = list(np.sort(ce * np.linspace(1.2, 1.9, 40)))
    tce[-8:] = [None] * 8
    row = table(study, ce=list(ce), tce=tce)["tce", "generations"]
    lows = np.sort([(9 if b is None else b) / a for a, b in zip(ce, tce, strict=True)])
    assert (row["estimator"], row["fi_ratio_bound"]) == ("median pair, order statistics", "exact")
    assert row["fi_ratio_low"] == pytest.approx(lows[14])  # P(B < 15) = 0.040 and P(B < 16) = 0.077 for 40
    assert row["fi_ratio"] == pytest.approx(math.sqrt(lows[19] * lows[20]))
    assert row["fi_ratio_high"] == pytest.approx(lows[25])


def test_a_chain_that_collapsed_at_generation_0_leaves_the_median_pair(study: Study) -> None:
    row = table(study, ce=CE, tce=[0, *TCE[1:]])["tce", "generations"]
    ratios = np.sort(np.array([0, *TCE[1:]]) / np.array(CE))
    assert (row["fi_ratio"], row["fi_ratio_low"]) == pytest.approx((ratios[3], 0))
    assert (row["fi_ratio_high"], row["estimator"]) == (pytest.approx(ratios[6]), "median pair, order statistics")
    assert (row["mean_ratio"], row["mean_ratio_horizon"]) == (pytest.approx(sum(TCE[1:]) / sum(CE)), None)


def test_means_up_to_the_common_horizon_are_exact_whatever_is_censored_beyond_it(study: Study) -> None:
    """The chains that last, and how long, do not matter: the means are those of min(FI, 9)."""
    row = table(study, ce=[2, 4, 6, None], tce=[4, None, 9, None])["tce", "generations"]
    ce, tce = np.array([2, 4, 6, 9.0]), np.array([4, 9, 9, 9.0])
    assert row["mean_ratio_horizon"] == HORIZON
    assert (row["mean_ratio"], row["mean_difference"]) == pytest.approx((tce.mean() / ce.mean(), (tce - ce).mean()))
    difference, ratio = mean(tce - ce, 0.9), ratio_of_means(tce, ce, 0.9)
    assert (row["mean_difference_low"], row["mean_difference_high"]) == pytest.approx((difference.low, difference.high))
    assert (row["mean_ratio_low"], row["mean_ratio_high"]) == pytest.approx((ratio.low, ratio.high))
    early = table(study, ce=[2, 4, 6], tce=[4, 5, 7])["tce", "generations"]
    assert (early["mean_ratio_horizon"], early["mean_ratio"]) == (None, pytest.approx(16 / 12))


def test_nothing_collapsed_claims_nothing(study: Study) -> None:
    row = table(study, ce=[None] * 7, tce=[None] * 7)["tce", "generations"]
    assert (row["fi_median"], row["fi_ratio"], row["bound"]) == (None, None, "undetermined")
    assert (row["fi_ratio_low"], row["fi_ratio_high"]) == (None, None)
    assert (row["n_censored"], row["fi_mean"], row["fi_mean_horizon"]) == (7, HORIZON, HORIZON)


def test_everything_collapsed_at_generation_0(study: Study) -> None:
    row = table(study, ce=[0] * 7, tce=[0] * 7)["tce", "generations"]
    assert (row["fi_median"], row["fi_mean"], row["fi_ratio"], row["bound"]) == (0, 0, None, "undetermined")


def test_a_single_seed_gives_its_ratio_and_no_interval(study: Study) -> None:
    row = table(study, ce=[2], tce=[4])["tce", "generations"]
    assert (row["fi_ratio"], row["n_pairs"], row["fi_ratio_low"]) == (pytest.approx(2, rel=1e-9), 1, None)


def test_no_baseline_cell_gives_intervals_without_ratios(study: Study) -> None:
    row = table(study, tce=[2, 4])["tce", "generations"]
    assert (row["n_chains"], row["n_pairs"], row["fi_ratio"], row["bound"]) == (2, 0, None, "undetermined")
    assert row["seed_ratios"] == []
    assert row["fi_mean"] == pytest.approx(3, rel=1e-9)


def test_seeds_without_a_partner_do_not_enter_the_ratio(study: Study) -> None:
    row = table(study, ce=[2], tce=[4, 8, 8])["tce", "generations"]
    assert (row["n_chains"], row["n_pairs"], row["fi_ratio"]) == (3, 1, pytest.approx(2, rel=1e-9))


def test_failed_chains_are_counted_and_left_out(study: Study) -> None:
    generations = study({("ce", s): curve(2) for s in range(3)} | {("tce", s): curve(4) for s in range(3)})
    generations = generations.rename({"perplexity": "score"}).filter(
        ~((pl.col("chain_id") == "tce-1") & (pl.col("generation") > 1))
    )
    chains = chain_table(generations, [ABSOLUTE], CROSS_ENTROPY, VARIED, HORIZON + 1, failed=["tce-1"])
    row = by_cell(fidelity_table(chains, VARIED, CROSS_ENTROPY))["tce", "generations"]
    assert (row["n_chains"], row["n_failed"], row["n_censored"], row["n_pairs"]) == (2, 1, 0, 2)
    assert row["fi_ratio"] == pytest.approx(2, rel=1e-9)
    all_failed = chains.with_columns(status=pl.lit("failed"), fi_generations=None, censored=None)
    gone = by_cell(fidelity_table(all_failed, VARIED, CROSS_ENTROPY))["ce", "generations"]
    assert (gone["n_chains"], gone["n_failed"], gone["fi_ratio"], gone["bound"]) == (0, 3, None, "undetermined")


def test_the_mean_is_restricted_to_what_all_compared_cells_have_seen(study: Study) -> None:
    result = table(study, ce=[2, 4], tce=[4, None], tce9=[None, None])
    assert [result[name, "generations"]["fi_mean"] for name in ("ce", "tce", "tce9")] == pytest.approx([3, 6.5, 9])
    # a chain that ended at generation 5 without collapsing, alone in its cell: nothing is known after 5
    generations = study({("ce", 0): curve(7), ("tce", 0): [0.0] * 6}).rename({"perplexity": "score"})
    chains = chain_table(generations, [ABSOLUTE], CROSS_ENTROPY, VARIED, HORIZON + 1)
    cut = by_cell(fidelity_table(chains, VARIED, CROSS_ENTROPY))["ce", "generations"]
    assert (cut["fi_mean"], cut["fi_mean_horizon"]) == (5, 5)


def test_chains_that_were_to_run_for_different_lengths_share_the_longest_horizon(study: Study) -> None:
    parts = []
    for seed, asked in ((0, HORIZON + 1), (1, 6)):  # two sweeps of one study, the second with fewer generations
        generations = study({("ce", seed): curve(2), ("tce", seed): curve(4)}).rename({"perplexity": "score"})
        parts.append(chain_table(generations, [ABSOLUTE], CROSS_ENTROPY, VARIED, asked))
    for order in (parts, parts[::-1]):
        result = by_cell(fidelity_table(pl.concat(order), VARIED, CROSS_ENTROPY))["tce", "generations"]
        assert (result["fi_mean"], result["fi_mean_horizon"]) == (pytest.approx(4), HORIZON)


def test_human_data_only_consumes_no_synthetic_tokens_and_says_nothing_in_that_unit(study: Study) -> None:
    generations = study({("ce", 0): curve(None), ("tce", 0): curve(3)}).rename({"perplexity": "score"})
    human_only = generations.with_columns(synthetic_size_cum=0)
    chains = chain_table(human_only, [ABSOLUTE], CROSS_ENTROPY, VARIED, HORIZON + 1)
    row = by_cell(fidelity_table(chains, VARIED, CROSS_ENTROPY))["tce", "synthetic"]
    assert (row["fi_ratio"], row["bound"], row["fi_mean"]) == (None, "undetermined", None)


def test_two_criteria_that_differ_only_in_their_confirmation_stay_apart(study: Study) -> None:
    generations = study({("ce", 0): [100, 400, 100, 400, 400]})
    criteria = [CollapseCriterion(metric="perplexity", threshold=2, direction="above", confirm=n) for n in (0, 1)]
    chains = chain_table(generations, criteria, CROSS_ENTROPY, VARIED, 5)
    fidelity = fidelity_table(chains, VARIED, CROSS_ENTROPY).filter(pl.col("unit") == "generations")
    assert fidelity.select("confirm", "fi_median").rows() == [(0, 0.5), (1, 2.5)]


def test_a_study_that_varies_only_its_seed(study: Study) -> None:
    generations = study({("ce", seed): [100, 400, 400] for seed in range(3)})
    criterion = CollapseCriterion(metric="perplexity", threshold=2, direction="above")
    chains = chain_table(generations, [criterion], CROSS_ENTROPY, ["seed"], 3)
    fidelity = fidelity_table(chains, ["seed"], CROSS_ENTROPY)
    assert fidelity["fi_ratio"].to_list() == [1.0, 1.0]
    assert fidelity["n_chains"].to_list() == [3, 3]


def test_an_empty_table_and_a_wrong_level(study: Study) -> None:
    criterion = CollapseCriterion(metric="perplexity", threshold=2, direction="above")
    chains = chain_table(study({("ce", 0): [100, 100]}), [criterion], CROSS_ENTROPY, VARIED, 2)
    assert (
        fidelity_table(chains.clear(), VARIED, CROSS_ENTROPY).columns
        == fidelity_table(chains, VARIED, CROSS_ENTROPY).columns
    )
    for wrong in (90.0, 0.0):
        with pytest.raises(ValueError, match="must"):
            fidelity_table(chains, VARIED, CROSS_ENTROPY, level=wrong)


intervals = st.lists(st.none() | st.integers(0, 8) | st.floats(0.5, 8.5), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None)
@given(intervals, intervals, st.randoms(use_true_random=False))
def test_the_table_does_not_depend_on_the_order_of_rows_and_its_bounds_hold(
    study: Study, ce: list[float | None], tce: list[float | None], random: object
) -> None:
    curves = {("ce", s): curve(v) for s, v in enumerate(ce)} | {("tce", s): curve(v) for s, v in enumerate(tce)}
    generations = study(curves).rename({"perplexity": "score"})
    chains = chain_table(generations, [ABSOLUTE], CROSS_ENTROPY, VARIED, HORIZON + 1)
    order = list(range(chains.height))
    random.shuffle(order)  # type: ignore[attr-defined]
    fidelity = fidelity_table(chains, VARIED, CROSS_ENTROPY)
    assert fidelity_table(chains[order], VARIED, CROSS_ENTROPY).equals(fidelity)
    row = by_cell(fidelity)["tce", "generations"]
    pairs = list(zip(ce, tce, strict=False))
    assert row["n_pairs"] == len(pairs)
    assert row["n_censored"] == sum(value is None for value in tce)
    for later in (20.0, 2_000.0):  # had the censored chains collapsed then, would the bound have held?
        pairs_seen = [(later if a is None else a, later if b is None else b) for a, b in pairs]
        if row["bound_ratio"] and all(a > 0 and b > 0 for a, b in pairs_seen):
            truth = math.exp(sum(math.log(b / a) for a, b in pairs_seen) / len(pairs_seen))
            slack = truth * 1e-9
            assert row["bound"] != "lower" or row["bound_ratio"] <= truth + slack
            assert row["bound"] != "upper" or row["bound_ratio"] >= truth - slack
            assert row["bound"] != "exact" or row["bound_ratio"] == pytest.approx(truth, rel=1e-9)
    ends = [row[name] for name in ("fi_ratio_low", "fi_ratio", "fi_ratio_high") if row[name] is not None]
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(ends))
    sides = [[value for value in side if value is not None] for side in zip(*pairs, strict=True)]
    seen = all(2 * len(side) >= len(pairs) and 2 * len(set(side)) > len(side) for side in sides)
    if len(pairs) >= 3 and seen and all(a != 0 and b != 0 for a, b in pairs):
        assert row["fi_ratio_bound"] == "exact"  # half of the chains of each side are enough, if few are tied
