"""Onsets, FI ratios and critical points: read from the tables as they are, open answers as open answers."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from fortifai_ray.statistics.intervals import geometric_mean, share

from .conftest import CRITERIA

AT_CE = {"loss.kind": "cross_entropy"}


def _grows(rate: float, generations: int = 6) -> list[float]:
    return [10 * math.exp(rate * g) for g in range(generations)]


def _falls(rate: float, generations: int = 6) -> list[float]:
    return [math.exp(-rate * g) for g in range(generations)]


# perplexity doubles after ln 2 / rate generations: 1.73, 2.31, 3.47, and never within five
RATES = {0: 0.4, 1: 0.3, 2: 0.2, 3: 0.1}
CHAINS = {("cross_entropy", None, seed): {"perplexity": _grows(rate)} for seed, rate in RATES.items()}


@pytest.mark.parametrize(("by", "expected"), [(None, 3), (5, 3), (3, 2), (2, 1), (1, 0)])
def test_the_share_of_chains_that_collapsed_by_a_generation(by: int | None, expected: int, make_study: Any) -> None:
    result = make_study(CHAINS).one({"kind": "onset_share", "criterion": "perplexity", "by": by}, where=AT_CE)
    interval = share(expected, 4 - expected, 0, 0.99)
    assert (result.measured, result.low, result.high) == (expected / 4, interval.low, interval.high)
    assert result.n_chains == 4


def test_a_chain_that_failed_counts_on_both_sides(make_study: Any) -> None:
    """The chain failed before it collapsed: it might have, and it might not."""
    chains = {**CHAINS, ("cross_entropy", None, 3): {"perplexity": _grows(0.1, 2)}}
    study = make_study(chains, failed=["cross_entropy-None-3"])
    result = study.one({"kind": "onset_share"}, where=AT_CE)
    assert (result.low, result.high) == (share(3, 1, 0, 0.99).low, share(4, 0, 0, 0.99).high)
    assert result.why == "open in 1 of 4 chains"


def test_a_crossing_that_nothing_confirmed_is_open_at_the_horizon_and_not_before(make_study: Any) -> None:
    chains = {
        ("cross_entropy", None, seed): {"tail": [1.0, 0.9, 0.8, 0.7, 0.6, 0.4]} for seed in range(3)
    }  # crosses at the last generation, and the criterion asks for one more
    study = make_study(chains)
    assert study.one({"kind": "onset_share"}, where=AT_CE).why == "open in 3 of 3 chains"
    before = study.one({"kind": "onset_share", "by": 3}, where=AT_CE)
    assert (before.measured, before.why) == (0.0, "")


def test_the_order_of_two_onsets(make_study: Any) -> None:
    """Tails first: seeds 0 and 1; perplexity first: seed 2; only the tail: seed 3; neither (open): seed 4."""
    tails = {0: 0.9, 1: 0.5, 2: 0.15, 3: 0.3, 4: 0.01}  # the tail halves after ln 2 / rate
    rates = {**RATES, 4: 0.1}
    chains = {
        ("cross_entropy", None, seed): {"perplexity": _grows(rates[seed]), "tail": _falls(tails[seed])}
        for seed in tails
    }
    study = make_study(chains)
    tails_first = study.one({"kind": "onset_order", "first": "tail", "second": "perplexity"}, where=AT_CE)
    expected = share(3, 1, 1, 0.99)
    assert (tails_first.measured, tails_first.low, tails_first.high) == (3 / 5, expected.low, expected.high)
    reverse = study.one({"kind": "onset_order", "first": "perplexity", "second": "tail"}, where=AT_CE)
    assert reverse.measured == 1 / 5


def _paired(seeds: int, slower: float) -> dict[Any, Any]:
    rates = 0.3 + 0.02 * np.arange(seeds)
    base = {("cross_entropy", None, seed): {"perplexity": _grows(rate, 16)} for seed, rate in enumerate(rates)}
    slow = {
        ("tce", 0.3, seed): {"perplexity": _grows(rate / slower / (1 + 0.01 * seed), 16)}
        for seed, rate in enumerate(rates)
    }
    return base | slow


def test_an_fi_ratio_has_the_claims_own_level(make_study: Any) -> None:
    """Perplexity grows exponentially, so that the onset is exactly ln 2 / rate and the ratio that of the rates."""
    study = make_study(_paired(8, 2.0), generations=16)
    result = study.one({"kind": "fi_ratio"}, where={"loss.kind": "tce"}, relation="between", value=[1.9, 2.2])
    expected = geometric_mean(2.0 * (1 + 0.01 * np.arange(8)), 0.99)
    np.testing.assert_allclose(
        [result.measured, result.low, result.high], [expected.measured, expected.low, expected.high]
    )
    assert (result.verdict, result.n_chains) == ("holds", 8)
    synthetic = study.one({"kind": "fi_ratio", "unit": "synthetic"}, where={"loss.kind": "tce"})
    assert synthetic.measured == pytest.approx(expected.measured)
    of_one_set = study.one({"kind": "fi_ratio", "unit": "synthetic_now"}, where={"loss.kind": "tce"})
    assert of_one_set.verdict == "undecided"
    assert "the training sets do not grow" in of_one_set.why


def test_an_fi_ratio_of_too_few_pairs_or_of_two_cells_is_undecided(make_study: Any) -> None:
    study = make_study(_paired(2, 2.0), generations=16)
    assert "2 pairs give no interval: it takes 3" in study.one({"kind": "fi_ratio"}, where={"loss.kind": "tce"}).why
    assert "where matches 2 cells" in study.one({"kind": "fi_ratio"}).why


@pytest.mark.parametrize("censored", [0, 1, 8])
def test_a_claims_ratio_is_the_tables(make_study: Any, censored: int) -> None:
    """One interval for one number, whether chains are censored or not, and at whichever level the claim asks for."""
    chains = _paired(8, 2.0) | {("tce", 0.3, seed): {"perplexity": _grows(0.001, 16)} for seed in range(censored)}
    study = make_study(chains, generations=16)
    result = study.one({"kind": "fi_ratio"}, where={"loss.kind": "tce"}, level=0.9)
    table = pl.read_parquet(study.folder / "results" / "fidelity.parquet")
    tce = table.filter(pl.col("loss.kind") == "tce", pl.col("unit") == "generations", pl.col("metric") == "perplexity")
    row = tce.row(0, named=True)
    high = math.inf if row["fi_ratio_high"] is None else row["fi_ratio_high"]
    assert (result.measured, result.low, result.high) == (row["fi_ratio"], row["fi_ratio_low"], high)
    assert result.method == row["estimator"]
    wider = study.one({"kind": "fi_ratio"}, where={"loss.kind": "tce"}, level=0.99)
    assert wider.low < result.low


def test_a_ratio_whose_chains_are_all_censored_decides_only_what_a_bound_can(make_study: Any) -> None:
    """No chain of TCE collapses: the ratio is at least what it is, and may be anything above."""
    chains = _paired(8, 2.0) | {("tce", 0.3, seed): {"perplexity": _grows(0.001, 16)} for seed in range(8)}
    study = make_study(chains, generations=16)
    at_least = study.one({"kind": "fi_ratio"}, where={"loss.kind": "tce"}, relation="at_least", value=1.1)
    assert (at_least.verdict, at_least.high) == ("holds", math.inf)
    assert "a lower bound" in at_least.why
    at_most = study.one({"kind": "fi_ratio"}, where={"loss.kind": "tce"}, relation="at_most", value=9)
    assert at_most.verdict == "undecided"


def _points(**row: Any) -> pl.DataFrame:
    full = {
        "loss.kind": "cross_entropy",
        **CRITERIA[0].model_dump(),
        "over": "regime.synthetic_ratio",
        "critical": 0.8,
        "low": 0.75,
        "high": 0.85,
        "level": 0.99,
        "bound": "exact",
        "chains_run": 12,
        "generations_run": 60,
    }
    return pl.DataFrame([full | row], infer_schema_length=None)


def test_a_critical_point_is_the_searchs_own(make_study: Any) -> None:
    study = make_study(CHAINS)
    asked = {"kind": "critical_point", "over": "regime.synthetic_ratio"}
    assert "collapse_points.parquet is missing" in study.one(asked, where=AT_CE).why
    study.write("collapse_points", _points())
    result = study.one(asked, where=AT_CE, relation="between", value=[0.7, 0.9])
    assert (result.measured, result.low, result.high, result.verdict) == (0.8, 0.75, 0.85, "holds")
    assert "no cell matches" in study.one({**asked, "over": "loss.gamma"}, where=AT_CE).why
    study.write("collapse_points", _points(level=0.9))
    assert "is at 90 %, the claim asks for 99 %" in study.one(asked, where=AT_CE).why
    study.write("collapse_points", _points(bound="lower", high=None))
    assert study.one(asked, where=AT_CE, relation="at_least", value=0.7).verdict == "holds"
    assert study.one(asked, where=AT_CE, relation="at_most", value=0.9).verdict == "undecided"


OPEN: dict[str, Any] = {"critical": None, "bound": "undetermined"}
ABOVE: dict[str, Any] = {"critical": 0.75, "high": None, "bound": "lower"}
BELOW: dict[str, Any] = {"critical": 0.85, "low": None, "bound": "upper"}
NOTHING: dict[str, Any] = {"critical": None, "low": None, "high": None, "bound": "undetermined"}


@pytest.mark.parametrize(
    ("row", "relation", "value", "verdict"),
    [
        (OPEN, "at_least", 0.7, "holds"),
        (OPEN, "at_least", 0.75, "holds"),
        (OPEN, "at_least", 0.8, "undecided"),
        (OPEN, "at_least", 0.9, "does not hold"),
        (OPEN, "at_most", 0.85, "holds"),
        (OPEN, "less", 0.85, "undecided"),
        (OPEN, "less", 0.7, "does not hold"),
        (OPEN, "between", [0.7, 0.9], "holds"),
        (ABOVE, "greater", 0.7, "holds"),
        (ABOVE, "at_most", 0.7, "does not hold"),
        (ABOVE, "between", [0.7, 0.9], "undecided"),
        (BELOW, "less", 0.9, "holds"),
        (BELOW, "at_least", 0.9, "does not hold"),
        (BELOW, "at_least", 0.1, "undecided"),
        (NOTHING, "at_least", 0.0, "undecided"),
        (NOTHING, "at_most", 1.0, "undecided"),
    ],
)
def test_a_search_that_has_not_settled_decides_what_its_interval_leaves_out(
    make_study: Any, row: dict[str, Any], relation: str, value: Any, verdict: str
) -> None:
    """The critical value is not known, but not every value is possible: [0.75, 0.85], or an end of it."""
    study = make_study(CHAINS)
    study.write("collapse_points", _points(**row))
    result = study.one({"kind": "critical_point"}, where=AT_CE, relation=relation, value=value)
    assert result.verdict == verdict
    assert result.measured == row["critical"]
    if row is OPEN:
        assert result.measured_words == "[0.75, 0.85] at 99 %"
        assert "has not settled" in result.why
    if row is NOTHING:
        assert result.measured_words == "not measured"
