"""The ratio as a function of the threshold, where it is known: perplexities that grow at a known rate."""

import math
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.fidelity import fidelity_table, ratio_profile, spanning_thresholds

VARIED = ["loss.kind", "loss.gamma", "seed"]
CROSS_ENTROPY = {"loss.kind": "cross_entropy"}
DOUBLED = CollapseCriterion(metric="perplexity", threshold=2.0, direction="above", confirm=0)
N = 12
Study = Callable[..., pl.DataFrame]


def two_phases(seeds: int = 7) -> dict[tuple[str, int], list[float]]:
    """Cross entropy doubles each generation. TCE does too up to twice the start, and then takes two for each doubling:
    it reaches the threshold T after 2·log2(T) − 1 generations where cross entropy takes log2(T)."""
    scale = [100.0 + seed for seed in range(seeds)]
    tce = [float(g) if g <= 1 else 1 + (g - 1) / 2 for g in range(N)]
    return {("ce", s): [scale[s] * 2.0**g for g in range(N)] for s in range(seeds)} | {
        ("tce", s): [scale[s] * 2.0**g for g in tce] for s in range(seeds)
    }


def tce_in_generations(profile: pl.DataFrame) -> list[dict[str, Any]]:
    return profile.filter(pl.col("loss.kind") == "tce", pl.col("unit") == "generations").to_dicts()


def test_the_ratio_grows_with_the_threshold_as_it_was_made_to(study: Study) -> None:
    thresholds = [1.5, 2.0, 4.0, 16.0, 100.0]
    rows = tce_in_generations(ratio_profile(study(two_phases()), DOUBLED, thresholds, CROSS_ENTROPY, VARIED, N))
    assert [row["threshold"] for row in rows] == thresholds
    assert [row["bound"] for row in rows] == ["exact"] * 4 + ["lower"]  # 100: generation 12.3, after the last
    expected = [(2 * math.log2(t) - 1) / math.log2(t) if t > 2 else 1.0 for t in thresholds[:4]]
    expected.append(11 / math.log2(100))  # censored at generation 11
    assert [row["fi_ratio"] for row in rows] == pytest.approx(expected, rel=1e-9)
    assert [row["n_censored"] for row in rows] == [0, 0, 0, 0, 7]
    assert [row["fi_ratio_low"] for row in rows[:4]] == pytest.approx(expected[:4], rel=1e-9)


def test_at_the_criterions_own_threshold_it_is_the_fidelity_table(study: Study) -> None:
    generations = study(two_phases())
    chains = chain_table(generations, [DOUBLED], CROSS_ENTROPY, VARIED, N)
    fidelity = fidelity_table(chains, VARIED, CROSS_ENTROPY)
    profile = ratio_profile(generations, DOUBLED, [2.0], CROSS_ENTROPY, VARIED, N)
    assert profile.sort(pl.all()).equals(fidelity.select(profile.columns).sort(pl.all()))


def test_its_own_thresholds_span_from_generation_0_to_full_collapse(study: Study) -> None:
    generations = study(two_phases() | {("tce9", s): [130.0] * N for s in range(7)})  # starts worst of all, at 1.3
    thresholds = spanning_thresholds(generations, DOUBLED, CROSS_ENTROPY, VARIED, N, points=10)
    steps = [b / a for a, b in zip([1.3, *thresholds], thresholds, strict=False)]
    assert steps == pytest.approx([steps[0]] * 10)  # even on the log scale, the first just beyond generation 0
    worst = [2.0 ** (N - 1)] * 7 + [2.0 ** (1 + (N - 2) / 2)] * 7 + [1.3] * 7  # 7 · 3 chains: TCE's is the median
    assert thresholds[-1] == pytest.approx(sorted(worst)[10])
    profile = ratio_profile(generations, DOUBLED, None, CROSS_ENTROPY, VARIED, N)
    collapsed = profile.filter(pl.col("is_baseline"), pl.col("unit") == "generations")
    assert collapsed["n_censored"].to_list() == [0] * collapsed.height
    assert not (profile["fi_median"] == 0).any()  # nothing has collapsed at generation 0


def test_below_and_over_chance_run_from_mild_to_severe(study: Study) -> None:
    falling = {(name, s): [0.25 + 0.6 * (1 - g / 20) for g in range(N)] for name in ("ce", "tce") for s in range(2)}
    generations = study(falling).rename({"perplexity": "kr_accuracy"})
    for chance, lost in ((None, 0.0), (0.25, 0.25)):
        criterion = CollapseCriterion(metric="kr_accuracy", threshold=0.9, direction="below", chance=chance)
        thresholds = spanning_thresholds(generations, criterion, CROSS_ENTROPY, VARIED, N, points=4)
        end = (0.25 + 0.6 * 9 / 20 - lost) / (0.85 - lost)
        assert thresholds == pytest.approx([1 - (1 - end) * k / 4 for k in (1, 2, 3, 4)])
        profile = ratio_profile(generations, criterion, thresholds, CROSS_ENTROPY, VARIED, N)
        medians = profile.filter(pl.col("is_baseline"), pl.col("unit") == "generations")["fi_median"].to_list()
        assert medians[:2] == pytest.approx([2.75, 5.5])  # a quarter and half of the way that 11 generations went


def test_an_excess_over_a_floor_grows(study: Study) -> None:
    losses = {("ce", 0): [4.0, 5.0, 7.0], ("tce", 0): [4.0, 5.0, 7.0]}  # over 3, the entropy of the truth: 1, 2, 4
    generations = study(losses).rename({"perplexity": "loss_in_nats"})
    floor = CollapseCriterion(metric="loss_in_nats", threshold=2.0, direction="above", chance=3.0, confirm=0)
    thresholds = spanning_thresholds(generations, floor, CROSS_ENTROPY, VARIED, 3, points=3)
    assert thresholds == pytest.approx([2.0, 3.0, 4.0])
    profile = ratio_profile(generations, floor, [3.0, 1.5], CROSS_ENTROPY, VARIED, 3)
    baselines = profile.filter(pl.col("is_baseline"), pl.col("unit") == "generations")
    assert baselines["threshold"].to_list() == [1.5, 3.0]  # the mildest first
    assert baselines["fi_median"].to_list() == pytest.approx([0.5, 1.5])


def test_an_absolute_criterion_spans_the_metrics_own_values(study: Study) -> None:
    absolute = DOUBLED.model_copy(update={"relative_to": "absolute"})
    curves = {("ce", 0): [100.0, 200.0, 400.0], ("tce", 0): [100.0, 200.0, 400.0]}
    thresholds = spanning_thresholds(study(curves), absolute, CROSS_ENTROPY, VARIED, 3, points=2)
    assert thresholds == pytest.approx([200.0, 400.0])


def test_a_study_that_never_got_worse_has_no_profile(study: Study) -> None:
    generations = study({("ce", 0): [100.0] * 3, ("tce", 0): [100.0] * 3})
    with pytest.raises(ValueError, match="no chain got worse than generation 0"):
        ratio_profile(generations, DOUBLED, None, CROSS_ENTROPY, VARIED, 3)
    with pytest.raises(ValueError, match="above 0"):
        ratio_profile(generations, DOUBLED, [-1.0], CROSS_ENTROPY, VARIED, 3)


def test_the_curves_of_the_design_facts_gain_4_percent_at_twice_and_20_at_ten_times(study: Study) -> None:
    curves = {
        ("ce", 0): [329.0, 351.0, 517.0, 1_114.0, 3_993.0, 15_072.0, 81_374.0],
        ("tce", 0): [330.0, 367.0, 506.0, 964.0, 1_934.0, 4_471.0, 11_909.0],
    }
    rows = tce_in_generations(ratio_profile(study(curves), DOUBLED, [2.0, 10.0], CROSS_ENTROPY, VARIED, 7))
    assert [row["fi_ratio"] for row in rows] == pytest.approx([1.04, 1.204], abs=0.001)
