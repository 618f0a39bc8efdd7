"""The boundary search on laws whose boundary is known: how often what it says is true, and what it costs.

    python -m benchmarks.search [--searches 200] [--budget 600] [--laws logistic "plateau 0.6" …]

``true`` is the share of searches whose statement holds, whatever its bound (nominal: 0.90); ``exact`` the share that
settled on an interval, and ``true_exact`` how many of those hold the boundary. A law without a boundary (NaN) allows no
exact one. ``audit_width`` is the widest stretch without a chain. The boundaries of the two recursions come from 2,000
chains at every ratio around them. The last line is one JSON object.
"""

import argparse
import json
import time
from typing import Any

import numpy as np

from tests.search.laws import ENDS, SHOULDERS, ZONES, Discrete, Gaussian, Law, holds, logistic, low_ceiling, skewed
from tests.search.laws import searches as search_all

SMOOTH: dict[str, Law] = {
    "sharp": logistic(0.537, 0.001),
    "logistic": logistic(0.62, 0.02, shared=0.8),
    "wide": logistic(0.5, 0.06),
    "skewed": skewed(0.03),
    "low_ceiling": low_ceiling(0.9, 0.015),
    "gaussian": Gaussian(),
    "discrete": Discrete(),
}
LAWS: dict[str, Law] = {**SMOOTH, **SHOULDERS, **ENDS, **ZONES}


def measure(name: str, law: Law, searches: int, budget: int) -> dict[str, Any]:
    """Cost and truth of repeated searches of one law."""
    boundary, started = law.boundary, time.process_time()
    points = [finder.result() for finder in search_all(law, searches, budget=budget)]
    exact = [point for point in points if point.bound == "exact"]
    kinds = {kind: sum(point.bound == kind for point in points) for kind in ("lower", "upper", "undetermined")}
    endings = {kind: sum(point.ended == kind for point in points) for kind in ("settled", "budget", "refused")}
    return {
        "law": name,
        "boundary": None if np.isnan(boundary) else round(boundary, 4),
        "searches": searches,
        "true": round(float(np.mean([holds(point, boundary) for point in points])), 3),
        "exact": round(len(exact) / searches, 3),
        "true_exact": round(float(np.mean([holds(point, boundary) for point in exact])), 3) if exact else None,
        "chains": round(float(np.mean([point.chains_run for point in points])), 1),
        "most_chains": max(point.chains_run for point in points),
        "audit_width": round(max(float(point.audit_width or 0) for point in points), 4),
        **kinds,
        **endings,
        "cpu_seconds_per_search": round((time.process_time() - started) / searches, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--budget", type=int, default=600)
    parser.add_argument("--laws", nargs="*", default=list(LAWS), choices=list(LAWS), metavar="LAW")
    arguments = parser.parse_args()
    results = []
    for name in arguments.laws:
        results.append(measure(name, LAWS[name], arguments.searches, arguments.budget))
        print(json.dumps(results[-1]), flush=True)
    print(json.dumps({"least_true": min(result["true"] for result in results), "laws": results}))


if __name__ == "__main__":
    main()
