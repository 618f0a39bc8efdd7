"""The boundary search on laws whose boundary is known: its cost, and the width and coverage of its interval.

    python -m benchmarks.search [--searches 200] [--laws logistic discrete …]

A dense grid has 51 values and the search's own seeds; on neither side do chains stop early, or count as free when
stored. As the search takes a new seed for each chain by default, that grid is large; so ``same_width`` is the cost of a
grid whose own interval, by the same posterior, is as narrow as the tolerance, with seeds paired over its values (up to
``_MOST_SEEDS`` seeds: beyond that it is a lower bound). ``false_alarms`` counts searches of monotone laws that were
refused, ``caught`` searches of other laws that were. The boundaries of the two recursions come from 2,000 chains at
every ratio around them. The last line is one JSON object.
"""

import argparse
import json
import time
from typing import Any

import numpy as np

from fortifai_ray.search.points import Lattice
from fortifai_ray.search.posterior import Posterior
from tests.search.laws import Curve, Discrete, Gaussian, Law, logistic, low_ceiling, search, skewed

LAWS: dict[str, Law] = {
    "sharp": logistic(0.537, 0.001),
    "logistic": logistic(0.62, 0.02, shared=0.8),
    "wide": logistic(0.5, 0.06),
    "skewed": skewed(0.03),
    "low_ceiling": low_ceiling(0.9, 0.015),
    "gaussian": Gaussian(),
    "discrete": Discrete(),
}
CROOKED = (
    Curve("island", lambda v: 0.97 if 0.4 < v < 0.6 else 0.02, float("nan")),
    Curve("hole", lambda v: 0.03 if 0.5 < v < 0.8 else 0.97, float("nan")),
    Curve("turned", lambda v: float(np.clip(1.2 - v * 1.4, 0.02, 0.98)), float("nan")),  # falls, where it should rise
)
_GRIDS = 1
_MOST_SEEDS = 64


def measure(law: Law, searches: int) -> dict[str, Any]:
    """Cost, width and coverage of repeated searches of one law."""
    boundary, started = law.boundary, time.process_time()
    finders = [search(law, repeat) for repeat in range(searches)]
    seconds = (time.process_time() - started) / searches
    points = [finder.result() for finder in finders]
    exact = [point for point in points if point.bound == "exact"]
    widths = [point.high - point.low for point in exact if point.high is not None and point.low is not None]
    covered = [p for p in exact if p.low is not None and p.high is not None and p.low <= boundary <= p.high]
    chains = np.array([point.chains_run for point in points])
    share = chains / (51 * np.array([point.seeds_used for point in points]))
    needed = same_width(law)
    return {
        "law": law.name,
        "boundary": round(boundary, 4),
        "searches": searches,
        "coverage": len(covered) / searches,
        "widest": round(max(widths, default=float("nan")), 4),
        "chains": round(float(chains.mean()), 1),
        "most_chains": int(chains.max()),
        "of_dense_grid": round(float(share.mean()), 4),
        "most_of_dense_grid": round(float(share.max()), 4),
        "same_width": {**needed, "search_share": round(float(chains.mean()) / needed["chains"], 4)},
        "false_alarms": sum(point.ended == "refused" for point in points),
        "settled": sum(point.ended == "settled" for point in points),
        "cpu_seconds_per_search": round(seconds, 3),
    }


def same_width(law: Law) -> dict[str, Any]:
    """Chains of a dense grid whose interval is within the search's tolerance; a lower bound where it gave up."""
    lattice = Lattice(search(law, 0).search, whole=False)
    posterior = Posterior(int(lattice.places[0]), int(lattice.places[-1]), (1,))
    counts = []
    for grid in range(_GRIDS):
        answers: list[tuple[int, int, bool]] = []
        for seed in range(1, _MOST_SEEDS + 1):
            places = [int(place) for place in lattice.places[::2]]
            answers += [(p, seed, law.collapsed(lattice.value(p), 5 * 10**8 + 10_000 * grid + seed)) for p in places]
            if seed % max(1, seed // 8) == 0:
                low, high = posterior.belief(answers).quantile(np.array([0.05, 0.95]))
                if high - low <= 2 * lattice.half_width:
                    break
        counts.append(len(answers))
    return {"chains": float(np.mean(counts)), "gave_up": sum(count >= 51 * _MOST_SEEDS for count in counts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--laws", nargs="*", default=list(LAWS), choices=list(LAWS))
    parser.add_argument("--crooked", type=int, default=20, help="searches of each law that is not monotone")
    arguments = parser.parse_args()
    results = []
    for name in arguments.laws:
        results.append(measure(LAWS[name], arguments.searches))
        print(json.dumps(results[-1]), flush=True)
    caught = {}
    for law in CROOKED:
        points = [search(law, repeat).result() for repeat in range(arguments.crooked)]
        caught[law.name] = {
            "caught": sum(point.ended == "refused" for point in points),
            "of": arguments.crooked,
            "chains": round(float(np.mean([point.chains_run for point in points])), 1),
        }
    summary = {
        "least_coverage": min(result["coverage"] for result in results),
        "widest": max(result["widest"] for result in results),
        "most_of_dense_grid": max(result["most_of_dense_grid"] for result in results),
        "false_alarms": sum(result["false_alarms"] for result in results),
        "crooked": caught,
        "laws": results,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
