"""How often the intervals of ratios and of claims cover the truth, by simulation, at nominal 90 %.

    python -m benchmarks.coverage [--samples 4000] [--cells 2000] [PART …]

Five parts; all of them where none is named:

- ``means``: the interval of a mean (of log ratios, of a claim's values) against Student's t, by law and sample size;
  ``variances``: that of a variance.
- ``tables``: pairs of chains through the fidelity table, with no difference between them: how often its sentence says
  that the cell lasts longer or collapses sooner. Log-normal onsets, skewed ones, and onsets at whole generations.
  ``picked``: in how many studies some cell of several looks different though none is.
- ``censored``: pairs with the true ratio 1.3, of which a share reaches a common horizon: coverage, median width, and
  the share of cells without an estimate.
- ``events``: onsets of other laws, some with chains that never collapse or with ties, and a horizon at which a given
  number of a cell's chains is expected to have collapsed: how often a ratio or a bound is told, how often what is told
  is true, and the same of the mean ratio up to the horizon.

Each number's standard error is at most 0.7 percentage points. The last line is one JSON object.
"""

import argparse
import json
import math
from collections.abc import Callable

import numpy as np
import polars as pl

from fortifai_ray.seeds import generator
from fortifai_ray.statistics.censored import Pairs, fit
from fortifai_ray.statistics.crossing import Floats
from fortifai_ray.statistics.fidelity import fidelity_table
from fortifai_ray.statistics.intervals import mean_intervals, student, variance
from fortifai_ray.statistics.ratios import cell_ratios, pair_ratios

LEVEL = 0.9
Law = tuple[Callable[[np.random.Generator, tuple[int, int]], Floats], float, float]  # sampler, mean, variance


def _log_normal(sigma: float) -> Law:
    mean, spread = math.exp(sigma**2 / 2), math.expm1(sigma**2) * math.exp(sigma**2)
    return (lambda rng, size: rng.lognormal(0, sigma, size)), mean, spread


LAWS: dict[str, Law] = {
    "normal": (lambda rng, size: rng.normal(size=size), 0.0, 1.0),
    "uniform": (lambda rng, size: rng.uniform(size=size), 0.5, 1 / 12),
    "Student, 3 degrees": (lambda rng, size: rng.standard_t(3, size), 0.0, 3.0),
    "Gumbel": (lambda rng, size: rng.gumbel(size=size), float(np.euler_gamma), math.pi**2 / 6),
    "a tenth from N(3, 9)": (
        lambda rng, size: np.where(rng.random(size) < 0.1, rng.normal(3, 3, size), rng.normal(size=size)),
        *(0.3, 2.61),
    ),
    "gamma, shape 2": (lambda rng, size: rng.gamma(2, size=size), 2.0, 2.0),
    "exponential": (lambda rng, size: rng.exponential(size=size), 1.0, 1.0),
    "log-normal, σ 0.5": _log_normal(0.5),
    "log-normal, σ 0.75": _log_normal(0.75),
}


def covered(low: Floats, high: Floats, truth: float) -> float:
    """In per cent."""
    return round(100 * float(np.mean((low <= truth) & (high >= truth))), 1)


def means(samples: int) -> dict[str, dict[str, list[float]]]:
    """{law: {n: [ours, Student's]}}"""
    result: dict[str, dict[str, list[float]]] = {}
    for name, (sampler, truth, _) in LAWS.items():
        for n in (3, 6, 10, 20, 40):
            drawn = sampler(generator(1, "coverage of means", name, n), (samples, n))
            half = student(LEVEL, n - 1) * drawn.std(axis=1, ddof=1) / math.sqrt(n)
            plain = covered(drawn.mean(axis=1) - half, drawn.mean(axis=1) + half, truth)
            result.setdefault(name, {})[str(n)] = [covered(*mean_intervals(drawn, LEVEL), truth), plain]
        print(f"mean, {name}: {result[name]}", flush=True)
    return result


def variances(samples: int) -> dict[str, dict[str, float]]:
    """{law: {n: coverage}}"""
    result: dict[str, dict[str, float]] = {}
    for name in ("normal", "exponential", "log-normal, σ 0.5", "log-normal, σ 0.75"):
        sampler, _, truth = LAWS[name]
        for n in (10, 20, 50, 200):
            drawn = sampler(generator(1, "coverage of variances", name, n), (samples // 2, n))
            found = [variance(sample, LEVEL) for sample in drawn]
            ends = (np.array([getattr(one, end) for one in found]) for end in ("low", "high"))
            result.setdefault(name, {})[str(n)] = covered(*ends, truth)
        print(f"variance, {name}: {result[name]}", flush=True)
    return result


def null_table(onsets: Callable[[np.random.Generator, tuple[int, int]], Floats], cells: int, n: int) -> pl.DataFrame:
    """The rows of the fidelity table, in generations, of cells that differ from their baselines by chance alone."""
    rng = generator(1, "null cells", n)
    chains = pl.DataFrame(
        {
            "chain_id": [f"{name}-{cell}-{seed}" for name in ("a", "b") for cell in range(cells) for seed in range(n)],
            "loss.kind": np.repeat(["cross_entropy", "tce"], cells * n),
            "family.dim": np.tile(np.repeat(np.arange(cells), n), 2),
            "seed": np.tile(np.arange(n), 2 * cells),
            "onset": np.concatenate([onsets(rng, (cells, n)).ravel() for _ in range(2)]),
        }
    ).with_columns(
        *(pl.col("onset").alias(f"fi_{unit}") for unit in ("generations", "synthetic")),
        *(pl.lit(value).alias(name) for name, value in {"metric": "score", "direction": "above"}.items()),
        *(pl.lit(value).alias(name) for name, value in {"status": "collapsed", "relative_to": "absolute"}.items()),
        threshold=pl.lit(1.0),
        confirm=pl.lit(0),
        chance=pl.lit(None, pl.Float64),
        censored=pl.lit(False),
        horizon=pl.lit(1_000),
    )
    table = fidelity_table(chains, ["loss.kind", "family.dim", "seed"], {"loss.kind": "cross_entropy"}, level=LEVEL)
    return table.filter(pl.col("unit") == "generations", ~pl.col("is_baseline"))


def tables(cells: int) -> dict[str, dict[str, float]]:
    """{law of the onsets: {n: per cent of sentences that name a difference}}"""
    laws: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
        "log-normal": lambda rng, size: rng.lognormal(1.5, 0.5, size),
        "exponential": lambda rng, size: rng.exponential(5, size),
        "whole generations": lambda rng, size: 1.0 + rng.poisson(3, size),
        "one of two generations": lambda rng, size: rng.integers(2, 4, size).astype(np.float64),
    }
    result: dict[str, dict[str, float]] = {}
    for name, onsets in laws.items():
        for n in (3, 6, 10, 20):
            table = null_table(onsets, cells, n)
            different = (pl.col("fi_ratio_low") > 1) | (pl.col("fi_ratio_high") < 1)
            share = table.select(different.fill_null(False).mean()).item()
            result.setdefault(name, {})[str(n)] = round(100 * share, 1)
        print(f"false alarms, {name}: {result[name]}", flush=True)
    return result


def picked(samples: int) -> dict[str, dict[str, float]]:
    """{cells beside one baseline, none of which differs from it: {n: per cent of studies with an interval beyond 1}}"""
    result: dict[str, dict[str, float]] = {}
    for cells in (1, 3, 10):
        for n in (3, 6, 10, 20):
            logs = generator(1, "picked", cells, n).normal(size=(cells + 1, samples, n))
            ends = [mean_intervals(own - logs[0], LEVEL) for own in logs[1:]]
            beyond = np.any([(low > 0) | (high < 0) for low, high in ends], axis=0)
            result.setdefault(str(cells), {})[str(n)] = round(100 * float(beyond.mean()), 1)
        print(f"picked of {cells}: {result[str(cells)]}", flush=True)
    return result


def censored_pairs(cells: int, n: int, share: float, own_deviation: float = 0.5, correlation: float = 0.6) -> Pairs:
    """Log-normal pairs with the ratio 1.3, cut at the horizon that ``share`` of the cell's chains reach."""
    from scipy.special import ndtri

    common, base, own = generator(1, "censored pairs", n).normal(size=(3, cells, n))
    kept, rest = math.sqrt(correlation), math.sqrt(1 - correlation)
    base, own = 0.5 * (kept * common + rest * base), math.log(1.3) + own_deviation * (kept * common + rest * own)
    end = math.log(1.3) + own_deviation * float(ndtri(1 - share)) if share else np.inf
    numbers = np.repeat(np.arange(cells), n)
    sides = (np.minimum(base, end), np.minimum(own, end), base > end, own > end)
    return Pairs(numbers, *(side.ravel() for side in sides))


def censored(cells: int) -> dict[str, dict[str, dict[str, float]]]:
    """{law: {"n, share": {covered, width, without an estimate: a side of which no chain collapsed}}}"""
    laws = {"equal deviations": (0.5, 0.6), "independent": (0.5, 0.0), "0.5 and 0.8": (0.8, 0.6)}
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, law in laws.items():
        for n, share in ((n, share) for n in (6, 10, 20) for share in (0.1, 0.3, 0.5)):
            pairs = censored_pairs(cells, n, share, *law)
            found = fit(pairs, LEVEL)
            known = np.isfinite(found.delta)
            row = {
                "covered": covered(found.low[known], found.high[known], math.log(1.3)),
                "width": round(float(np.median((found.high - found.low)[known])), 3),
                "without": round(100 * float(np.mean(~known)), 1),
            }
            result.setdefault(name, {})[f"{n}, {share:.0%}"] = row
            print(f"censored, {name}, {n} pairs, {share:.0%}: {row}", flush=True)
    return result


ONSETS: dict[str, tuple[float, Callable[[Floats], Floats]]] = {
    "exponential": (1.5, lambda u: -np.log1p(-u)),
    "Weibull, shape 0.7": (1.5, lambda u: (-np.log1p(-u)) ** (1 / 0.7)),
    "Weibull, shape 3": (1.5, lambda u: (-np.log1p(-u)) ** (1 / 3)),
    "Gompertz": (1.5, lambda u: np.log1p(-2 * np.log1p(-u))),
    "a third never collapses": (1.5, lambda u: np.where(u < 2 / 3, -np.log1p(-np.minimum(1.5 * u, 1)), np.inf)),
    "seven of ten at generation 1": (1.0, lambda u: 1 + np.floor(np.log1p(-u) / math.log(0.3))),
    "seven of ten, twice as late": (2.0, lambda u: 1 + np.floor(np.log1p(-u) / math.log(0.3))),
}
"""The true ratio, and the quantiles of a baseline's onset; a cell's is the ratio times one of the same law."""
SEEDS, EVENTS = (3, 5, 10, 50, 500), (0, 1, 2, 3, 5, 10, 50)


def pairs_until(law: str, cells: int, n: int, horizon: float) -> pl.DataFrame:
    """Pairs of chains, of correlation 0.6 (a normal copula's), that are followed up to ``horizon``."""
    from scipy.special import ndtr

    ratio, quantile = ONSETS[law]
    common, base, own = generator(1, "onsets", law, n).normal(size=(3, cells * n))
    base, own = (quantile(ndtr(math.sqrt(0.6) * common + math.sqrt(0.4) * noise)) for noise in (base, own))
    chains = np.concatenate([base, ratio * own])
    number = np.arange(cells * n)
    table = pl.DataFrame(
        {
            "group": np.concatenate([number // n + cells, number // n]),
            "chain": np.arange(2 * cells * n),
            "base_chain": pl.concat([pl.Series([None] * (cells * n), dtype=pl.Int64), pl.Series(number)]),
            "fi": np.minimum(chains, horizon),
            "censored": chains > horizon,
        }
    )
    return pair_ratios(table.with_columns(what=pl.lit(0), decided="fi"))


def _until(law: str, n: int, expected: int) -> float:
    """The horizon up to which that many of a cell's n chains collapse, in the mean; of a law with ties, the nearest."""
    ratio, quantile = ONSETS[law]
    finite = float(quantile(np.array([0.66]))[0]) * 20  # where all of an exponential law's chains collapsed
    return ratio * min(float(quantile(np.array([min(max(expected, 0.02) / n, 1 - 1e-9)]))[0]), finite)


def events(cells: int) -> dict[str, dict[str, dict[str, float | None]]]:
    """{law: {"seeds, events": {told, estimated, true, mean_told, mean_true}}}: shares of all cells, but ``true`` and
    ``mean_true`` of those in which something was told."""
    result: dict[str, dict[str, dict[str, float | None]]] = {}
    steps = (np.arange(100_000) + 0.5) / 100_000
    for law, (ratio, quantile) in ONSETS.items():
        asked = {(n, _until(law, n, expected)): expected for n in SEEDS for expected in EVENTS[::-1] if expected <= n}
        for (n, horizon), expected in asked.items():
            found = cell_ratios(pairs_until(law, cells, n, horizon), LEVEL)
            whole = [float(np.minimum(scale * quantile(steps), horizon).mean()) for scale in (ratio, 1.0)]
            row: dict[str, float | None] = {}
            for name, truth, ends in (("", ratio, "fi_ratio"), ("mean_", whole[0] / whole[1], "mean_ratio")):
                low, high = (found[f"{ends}_{end}"].to_numpy() for end in ("low", "high"))
                told = ~(np.isnan(low) & np.isnan(high))
                true = ~(low > truth * (1 + 1e-9)) & ~(high < truth * (1 - 1e-9))
                row[f"{name}told"] = round(100 * float(told.mean()), 1)
                row[f"{name}true"] = round(100 * float(true[told].mean()), 1) if told.any() else None
            row["estimated"] = round(100 * float((found["fi_ratio_bound"] == "exact").mean()), 1)
            result.setdefault(law, {})[f"{n}, {expected}"] = row
            print(f"events, {law}, {n} seeds, {expected}: {row}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4_000)
    parser.add_argument("--cells", type=int, default=2_000)
    parts = {
        **{part.__name__: (part, "samples") for part in (means, variances, picked)},
        **{part.__name__: (part, "cells") for part in (tables, censored, events)},
    }
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="all of them if none is named")
    arguments = parser.parse_args()
    named = arguments.parts or list(parts)
    result = {name: parts[name][0](getattr(arguments, parts[name][1])) for name in named}
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
