"""Every theory claim that ships holds in the world that it describes, and fails in each wrong one that it names.

A pilot of a few dozen chains shows how a claim's number spreads in a world; it is scaled up to the study's chains. With
all chains simulated: ``python -m benchmarks.claims``.
"""

from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from benchmarks.claims import SWEEPS, ClaimedStudy, Simulated, Values, World, chains_for
from fortifai_ray.claims.power import POWER
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.study.claim_checks import matching
from fortifai_ray.study.claim_statistics import MetricStatistic
from fortifai_ray.study.claims import Claim, TheoryValue, Tolerance
from fortifai_ray.theory.gaussian import Estimator
from fortifai_ray.theory.registry import GENERATION, Human, evaluate


def _theory_claims() -> list[Any]:
    """Found in the files, so that a claim that is added is under the test."""
    files = [(file, yaml.safe_load(file.read_text()).get("claims") or []) for file in sorted(SWEEPS.glob("*.yaml"))]
    return [
        pytest.param(file, claim["id"], id=f"{file.stem}-{claim['id']}")
        for file, claims in files
        for claim in claims
        if claim["kind"] == "theory"
    ]


@cache
def _study(file: Path) -> ClaimedStudy:
    return ClaimedStudy(file)


@pytest.fixture(scope="module")
def simulated() -> Simulated:
    return Simulated()


def _pilot(recipe: Recipe) -> int:
    """Chains: more of those that cost little, and few where each sample is the best of hundreds."""
    least = 12 if recipe.flat().get("curation.of", 1) > 100 else 40
    return int(np.clip(25_000 // sum(recipe.sizes), least, 1000))  # type: ignore[attr-defined]


def _values(study: ClaimedStudy, claim: Claim, world: World, simulated: Simulated) -> Values:
    """The pilot's, with the statistic at the world's value."""
    assert isinstance(claim.statistic, MetricStatistic)
    last = max(one.statistic.generation or 0 for one in study.claims)
    pilot = simulated.values(world, claim.statistic.metric, _pilot(world.recipe), generations=last + 1)
    if world.value is None:
        return pilot
    numbers = pilot.linear(claim.statistic)
    error = numbers.std() / np.sqrt(len(numbers))
    # Six standard errors: a hundred worlds, with a few dozen skewed values each. Closed forms of the limit are 2 % off.
    assert not world.own or abs(numbers.mean() - world.value) < 6 * error + 0.02 * abs(world.value), world.name
    return pilot.moved(claim.statistic, world.value)


@pytest.mark.parametrize(("file", "claim_id"), _theory_claims())
def test_a_shipped_theory_claim_can_fail(file: Path, claim_id: str, simulated: Simulated) -> None:
    """Two of three samples as large as the study, so that the test does not hang on one in a hundred."""
    study = _study(file)
    [claim] = [one for one in study.claims if one.id == claim_id]
    assert claim.must_reject
    assert claim.min_chains <= study.planned
    rng = np.random.default_rng(0)
    for world in study.worlds(claim):
        values = _values(study, claim, world, simulated)
        assert chains_for(claim, world, values, POWER) <= study.planned, world.name
        verdicts = [study.check(claim, values.drawn(study.planned, rng)).verdict for _ in range(3)]
        assert verdicts.count(world.expected) >= 2, (world.name, verdicts)


def _others(claim: Claim, recipe: dict[str, Any], at: int) -> dict[str, float]:
    """What the claim's own closed form gives where one thing is otherwise: generation 0's value, the other estimator,
    human data fresh for kept ones, the weight by size. Another regime's theory may come near by chance; that a study
    has its regime is tested where sets are drawn."""
    assert isinstance(claim.value, TheoryValue)
    form = claim.value.form
    given = {**form.arguments(recipe), **claim.value.arguments}
    changes: list[tuple[str, Any]] = [(GENERATION, 0)] if form.needs_generation and at > 0 else []
    for name, choices in {"estimator": get_args(Estimator), "human": get_args(Human)}.items():
        if name in form.signature.parameters and not isinstance(given.get(name), int):
            changes += [(name, choice) for choice in choices]
    if "human_weight" in given:
        changes.append(("human_weight", 1 - given["synthetic_ratio"]))
    return {f"{name} {value}": evaluate(claim.value.theory, given | {name: value}, {}, at) for name, value in changes}


@pytest.mark.parametrize(("file", "claim_id"), _theory_claims())
def test_a_tolerance_is_smaller_than_half_of_the_distance_to_the_nearest_theory(file: Path, claim_id: str) -> None:
    """Whether the claim names it under must_reject or not."""
    study = _study(file)
    [claim] = [one for one in study.claims if one.id == claim_id]
    if not isinstance(claim.value, TheoryValue) or claim.tolerance is None:
        return  # a bound, or a number: what must_reject names is all that is known
    cells = study.study.member_cells
    [place] = matching([one.facts for one in cells], claim.where)
    assert isinstance(claim.statistic, MetricStatistic)
    assert claim.statistic.generation is not None
    [value] = claim.numbers()
    for name, other in _others(claim, cells[place].recipe.flat(), claim.statistic.generation).items():
        distance = abs(other - value)
        assert distance < 1e-9 * abs(value) or 2 * claim.tolerance.around(value) <= distance * (1 + 1e-9), (name, other)


def test_a_claim_that_cannot_fail_is_seen(simulated: Simulated) -> None:
    """With a tolerance of 0.05, half of human data and nothing happening, a claim of stability holds."""
    study = _study(SWEEPS / "bertrand2023_stability.yaml")
    claim = next(one for one in study.claims if one.id == "variance-at-0.9-fresh")
    claim = claim.model_copy(update={"tolerance": Tolerance(relative=0.05)})
    nothing = next(world for world in study.worlds(claim) if world.name.startswith("nothing"))
    values = _values(study, claim, nothing, simulated)
    assert study.check(claim, values.drawn(study.planned, np.random.default_rng(0))).verdict == "holds"


def test_wrong_worlds_are_simulated_by_their_own_recipes() -> None:
    """Fresh for kept human data, the unbiased estimator and an earlier generation are recipes; a number is none."""
    kinds = {}
    for name, claim_id in (
        ("bertrand2023_stability", "variance-at-0.9-kept"),
        ("shumailov2024_gaussian", "mean-wanders"),
        ("shumailov2024_gaussian", "variance-falls-late"),
        ("kazdan2025_human_samples", "mean-error-with-20-human-beside-80"),
    ):
        study = _study(SWEEPS / f"{name}.yaml")
        [claim] = [one for one in study.claims if one.id == claim_id]
        kinds[claim_id] = [
            (world.own, world.generation, world.recipe.flat()["regime.kind"]) for world in study.worlds(claim)[1:]
        ]
    assert kinds["variance-at-0.9-kept"] == [(True, 99, "mixed")]
    assert kinds["mean-wanders"] == [(True, 49, "replace")]
    assert kinds["variance-falls-late"] == [(False, 49, "replace"), (True, 0, "replace")]
    assert kinds["mean-error-with-20-human-beside-80"] == [(True, 59, "mixed"), (True, 0, "replace")]
