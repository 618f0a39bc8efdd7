"""Study directories as a sweep leaves them, with plausible numbers: cross entropy against TCE, any number of seeds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from fortifai_ray.results.schema import write_table
from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.criterion import Collapse, CollapseCriterion
from fortifai_ray.statistics.crossing import collapse_confirmed
from fortifai_ray.statistics.fidelity import fidelity_table

CRITERION = CollapseCriterion(metric="perplexity", threshold=2.0, direction="above")
BASELINE = {"loss.kind": "cross_entropy"}
CELLS: list[tuple[str, float | None]] = [("cross_entropy", None), ("tce", 0.3), ("tce", 0.9)]
# How a generation's log perplexity grows on the one before it: the platform's own small runs, roughly.
GROWTH = {
    None: [0.06, 0.39, 0.76, 1.28, 1.33, 1.69],
    0.3: [0.1, 0.32, 0.65, 0.7, 0.84, 0.98],
    0.9: [0.05, 0.3, 0.6, 0.9, 1, 1.1],
}


def write_study(
    folder: Path,
    *,
    name: str = "quickstart",
    seeds: int = 3,
    generations: int = 6,
    slowness: dict[float | None, float] | None = None,
    gammas: bool = True,
    perplexity: dict[tuple[float | None, int, int], float] | None = None,
    text: str = "the module defines the following functions",
    fixed_prompts: bool = True,
    criteria: Sequence[Collapse] = (CRITERION,),
    failed: Sequence[str] = (),
) -> Path:
    """Write ``folder/name`` and return it.

    Args:
        slowness: by γ, a factor on the growth; 0.1 makes a loss whose chains never collapse.
        gammas: whether losses have γ (else they differ in their kind only).
        perplexity: values to put in, by (γ, seed, generation).
        text: what the samples say.
        fixed_prompts: whether a row keeps its prompt through the generations.
        criteria: what counts as collapse; chains stop by the default one.
        failed: ids (``tce-0.3-0``) of chains that failed.
    """
    study = folder / name
    (study / "results").mkdir(parents=True)
    cells = CELLS if gammas else [("cross_entropy", None), ("focal", None)]
    rows = [
        row
        for kind, gamma in cells
        for seed in range(seeds)
        for row in _chain(kind, gamma, seed, generations, (slowness or {}).get(gamma, 1.0), perplexity or {})
    ]
    table = pl.DataFrame(rows, infer_schema_length=None)
    table = table if gammas else table.drop("loss.gamma")
    keys = ["loss.kind", "loss.gamma"] if gammas else ["loss.kind"]
    chains = chain_table(table, list(criteria), BASELINE, [*keys, "seed"], generations, failed=failed)
    write_table(study, "generations", table)
    write_table(study, "chains", chains)
    fidelity = fidelity_table(chains, [*keys, "seed"], BASELINE)
    write_table(study, "fidelity", fidelity)
    write_table(study, "samples", _samples(table, text, fixed_prompts))
    (study / "results" / "summary.json").write_text(json.dumps(_summary(name, chains)))
    (study / "study.yaml").write_text(yaml.safe_dump(_study(name, cells, seeds, generations), sort_keys=False))
    return study


def _chain(
    kind: str,
    gamma: float | None,
    seed: int,
    generations: int,
    slowness: float,
    put: dict[tuple[float | None, int, int], float],
) -> list[dict[str, Any]]:
    """A chain's rows, stopped once its collapse is confirmed, as the sweep stops it."""
    noise = np.random.default_rng([seed, 7]).normal(0, 0.08, generations)
    start = 329.0 + 6 * seed + (1 if gamma else 0)
    limit = 2 * (329.0 + 6 * seed) * float(np.exp(noise[0]))
    rows: list[dict[str, Any]] = []
    for generation in range(generations):
        growth = (GROWTH[gamma] * generations)[:generation]
        value = put.get((gamma, seed, generation), start * float(np.exp(slowness * sum(growth) + noise[generation])))
        rows.append(
            {
                "chain_id": f"{kind}-{gamma}-{seed}",
                "generation": generation,
                "seed": seed,
                "family.kind": "language",
                "loss.kind": kind,
                "loss.gamma": gamma,
                "regime.kind": "mixed",
                "regime.synthetic_ratio": 1.0,
                "synthetic_ratio_realised": 0.0 if generation == 0 else 1.0,
                "unit": "tokens",
                "human_size": 95_000 if generation == 0 else 0,
                "synthetic_size": 0 if generation == 0 else 95_000,
                "synthetic_size_cum": 95_000 * generation,
                "kept_fraction": None if gamma is None else gamma - 0.02 * generation,
                "perplexity": value,
                "prompt_overlap": 0.02 + 0.01 * generation,
                "train_seconds": 6.1,
                "generate_seconds": 4.2,
                "evaluate_seconds": 0.8,
                "reused": False,
                "stage": f"stage-{kind}-{gamma}-{seed}-{generation}",
            }
        )
        if collapse_confirmed([row["perplexity"] for row in rows], limit, CRITERION):
            break
    return rows


def _samples(table: pl.DataFrame, text: str, fixed_prompts: bool) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "chain_id": chain,
                "generation": generation,
                "row": row,
                "prompt_text": f"Prompt {row}" + ("" if fixed_prompts else f" of generation {generation}"),
                "generated_text": f"{text} " * (1 + generation),
            }
            for chain, generation in table.select("chain_id", "generation").iter_rows()
            for row in range(4)
        ]
    )


def _summary(name: str, chains: pl.DataFrame) -> dict[str, Any]:
    return {
        "name": name,
        "wall_seconds": 312.4,
        "chains_at_once": 2,
        "useful_seconds": 480.1,
        "overhead": 0.301,
        "engine_starts": 2,
        "engine_kind": "vllm",
        "stages_computed": 48,
        "stages_reused": 2,
        "chains": [
            {"chain_id": chain, "label": chain, "training_mode": "local", "status": status, "reason": None}
            for chain, status in chains.select("chain_id", "status").iter_rows()
        ],
        "versions": {"python": "3.11", "ray": "2.60.0", "torch": "2.13.0+cpu"},
    }


def _study(name: str, cells: Sequence[tuple[str, float | None]], seeds: int, generations: int) -> dict[str, Any]:
    return {
        "name": name,
        "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 2048}},
        "regime": {"kind": "mixed", "synthetic_ratio": 1.0},
        "loss": {"kind": "cross_entropy"},
        "generations": generations,
        "seed": 0,
        "vary": {
            "loss": [{"kind": kind} | ({"gamma": gamma} if gamma else {}) for kind, gamma in cells],
            "seed": list(range(seeds)),
        },
        "collapse": [CRITERION.model_dump()],
        "baseline": BASELINE,
        "claims": [],
    }
