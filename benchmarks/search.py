"""The boundary search on laws whose boundary is known: how often what it says is true, and what it costs.

    python -m benchmarks.search [--searches 200] [--budget 600] [--laws logistic "plateau 0.6" "random: dip" …]

``true`` is the share of searches whose statement holds, whatever its bound (nominal: 0.90); ``exact`` the share that
settled on an interval, and ``true_exact`` how many of those hold the boundary. A law without a boundary (NaN) allows no
exact one. ``audit_width`` is the widest stretch without a chain. The boundaries of the two recursions come from 2,000
chains at every ratio around them.

``random: …`` are families of laws drawn at random (``tests/search/random_laws.py``): each search has a law, a range, a
direction and a tolerance of its own. ``--zones`` searches for zones as wide as the audit's report, each at a random
place, in which all chains do the opposite of those around it, or 19, 18, 16 of 20. The last line is one JSON object.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.search.laws import (
    ENDS,
    SHOULDERS,
    ZONES,
    Discrete,
    Gaussian,
    Law,
    Setting,
    holds,
    logistic,
    low_ceiling,
    searches_of,
    skewed,
)
from tests.search.random_laws import KINDS, draw, narrow_zone

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
RANDOM = {f"random: {kind}": kind for kind in KINDS}
OPPOSITES = (1.0, 0.95, 0.9, 0.8)

Cases = Sequence[tuple[Law, Mapping[str, Setting]]]


def cases_of(name: str, searches: int, budget: int) -> Cases:
    """The laws and settings of so many searches."""
    if name in LAWS:
        return [(LAWS[name], {"budget": budget})] * searches
    rng = np.random.default_rng(7)
    drawn = [draw(RANDOM[name], rng) for _ in range(searches)]
    return [(one.law, {**one.settings, "budget": budget}) for one in drawn]


def measure(name: str, cases: Cases) -> dict[str, Any]:
    """Cost and truth of searches."""
    started, count = time.process_time(), len(cases)
    points = [finder.result() for finder in searches_of(cases)]
    true = [holds(point, law.boundary) for point, (law, _) in zip(points, cases, strict=True)]
    exact = [held for point, held in zip(points, true, strict=True) if point.bound == "exact"]
    kinds = {kind: sum(point.bound == kind for point in points) for kind in ("lower", "upper", "undetermined")}
    endings = {kind: sum(point.ended == kind for point in points) for kind in ("settled", "budget", "refused")}
    return {
        "law": name,
        "searches": count,
        "true": round(float(np.mean(true)), 3),
        "exact": round(len(exact) / count, 3),
        "true_exact": round(float(np.mean(exact)), 3) if exact else None,
        "chains": round(float(np.mean([point.chains_run for point in points])), 1),
        "most_chains": max(point.chains_run for point in points),
        "audit_width": round(max(float(point.audit_width or 0) for point in points), 4),
        **kinds,
        **endings,
        "cpu_seconds_per_search": round((time.process_time() - started) / count, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--budget", type=int, default=600)
    names = [*LAWS, *RANDOM]
    parser.add_argument("--laws", nargs="*", default=names, choices=names, metavar="LAW")
    parser.add_argument("--zones", action="store_true", help="search for narrow zones, too")
    arguments = parser.parse_args()
    results = []
    for name in arguments.laws:
        results.append(measure(name, cases_of(name, arguments.searches, arguments.budget)))
        print(json.dumps(results[-1]), flush=True)
    for opposite in OPPOSITES if arguments.zones else ():
        rng = np.random.default_rng(3)
        zones = [(narrow_zone(rng, opposite), {"budget": arguments.budget}) for _ in range(arguments.searches)]
        results.append(measure(f"zone, {opposite:.0%} opposite", zones))
        print(json.dumps(results[-1]), flush=True)
    print(json.dumps({"least_true": min((result["true"] for result in results), default=None), "laws": results}))


if __name__ == "__main__":
    main()
