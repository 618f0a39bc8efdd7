"""A censored chain's fidelity interval is a lower bound, whatever its next generations would have been."""

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
from fortifai_ray.statistics.crossing import Crossings, find_crossings
from fortifai_ray.statistics.fidelity import fidelity_table

VARIED = ["loss.kind", "loss.gamma", "seed"]
CROSS_ENTROPY = {"loss.kind": "cross_entropy"}
TENFOLD = CollapseCriterion(metric="perplexity", threshold=10.0, direction="above")
# the design's perplexities: cross entropy and TCE 0.3, WikiText-2 text, temperature 0.8
CE = [329, 351, 517, 1_114, 3_993, 15_072, 81_374]
TCE = [330, 367, 506, 964, 1_934, 4_471, 11_909]
LIMIT = 3.0
Study = Callable[..., pl.DataFrame]


def ratio_after(study: Study, generations: int) -> dict[str, object]:
    """The row of TCE in generations after the first ``generations`` generations of the design's curves."""
    curves = {("ce", 0): CE[:generations], ("tce", 0): TCE[:generations]}
    chains = chain_table(study(curves), [TENFOLD], CROSS_ENTROPY, VARIED, generations)
    table = fidelity_table(chains, VARIED, CROSS_ENTROPY)
    return table.filter(pl.col("unit") == "generations", pl.col("loss.kind") == "tce").row(0, named=True)


def test_the_designs_curves_say_the_same_after_six_generations_as_after_seven(study: Study) -> None:
    """TCE's crossing at generation 5 is unconfirmed after six generations: its ratio is a lower bound of that after
    seven, and no larger."""
    ce = 3 + math.log(3_290 / 1_114) / math.log(3_993 / 1_114)
    tce = 4 + math.log(3_290 / 1_934) / math.log(4_471 / 1_934)
    six, seven = ratio_after(study, 6), ratio_after(study, 7)
    assert (six["bound"], seven["bound"]) == ("lower", "exact")
    assert (six["n_censored"], seven["n_censored"]) == (1, 0)
    for row in (six, seven):
        assert row["fi_ratio"] == pytest.approx(tce / ce, rel=1e-12)
    assert tce / ce == pytest.approx(1.204, abs=5e-4)


def crossings_of(curves: list[list[float]], criterion: CollapseCriterion, recorded: list[int | None]) -> Crossings:
    lengths = np.array([len(curve) for curve in curves])
    values = np.full((len(curves), lengths.max()), 0.5)  # what lies beyond a chain's end must not matter
    for row, curve in zip(values, curves, strict=True):
        row[: len(curve)] = curve
    ends = np.array([n if at is None else at for at, n in zip(recorded, lengths, strict=True)])
    return find_crossings(values, np.full(len(curves), LIMIT), observed=lengths, recorded=ends, criterion=criterion)


# faithful, at the limit, beyond it, broken, and beyond the scale
values = st.sampled_from([1.0, 2.5, LIMIT, 3.5, 20.0, math.nan, math.inf, 0.0])


@settings(max_examples=60)
@given(
    st.lists(values, min_size=1, max_size=6),
    st.integers(0, 3),
    st.sampled_from([("perplexity", "above"), ("perplexity", "below"), ("score", "above"), ("score", "below")]),
)
def test_no_continuation_collapses_before_a_censored_chains_bound(
    prefix: list[float], confirm: int, metric: tuple[str, str]
) -> None:
    """By brute force: all continuations by up to confirm + 1 generations, the last recorded as collapsed or not."""
    criterion = CollapseCriterion(
        metric=metric[0], threshold=LIMIT, direction=metric[1], relative_to="absolute", confirm=confirm
    )
    now = crossings_of([prefix], criterion, [None])
    further = [
        list(more)
        for length in range(1, confirm + 2)
        for more in itertools.product([1.0, LIMIT, 3.5, 20.0, math.nan], repeat=length)
    ]
    longer = [prefix + more for more in further] * 2
    recorded = [None] * len(further) + [len(prefix) + len(more) - 1 for more in further]
    later = crossings_of(longer, criterion, recorded)
    if not math.isnan(now.onset[0]):
        assert (later.onset == now.onset[0]).all()
        assert now.faithful[0] == now.onset[0]
        return
    assert (later.faithful >= now.faithful[0]).all()
    assert now.faithful[0] <= len(prefix) - 1
    if now.pending[0]:  # the bound is the best: some continuation collapses exactly there
        assert later.onset[~np.isnan(later.onset)].min() == now.faithful[0]
    else:
        assert now.faithful[0] == len(prefix) - 1


def test_a_crossing_before_a_gap_in_the_measurements_is_unconfirmed(study: Study) -> None:
    generations = study({("ce", 0): [100, 100, 400, None, 400, 400]})
    doubled = TENFOLD.model_copy(update={"threshold": 2.0})
    row = chain_table(generations, [doubled], CROSS_ENTROPY, VARIED, 6).row(0, named=True)
    assert (row["status"], row["fi_generations"], row["fi_synthetic"]) == ("unconfirmed", 1.5, 1_500)


def test_a_broken_start_that_nothing_confirms_is_known_to_be_faithful_for_no_time_at_all(study: Study) -> None:
    absolute = TENFOLD.model_copy(update={"relative_to": "absolute", "threshold": 300.0})
    row = chain_table(study({("ce", 0): [math.nan]}), [absolute], CROSS_ENTROPY, VARIED, 1).row(0, named=True)
    assert (row["status"], row["censored"], row["fi_generations"]) == ("unconfirmed", True, 0)


def test_a_mean_is_restricted_to_before_the_first_unconfirmed_crossing(study: Study) -> None:
    """Beyond it the survival curve is not known: that chain may have collapsed."""
    doubled = TENFOLD.model_copy(update={"threshold": 2.0})
    curves = {("ce", 0): [100, 100, 100, 100, 400], ("ce", 1): [100] * 5, ("ce", 2): [100, 400, 400]}
    chains = chain_table(study(curves), [doubled], CROSS_ENTROPY, VARIED, 5)
    row = fidelity_table(chains, VARIED, CROSS_ENTROPY).filter(pl.col("unit") == "generations").row(0, named=True)
    assert (row["fi_mean_horizon"], row["fi_mean"]) == (3.5, pytest.approx((3.5 + 3.5 + 0.5) / 3))


def test_an_estimate_is_not_flattered_by_chains_that_end_just_before_they_seem_to_collapse(study: Study) -> None:
    """Log-normal onsets with the ratio 1.3, a third of TCE's censored, confirm 2: an unconfirmed chain's interval ends
    at its crossing, and a model that took it for one that lasts beyond that would tell a larger ratio."""
    rng, cells, n, generations = np.random.default_rng(4), 60, 20, 9
    common, base, own = rng.normal(size=(3, cells, n))
    onsets = {"cross_entropy": 4 * np.exp(0.3 * common + 0.25 * base), "tce": 5.2 * np.exp(0.3 * common + 0.25 * own)}
    chains = pl.concat(
        pl.DataFrame({"loss.kind": loss, "family.dim": np.arange(cells).repeat(n), "seed": [*range(n)] * cells})
        .with_columns(onset=pl.Series(at.ravel()), chain_id=pl.format("{}-{}-{}", "loss.kind", "family.dim", "seed"))
        for loss, at in onsets.items()
    )  # fmt: skip
    table = chains.join(pl.DataFrame({"generation": range(generations)}), how="cross").with_columns(
        score=pl.col("generation") / pl.col("onset"), synthetic_size_cum=pl.col("generation") * 1_000
    )
    criterion = CollapseCriterion(metric="score", threshold=1.0, direction="above", relative_to="absolute", confirm=2)
    varied = ["loss.kind", "family.dim", "seed"]
    judged = chain_table(table, [criterion], CROSS_ENTROPY, varied, generations)
    fidelity = fidelity_table(judged, varied, CROSS_ENTROPY).filter(pl.col("loss.kind") == "tce")
    by_model = pl.col("estimator") == "censored log-normal, profile likelihood"  # half of its chains or more collapsed
    for unit in ("generations", "synthetic"):
        rows = fidelity.filter(pl.col("unit") == unit, by_model)
        assert rows.height >= 0.8 * cells
        covered = rows.select(((pl.col("fi_ratio_low") <= 1.3) & (pl.col("fi_ratio_high") >= 1.3)).mean()).item()
        assert covered > 0.87 - 3 * math.sqrt(0.9 * 0.1 / cells)  # three binomial standard errors: 12 %
        # the median of 60 estimates whose logarithms have a standard error of 0.11 each: 0.023; four of them
        assert rows["fi_ratio"].median() == pytest.approx(1.3, abs=0.092)
