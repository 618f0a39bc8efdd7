"""Survival curves and the ratio's profile: the numbers that are drawn."""

import math

import polars as pl
import pytest

from fortifai_ray.results.cells import Cells
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.survival import kaplan_meier
from support.survival import profile_chart, survival_chart, survival_table

CRITERION = CollapseCriterion(metric="perplexity", threshold=2.0, direction="above")
TIMES = [(1.0, False), (2.0, False), (2.0, True), (3.0, False), (5.0, True), (0.0, False)]


@pytest.fixture
def chains() -> pl.DataFrame:
    """Six chains of one cell; two are censored, one collapsed at the start, one has no verdict."""
    rows = [
        {
            "chain_id": str(number),
            "seed": number,
            "loss.kind": "tce",
            "fi_generations": at,
            "fi_synthetic": 10 * at,
            "censored": censored,
            "status": "survived" if censored else "collapsed",
        }
        for number, (at, censored) in enumerate(TIMES)
    ]
    rows.append(rows[0] | {"chain_id": "lost", "seed": 9, "status": "failed", "fi_generations": None, "censored": None})
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(
        [pl.lit(value).alias(name) for name, value in CRITERION.model_dump().items()]
    )


@pytest.fixture
def cells(chains: pl.DataFrame) -> Cells:
    return Cells.of(chains, ["loss.kind"], {"loss.kind": "cross_entropy"})


def test_the_curve_is_kaplan_and_meiers(chains: pl.DataFrame, cells: Cells) -> None:
    """By hand, with the censored chains at risk until they leave; and as the tables' own estimator has it."""
    table = survival_table(chains, CRITERION, cells)
    assert table["at"].to_list() == [0, 1, 2, 3, 5]
    assert table["faithful"].to_list() == pytest.approx([5 / 6, 4 / 6, 3 / 6, 1 / 4, 1 / 4])
    assert table["at_risk"].to_list() == [6, 5, 4, 2, 1]
    assert table["censored"].to_list() == [0, 0, 1, 0, 1]
    own = kaplan_meier(chains.filter(pl.col("status") != "failed"), ["loss.kind"], time="fi_generations")
    last = own.group_by("fi_generations").agg(pl.col("_survival").last()).sort("fi_generations")
    assert last["_survival"].to_list() == pytest.approx(table["faithful"].to_list())


def test_the_band_is_greenwoods_on_the_log_log_scale(chains: pl.DataFrame, cells: Cells) -> None:
    """At time 1: S = 4/6, Var ln S = 1/(6·5) + 1/(5·4), by the formula."""
    row = survival_table(chains, CRITERION, cells).filter(pl.col("at") == 1).row(0, named=True)
    survival, spread = 4 / 6, math.sqrt(1 / 30 + 1 / 20)
    width = 1.6448536 * spread / abs(math.log(survival))
    assert row["low"] == pytest.approx(survival ** math.exp(width), rel=1e-6)
    assert row["high"] == pytest.approx(survival ** math.exp(-width), rel=1e-6)


def test_time_in_synthetic_data(chains: pl.DataFrame, cells: Cells) -> None:
    table = survival_table(chains, CRITERION, cells, "synthetic")
    assert table["at"].to_list() == [0, 10, 20, 30, 50]


def test_no_verdict_no_curve(chains: pl.DataFrame, cells: Cells) -> None:
    table = survival_table(chains.filter(pl.col("status") == "failed"), CRITERION, cells)
    assert table.is_empty()
    assert survival_chart(table, cells) is None


def test_a_profile_draws_bounds_as_bounds_and_leaves_out_what_is_unknown(chains: pl.DataFrame, cells: Cells) -> None:
    """An undetermined ratio has no point; a lower bound has its own shape and says ≥."""
    row = {
        "loss.kind": "tce",
        "unit": "generations",
        "is_baseline": False,
        "n_chains": 6,
        "n_censored": 1,
        "n_pairs": 6,
    }
    row |= {"fi_ratio_low": 1.1, "fi_ratio_high": None, "logrank_p_holm": 0.04}
    found = [
        row | {"threshold": 2.0, "fi_ratio": 1.2, "bound": "lower"},
        row | {"threshold": 3.0, "fi_ratio": None, "bound": "undetermined"},
    ]
    chart = profile_chart(pl.DataFrame(found), CRITERION, cells)
    assert not isinstance(chart, str)
    text = chart.to_json(ensure_ascii=False)
    assert "≥1.2 [1.1, ∞)" in text
    assert '"threshold": 3.0' not in text
    assert "the baseline's generation 0" in text
    nothing = pl.DataFrame(found[1:], schema_overrides={"fi_ratio": pl.Float64})
    assert isinstance(profile_chart(nothing, CRITERION, cells), str)
