"""chains.parquet: a verdict per chain and criterion."""

import math
from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.crossing import onset
from fortifai_ray.statistics.fidelity import fidelity_table

VARIED = ["loss.kind", "loss.gamma", "seed"]
CROSS_ENTROPY = {"loss.kind": "cross_entropy"}
DOUBLED = CollapseCriterion(metric="perplexity", threshold=2.0, direction="above")
Study = Callable[..., pl.DataFrame]


def rows(chains: pl.DataFrame) -> dict[str, dict[str, object]]:
    return {row["chain_id"]: row for row in chains.iter_rows(named=True)}


def test_the_contracts_columns_and_a_row_per_chain_and_criterion(study: Study) -> None:
    generations = study({("ce", 0): [100, 400, 400], ("tce", 0): [100, 100, 100]})
    tripled = CollapseCriterion(metric="perplexity", threshold=3.0, direction="above")
    chains = chain_table(generations, [DOUBLED, tripled, DOUBLED], CROSS_ENTROPY, VARIED, 3)
    assert chains.height == 4  # the same criterion twice is one criterion
    contract = "metric threshold relative_to direction onset status censored horizon fi_generations fi_synthetic"
    assert {"chain_id", *VARIED, *contract.split()} <= set(chains.columns)


def test_collapsed_survived_and_unconfirmed(study: Study) -> None:
    generations = study({("ce", 0): [100, 100, 400, 400], ("tce", 0): [100] * 4, ("tce9", 0): [100, 100, 100, 400]})
    result = rows(chain_table(generations, [DOUBLED], CROSS_ENTROPY, VARIED, 4))
    ce, tce, tce9 = result["ce-0"], result["tce-0"], result["tce9-0"]
    assert (ce["status"], ce["censored"], ce["onset"], ce["fi_generations"]) == ("collapsed", False, 1.5, 1.5)
    assert ce["fi_synthetic"] == 1_500
    assert (tce["status"], tce["censored"], tce["onset"], tce["fi_generations"]) == ("survived", True, None, 3)
    assert tce["fi_synthetic"] == 3_000
    assert (tce9["status"], tce9["censored"], tce9["onset"], tce9["fi_generations"]) == ("unconfirmed", True, None, 2.5)
    assert tce9["fi_synthetic"] == 2_500


def test_a_worse_start_earns_no_slack(study: Study) -> None:
    generations = study({("ce", 0): [100, 150, 150], ("tce", 0): [201, 350, 350]})
    own = DOUBLED.model_copy(update={"relative_to": "own_generation_0"})
    absolute = DOUBLED.model_copy(update={"relative_to": "absolute", "threshold": 340.0})
    chains = chain_table(generations, [DOUBLED, own, absolute], CROSS_ENTROPY, VARIED, 3)
    tce = chains.filter(pl.col("chain_id") == "tce-0")
    assert tce["limit"].to_list() == [200.0, 402.0, 340.0]
    assert tce["status"].to_list() == ["collapsed", "survived", "collapsed"]
    assert tce["onset"][0] == 0.0


def test_the_limit_is_of_the_same_seed(study: Study) -> None:
    generations = study({("ce", 0): [100, 100], ("ce", 1): [300, 300], ("tce", 0): [90, 90], ("tce", 1): [90, 90]})
    result = rows(chain_table(generations, [DOUBLED], CROSS_ENTROPY, VARIED, 2))
    assert (result["tce-0"]["limit"], result["tce-1"]["limit"]) == (200.0, 600.0)


def test_stopped_early_keeps_the_horizon_asked_for(study: Study) -> None:
    result = rows(chain_table(study({("ce", 0): [100, 400, 400]}), [DOUBLED], CROSS_ENTROPY, VARIED, 10))
    assert (result["ce-0"]["horizon"], result["ce-0"]["onset"]) == (9, 0.5)


def test_generations_beyond_those_asked_confirm_nothing(study: Study) -> None:
    result = rows(chain_table(study({("ce", 0): [100, 100, 400, 400]}), [DOUBLED], CROSS_ENTROPY, VARIED, 3))
    assert (result["ce-0"]["status"], result["ce-0"]["fi_generations"]) == ("unconfirmed", 1.5)


def test_a_chain_that_ended_early_is_censored_where_it_ended(study: Study) -> None:
    generations = study({("ce", 0): [100, 100], ("tce", 0): [100, 100, None, 900, 900]})
    result = rows(chain_table(generations, [DOUBLED], CROSS_ENTROPY, VARIED, 5))
    assert (result["ce-0"]["status"], result["ce-0"]["fi_generations"]) == ("survived", 1)
    assert (result["tce-0"]["status"], result["tce-0"]["fi_generations"]) == ("survived", 1)  # null: not measured


def test_a_generation_recorded_as_collapsed_is_a_collapse(study: Study) -> None:
    generations = study({("ce", 0): [100, 100, math.nan], ("tce", 0): [100, 100, None], ("tce9", 0): [100, 120]})
    generations = generations.with_columns(
        collapse_reason=pl.when(pl.col("generation") == pl.col("generation").max().over("chain_id")).then(
            pl.lit("the loss is NaN")
        )
    )
    result = rows(chain_table(generations, [DOUBLED], CROSS_ENTROPY, VARIED, 6))
    assert [result[name]["onset"] for name in ("ce-0", "tce-0", "tce9-0")] == [2.0, 2.0, 1.0]
    assert {row["status"] for row in result.values()} == {"collapsed"}


def test_failed_chains_have_no_interval_unless_they_had_collapsed_before(study: Study) -> None:
    generations = study({("ce", 0): [100, 400, 400], ("tce", 0): [100, 110]})
    roster = pl.DataFrame({"chain_id": ["tce-1"], "seed": [1], "loss.kind": ["tce"], "loss.gamma": [0.3]})
    chains = chain_table(
        generations, [DOUBLED], CROSS_ENTROPY, VARIED, 5, failed={"ce-0", "tce-0", "tce-1"}, roster=roster
    )
    result = rows(chains)
    assert result["ce-0"]["status"] == "collapsed"
    for name in ("tce-0", "tce-1"):
        assert result[name]["status"] == "failed"
        assert [result[name][key] for key in ("onset", "censored", "fi_generations", "fi_synthetic")] == [None] * 4


def test_without_a_baseline_to_be_judged_against_there_is_no_verdict(study: Study) -> None:
    generations = study({("ce", 0): [100, 400, 400], ("tce", 1): [100, 900, 900], ("ce", 2): [math.nan, 100, 100]})
    result = rows(chain_table(generations, [DOUBLED], CROSS_ENTROPY, VARIED, 3))
    assert result["ce-0"]["status"] == "collapsed"
    assert (result["tce-1"]["status"], result["tce-1"]["limit"]) == ("failed", None)
    assert result["ce-2"]["status"] == "failed"


def test_a_study_that_varies_only_its_seed_knows_its_baseline_by_the_loss_column(study: Study) -> None:
    generations = study({("ce", 0): [100, 400, 400], ("ce", 1): [100, 400, 400]})
    chains = chain_table(generations, [DOUBLED], CROSS_ENTROPY, ["seed"], 3)
    assert chains["status"].to_list() == ["collapsed"] * 2
    assert chains["loss.kind"].to_list() == ["cross_entropy"] * 2


def test_an_empty_table_gives_the_rosters_failures(study: Study) -> None:
    roster = pl.DataFrame({"chain_id": ["a"], "seed": [1], "loss.kind": ["tce"], "loss.gamma": [0.3]})
    columns = chain_table(study({("ce", 0): [100.0]}), [DOUBLED], CROSS_ENTROPY, VARIED, 3).columns
    for empty in (study({("ce", 0): [100.0]}).clear(), pl.DataFrame()):
        none = chain_table(empty, [DOUBLED], CROSS_ENTROPY, VARIED, 3)
        assert (none.height, none.columns) == (0, columns)
        chains = chain_table(empty, [DOUBLED], CROSS_ENTROPY, VARIED, 3, roster=roster)
        assert (chains["status"].to_list(), chains.columns) == (["failed"], columns)
        assert fidelity_table(chains, VARIED, CROSS_ENTROPY)["n_failed"].to_list() == [1, 1]


def test_a_missing_column_or_a_double_generation_is_named(study: Study) -> None:
    generations = study({("ce", 0): [100, 100]})
    accuracy = CollapseCriterion(metric="kr_accuracy", threshold=0.5, direction="below")
    with pytest.raises(ValueError, match="kr_accuracy"):
        chain_table(generations, [accuracy], CROSS_ENTROPY, VARIED, 2)
    with pytest.raises(ValueError, match=r"regime\.kind"):
        chain_table(generations, [DOUBLED], CROSS_ENTROPY, [*VARIED, "regime.kind"], 2)
    with pytest.raises(ValueError, match="twice"):
        chain_table(pl.concat([generations, generations]), [DOUBLED], CROSS_ENTROPY, VARIED, 2)
    with pytest.raises(ValueError, match="at least 1"):
        chain_table(generations, [DOUBLED], CROSS_ENTROPY, VARIED, 0)


curve = st.lists(st.floats(50, 1_000) | st.just(math.nan), min_size=1, max_size=6)


@given(st.lists(curve, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_table_agrees_with_the_single_chain_whatever_the_row_order(
    study: Study, curves: list[list[float]], random: object
) -> None:
    absolute = DOUBLED.model_copy(update={"relative_to": "absolute", "threshold": 300.0})
    generations = study({("ce", seed): values for seed, values in enumerate(curves)})
    order = list(range(generations.height))
    random.shuffle(order)  # type: ignore[attr-defined]
    chains = chain_table(generations, [absolute], CROSS_ENTROPY, VARIED, 6)
    assert chain_table(generations[order], [absolute], CROSS_ENTROPY, VARIED, 6).equals(chains)
    for values, row in zip(curves, chains.iter_rows(named=True), strict=True):
        single = onset(values, 300.0, absolute)
        assert (row["onset"], row["status"]) == (single.onset, single.status)
        known = {"collapsed": single.onset, "survived": single.last, "unconfirmed": row["fi_generations"]}
        assert row["fi_generations"] == known[single.status]
        assert row["fi_generations"] <= single.last
        assert row["fi_synthetic"] == pytest.approx(1_000 * row["fi_generations"])


def grown(onsets: dict[tuple[str, int], float], sizes: list[int]) -> pl.DataFrame:
    """Chains that collapse at the onsets given, whose training sets hold so many synthetic tokens."""
    rows = [
        {
            "chain_id": f"{name}-{seed}",
            "generation": generation,
            "seed": seed,
            "loss.kind": {"ce": "cross_entropy"}.get(name, name),
            "score": 1.0 + generation - at,  # crosses 1 at the onset
            "synthetic_size": size,
            "synthetic_size_cum": sum(sizes[: generation + 1]),
        }
        for (name, seed), at in onsets.items()
        for generation, size in enumerate(sizes)
    ]
    return pl.DataFrame(rows)


SCORE = CollapseCriterion(metric="score", threshold=1.0, direction="above", relative_to="absolute", confirm=0)
SIZES = {
    "incremental": [0, 100, 200, 300, 400],
    "accumulate": [0, 90, 190, 280, 385],
    "subsample": [0, 50, 67, 75, 80],
    "shrinks at last": [0, 100, 200, 300, 120],
    "replace": [0, 100, 100, 100, 100],
    "replace, in rows of any length": [0, 100, 101, 99, 102],
    "human only": [0, 0, 0, 0, 0],
}


@pytest.mark.parametrize("regime", SIZES)
def test_an_interval_in_the_training_sets_synthetic_tokens(regime: str) -> None:
    """In tokens of the set at the onset, interpolated as the onset is; a set that shrinks does not shorten it."""
    sizes = SIZES[regime]
    onsets = {("ce", 0): 0.4, ("ce", 1): 1.0, ("tce", 0): 2.75, ("tce", 1): 3.5, ("tce", 2): 9.0}
    chains = rows(chain_table(grown(onsets, sizes), [SCORE], CROSS_ENTROPY, ["loss.kind", "seed"], 5))
    largest = [max(sizes[: g + 1]) for g in range(5)]
    for (name, seed), at in onsets.items():
        before = min(int(at), 4)
        within = min(at, 4.0) - before
        wanted = largest[before] + within * (largest[min(before + 1, 4)] - largest[before])
        assert chains[f"{name}-{seed}"]["fi_synthetic_now"] == pytest.approx(wanted)


@pytest.mark.parametrize("regime", SIZES)
def test_sets_that_do_not_grow_are_no_unit_of_time(regime: str) -> None:
    """Under `replace` every generation's set is as large: a ratio of sizes is 1 whatever happens, and is not given."""
    onsets = {(name, seed): at + 0.1 * seed for name, at in (("ce", 1.3), ("tce", 3.1)) for seed in range(3)}
    chains = chain_table(grown(onsets, SIZES[regime]), [SCORE], CROSS_ENTROPY, ["loss.kind", "seed"], 5)
    table = fidelity_table(chains, ["loss.kind", "seed"], CROSS_ENTROPY)
    grows = regime in ("incremental", "accumulate", "subsample", "shrinks at last")
    assert ("synthetic_now" in table["unit"]) == grows
    assert {"generations", "synthetic"} <= set(table["unit"])
    assert set(fidelity_table(chains.drop("fi_synthetic_now"), ["loss.kind", "seed"], CROSS_ENTROPY)["unit"]) == {
        "generations",
        "synthetic",
    }, "a table that is older than the unit"


def test_under_incremental_the_cumulative_count_is_quadratic() -> None:
    """A loss that lasts 1.7 times as long reads as 2.3 times and more in tokens consumed, not in those of the set."""
    onsets = {(name, seed): at for name, at in (("ce", 2.0), ("tce", 3.4)) for seed in range(3)}
    chains = chain_table(grown(onsets, SIZES["incremental"]), [SCORE], CROSS_ENTROPY, ["loss.kind", "seed"], 5)
    table = fidelity_table(chains, ["loss.kind", "seed"], CROSS_ENTROPY).filter(pl.col("loss.kind") == "tce")
    ratios = dict(table.select("unit", "fi_ratio").iter_rows())
    assert ratios["generations"] == pytest.approx(1.7)
    assert ratios["synthetic_now"] == pytest.approx(1.7)
    assert ratios["synthetic"] == pytest.approx((100 + 200 + 300 + 0.4 * 400) / 300)  # 2.53
