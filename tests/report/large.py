"""Studies beyond a language model's few chains: thousands of chains of samples, many cells, many metrics, pictures."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from fortifai_ray.claims.result import ClaimResult, write_claims
from fortifai_ray.results.schema import write_table
from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.fidelity import fidelity_table

BASELINE = {"loss.kind": "cross_entropy"}
TRACE = CollapseCriterion(metric="trace_ratio", threshold=0.5, direction="below", relative_to="absolute")
KL = CollapseCriterion(metric="kl_divergence", threshold=0.3, direction="above", relative_to="absolute")


def write_samples_study(
    folder: Path,
    *,
    name: str = "gaussian",
    sizes: Sequence[int] = (10, 30, 100),
    chains: int = 50,
    generations: int = 20,
    criteria: Sequence[CollapseCriterion] = (TRACE, KL),
    put: dict[tuple[str, int, int], float] | None = None,
) -> Path:
    """A study of Gaussians fitted to their own samples: a cell per sample size, every chain to its horizon.

    The variance of generation g is that of the last times χ²(n − 1) / n, as under maximum likelihood; accumulating
    regimes are not simulated.

    Args:
        sizes: samples per generation, one cell each.
        chains: seeds of a cell.
        put: values of ``kl_divergence`` to put in, by (chain id, generation, 0).
    """
    rng = np.random.default_rng(7)
    parts = []
    for size in sizes:
        steps = rng.chisquare(size - 1, (chains, generations)) / size
        ratio = np.cumprod(steps, axis=1)
        drift = np.cumsum(rng.normal(0, 1, ratio.shape) ** 2 / size, axis=1)
        seeds, numbers = (part.ravel() for part in np.meshgrid(range(chains), range(generations), indexing="ij"))
        parts.append(
            pl.DataFrame(
                {
                    "chain_id": [f"{size}-{seed}" for seed in seeds],
                    "generation": numbers,
                    "seed": seeds,
                    "samples_per_generation": np.full(seeds.shape, size),
                    "trace_ratio": ratio.ravel(),
                    "kl_divergence": ((1 / ratio - 1 + np.log(ratio)) / 2 + drift).ravel(),
                    "synthetic_size_cum": numbers * size,
                }
            )
        )
    table = pl.concat(parts).with_columns(
        pl.lit("gaussian").alias("family.kind"),
        pl.lit("cross_entropy").alias("loss.kind"),
        pl.lit("replace").alias("regime.kind"),
        unit=pl.lit("samples"),
    )
    for (chain, generation, _), value in (put or {}).items():
        here = (pl.col("chain_id") == chain) & (pl.col("generation") == generation)
        table = table.with_columns(kl_divergence=pl.when(here).then(value).otherwise("kl_divergence"))
    varied = ["samples_per_generation", "seed"]
    return write_tables(folder / name, table, criteria, varied, generations, {"samples_per_generation": list(sizes)})


def write_tables(
    study: Path,
    table: pl.DataFrame,
    criteria: Sequence[CollapseCriterion],
    varied: Sequence[str],
    generations: int,
    vary: dict[str, Any],
) -> Path:
    """Write a study's directory around its generations table."""
    judged = chain_table(table, list(criteria), BASELINE, varied, generations)
    for name, part in (
        ("generations", table),
        ("chains", judged),
        ("fidelity", fidelity_table(judged, varied, BASELINE)),
    ):
        write_table(study, name, part)
    (study / "results" / "summary.json").write_text(json.dumps({"name": study.name, "wall_seconds": 12.5}))
    content = {
        "name": study.name,
        "vary": vary,
        "collapse": [item.model_dump() for item in criteria],
        "baseline": BASELINE,
    }
    (study / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return study


def add_metrics(study: Path, names: Sequence[str]) -> None:
    """Give every generation a value of each metric: a slow drift, different by chain."""
    table = pl.read_parquet(study / "results" / "generations.parquet")
    rng = np.random.default_rng(3)
    drift = table["generation"].to_numpy() * 0.07
    columns = [pl.Series(name, 0.3 + drift + rng.normal(0, 0.02, len(table))) for name in names]
    write_table(study, "generations", table.with_columns(columns))


def add_pictures(study: Path, *, size: int = 96) -> None:
    """Give every generation of every chain a PNG whose grey fades with the generations."""
    from PIL import Image

    table = pl.read_parquet(study / "results" / "generations.parquet")
    last = max(1, int(table["generation"].max()))  # type: ignore[arg-type]
    pattern = np.random.default_rng(5).integers(0, 256, (size, size))
    rows = []
    for chain, generation in table.select("chain_id", "generation").iter_rows():
        pixels = (128 + (pattern - 128) * (1 - generation / last)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        rows.append({"chain_id": chain, "generation": generation, "png": file.getvalue()})
    write_table(study, "pictures", pl.DataFrame(rows))


def claim(name: str, kind: Any, verdict: Any, **changes: Any) -> ClaimResult:
    """A checked claim."""
    content: dict[str, Any] = {
        "id": name,
        "source": "Shumailov et al. 2024, equation 3",
        "kind": kind,
        "statistic": "mean of trace_ratio at generation 9",
        "measured": 0.37,
        "low": 0.34,
        "high": 0.41,
        "level": 0.99,
        "method": "bootstrap",
        "n_chains": 1000,
        "min_chains": 100,
        "relation": "equals",
        "value": 0.349,
        "accepted_low": 0.3,
        "accepted_high": 0.4,
        "asked": "= 0.349 ± 10 %",
        "verdict": verdict,
        "why": "",
    }
    return ClaimResult(**(content | changes))


def add_claims(study: Path, claims: Sequence[ClaimResult]) -> None:
    """Write the claims as ``fortifai claims`` does."""
    write_claims(study, claims)
