"""Which criterion is crossed first: decided where bounds decide it, and nowhere else."""

from pathlib import Path

import polars as pl
import pytest

from fortifai_ray.report.tables import order_tables
from fortifai_ray.results.reader import open_study
from fortifai_ray.results.schema import write_table

from .large import KL, TRACE, write_samples_study
from .studies import write_study

# (status, onset or up to when it is known to be faithful) under the first and the second criterion -> who came first
CASES = [
    (("collapsed", 2.0), ("collapsed", 3.5), "first"),
    (("collapsed", 3.5), ("collapsed", 2.0), "second"),
    (("collapsed", 2.0), ("collapsed", 2.0), "tie"),
    (("collapsed", 2.0), ("survived", 9.0), "first"),
    (("survived", 9.0), ("collapsed", 9.0), "second"),  # seen not to cross at 9: it crosses later
    (("collapsed", 9.0), ("unconfirmed", 8.5), "open"),  # it may have collapsed at 8.5
    (("collapsed", 8.5), ("unconfirmed", 8.5), "open"),
    (("collapsed", 8.0), ("unconfirmed", 8.5), "first"),
    (("collapsed", 2.0), ("survived", 1.0), "open"),  # not watched for long enough
    (("survived", 9.0), ("survived", 9.0), "open"),
    (("failed", None), ("collapsed", 2.0), "open"),
    (("failed", None), ("collapsed", 0.0), "open"),
]


@pytest.mark.parametrize(("first", "second", "who"), CASES)
def test_bounds_decide(tmp_path: Path, first: tuple[str, float], second: tuple[str, float], who: str) -> None:
    study = write_samples_study(tmp_path, sizes=(10,), chains=1)
    values = [
        pl.when(pl.col("metric") == TRACE.metric).then(pl.lit(a)).otherwise(pl.lit(b))
        for a, b in zip(first, second, strict=True)
    ]
    chains = pl.read_parquet(study / "results/chains.parquet").with_columns(
        status=values[0], fi_generations=values[1].cast(pl.Float64)
    )
    onset = pl.when(pl.col("status") == "collapsed").then("fi_generations")
    write_table(study, "chains", chains.with_columns(onset=onset))
    [table] = order_tables(open_study(study))
    [row] = table.rows
    assert {kind: getattr(row, kind) for kind in ("first", "second", "tie", "open") if getattr(row, kind)} == {who: 1}


def test_shares_are_of_all_chains_of_a_cell(tmp_path: Path) -> None:
    results = open_study(write_samples_study(tmp_path, sizes=(10, 1000), chains=40, generations=30))
    [table] = order_tables(results)
    assert table.headings[1:3] == (
        "trace ratio (fitted covariance over the true one's) below 0.5 first",
        "KL divergence above 0.3 first",
    )
    assert [row.first + row.second + row.tie + row.open for row in table.rows] == [40, 40]
    onsets = results.chains.filter(pl.col("chain_id").str.starts_with("10-"))  # type: ignore[union-attr]
    wide = onsets.pivot("metric", index="chain_id", values="onset").drop_nulls()
    assert len(wide) == 40, "every chain of the small cell must collapse under both"
    earlier = int((wide[TRACE.metric] < wide[KL.metric]).sum())
    assert (table.rows[0].first, table.rows[0].texts[1]) == (earlier, f"{earlier} of 40 ({100 * earlier / 40:g} %)")


def test_many_cells_are_counted_together(tmp_path: Path) -> None:
    results = open_study(write_samples_study(tmp_path, sizes=range(10, 30), chains=2))
    [table] = order_tables(results)
    assert [row.cell for row in table.rows] == ["all 20 cells"]


def test_one_criterion_has_no_order(tmp_path: Path) -> None:
    assert order_tables(open_study(write_study(tmp_path))) == []


def test_criteria_that_differ_in_their_reference_only_are_named_apart(tmp_path: Path) -> None:
    own = TRACE.model_copy(update={"relative_to": "own_generation_0"})
    other = TRACE.model_copy(update={"relative_to": "own_generation_0", "confirm": 3})
    [table] = order_tables(open_study(write_samples_study(tmp_path, criteria=[own, other])))
    assert table.first != table.second
