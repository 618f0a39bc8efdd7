"""The collapse criterion: what it refuses, which metrics are on a log scale, and what its limit is."""

import math

import pytest
from pydantic import ValidationError

from fortifai_ray.fidelity import CollapseCriterion, is_log_scale

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


def test_perplexities_and_ratios_are_on_a_log_scale_and_nothing_else() -> None:
    log_scale = ["perplexity", "trace_ratio", "human_perplexity", "perplexity_wikitext2"]
    assert [is_log_scale(name) for name in log_scale] == [True] * 4
    linear = ["kr_accuracy", "loss", "kept_fraction", "ratio_of_means", "entropy", "trace"]
    assert [is_log_scale(name) for name in linear] == [False] * 6


def test_limit_is_the_threshold_times_its_reference() -> None:
    def limit(relative_to: str, own: float | None, baseline: float | None) -> float | None:
        return CollapseCriterion(**DOUBLED, relative_to=relative_to).limit(own, baseline)

    assert limit("baseline_generation_0", own=400.0, baseline=300.0) == 600.0
    assert limit("own_generation_0", own=400.0, baseline=300.0) == 800.0
    assert limit("absolute", own=400.0, baseline=None) == 2.0
    for broken in (None, math.nan, math.inf, 0.0, -1.0):
        assert limit("baseline_generation_0", own=400.0, baseline=broken) is None
        assert limit("own_generation_0", own=broken, baseline=300.0) is None
