"""The log-rank test and its adjustment against their definitions, and their place in the table."""

import math
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.fidelity import fidelity_table
from fortifai_ray.statistics.survival import holm, logrank

VARIED = ["loss.kind", "loss.gamma", "seed"]
CROSS_ENTROPY = {"loss.kind": "cross_entropy"}
DOUBLED = CollapseCriterion(metric="perplexity", threshold=2.0, direction="above", confirm=0)
sample = st.lists(st.tuples(st.integers(0, 6) | st.floats(0, 6), st.booleans()), min_size=1, max_size=12)


def arrays(rows: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([time for time, _ in rows], dtype=np.float64), np.array([flag for _, flag in rows])


def by_definition(a: list[tuple[float, bool]], b: list[tuple[float, bool]]) -> tuple[float, float]:
    """Mantel (1966): at each time, the ends in ``a`` less those expected of it; the variance is hypergeometric."""
    excess, variance = 0.0, 0.0
    for time in sorted({at for at, censored in (*a, *b) if not censored}):
        mine, theirs = (sum(at >= time for at, _ in rows) for rows in (a, b))
        ended = [sum(at == time and not censored for at, censored in rows) for rows in (a, b)]
        n, d = mine + theirs, sum(ended)
        excess += ended[0] - d * mine / n
        variance += d * mine * theirs * (n - d) / (n**2 * (n - 1)) if n > 1 else 0.0
    if variance == 0:
        return np.nan, np.nan
    return excess / variance**0.5, 2 * stats.norm.sf(max(abs(excess) - 0.5, 0) / variance**0.5)


@given(sample, sample)
def test_statistic_and_p_value_are_those_of_the_definition(
    a: list[tuple[float, bool]], b: list[tuple[float, bool]]
) -> None:
    z, p = logrank(*arrays(a), *arrays(b))
    assert (z, p) == pytest.approx(by_definition(a, b), rel=1e-9, abs=1e-9, nan_ok=True)


def test_the_sign_says_who_ends_earlier_and_swapping_turns_it() -> None:
    early, late, never = np.arange(1.0, 9), np.arange(5.0, 13), np.zeros(8, dtype=bool)
    z, p = logrank(early, never, late, never)
    assert z > 0
    assert logrank(late, never, early, never) == pytest.approx((-z, p))


def test_its_p_values_are_as_rare_as_they_say_when_nothing_differs() -> None:
    rng = np.random.default_rng(11)
    times = rng.exponential(size=(2_000, 2, 40))
    ps = [logrank(*(part for row in pair for part in (np.minimum(row, 1.5), row > 1.5)))[1] for pair in times]
    share = np.mean(np.array(ps) < 0.05)
    # four binomial standard errors, and 1 % for the normal approximation and its correction with 40 a side
    assert abs(share - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2_000) + 0.01


@pytest.mark.parametrize(("n", "distinct"), [(3, True), (4, True), (4, False), (5, True), (5, False)])
def test_few_chains_make_no_p_value_smaller_than_a_permutation_of_them_would(n: int, distinct: bool) -> None:
    """One side ends before the other begins: of all divisions in two halves, two are so extreme."""
    never = np.zeros(n, dtype=bool)
    early, late = (np.arange(n) + start if distinct else np.full(n, start) for start in (1.0, 20.0))
    assert logrank(early, never, late, never)[1] >= 2 / math.comb(2 * n, n)


def holm_by_definition(ps: list[float]) -> list[float]:
    """Holm (1979): step through the sorted p values; the i-th of m is multiplied by m − i + 1, never decreasing."""
    order, running, adjusted = np.argsort(ps, kind="stable"), 0.0, [0.0] * len(ps)
    for step, index in enumerate(order):
        running = max(running, min(1.0, ps[index] * (len(ps) - step)))
        adjusted[index] = running
    return adjusted


@given(st.lists(st.none() | st.floats(0, 1), max_size=10))
def test_holms_adjustment_is_his(ps: list[float | None]) -> None:
    table = pl.DataFrame({"p": ps}, schema={"p": pl.Float64}).with_row_index("at").sort("p", nulls_last=True)
    result = table.with_columns(adjusted=holm("p")).sort("at")["adjusted"].to_list()
    known = [p for p in ps if p is not None]
    expected = iter(holm_by_definition(known))
    wanted = [None if p is None else next(expected) for p in ps]
    assert [value is None for value in result] == [value is None for value in wanted]
    assert [value for value in result if value is not None] == pytest.approx([v for v in wanted if v is not None])


def growth(onset: float | None) -> list[float]:
    """A perplexity that doubles exactly at ``onset`` (log scale), or never, within ten generations."""
    return [100.0 * 2 ** ((g + 1e-9) / onset) if onset else 100.0 for g in range(10)]


def test_the_table_tests_each_cell_against_its_baseline_and_adjusts(study: Callable[..., pl.DataFrame]) -> None:
    onsets = {"ce": [1.5, 2.5, 3.5, 4.5, 2.0], "tce": [3.5, 4.5, 5.5, 6.5, None], "tce9": [1.6, 2.6, 3.6, 4.6, 2.1]}
    curves = {(name, seed): growth(onset) for name, row in onsets.items() for seed, onset in enumerate(row)}
    chains = chain_table(study(curves), [DOUBLED], CROSS_ENTROPY, VARIED, 10)
    fidelity = fidelity_table(chains, VARIED, CROSS_ENTROPY)
    ce, tce, tce9 = fidelity.filter(pl.col("unit") == "generations").iter_rows(named=True)
    assert [row["is_baseline"] for row in (ce, tce, tce9)] == [True, False, False]
    assert (ce["logrank_z"], ce["logrank_p"], ce["logrank_p_holm"]) == (None, None, None)

    def times(loss: str, gamma: float | None) -> stats.CensoredData:
        rows = chains.filter(pl.col("loss.kind") == loss, pl.col("loss.gamma").eq_missing(pl.lit(gamma)))
        return stats.CensoredData.right_censored(rows["fi_generations"].to_numpy(), rows["censored"].to_numpy())

    for row, gamma in ((tce, 0.3), (tce9, 0.9)):
        theirs = stats.logrank(times("tce", gamma), times("cross_entropy", None))
        assert row["logrank_z"] == pytest.approx(theirs.statistic, rel=1e-9)
        assert row["logrank_p"] >= theirs.pvalue
    assert tce["logrank_z"] < 0  # it lasts longer
    assert tce["logrank_p_holm"] == pytest.approx(2 * tce["logrank_p"])
    assert tce9["logrank_p_holm"] == pytest.approx(max(tce9["logrank_p"], tce["logrank_p_holm"]))


def test_seeds_need_no_partner_for_the_test_but_a_baseline_it_needs(study: Callable[..., pl.DataFrame]) -> None:
    curves = {("ce", seed): growth(1.5 + seed) for seed in range(3)} | {
        ("tce", seed): growth(1.6 + seed) for seed in range(3, 6)
    }
    absolute = DOUBLED.model_copy(update={"relative_to": "absolute", "threshold": 200.0})
    chains = chain_table(study(curves), [absolute], CROSS_ENTROPY, VARIED, 10)
    row = fidelity_table(chains, VARIED, CROSS_ENTROPY).row(2, named=True)
    assert (row["n_pairs"], row["fi_ratio"]) == (0, None)
    assert row["logrank_p"] == row["logrank_p_holm"] < 1
    alone = chains.filter(pl.col("loss.kind") == "tce")
    without = fidelity_table(alone, VARIED, CROSS_ENTROPY)
    assert without["logrank_p"].null_count() == without.height
    assert not without["is_baseline"].any()


def test_nothing_ended_is_no_test(study: Callable[..., pl.DataFrame]) -> None:
    curves = {(name, seed): growth(None) for name in ("ce", "tce") for seed in range(3)}
    chains = chain_table(study(curves), [DOUBLED], CROSS_ENTROPY, VARIED, 10)
    assert fidelity_table(chains, VARIED, CROSS_ENTROPY)["logrank_p"].to_list() == [None] * 4
