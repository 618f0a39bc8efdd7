"""A million rows of ``generations`` through the statistics.

    python -m benchmarks.fidelity [--chains 10000] [--cells 100] [--generations 100]

Half of the cells are cross entropy's, one for each of 50 synthetic ratios, half TCE's; perplexities grow by a random
walk whose drift rises with the ratio, so that some chains collapse early, some late and some never. Two criteria are
judged (twice and five times generation 0), and the profile of the ratio is computed over its 24 thresholds.

``wall_seconds`` is that of the fastest round, by step and in total; ``cpu_seconds``, of all threads, remains comparable
on a machine with other load. SciPy's imports precede the first round. The last line is one JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import polars as pl

from fortifai_ray.seeds import generator
from fortifai_ray.statistics.chains import chain_table
from fortifai_ray.statistics.conclusions import conclusions
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.fidelity import fidelity_table, ratio_profile
from fortifai_ray.statistics.order import crossing_order, first_crossings

VARIED = ["loss.kind", "loss.gamma", "regime.synthetic_ratio", "seed"]
BASELINE = {"loss.kind": "cross_entropy"}
T = TypeVar("T")
DOUBLED = CollapseCriterion(metric="perplexity", threshold=2.0, direction="above")
SEVERE = DOUBLED.model_copy(update={"threshold": 5.0})


def make_generations(chains: int, cells: int, generations: int, seed: int = 0) -> pl.DataFrame:
    """A row per chain and generation, shuffled: chains are spread evenly over ``cells``, an even number."""
    seeds, ratios = chains // cells, cells // 2
    of_chain = np.arange(seeds * cells)
    cell, chain_seed = of_chain // seeds, of_chain % seeds
    is_tce, ratio = cell >= ratios, (cell % ratios + 1) / ratios
    rng = generator(seed, "statistics benchmark", chains, cells, generations)
    drift = 0.05 * ratio * np.where(is_tce, 0.8, 1.0)
    steps = drift[:, None] + 0.05 * rng.standard_normal((of_chain.size, generations))
    perplexity = 300 * np.exp(np.cumsum(steps, axis=1) - steps[:, :1])
    names = np.array(["cross_entropy", "tce"], dtype=object)[is_tce.astype(int)]
    per_chain = pl.DataFrame(
        {
            "chain_id": [f"{index:016x}" for index in of_chain],
            "seed": chain_seed,
            "loss.kind": pl.Series(names, dtype=pl.String),
            "loss.gamma": pl.Series(np.where(is_tce, 0.3, np.nan), nan_to_null=True),
            "regime.synthetic_ratio": ratio,
        }
    )
    table = per_chain[np.repeat(of_chain, generations)].with_columns(
        generation=pl.Series(np.tile(np.arange(generations), of_chain.size)),
        perplexity=pl.Series(perplexity.ravel()),
        synthetic_size_cum=pl.Series((np.arange(generations)[None, :] * ratio[:, None] * 1_000).ravel()),
        collapse_reason=pl.lit(None, pl.String),
    )
    return table[rng.permutation(table.height)]


def measure(
    generations: pl.DataFrame, arguments: argparse.Namespace
) -> tuple[dict[str, tuple[float, float]], dict[str, int]]:
    """One round: wall and CPU seconds of each step, and counts of the results."""
    seconds: dict[str, tuple[float, float]] = {}
    n = arguments.generations

    def timed(name: str, step: Callable[[], T]) -> T:
        begun = time.perf_counter(), time.process_time()
        result = step()
        seconds[name] = time.perf_counter() - begun[0], time.process_time() - begun[1]
        return result

    chains = timed("chain_table", lambda: chain_table(generations, [DOUBLED, SEVERE], BASELINE, VARIED, n))
    fidelity = timed("fidelity_table", lambda: fidelity_table(chains, VARIED, BASELINE))
    timed("first_crossings", lambda: first_crossings(chains, VARIED))
    timed("crossing_order", lambda: crossing_order(chains, VARIED))
    sentences = timed("conclusions", lambda: conclusions(fidelity, chains))
    profile = timed(
        "ratio_profile",
        lambda: ratio_profile(generations, DOUBLED, None, BASELINE, VARIED, n),
    )
    counts = {
        "rows": generations.height,
        "chains": chains["chain_id"].n_unique(),
        "cells": fidelity.filter(pl.col("unit") == "generations", pl.col("threshold") == 2.0).height,
        "collapsed": int((chains["status"] == "collapsed").sum()),
        "intervals": int(fidelity["fi_ratio_low"].is_not_null().sum()),
        "tests": int(fidelity["logrank_p"].is_not_null().sum()),
        "sentences": sum(len(one.sentences) for one in sentences),
        "thresholds": profile["threshold"].n_unique(),
    }
    return seconds, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=10_000)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    import scipy.special
    import scipy.stats  # noqa: F401

    generations = make_generations(arguments.chains, arguments.cells, arguments.generations)
    rounds = []
    for number in range(arguments.rounds):
        seconds, counts = measure(generations, arguments)
        rounds.append(seconds)
        steps = ", ".join(f"{name} {wall:.3f} s ({cpu:.3f} s of CPU)" for name, (wall, cpu) in seconds.items())
        print(f"round {number}: {steps}", flush=True)
    best = {name: min(one[name][0] for one in rounds) for name in rounds[0]}
    whole = np.array([np.array(list(one.values())).sum(axis=0) for one in rounds]).min(axis=0)
    result = {
        **counts,
        "wall_seconds_by_step": {name: round(wall, 3) for name, wall in best.items()},
        "wall_seconds": round(float(whole[0]), 3),
        "cpu_seconds": round(float(whole[1]), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
