"""The plane of two keys: shares are counted, and the boundary is the search's, or the grid's, or said to be unknown."""

import shutil
from pathlib import Path

import altair as alt
import polars as pl
import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import write_table
from fortifai_ray.search.points import CollapsePoint, collapse_points
from support.opening import open_folder
from support.phase import Plane, boundary_rows, numeric_keys, phase_chart, plane, tolerated, tolerated_rows

from .studies import compute_study

RATIO, SIZE = "regime.synthetic_ratio", "samples_per_generation"
RATIOS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """Six ratios, two sizes, eight seeds; what collapsed is put in by the tests."""
    return open_folder(
        compute_study(
            tmp_path_factory.mktemp("grid"),
            family={"kind": "gaussian"},
            generations=2,
            regime={"kind": "mixed", "synthetic_ratio": 1.0},
            vary={RATIO: RATIOS, SIZE: [10, 20], "seed": {"count": 8}},
            collapse={"metric": "kl_divergence", "relative_to": "absolute", "threshold": 0.3, "direction": "above"},
            baseline={SIZE: 10},
        )
    )


def judged(grid: StudyResults, collapsed: pl.Expr) -> Plane:
    """The plane where just the chains of ``collapsed`` do."""
    assert grid.chains is not None
    status = pl.when(collapsed).then(pl.lit("collapsed")).otherwise(pl.lit("survived"))
    chains = grid.chains.with_columns(status=status)
    return plane(grid.replace(chains=chains), grid.criteria[0], RATIO, SIZE)


def rows(found: Plane) -> list[dict[str, object]]:
    return found.boundaries.to_dicts()


def test_the_numeric_keys_are_found_ratio_first(grid: StudyResults) -> None:
    assert numeric_keys(grid) == [RATIO, SIZE]


def test_shares_count_chains(grid: StudyResults) -> None:
    """Half of the seeds collapse at the middle ratio."""
    found = judged(grid, (pl.col(RATIO) > 0.4) | ((pl.col(RATIO) == 0.4) & (pl.col("seed") < 4)))
    share = {row["x"]: (row["share"], row["chains"]) for row in found.shares.filter(pl.col("y") == 10).to_dicts()}
    assert share == {0.0: (0, 8), 0.2: (0, 8), 0.4: (0.5, 8), 0.6: (1, 8), 0.8: (1, 8), 1.0: (1, 8)}


@pytest.mark.parametrize(("last_faithful", "low", "high"), [(0.2, 0.15, 0.45), (0.6, 0.55, 0.85)])
def test_a_sharp_boundary_is_bracketed(grid: StudyResults, last_faithful: float, low: float, high: float) -> None:
    """Between the last ratio at which none collapses and the first at which all do, and the interval holds it."""
    for row in rows(judged(grid, pl.col(RATIO) > last_faithful + 0.01)):
        assert row["bound"] == "exact"
        assert row["source"] == "grid"
        assert low < row["low"] < row["critical"] < row["high"] < high  # type: ignore[operator]
        assert row["low"] < last_faithful + 0.2  # type: ignore[operator]
        assert row["high"] > last_faithful  # type: ignore[operator]


def test_each_row_has_its_own_boundary(grid: StudyResults) -> None:
    """Small samples collapse at a lower ratio here."""
    small, large = rows(judged(grid, pl.col(RATIO) > pl.when(pl.col(SIZE) == 10).then(0.3).otherwise(0.7)))
    assert (small["y"], large["y"]) == (10, 20)
    assert small["high"] < large["low"]  # type: ignore[operator]


def test_a_boundary_beyond_the_grid_is_a_bound(grid: StudyResults) -> None:
    """Nothing collapsed: it lies above; everything did: below."""
    assert {(row["bound"], row["high"]) for row in rows(judged(grid, pl.lit(False)))} == {("lower", None)}
    assert {(row["bound"], row["low"]) for row in rows(judged(grid, pl.lit(True)))} == {("upper", None)}


def test_collapse_that_is_not_monotone_has_no_boundary(grid: StudyResults) -> None:
    """It collapses in the middle alone: no number is given, and the reason is."""
    found = judged(grid, pl.col(RATIO).is_between(0.3, 0.7))
    assert {row["bound"] for row in rows(found)} == {"undetermined"}
    assert "collapse is not monotone in" in boundary_rows(found)[0]["note"]
    assert boundary_rows(found)[0][next(key for key in boundary_rows(found)[0] if "half" in key)] == "undetermined"


def test_the_searchs_boundary_is_taken_where_there_is_one(grid: StudyResults, tmp_path: Path) -> None:
    """One row was searched for, the other is read off the grid; each says so."""
    folder = tmp_path / "study"
    shutil.copytree(grid.folder, folder)
    point = CollapsePoint(0.51, 0.5, 0.53, 0.9, "exact", 20, 200)
    table = collapse_points([({SIZE: 10}, grid.criteria[0], point)], RATIO)
    write_table(folder, "collapse_points", table)
    assert tolerated(grid, grid.criteria[0], RATIO) is None
    [row] = tolerated_rows(tolerated(open_folder(folder), grid.criteria[0], RATIO))
    assert list(row.values()) == ["samples per generation=10", "0.51 [0.5, 0.53]", "baseline", "–"]
    found = plane(open_folder(folder), grid.criteria[0], RATIO, SIZE)
    searched, read_off = rows(found)
    assert (searched["source"], searched["critical"], searched["low"], searched["high"]) == ("search", 0.51, 0.5, 0.53)
    assert read_off["source"] == "grid"
    assert [row["method"] for row in boundary_rows(found)] == ["searched for", "read off the grid"]
    assert isinstance(phase_chart(found), alt.LayerChart)


def test_what_a_cell_tolerates_is_told_over_the_baseline(grid: StudyResults, tmp_path: Path) -> None:
    """0.8 over 0.4 is twice the synthetic share, and a third of the human one."""
    folder = tmp_path / "study"
    shutil.copytree(grid.folder, folder)
    points = [CollapsePoint(at, at - 0.01, at + 0.01, 0.9, "exact", 20, 200) for at in (0.4, 0.8)]
    cells = [({SIZE: size}, grid.criteria[0], point) for size, point in zip((10, 20), points, strict=True)]
    write_table(folder, "collapse_points", collapse_points(cells, RATIO))
    _, row = tolerated_rows(tolerated(open_folder(folder), grid.criteria[0], RATIO))
    _, critical, times, human = row.values()
    assert critical == "0.8 [0.79, 0.81]"
    assert times == "2 [1.95, 2.06]"  # √(0.01² / 0.8² + 0.01² / 0.4²) on the logarithms, nearly
    assert human.startswith("0.333 [0.31")


def test_one_key_alone_is_drawn_as_shares_by_it(grid: StudyResults) -> None:
    """A study that varies nothing but r: a line for each of the other cells."""
    found = plane(grid, grid.criteria[0], RATIO, None)
    assert found.panels == ["10", "20"] or len(found.panels) == 2
    chart = phase_chart(found)
    assert isinstance(chart, alt.LayerChart)
    assert "share of chains collapsed" in chart.to_json()


def test_a_plane_needs_two_keys(grid: StudyResults) -> None:
    with pytest.raises(UserError, match="picked twice"):
        plane(grid, grid.criteria[0], RATIO, RATIO)
