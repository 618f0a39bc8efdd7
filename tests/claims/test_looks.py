"""Chains added or exchanged until a claim decides: either they are fixed beforehand, or each look allows for all."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from fortifai_ray.claims.looks import look
from fortifai_ray.claims.result import ClaimResult, Region, stored_claims, write_claims
from fortifai_ray.results.reader import open_study
from fortifai_ray.statistics.intervals import mean_intervals
from fortifai_ray.study.claims import Claim

CLAIM: dict[str, Any] = {
    "id": "shrinks",
    "source": "Doe 2024",
    "kind": "theory",
    "statistic": {"kind": "metric", "metric": "trace_ratio", "at": 1},
    "relation": "less",
    "value": 0.95,
}


def _study(seeds: Any) -> dict[str, Any]:
    return {"name": "made", "family": {"kind": "gaussian"}, "vary": {"seed": seeds}, "claims": [CLAIM]}


def _looks(counts: Sequence[int | Sequence[int]], **change: Any) -> list[ClaimResult]:
    """A claim's results, as study files ask for one set of seeds (or number of them from 0 on) after another and each
    is checked."""
    claim = Claim.model_validate(CLAIM | change)
    earlier, results = None, []
    for given in counts:
        seeds = list(range(given)) if isinstance(given, int) else list(given)
        count = len(seeds)
        seen = look(claim, _study(seeds), count, seeds, earlier)
        earlier = ClaimResult(
            **dict.fromkeys(("statistic", "method", "relation", "asked"), ""),  # type: ignore[arg-type]
            **dict.fromkeys(("measured", "low", "high", "value"), None),  # type: ignore[arg-type]
            **{"id": "a", "source": "b", "kind": "theory", "level": 0.99, "verdict": "undecided"},  # type: ignore[arg-type]
            **{"n_chains": count, "min_chains": 2, "accepted_low": 0.0, "accepted_high": 1.0},  # type: ignore[arg-type]
            **{"why": seen.problem, "look": seen.number, "about": seen.about},  # type: ignore[arg-type]
            **{"looked_at": seen.looked_at, "looked_at_seeds": seen.looked_at_seeds},  # type: ignore[arg-type]
        )
        results.append(earlier)
    return results


@pytest.mark.parametrize(
    ("counts", "looks", "numbers", "refused"),
    [
        ([10], 1, [1], [False]),
        ([10, 10, 10], 1, [1, 1, 1], [False] * 3),  # the same chains again are the same look
        ([10, 20], 1, [1, 2], [False, True]),
        ([10, 20, 10], 1, [1, 2, 1], [False, True, False]),
        ([10, 20, 40], 2, [1, 2, 3], [False, False, True]),
        ([10, 20, 40, 80, 160], 5, [1, 2, 3, 4, 5], [False] * 5),
        ([20, 10], 1, [1, 2], [False, True]),  # seeds taken out are another set, too
        ([[0, 1, 2], [2, 0, 1]], 1, [1, 1], [False] * 2),  # their order says nothing
        ([[0, 1, 2], [3, 4, 5]], 1, [1, 2], [False, True]),  # as many other seeds
        ([[0, 1, 2], [0, 1, 3], [0, 1, 2]], 1, [1, 2, 1], [False, True, False]),
        ([[0, 1, 2], [3, 4, 5], [6, 7, 8]], 2, [1, 2, 3], [False, False, True]),
    ],
)
def test_other_chains_are_another_look(
    counts: list[int | Sequence[int]], looks: int, numbers: list[int], refused: list[bool]
) -> None:
    """More of them, fewer, or as many of other seeds."""
    results = _looks(counts, looks=looks)
    assert [result.look for result in results] == numbers
    assert [bool(result.why) for result in results] == refused
    if any(refused):
        assert "write `looks: " in results[refused.index(True)].why


def test_seeds_named_by_the_claim_are_no_way_around() -> None:
    """The claim's own `where` chooses seeds as the study file does."""
    claims = [Claim.model_validate(CLAIM | {"where": {"seed": seeds}}) for seeds in ([0, 1, 2], [3, 4, 5])]
    [first] = _looks([[0, 1, 2]], where=claims[0].where)
    seen = look(claims[1], _study(list(range(6))), 3, [3, 4, 5], first)
    assert (seen.number, seen.problem.partition(":")[0]) == (
        2,
        "it was looked at with 3 other chains before, and it fixes them beforehand",
    )


def test_a_search_begun_at_another_seed_is_another_look() -> None:
    """Its chains grow in number by themselves, which is none."""
    claim = Claim.model_validate(CLAIM | {"statistic": {"kind": "critical_point"}})
    study = {**_study(None), "search": {"kind": "boundary"}}
    [first] = _looks([[7]], statistic=claim.statistic, min_chains=1)
    first = replace(first, about=look(claim, {**study, "seed": 7}, 40, [7], None).about)
    for chains, seed, number in ((40, 7, 1), (400, 7, 1), (400, 9, 2)):
        assert look(claim, {**study, "seed": seed}, chains, [seed], first).number == number


def test_looks_of_a_table_without_seeds_still_count(make_study: Callable[..., Any]) -> None:
    """As many chains are taken for the same ones there, and another number is another look."""
    values = np.random.default_rng(1).normal(0.9, 0.05, 40)
    chains = {("cross_entropy", None, seed): {"trace_ratio": [1.0, float(v)]} for seed, v in enumerate(values)}
    study = make_study(chains, generations=2)
    [first] = study.check(CLAIM)
    study.write("claims", pl.read_parquet(write_claims(study.folder, [first])).drop("looked_at_seeds"))
    [stored] = stored_claims(open_study(study.folder).claims)
    assert (stored.looked_at, stored.looked_at_seeds) == ((40,), ("",))
    [again] = study.check(CLAIM)
    assert again == first
    study.write("generations", study.generations.filter(study.generations["seed"] < 30))
    assert study.check(CLAIM)[0].look == 2


@pytest.mark.parametrize(
    ("seeds", "n_chains", "where", "problem"),
    [
        ({"start": 0, "count": 10}, 9, {}, "9 of 10 chains have been measured"),
        (list(range(10)), 9, {}, "9 of 10 chains have been measured"),
        (list(range(10)), 3, {"seed": [0, 1, 2]}, ""),
        ({"start": 0, "count": 10}, 10, {}, ""),
        (None, 3, {}, ""),
        ({"start": 0, "count": 10}, 3, {}, "asks for at least 5"),
    ],
)
def test_an_unfinished_sweep_is_no_look(seeds: Any, n_chains: int, where: dict[str, Any], problem: str) -> None:
    """What `fortifai claims` says while chains run costs nothing, and decides nothing."""
    least = 5 if "at least" in problem else 2
    claim = Claim.model_validate(CLAIM | {"where": where, "min_chains": least})
    seen = look(claim, _study(seeds), n_chains, range(n_chains), None)
    assert problem in seen.problem
    assert bool(seen.problem) == bool(problem)
    assert seen.looked_at == (() if problem else (n_chains,))


def test_looks_are_counted_in_the_table(make_study: Callable[..., Any]) -> None:
    """Through the files, as the command line does it: the second set of chains has no verdict, and says why."""
    values = np.random.default_rng(1).normal(0.9, 0.05, 40)
    chains = {("cross_entropy", None, seed): {"trace_ratio": [1.0, float(v)]} for seed, v in enumerate(values)}
    study = make_study(chains, generations=2)
    [first] = study.check(CLAIM)
    assert (first.look, first.looked_at, first.looks_words) == (1, (40,), "number fixed beforehand")
    write_claims(study.folder, [first])
    assert stored_claims(open_study(study.folder).claims) == [first]
    study.write("generations", study.generations.filter(study.generations["seed"] < 30))
    [third] = study.check(CLAIM)
    assert (third.look, third.looked_at, third.verdict) == (2, (40, 30), "undecided")
    assert "looked at with 40 chains before" in third.why
    write_claims(study.folder, [third])
    study.write("generations", study.generations)
    assert study.check(CLAIM)[0].verdict == "holds", "the chains that were fixed beforehand"
    study.write("generations", study.generations.with_columns(seed=pl.col("seed") + 100))
    [others] = study.check(CLAIM)
    assert (others.look, others.looked_at, others.verdict) == (3, (40, 30, 40), "undecided")
    assert "looked at with 40, 30 other chains before" in others.why
    study.write("generations", study.generations.filter(study.generations["seed"] < 30))
    [wider] = study.check(CLAIM | {"looks": 4})
    assert (wider.look, wider.verdict, wider.looks_words) == (2, "holds", "look 2 of 4, 99 % over all")
    assert "at 99.75 %" in wider.measured_words
    assert wider.low < third.low < third.high < wider.high


def test_five_looks_err_no_more_often_than_one() -> None:
    """At the edge of a one-sided claim of 90 %: one error in twenty; unguarded, five looks make it one in six."""
    guarded, edge = Claim.model_validate(CLAIM | {"level": 0.9, "looks": 5, "value": 0.0}), 0.0
    region = Region.of(guarded, (edge,))
    draws = np.random.default_rng(0).normal(edge, 1.0, (2000, 160))

    def errors(level: float) -> float:
        wrong = np.zeros(len(draws), bool)
        for count in (10, 20, 40, 80, 160):
            ends = zip(*mean_intervals(draws[:, :count], level), strict=True)
            wrong |= [region.verdict(low, high) == "holds" for low, high in ends]
        return float(wrong.mean())

    # Four standard errors of 2,000 draws: 0.02 at 0.05, 0.033 at 0.16.
    assert errors(guarded.interval_level) <= 0.05 + 0.02
    assert errors(guarded.level) == pytest.approx(0.15, abs=0.04)
