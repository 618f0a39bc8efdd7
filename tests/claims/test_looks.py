"""Chains added until a claim decides: either their number is fixed beforehand, or each look allows for all."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fortifai_ray.claims.looks import look
from fortifai_ray.claims.result import ClaimResult, Region, stored_claims, write_claims
from fortifai_ray.results.reader import open_study
from fortifai_ray.statistics.intervals import mean
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


def _looks(counts: Sequence[int], statistic: Any = None, **change: Any) -> list[ClaimResult]:
    """A claim's results, as study files ask for one number of seeds after another and each is checked."""
    claim = Claim.model_validate(CLAIM | change)
    earlier, results = None, []
    for count in counts:
        seen = look(claim, _study({"start": 0, "count": count}), count, earlier)
        earlier = ClaimResult(
            **dict.fromkeys(("statistic", "method", "relation", "asked"), ""),  # type: ignore[arg-type]
            **dict.fromkeys(("measured", "low", "high", "value"), None),  # type: ignore[arg-type]
            **{"id": "a", "source": "b", "kind": "theory", "level": 0.99, "verdict": "undecided"},  # type: ignore[arg-type]
            **{"n_chains": count, "min_chains": 2, "accepted_low": 0.0, "accepted_high": 1.0},  # type: ignore[arg-type]
            **{"why": seen.problem, "look": seen.number, "looked_at": seen.looked_at, "about": seen.about},  # type: ignore[arg-type]
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
    ],
)
def test_another_number_of_chains_is_another_look(
    counts: list[int], looks: int, numbers: list[int], refused: list[bool]
) -> None:
    results = _looks(counts, looks=looks)
    assert [result.look for result in results] == numbers
    assert [bool(result.why) for result in results] == refused
    if any(refused):
        assert "write `looks: " in results[refused.index(True)].why


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
    seen = look(Claim.model_validate(CLAIM | {"where": where, "min_chains": least}), _study(seeds), n_chains, None)
    assert problem in seen.problem
    assert bool(seen.problem) == bool(problem)
    assert seen.looked_at == (() if problem else (n_chains,))


def test_looks_are_counted_in_the_table(make_study: Callable[..., Any]) -> None:
    """Through the files, as the command line does it: the second number of chains has no verdict, and says why."""
    values = np.random.default_rng(1).normal(0.9, 0.05, 40)
    chains = {("cross_entropy", None, seed): {"trace_ratio": [1.0, float(v)]} for seed, v in enumerate(values)}
    study = make_study(chains, generations=2)
    [first] = study.check(CLAIM)
    assert (first.look, first.looked_at, first.looks_words) == (1, (40,), "number fixed beforehand")
    write_claims(study.folder, [first])
    assert stored_claims(open_study(study.folder).claims) == [first]
    study.write("generations", study.generations.filter(study.generations["seed"] < 30))
    [second] = study.check(CLAIM)
    assert (second.look, second.looked_at, second.verdict) == (1, (30, 40), "holds")
    write_claims(study.folder, [second])
    study.write("generations", study.generations)
    [third] = study.check(CLAIM)
    assert (third.look, third.verdict) == (2, "undecided")
    assert "looked at with 30 chains before" in third.why
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
            for row, values in enumerate(draws[:, :count]):
                if not wrong[row]:
                    interval = mean(values, level)
                    wrong[row] = region.verdict(interval.low, interval.high) == "holds"
        return float(wrong.mean())

    # Four standard errors of 2,000 draws: 0.02 at 0.05, 0.033 at 0.16.
    assert errors(guarded.interval_level) <= 0.05 + 0.02
    assert errors(guarded.level) == pytest.approx(0.15, abs=0.04)
