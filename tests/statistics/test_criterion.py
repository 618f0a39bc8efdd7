"""The collapse criterion: what it refuses, which metrics are on a log scale, and what its limit is."""

import math

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from fortifai_ray.metrics import METRICS, fidelity
from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import CollapseCriterion, criteria_of, criterion_rows
from fortifai_ray.statistics.fidelity import fidelity_table

DOUBLED = {"metric": "perplexity", "threshold": 2.0, "direction": "above"}


def test_defaults_are_the_baselines_generation_0_and_one_confirmation() -> None:
    criterion = CollapseCriterion(**DOUBLED)
    assert (criterion.relative_to, criterion.confirm) == ("baseline_generation_0", 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.0},
        {"threshold": -2.0, "relative_to": "own_generation_0"},
        {"threshold": math.inf},
        {"threshold": math.nan},
        {"threshold": 0.0, "relative_to": "absolute"},  # a perplexity is positive: never met
        {"direction": "over"},
        {"relative_to": "generation_0"},
        {"confirm": -1},
        {"confirm": True},
        {"confirm": 1.5},
        {"metric": ""},
        {"patience": 2},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CollapseCriterion(**{**DOUBLED, **wrong})


def test_an_absolute_threshold_on_a_linear_metric_may_be_negative() -> None:
    CollapseCriterion(metric="log_likelihood", threshold=-3.0, direction="below", relative_to="absolute")


def test_the_registry_says_which_metrics_are_on_a_log_scale() -> None:
    def log_scale(metric: str) -> bool:
        return CollapseCriterion(**{**DOUBLED, "metric": metric}).log_scale

    assert all(map(log_scale, ["perplexity", "trace_ratio", "perplexity_wikitext2", "surplexity"]))
    linear = ["kr_accuracy", "loss", "kept_fraction", "ratio_of_means", "entropy", "trace", "success_ratio"]
    assert not any(map(log_scale, linear))


def test_limit_is_the_threshold_times_its_reference() -> None:
    def limit(relative_to: str, own: float | None, baseline: float | None) -> float | None:
        return CollapseCriterion(**DOUBLED, relative_to=relative_to).limit(own, baseline)

    assert limit("baseline_generation_0", own=400.0, baseline=300.0) == 600.0
    assert limit("own_generation_0", own=400.0, baseline=300.0) == 800.0
    assert limit("absolute", own=400.0, baseline=None) == 2.0
    for broken in (None, math.nan, math.inf, 0.0, -1.0):
        assert limit("baseline_generation_0", own=400.0, baseline=broken) is None
        assert limit("own_generation_0", own=broken, baseline=300.0) is None


ACCURACY = {"metric": "kr_accuracy", "threshold": 0.5, "direction": "below", "relative_to": "own_generation_0"}


def test_over_chance_half_of_the_fidelity_is_half_of_what_lies_above_chance() -> None:
    over_chance = CollapseCriterion(**ACCURACY, chance=0.25)
    assert over_chance.limit(0.85, None) == pytest.approx(0.55, rel=1e-12)
    assert CollapseCriterion(**ACCURACY).limit(0.85, None) == pytest.approx(0.425, rel=1e-12)
    assert CollapseCriterion(**ACCURACY, chance=0.0).limit(0.85, None) == pytest.approx(0.425, rel=1e-12)


def test_a_start_at_chance_or_below_it_has_nothing_to_lose() -> None:
    over_chance = CollapseCriterion(**ACCURACY, chance=0.25)
    assert over_chance.limit(0.25, None) is None
    assert over_chance.limit(0.2, None) is None
    assert over_chance.limit(math.nan, None) is None


def test_chance_may_lie_on_the_other_side_of_a_metric_that_grows_worse() -> None:
    # a perplexity of 200 against a uniform guess over 2,000 tokens: half of the 1,800 between them are lost at 1,100
    guess = CollapseCriterion(metric="perplexity", threshold=0.5, direction="above", chance=2_000.0)
    assert guess.limit(None, 200.0) == pytest.approx(1_100.0, rel=1e-12)
    assert guess.limit(None, 2_500.0) is None
    # a floor instead (the entropy of the truth): collapsed where the excess has doubled
    floor = CollapseCriterion(metric="loss", threshold=2.0, direction="above", chance=3.0)
    assert floor.limit(None, 4.0) == pytest.approx(5.0, rel=1e-12)


@pytest.mark.parametrize(
    "wrong", [{"relative_to": "absolute"}, {"chance": math.nan}, {"chance": math.inf}, {"threshold": 1.0}]
)
def test_chance_that_normalises_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CollapseCriterion(**{**ACCURACY, "chance": 0.25, **wrong})


def test_over_chance_is_the_registrys_chance_normalised_fidelity() -> None:
    known = METRICS["kr_accuracy"]
    criterion = CollapseCriterion(**{**ACCURACY, "threshold": 0.3}, chance=known.chance)
    limit = criterion.limit(0.9, None)
    assert limit is not None
    assert fidelity(known, limit, 0.9) == pytest.approx(0.3, rel=1e-12)


def test_limits_of_many_are_the_limits_of_each() -> None:
    references = [0.9, 0.3, 0.25, 0.1, 0.0, -1.0, math.nan, math.inf]
    for chance in (None, 0.25):
        criterion = CollapseCriterion(**ACCURACY, chance=chance)
        each = [criterion.limit(reference, None) for reference in references]
        many = criterion.limits(np.array(references)).tolist()
        assert [None if math.isnan(value) else value for value in many] == each


def test_criteria_that_differ_in_chance_alone_stay_apart_in_the_tables() -> None:
    plain, over_chance = CollapseCriterion(**ACCURACY), CollapseCriterion(**ACCURACY, chance=0.25)
    accuracies = {"chain_id": "a", "seed": 0, "generation": range(4), "kr_accuracy": [0.85, 0.7, 0.5, 0.3]}
    generations = pl.DataFrame({**accuracies, "synthetic_size_cum": [0, 1, 2, 3]})
    chains = chain_table(generations, [plain, over_chance], {"loss.kind": "cross_entropy"}, ["seed"], 4)
    assert criteria_of(chains) == [plain, over_chance]
    result = [chains.filter(criterion_rows(one)).row(0, named=True) for one in (plain, over_chance)]
    assert [row["status"] for row in result] == ["unconfirmed", "collapsed"]
    assert result[1]["onset"] == pytest.approx(1.75, rel=1e-12)
    table = fidelity_table(chains, ["seed"], {"loss.kind": "cross_entropy"})
    assert table.filter(criterion_rows(over_chance)).height == 2


def test_the_words_name_all_that_a_number_depends_on() -> None:
    words = CollapseCriterion(**ACCURACY, chance=0.25, confirm=2).words
    assert (
        words == "KR accuracy below 0.5× its own generation 0 beyond chance (0.25), confirmed by 2 further generations"
    )
