"""What a curve draws of many chains: honest quantiles, breaks where there is no number, and never more than fits."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fortifai_ray.report.points import MANY_CHAINS, MOST_GENERATIONS, Curve, curve, thin
from fortifai_ray.results.cells import Cells

from .large import write_samples_study

BASELINE = {"loss.kind": "cross_entropy"}


def table(values: np.ndarray, metric: str = "wasserstein") -> pl.DataFrame:
    """One cell's chains × generations."""
    chains, generations = values.shape
    seeds, numbers = (part.ravel() for part in np.meshgrid(range(chains), range(generations), indexing="ij"))
    columns = {"chain_id": [f"c{seed}" for seed in seeds], "seed": seeds, "generation": numbers, metric: values.ravel()}
    return pl.DataFrame(columns)


def drawn(values: np.ndarray, metric: str = "wasserstein", **options: object) -> Curve:
    generations = table(values, metric)
    return curve(generations, metric, Cells.of(generations, [], BASELINE), **options)  # type: ignore[arg-type]


def lognormal(chains: int, generations: int) -> np.ndarray:
    return np.exp(np.random.default_rng(1).normal(0, 1, (chains, generations)))


def test_many_chains_are_a_median_and_a_band_and_no_lines() -> None:
    values = lognormal(41, 3)
    result = drawn(values)
    assert result.points.is_empty()
    for name, share in (("low", 0.05), ("value", 0.5), ("high", 0.95)):
        assert result.spread[name].to_numpy() == pytest.approx(np.quantile(values, share, axis=0), rel=1e-4)


def test_few_chains_are_all_drawn_and_the_band_is_their_range() -> None:
    values = lognormal(MANY_CHAINS, 3)
    result = drawn(values)
    assert len(result.points) == values.size
    assert result.spread["low"].to_numpy() == pytest.approx(values.min(axis=0), rel=1e-4)
    assert result.spread["high"].to_numpy() == pytest.approx(values.max(axis=0), rel=1e-4)


def test_infinite_values_count_as_beyond_every_number_instead_of_cutting_the_curve() -> None:
    """One chain of a thousand that overflows must not end the median, and must not vanish either."""
    values = lognormal(41, 4)
    values[0, 1] = math.inf
    values[:3, 2] = math.inf  # 3 of 41 lie above the 95 % quantile's place: the band has no upper end
    values[:, 3] = math.inf
    result = drawn(values)
    assert result.spread["generation"].to_list() == [0, 1, 2]
    ordered = np.sort(values[:, 1])
    assert result.spread["value"][1] == pytest.approx(ordered[20], rel=1e-4)
    assert result.spread["band"][2].endswith("to ∞")
    assert math.isfinite(result.spread["high"].max())  # type: ignore[arg-type]
    assert result.broken["shown"].to_list() == ["∞ in 1 of 41 chains", "∞ in 3 of 41 chains", "∞ in 41 of 41 chains"]


@pytest.mark.parametrize(("metric", "side"), [("trace_ratio", "low"), ("wasserstein", "high")])
def test_a_nan_counts_on_the_side_of_collapse(metric: str, side: str) -> None:
    """As in the fidelity tables, where a broken generation has crossed: it cannot make the median look healthier."""
    values = lognormal(21, 2)
    values[:10, 1] = math.nan
    result = drawn(values, metric)
    sound = np.sort(values[10:, 1])
    assert result.spread["value"][1] == pytest.approx(sound[-1 if side == "high" else 0], rel=1e-4)
    assert result.broken["shown"].to_list() == ["NaN in 10 of 21 chains"]


def test_a_line_breaks_where_there_is_no_number() -> None:
    values = lognormal(3, 5)
    values[1, 2] = math.nan
    result = drawn(values)
    assert result.spread["generation"].to_list() == [0, 1, 3, 4]
    assert result.spread["part"][0] == result.spread["part"][1] != result.spread["part"][2] == result.spread["part"][3]
    broken = result.points.filter(pl.col("chain") == "c1", pl.col("value").is_not_null())
    assert broken["part"].n_unique() == 2
    assert result.points.filter(chain="c0")["part"].n_unique() == 1


def test_a_cell_measured_in_every_other_generation_is_still_a_line() -> None:
    """Families of one study differ; what another family measures more often must not tear this one's line apart."""
    own = table(lognormal(2, 9)).filter(pl.col("generation") % 2 == 0).with_columns(pl.lit("x").alias("loss.kind"))
    other = table(lognormal(2, 9)).with_columns(
        pl.lit("y").alias("loss.kind"), chain_id=pl.lit("d") + pl.col("chain_id")
    )
    both = pl.concat([own, other])
    result = curve(both, "wasserstein", Cells.of(both, ["loss.kind"], BASELINE))
    assert result.spread.filter(cell="x")["part"].n_unique() == 1


@pytest.mark.parametrize(("cells", "generations"), [(1, 1000), (100, 300)])
def test_generations_are_thinned_evenly_with_the_ends_kept(tmp_path: Path, cells: int, generations: int) -> None:
    study = write_samples_study(tmp_path, sizes=range(10, 10 + cells), chains=2, generations=generations)
    rows = pl.read_parquet(study / "results/generations.parquet")
    result = curve(rows, "trace_ratio", Cells.of(rows, ["samples_per_generation"], BASELINE), most_points=4000)
    assert len(result.spread) <= 4000
    assert len(result.generations) <= MOST_GENERATIONS
    assert (result.generations[0], result.generations[-1]) == (0, generations - 1)
    steps = np.diff(result.generations)
    assert steps.max() - steps.min() <= 1
    assert result.measured == generations


def test_thin_keeps_what_is_few() -> None:
    assert thin([3, 5, 8], 3) == [3, 5, 8]
    assert thin(range(100), 3) == [0, 50, 99]


@pytest.mark.parametrize(
    ("values", "metric", "log"),
    [
        ([1.0, 150.0], "excess_risk", True),  # two decades
        ([1.0, 90.0], "excess_risk", False),
        ([1.0, 1.1], "perplexity", True),  # multiplies, whatever it spans
        ([0.0, 1e6], "excess_risk", False),  # zero has no place
        ([-1.0, 1e6], "log_variance_ratio", False),
        ([0.2, 0.9], "my_own_ratio", False),  # a name says nothing
        ([0.2, 0.9], "trace_ratio", True),
        ([0.2, 0.9], "distinct_1", False),
        ([1.0, math.inf], "excess_risk", False),
    ],
)
def test_a_log_axis_where_positive_values_span_decades(values: list[float], metric: str, log: bool) -> None:
    assert drawn(np.array([values, values]), metric).log_scale is log


def test_a_band_that_reaches_zero_is_drawn_to_the_edge_of_a_log_axis() -> None:
    values = np.full((40, 2), 1.0)
    values[:, 1] = 1e-3
    values[:4, 1] = 0.0
    result = drawn(values)
    assert result.log_scale
    assert result.spread["low"].to_list() == [1.0, 1e-3]
    assert result.spread["band"][1] == "0 to 0.001"
