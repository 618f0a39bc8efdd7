"""Each statistic of chains against a value computed independently from the same hand-made numbers."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

# (loss, γ, seed) -> perplexity by generation; every seed of both losses has all six
CE = {0: [10, 12, 16, 25, 40, 70], 1: [11, 13, 18, 24, 45, 90], 2: [9, 12, 15, 22, 41, 66], 3: [10, 11, 17, 26, 39, 75]}
TCE = {
    0: [11, 12, 14, 17, 20, 26],
    1: [12, 12, 15, 18, 24, 28],
    2: [10, 12, 13, 17, 21, 24],
    3: [11, 12, 14, 19, 22, 25],
}
CHAINS = {("cross_entropy", None, seed): {"perplexity": values} for seed, values in CE.items()} | {
    ("tce", 0.3, seed): {"perplexity": values} for seed, values in TCE.items()
}
AT_CE = {"loss.kind": "cross_entropy"}
A, B = np.array(list(CE.values()), float), np.array(list(TCE.values()), float)
G = np.arange(6)


def _metric(**settings: Any) -> dict[str, Any]:
    return {"kind": "metric", "metric": "perplexity", **settings}


STATISTICS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "mean": (_metric(at=3), AT_CE, A[:, 3].mean()),
    "last": (_metric(), AT_CE, A[:, 5].mean()),
    "median": (_metric(at=5, summary="median"), AT_CE, float(np.median(A[:, 5]))),
    "geometric_mean": (_metric(at=5, summary="geometric_mean"), AT_CE, stats.gmean(A[:, 5])),
    "quantile": (_metric(at=5, summary={"quantile": 0.25}), AT_CE, float(np.quantile(A[:, 5], 0.25))),
    "share_above": (_metric(at=3, summary={"share_above": 24}), AT_CE, 0.5),
    "share_below": (_metric(at=3, summary={"share_below": 24}), AT_CE, 0.25),
    "over_generation_0": (_metric(at=4, over_generation_0="ratio"), AT_CE, (A[:, 4] / A[:, 0]).mean()),
    "minus_generation_0": (_metric(at=4, over_generation_0="difference"), AT_CE, (A[:, 4] - A[:, 0]).mean()),
    "ratio_of_means": (
        _metric(at=4, over_generation_0="ratio", summary="ratio_of_means"),
        AT_CE,
        A[:, 4].mean() / A[:, 0].mean(),
    ),
    "against": (_metric(at=5, against=AT_CE), {"loss.kind": "tce", "loss.gamma": 0.3}, (B[:, 5] / A[:, 5]).mean()),
    "against_of_means": (
        _metric(at=5, against=AT_CE, summary="ratio_of_means"),
        {"loss.kind": "tce"},
        B[:, 5].mean() / A[:, 5].mean(),
    ),
    "difference": (_metric(at=5, against=AT_CE, compare="difference"), {"loss.kind": ["tce"]}, (B - A)[:, 5].mean()),
    "growths": (
        _metric(at=5, against=AT_CE, over_generation_0="ratio"),
        {"loss.gamma": 0.3},
        (B[:, 5] / B[:, 0] / (A[:, 5] / A[:, 0])).mean(),
    ),
    "slope": ({"kind": "slope", "metric": "perplexity"}, AT_CE, np.polyfit(G, A.T, 1)[0].mean()),
    "log_slope": (
        {"kind": "slope", "metric": "perplexity", "scale": "log", "start": 1, "end": 4},
        AT_CE,
        np.polyfit(G[1:5], np.log(A[:, 1:5]).T, 1)[0].mean(),
    ),
    "maximum": ({"kind": "maximum", "metric": "perplexity", "end": 3}, AT_CE, A[:, :4].max(axis=1).mean()),
    "minimum": ({"kind": "minimum", "metric": "perplexity", "start": 2}, AT_CE, A[:, 2:].min(axis=1).mean()),
    "trend": ({"kind": "trend", "metric": "perplexity"}, AT_CE, 1.0),
    "trend_with_a_tie": (
        {"kind": "trend", "metric": "perplexity"},
        {"loss.kind": "tce"},
        float(np.mean([stats.spearmanr(G, row).statistic for row in B])),
    ),
    "two_chains_a_seed": (_metric(at=5), {}, ((A + B)[:, 5] / 2).mean()),
    "recipe_key_that_does_not_vary": (_metric(at=5), {"family.dim": 3, **AT_CE}, A[:, 5].mean()),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_is_what_it_says(name: str, make_study: Any) -> None:
    statistic, where, expected = STATISTICS[name]
    result = make_study(CHAINS).one(statistic, where=where)
    assert result.measured == pytest.approx(expected, rel=1e-12), result
    assert result.n_chains == 4


def test_a_difference_pairs_by_seed(make_study: Any) -> None:
    """The interval is that of the differences, not of two independent groups."""
    result = make_study(CHAINS).one(
        _metric(at=2, against=AT_CE, compare="difference"), where={"loss.kind": "tce"}, level=0.9, relation="less"
    )
    expected = stats.ttest_rel(B[:, 2], A[:, 2]).confidence_interval(0.9)
    assert result.low <= expected.low + 1e-12
    assert result.high >= expected.high - 1e-12
    assert result.verdict == "holds"


def test_the_variance_over_seeds_is_the_unbiased_one(make_study: Any) -> None:
    values = np.random.default_rng(0).normal(0, 3, 30)
    chains = {("cross_entropy", None, seed): {"log_ratio": [0.0, value]} for seed, value in enumerate(values)}
    result = make_study(chains).one({"kind": "metric", "metric": "log_ratio", "at": 1, "summary": "variance"})
    assert result.measured == pytest.approx(values.var(ddof=1), rel=1e-12)


@pytest.mark.parametrize(
    ("statistic", "where", "why"),
    [
        (_metric(at=5), {"loss.kind": "focal"}, "no chain matches"),
        (_metric(at=5), {"loss.gamma": "0.3"}, "no chain matches"),
        (_metric(at=5), {"family.width": 2}, "has a key family.width"),
        (_metric(at=6), AT_CE, "4 of 4 chains have no perplexity at generation 6"),
        ({"kind": "metric", "metric": "trace_ratio"}, AT_CE, "trace_ratio was not measured"),
        (_metric(summary="median"), {}, "matches 2 chains of one seed"),
        (_metric(against={"loss.kind": "focal"}), {"loss.kind": "tce"}, "no chain matches"),
        (_metric(against={"loss.kind": "tce"}), {"loss.kind": "tce"}, "match the same chains"),
        (_metric(at=5), {**AT_CE, "seed": 2}, "at least two seeds"),
        ({"kind": "slope", "metric": "perplexity", "end": 9}, AT_CE, "have no perplexity at generation 0 to 9"),
    ],
)
def test_what_cannot_be_measured_is_undecided_and_says_why(
    statistic: dict[str, Any], where: dict[str, Any], why: str, make_study: Any
) -> None:
    result = make_study(CHAINS).one(statistic, where=where)
    assert result.verdict == "undecided"
    assert why in result.why


def test_a_chain_that_ended_early_is_not_left_out_in_silence(make_study: Any) -> None:
    """Chains stop once their collapse is confirmed: a mean of those that lasted would be a mean of the best."""
    chains = {**CHAINS, ("cross_entropy", None, 1): {"perplexity": [11, 13, 40, 80]}}
    study = make_study(chains)
    assert "1 of 4 chains" in study.one(_metric(at=5), where=AT_CE).why
    assert study.one(_metric(), where=AT_CE).measured == pytest.approx((70 + 80 + 66 + 75) / 4)


def test_a_broken_generation_has_no_mean_but_a_share(make_study: Any) -> None:
    chains = {**CHAINS, ("cross_entropy", None, 1): {"perplexity": [11, 13, 18, 24, 45, math.nan]}}
    study = make_study(chains)
    assert "not finite" in study.one(_metric(at=5), where=AT_CE).why
    share = study.one(_metric(at=5, summary={"share_above": 50}), where=AT_CE)
    assert (share.measured, share.why) == (0.75, "open in 1 of 4 chains")
    for kind in ("maximum", "trend"):
        assert "not finite" in study.one({"kind": kind, "metric": "perplexity"}, where=AT_CE).why


def test_chains_without_a_partner_are_counted(make_study: Any) -> None:
    chains = {key: values for key, values in CHAINS.items() if key != ("cross_entropy", None, 3)}
    result = make_study(chains).one(_metric(at=5, against=AT_CE), where={"loss.kind": "tce"})
    assert result.n_chains == 3
    assert "1 of 4 chains have no partner" in result.why


def test_pairs_share_every_key_that_against_does_not_replace(make_study: Any) -> None:
    """Two thresholds against each other: each seed's own, and one threshold's chains never with another seed's."""
    chains = CHAINS | {("tce", 0.5, seed): {"perplexity": [2.0 * value for value in row]} for seed, row in TCE.items()}
    study = make_study(chains)
    result = study.one(_metric(at=5, against={"loss.gamma": 0.3}), where={"loss.kind": "tce", "loss.gamma": 0.5})
    assert (result.measured, result.low, result.high) == (2.0, 2.0, 2.0)
    against_ce = study.one(_metric(at=5, against=AT_CE), where={"loss.kind": "tce"})
    assert against_ce.measured == pytest.approx((1.5 * B[:, 5] / A[:, 5]).mean(), rel=1e-12)
    ambiguous = study.one(_metric(at=5, against={"loss.kind": "tce"}), where=AT_CE)
    assert "several chains for one" in ambiguous.why


def test_seeds_with_unequal_numbers_of_chains_are_not_averaged(make_study: Any) -> None:
    chains = {key: values for key, values in CHAINS.items() if key != ("cross_entropy", None, 3)}
    assert "averages do not compare" in make_study(chains).one(_metric(at=5)).why


def test_a_statistic_in_words(make_study: Any) -> None:
    result = make_study(CHAINS).one(_metric(at=5, against=AT_CE), where={"loss.kind": "tce", "seed": [0, 1]})
    assert result.statistic == (
        "mean of perplexity at generation 5, at TCE · seed=0 or 1, over the same at cross entropy"
    )
