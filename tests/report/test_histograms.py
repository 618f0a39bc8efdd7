"""Histograms of the probability of tokens, block by block: what the report draws of a study's signs."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fortifai_ray.report import write_report
from fortifai_ray.report.charts.histograms import TEXTS, histogram_chart, probability_table
from fortifai_ray.report.page import histograms
from fortifai_ray.results.reader import open_study
from fortifai_ray.results.schema import table_path, write_table

from .studies import write_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study whose models are ever surer of their own text: 10 blocks in the bin of their generation's number."""
    folder = write_study(tmp_path)
    generations = pl.read_parquet(table_path(folder, "generations"))
    write_table(folder, "generations", generations.with_columns(mean_target_probability_human=0.1))
    rows = []
    for row in generations.iter_rows(named=True):
        counts = np.eye(100, dtype=int)[row["generation"]] * 10
        signs = {"histograms": {f"probability_histogram_{text}": counts.tolist() for text in TEXTS}}
        rows.append(
            {"chain_id": row["chain_id"], "generation": row["generation"], "details": json.dumps({"signs": signs})}
        )
    write_table(folder, "details", pl.DataFrame(rows))
    return folder


def test_a_cells_seeds_are_counted_together(study: Path) -> None:
    """Three seeds' blocks in one histogram, whose shares add up to 1."""
    results = open_study(study)
    table = probability_table(results.batches("details"), results.generations, results.cells)
    first = table.filter(cell=results.cells.order[0], generation=1, text="human")
    assert first.filter(pl.col("blocks") > 0).select("probability", "blocks", "share").row(0) == (0.015, 30, 1.0)
    assert first.height == 100
    assert histogram_chart(first).to_dict()["mark"]["type"] == "line"


def test_the_report_draws_one_for_each_cell_and_text(study: Path) -> None:
    """Folded with the other measurements; a study without signs has none."""
    (group,) = histograms(open_study(study))
    assert len(group.figures) == 3 * len(TEXTS)
    assert "Probability of the tokens, block by block" in write_report(study).read_text()
    table_path(study, "details").unlink()
    assert histograms(open_study(study)) == []
