"""An equality claim names its nearest wrong theory, and is refused where that would pass too."""

import math
from typing import Any

import numpy as np
import pytest

from fortifai_ray.claims.power import chains_needed, needed_after
from fortifai_ray.claims.result import Region
from fortifai_ray.errors import UserError
from fortifai_ray.statistics.intervals import mean
from fortifai_ray.study.claim_checks import StudyFacts, checked_claims
from fortifai_ray.study.claims import Claim

GAUSSIAN = {
    "family.kind": "gaussian",
    "regime.kind": "mixed",
    "regime.synthetic_ratio": 0.9,
    "regime.human": "kept",
    "samples_per_generation": 100,
}
CLAIM: dict[str, Any] = {
    "id": "variance",
    "source": "Doe 2024",
    "kind": "theory",
    "statistic": {"kind": "metric", "metric": "trace_ratio", "at": 99},
    "relation": "equals",
    "value": {"theory": "gaussian_mixed_mean_variance"},  # 0.8593
    "tolerance": {"absolute": 0.045},
    "must_reject": {
        "name": "fresh data",
        "value": {"theory": "gaussian_mixed_mean_variance", "human": "fresh"},
    },  # 0.9498
}
FACTS = StudyFacts(recipes=[GAUSSIAN], metrics=["trace_ratio"], criteria=[], generations=100)


def checked(**change: Any) -> Claim:
    content = {key: value for key, value in (CLAIM | change).items() if value is not None}
    return checked_claims([Claim.model_validate(content)], FACTS, "study.yaml")[0]


def test_a_wrong_theory_takes_its_arguments_from_the_recipe() -> None:
    """Only what makes it wrong is written; the study as resolved has all of it."""
    claim = checked()
    assert claim.wrong_numbers() == pytest.approx([0.949749], abs=1e-6)
    assert claim.model_dump(mode="json")["must_reject"][0]["value"]["n"] == 100
    assert Claim.model_validate(claim.model_dump(mode="json")) == claim
    both = checked(must_reject=[CLAIM["must_reject"], {"name": "nothing happens", "value": 0.99}])
    assert len(both.wrong_numbers()) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"must_reject": None}, "claims.0.must_reject: a theory claim needs the value under the nearest wrong theory"),
        *(
            ({"relation": relation, "tolerance": None, "value": value, "must_reject": None}, "a theory claim needs the")
            for relation, value in (
                ("at_most", 0.94),
                ("less", 0.94),
                ("at_least", 0.94),
                ("greater", 0.94),
                ("between", [0.8, 0.9]),
            )
        ),
        ({"tolerance": {"absolute": 0.0453}}, "0.0453 is more than half of the distance from 0.859301 to 0.949749"),
        ({"tolerance": {"relative": 0.06}}, "(fresh data): at most 0.04522 tells them apart (claim variance)"),
        ({"must_reject": {"name": "itself", "value": CLAIM["value"]}, "tolerance": {"absolute": 0}}, "tolerance: 0 is"),
        (
            {"must_reject": [CLAIM["must_reject"], {"name": "near", "value": 0.86}]},
            "more than half of the distance from 0.859301 to 0.86 (near)",
        ),
        (
            {"must_reject": {"name": "near", "value": {"theory": "ridge_excess"}}},
            "claims.0.must_reject: ridge_excess needs",
        ),
        ({"kind": "replication", "tolerance": {"absolute": 0.1}}, "0.1 is more than half of the distance"),
        (
            {"relation": "at_most", "tolerance": None, "value": 0.95},
            "must_reject: 0.949749 (fresh data) satisfies the claim",
        ),
        ({"relation": "between", "tolerance": None, "value": [0.8, 0.95]}, "satisfies the claim"),
        ({"relation": "greater", "tolerance": None, "value": 0.9}, "satisfies the claim"),
    ],
)
def test_a_claim_that_cannot_fail_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(**change)
    assert message in str(caught.value)
    assert str(caught.value).startswith("study.yaml: claims.0.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (0.0, r"\{name: …, value: …\} is needed, or a list of such \(got 0.0\)"),
        (["nothing"], r"or a list of such \(got 'nothing'\)"),
        (
            {"name": "x", "value": {"theory": "gaussian_replace_mean_variance", "n": 9, "generation": 1.5}},
            "whole number",
        ),
    ],
)
def test_what_is_no_wrong_theory_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Claim.model_validate(CLAIM | {"value": 0.86, "must_reject": wrong})


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tolerance": {"absolute": 0.0452}},
        {"kind": "replication", "must_reject": None},
        {"relation": "at_most", "tolerance": None, "value": 0.94},
        {"relation": "between", "tolerance": None, "value": [0.8, 0.9]},
        {"kind": "replication", "relation": "at_most", "tolerance": None, "value": 0.94, "must_reject": None},
    ],
)
def test_a_claim_that_can_fail_is_taken(change: dict[str, Any]) -> None:
    assert checked(**change).id == "variance"


@pytest.mark.parametrize(("spread", "tolerance", "level"), [(1.0, 0.1, 0.99), (0.3, 0.05, 0.9)])
def test_the_chains_that_are_needed_decide_both_ways(spread: float, tolerance: float, level: float) -> None:
    """Where the claim is right it holds, and where a theory twice the tolerance away is right it does not."""
    count = math.ceil(chains_needed(spread, tolerance, level))
    assert needed_after(mean(np.array([-1.0, 1.0] * 500), 0.99), 1000, 0.1, 0.99) == pytest.approx(
        chains_needed(1.0, 0.1, 0.99), rel=0.01
    )
    rng, region = np.random.default_rng(0), Region(-tolerance, tolerance)
    for truth, wanted in ((0.0, "holds"), (2 * tolerance, "does not hold")):
        intervals = [mean(rng.normal(truth, spread, count), level) for _ in range(400)]
        decided = np.mean([region.verdict(one.low, one.high) == wanted for one in intervals])
        assert decided >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 400), (truth, decided)
    assert chains_needed(0.0, tolerance, level) == 0
    assert chains_needed(spread, 0.0, level) == math.inf


def test_the_line_says_what_was_rejected(make_study: Any) -> None:
    values = np.random.default_rng(1).normal(0.9, 0.05, 40)
    chains = {("cross_entropy", None, s): {"trace_ratio": [1.0, float(v)]} for s, v in enumerate(values)}
    asked = {"statistic": {"kind": "metric", "metric": "trace_ratio", "at": 1}, "relation": "equals", "value": 0.9}
    wrong = [{"name": "nothing happens", "value": 1.0}, {"name": "a near miss", "value": 0.91}]
    [result] = make_study(chains, generations=2).check({**asked, "tolerance": {"absolute": 0.05}, "must_reject": wrong})
    assert result.wrong == "rejects nothing happens (1), does not reject a near miss (0.91)"
    assert result.wrong_value == 0.91
    assert result.chains_needed is not None
    assert 10 < result.chains_needed < 40
