"""Signs of collapse on one scale: the curve and the criterion agree, and the order is the one in the data."""

import polars as pl
import pytest

from fortifai_ray.metrics import METRICS, fidelity
from fortifai_ray.results.reader import StudyResults
from support.opening import open_folder
from support.signs import Sign, fidelity_left, first_choice, firsts, losses, onsets, signs

from .studies import compute_study

SHARES = [0.9, 0.5, 0.1]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """Three chains of eight generations with metrics of text put in: perplexity grows, tails fall, facts fall later."""
    folder = compute_study(
        tmp_path_factory.mktemp("signs"),
        family={"kind": "gaussian"},
        samples_per_generation=20,
        generations=8,
        vary={"seed": {"count": 3}},
        collapse={"metric": "kl_divergence", "relative_to": "absolute", "threshold": 1e9, "direction": "above"},
    )
    found, g = open_folder(folder), pl.col("generation")
    made = {
        "perplexity": 300 * 1.5**g,
        "tail_coverage": 0.8 * 0.5**g,
        "kr_accuracy": 0.5 + 0.3 * (1 - g / 10),
        "blimp_accuracy": 0.5 - 0.01 * g,
    }
    return found.replace(
        generations=found.generations.select("chain_id", "generation", "seed", "synthetic_size_cum", **made)
    )


def test_metrics_get_their_roles(results: StudyResults) -> None:
    """Tails, facts and fit are usable; grammar at chance is refused, with the reason."""
    found, refused = signs(results)
    assert [sign.name for sign in first_choice(found)] == [
        "tails: tail coverage",
        "facts: KR accuracy",
        "fit: held-out perplexity",
    ]
    assert "0 of 3 chains can be distinguished from guessing (0.5)" in refused["blimp_accuracy"]


def test_an_accuracy_whose_interval_holds_chance_is_no_sign(results: StudyResults) -> None:
    """Facts at 0.8 with an interval down to 0.45 may be guessing; a single chain of that kind is left out alone."""
    table = results.generations
    unsure = results.replace(generations=table.with_columns(kr_accuracy_low=pl.lit(0.45)))
    assert "kr_accuracy" in signs(unsure)[1]
    low = pl.when(pl.col("seed") == 0).then(0.45).otherwise(0.7)
    one = results.replace(generations=table.with_columns(kr_accuracy_low=low))
    assert "kr_accuracy" not in signs(one)[1]
    verdicts = losses(one, [Sign("kr_accuracy")], [0.5])
    assert dict(verdicts.select("seed", "status").iter_rows()) == {0: "failed", 1: "collapsed", 2: "collapsed"}
    assert set(fidelity_left(one, [Sign("kr_accuracy")])["seed"]) == {1, 2}


@pytest.mark.parametrize("metric", ["perplexity", "tail_coverage", "kr_accuracy"])
def test_a_curve_below_the_share_is_a_loss(metric: str, results: StudyResults) -> None:
    """The onset lies in the generation before the first one whose fidelity left is below the share."""
    sign = Sign(metric)
    left = fidelity_left(results, [sign]).filter(pl.col("seed") == 0).sort("generation")["left"].to_list()
    for row in losses(results, [sign], SHARES).filter(pl.col("seed") == 0).iter_rows(named=True):
        below = next((g for g, value in enumerate(left) if value < row["left"]), None)
        if below is None or below + 1 >= len(left):  # a loss needs a further generation that confirms it
            assert row["status"] != "collapsed"
        else:
            assert below - 1 <= row["onset"] <= below


def test_the_scale_is_the_registrys(results: StudyResults) -> None:
    """For a metric that falls, fidelity left is the registry's chance-normalised fidelity."""
    left = (
        fidelity_left(results, [Sign("kr_accuracy")]).filter(pl.col("seed") == 0).sort("generation")["left"].to_list()
    )
    expected = [fidelity(METRICS["kr_accuracy"], 0.5 + 0.3 * (1 - g / 10), 0.8) for g in range(8)]
    assert left == pytest.approx(expected)


def test_what_was_put_in_first_comes_out_first(results: StudyResults) -> None:
    """Tails halve in each generation, perplexity takes 1.7 to double, facts lose a tenth."""
    chosen = first_choice(signs(results)[0])
    table = losses(results, chosen, [0.5])
    [row] = firsts(table, chosen, ["seed"], results.cells.order)
    assert row["tails: tail coverage first"] == "3"
    times = {row["sign"]: row["median onset (generations)"] for row in onsets(table, chosen, results.cells.order)}
    assert times["tails: tail coverage"] == "1"
    assert times["fit: held-out perplexity"] == "1.71"
    assert times["facts: KR accuracy"] == "5"
