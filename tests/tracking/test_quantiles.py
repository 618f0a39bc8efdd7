"""What MLflow shows of a cell: quantiles over its seeds by generation, thinned where a chain is long."""

import polars as pl
import pytest

from fortifai_ray.tracking.quantiles import seed_quantiles


def test_quantiles_are_over_the_cells_seeds() -> None:
    """Each cell's own seeds, each generation; chains of no cell and metrics never measured are left out."""
    table = pl.DataFrame(
        {
            "chain_id": ["a", "b", "c", "a", "b", "c"],
            "generation": [0, 0, 0, 1, 1, 1],
            "trace_ratio": [1.0, 3.0, 100.0, 2.0, 4.0, 100.0],
            "perplexity": [None] * 6,
        },
        schema_overrides={"perplexity": pl.Float64},
    )
    found = dict(seed_quantiles(table, {"a": "cell", "b": "cell"}, ["trace_ratio", "perplexity"]))
    assert list(found) == ["cell"]
    (first, values), (second, later) = found["cell"]
    assert (first, second) == (0, 1)
    assert values["trace_ratio/mean"] == values["trace_ratio/median"] == 2.0
    assert values["trace_ratio/q05"] == pytest.approx(1.1)
    assert later["trace_ratio/q95"] == pytest.approx(3.9)
    assert not [name for name in values if name.startswith("perplexity")]


def test_a_long_chain_is_shown_at_two_hundred_generations() -> None:
    """The first and the last among them."""
    table = pl.DataFrame({"chain_id": "a", "generation": range(2000), "x": [float(g) for g in range(2000)]})
    (_, series), = seed_quantiles(table, {"a": "cell"}, ["x"])  # fmt: skip
    assert len(series) == 200
    assert (series[0][0], series[-1][0]) == (0, 1999)
