"""A study's ``generations`` table in a few words."""

from collections.abc import Callable, Mapping, Sequence

import polars as pl
import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # the first example of a test may pay for an import
settings.load_profile("untimed")

Curves = Mapping[tuple[str, int], Sequence[float | None]]

LOSSES = {"ce": ("cross_entropy", None), "tce": ("tce", 0.3), "tce9": ("tce", 0.9)}
TOKENS = 1_000  # synthetic tokens consumed per generation after the first


@pytest.fixture(scope="session")
def study() -> Callable[[Curves], pl.DataFrame]:
    """Builds the table from {(loss, seed): perplexities}; losses are named as in ``LOSSES``."""

    def build(curves: Curves) -> pl.DataFrame:
        rows = [
            {
                "chain_id": f"{name}-{seed}",
                "generation": generation,
                "seed": seed,
                "loss.kind": LOSSES[name][0],
                "loss.gamma": LOSSES[name][1],
                "perplexity": value,
                "synthetic_size_cum": TOKENS * generation,
                "collapse_reason": None,
            }
            for (name, seed), values in curves.items()
            for generation, value in enumerate(values)
        ]
        floats = dict.fromkeys(("loss.gamma", "perplexity"), pl.Float64)
        return pl.DataFrame(rows, schema_overrides={**floats, "collapse_reason": pl.String}, infer_schema_length=None)

    return build
