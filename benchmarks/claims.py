"""Whether each theory claim of the shipped studies holds where it is right, and fails where a wrong theory is.

    python -m benchmarks.claims [STUDY …] [--share 1.0] [--seed 500000000]

For each theory claim two kinds of world are simulated, without Ray, with as many chains as the study has (or a
``share`` of them) and seeds that no study uses:

- the right one, the study's own recipe, in which the claim must hold;
- each wrong one that the claim names under ``must_reject``, in which it must not. Where the wrong theory is the theory
  of another recipe (fresh for kept human data, the unbiased estimator), or of another generation, that is simulated.
  Where it is a number that no recipe has, the right world's values are moved there.

The verdict is that of ``fortifai claims``. ``needed`` chains give it 999 times in 1,000: with 19 in 20, two of the 69
claims would be left undecided by any other seeds. A line for each world; the last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fortifai_ray.chain.cohort import cohort, cohort_table
from fortifai_ray.claims.check import check_claim
from fortifai_ray.claims.power import chains_needed
from fortifai_ray.claims.result import ClaimResult, Verdict
from fortifai_ray.errors import UserError
from fortifai_ray.recipe.curation import METRICS
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import LINEAGE
from fortifai_ray.statistics.crossing import Floats
from fortifai_ray.statistics.intervals import MIN_FOR_VARIANCE
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.claim_checks import matching
from fortifai_ray.study.claim_statistics import MetricStatistic
from fortifai_ray.study.claims import Claim, TheoryValue
from fortifai_ray.study.grid import Chain, resolve
from fortifai_ray.study.study import Range, Study, make_study
from fortifai_ray.theory.registry import GENERATION, closed_forms_of
from fortifai_ray.validation import put, read_yaml

SWEEPS = Path(__file__).resolve().parent.parent / "sweeps"
SEED = 500_000_000
RARELY = 0.999
_AT_ONCE = 200  # chains, as in a study's cohorts
_KEYS = {"n": "samples_per_generation", "estimator": "family.covariance_estimator"}
_WRITTEN = {metric.name for metric in METRICS}
_OF_REGIMES = {"human", "synthetic", "synthetic_ratio"}
_REGIMES = ("replace", "accumulate", "accumulate_subsample", "mixed", "fixed_human")


@dataclass(frozen=True)
class World:
    """Where a claim's sample comes from.

    Attributes:
        name: ``right``, or the wrong theory.
        expected: the verdict that the claim must have here.
        value: what the statistic is here; None where only a bound is known.
        recipe, generation: whose chains are measured, and when.
        own: whether the theory has this recipe: its mean is then ``value`` without being moved.
        lineage: of an ecosystem, whose recipe this is, the one that is measured.
    """

    name: str
    expected: Verdict
    value: float | None
    recipe: Recipe
    generation: int
    own: bool = True
    lineage: str | None = None


@dataclass(frozen=True)
class Values:
    """A metric at the claim's generation and at generation 0, (chains,) each."""

    at: Floats
    first: Floats

    def linear(self, statistic: MetricStatistic) -> Floats:
        """(chains,) Numbers whose mean is the statistic, up to the noise of a ratio's denominator."""
        at, first = self.at, self.first
        if statistic.summary.name == "ratio_of_means":
            ratio = at.mean() / first.mean()
            return ratio + (at - ratio * first) / first.mean()
        change = {"ratio": lambda: at / first, "difference": lambda: at - first, None: lambda: at}
        values: Floats = change[statistic.over_generation_0]()
        if statistic.summary.name.startswith("share_"):
            limit = statistic.summary.number
            return np.float64(values < limit if statistic.summary.name == "share_below" else values > limit)
        return (values - values.mean()) ** 2 if statistic.summary.name == "variance" else values

    def moved(self, statistic: MetricStatistic, value: float) -> "Values":
        """The same with its statistic at ``value``."""
        if statistic.summary.name.startswith("share_"):
            limit, below = statistic.summary.number or 0.0, statistic.summary.name == "share_below"
            lowest = np.argsort(np.argsort(self.at)) < round((value if below else 1 - value) * len(self.at))
            return Values(np.where(lowest, limit - 1, limit + 1), self.first)
        now = float(self.linear(statistic).mean())
        if statistic.summary.name == "variance":
            return Values(self.at.mean() + (self.at - self.at.mean()) * np.sqrt(value / now), self.first)
        if statistic.over_generation_0 == "ratio":
            return Values(self.at * (value / now), self.first)
        return Values(self.at + (value - now), self.first)

    def drawn(self, count: int, rng: np.random.Generator) -> "Values":
        """``count`` of them, drawn with replacement."""
        chosen = rng.integers(len(self.at), size=count)
        return Values(self.at[chosen], self.first[chosen])


class ClaimedStudy:
    """A shipped study, its theory claims, and the worlds in which they are tried.

    Args:
        share: of the study's chains that a world has.
    """

    def __init__(self, file: Path, share: float = 1.0) -> None:
        content = read_yaml(file, "a study file")
        seeds = (content.get("vary") or {}).get("seed", [0])
        self.name = file.stem
        self.planned = max(2, round(share * len(list(Range(**seeds) if isinstance(seeds, dict) else seeds))))
        self.asked = any(claim["kind"] == "theory" for claim in content.get("claims") or [])
        self._file, self._content = file, content

    @cached_property
    def study(self) -> Study:
        """A few chains of each cell, and claims that ask for no more."""
        content = self._content
        asked = [{key: value for key, value in claim.items() if key != "min_chains"} for claim in content["claims"]]
        few = {"count": MIN_FOR_VARIANCE}
        return make_study({**content, "vary": {**content["vary"], "seed": few}, "claims": asked}, str(self._file))

    @property
    def claims(self) -> list[Claim]:
        least = {claim["id"]: claim.get("min_chains") for claim in self._content.get("claims") or []}
        given = [one for one in self.study.settings.claims if one.kind == "theory"] if self.asked else []
        return [one.model_copy(update={"min_chains": least[one.id] or one.min_chains}) for one in given]

    @cached_property
    def _resolved(self) -> dict[str, Any]:
        study = self.study.resolved()
        return {**study, "vary": {**study["vary"], "seed": {"start": 0, "count": self.planned}}}

    def worlds(self, claim: Claim) -> list[World]:
        """The right world first.

        Raises:
            NotImplementedError: a statistic that is not a metric at one generation, or cells that are compared.
        """
        statistic = _simulated(claim)
        cells = self.study.member_cells
        [place] = matching([one.facts for one in cells], claim.where)
        cell, recipe = cells[place], cells[place].recipe
        numbers, at = claim.numbers(), statistic.generation
        assert at is not None
        whole = (cell.whole or cell).recipe
        right = World("right", "holds", _known(claim, recipe, at), whole, at, lineage=cell.lineage)
        wrong = []
        for theory, value in zip(claim.must_reject, claim.wrong_numbers(), strict=True):
            found = _recipe_of(theory.value, claim, recipe, at) if isinstance(theory.value, TheoryValue) else None
            its, when = found or (whole, at)
            lineage = None if found else cell.lineage
            wrong.append(World(theory.name, "does not hold", value, its, when, found is not None, lineage))
        assert len(numbers) == 1, claim.id
        return [right, *wrong]

    def check(self, claim: Claim, values: Values) -> ClaimResult:
        """The claim as ``fortifai claims`` checks it, on these values as the study's chains."""
        statistic = _simulated(claim)
        count = len(values.at)
        columns = {"seed": np.arange(count), **{key: [value] * count for key, value in claim.where.items()}}
        rows = {**columns, "chain_id": [str(seed) for seed in range(count)]}
        parts = [
            pl.DataFrame({**rows, GENERATION: [generation] * count, statistic.metric: metric})
            for generation, metric in ((0, values.first), (statistic.generation, values.at))
            if generation != 0 or statistic.generation != 0
        ]
        if statistic.generation == 0:
            parts = [pl.DataFrame({**rows, GENERATION: [0] * count, statistic.metric: values.at})]
        return check_claim(StudyResults(Path(self.name), self._resolved, generations=pl.concat(parts)), claim)


def chains_for(claim: Claim, world: World, values: Values, power: float = RARELY) -> float:
    """Chains with which the verdict in a world is as expected, with probability ``power``.

    The margin is the tolerance, from both sides by :mod:`fortifai_ray.claims.power`; of a bound, the world's distance
    from it.
    """
    numbers, [value] = values.linear(_simulated(claim)), claim.numbers()
    spread = float(numbers.std(ddof=1))
    if claim.tolerance is not None:
        margin = claim.tolerance.around(value)
        if world.expected != "holds" and world.value is not None:
            margin = abs(world.value - value) - margin
    else:
        margin = abs((float(numbers.mean()) if world.value is None else world.value) - value)
    return chains_needed(spread, margin, claim.interval_level, power)


def _simulated(claim: Claim) -> MetricStatistic:
    statistic = claim.statistic
    if not isinstance(statistic, MetricStatistic) or statistic.against is not None or statistic.generation is None:
        raise NotImplementedError(f"claim {claim.id}: benchmarks/claims.py simulates a metric at one generation")
    return statistic


def _known(claim: Claim, recipe: Recipe, at: int) -> float | None:
    """What the theory says the statistic is: of a bound, by the closed form of the metric's mean; None without one."""
    if claim.relation == "equals":
        return claim.numbers()[0]
    statistic = _simulated(claim)
    for form in closed_forms_of(recipe.flat()):
        if (form.metric, form.summary) == (statistic.metric, "mean"):
            if statistic.summary.name == "ratio_of_means":
                return form.at(at) / form.at(0)
            if statistic.summary.name == "mean" and statistic.over_generation_0 != "ratio":
                return form.at(at) - (form.at(0) if statistic.over_generation_0 else 0.0)
    return None


def _recipe_of(wrong: TheoryValue, claim: Claim, recipe: Recipe, at: int) -> tuple[Recipe, int] | None:
    """A recipe of which the wrong theory is the theory, and the generation that it speaks of; None where there is none.

    With the claim's own closed form, the recipe is the claim's with other values of the arguments; with another one,
    it may have another regime.
    """
    arguments = dict(wrong.arguments)
    theory = claim.value if isinstance(claim.value, TheoryValue) else None
    same = theory is not None and theory.theory == wrong.theory
    when = arguments.pop(GENERATION, at)
    if same and theory is not None and claim.relation == "equals":
        when += at - theory.arguments.get(GENERATION, at)
    read = wrong.form.arguments(recipe.flat())
    changed = {name: value for name, value in arguments.items() if read.get(name) != value}
    for kind in ("", *_REGIMES):
        given = arguments if kind else changed
        candidate = _with_arguments(recipe, changed, {name: given[name] for name in _OF_REGIMES & given.keys()}, kind)
        if candidate is None or not isinstance(claim.statistic, MetricStatistic):
            continue
        flat = candidate.flat()
        read = wrong.form.arguments(flat)
        holds = wrong.form.holds(flat) and wrong.form.metric == claim.statistic.metric
        if (holds or (same and not kind)) and all(read.get(name) == value for name, value in arguments.items()):
            return candidate, when
    return None


def _with_arguments(recipe: Recipe, changed: Mapping[str, Any], regime: Mapping[str, Any], kind: str) -> Recipe | None:
    """The recipe with a closed form's arguments, and with another kind of regime; None where it has no such keys."""
    content = recipe.model_dump(mode="json")
    if kind:
        content["regime"] = {"kind": kind}
    keys = {f"regime.{name}": value for name, value in regime.items()}
    for name, value in changed.items():
        if name not in _OF_REGIMES:
            section = next((one for one in ("family", "loss") if name in content[one]), "family")
            keys[_KEYS.get(name, f"{section}.{name}")] = value
    try:
        return resolve("benchmarks/claims.py", put(content, keys))
    except UserError:
        return None


class Simulated:
    """Chains of recipes, each simulated once: every metric at the generations that were asked for."""

    def __init__(self) -> None:
        self._known: dict[str, list[dict[str, Floats]]] = {}

    def values(self, world: World, metric: str, chains: int, seed: int = SEED, generations: int = 0) -> Values:
        """Of ``chains`` chains of a world's recipe.

        Args:
            seed: of the first of them.
            generations: at least this many are computed, so that later questions are answered by the same chains.
        """
        last = world.generation + (metric in _WRITTEN)  # what a chain's last generation writes, nobody curates
        asked = max(last + 1, generations)
        recipe = world.recipe.model_dump(mode="json", exclude={"generations"})
        key = json.dumps([recipe, world.lineage, chains, seed], sort_keys=True)
        if key not in self._known or len(self._known[key]) < asked:
            parts = [
                _chains(world, asked, range(start, min(start + _AT_ONCE, seed + chains)))
                for start in range(seed, seed + chains, _AT_ONCE)
            ]
            self._known[key] = [
                {name: np.concatenate([part[g][name] for part in parts]) for name in parts[0][g]} for g in range(asked)
            ]
        table = self._known[key]
        return Values(table[world.generation][metric], table[0][metric])


def _chains(world: World, generations: int, seeds: Sequence[int]) -> list[dict[str, Floats]]:
    """A cohort's metrics, or those of its lineage, generation by generation."""
    whole = world.recipe.model_copy(update={"generations": generations})
    chains = [Chain(whole.model_copy(update={"seed": seed}), {}) for seed in seeds]
    with tempfile.TemporaryDirectory() as folder:
        table = cohort_table(cohort(chains, None), Steps(StageStore(Path(folder))))
    if world.lineage is not None:
        table = table.filter(pl.col(LINEAGE) == world.lineage)
    metrics = [metric for metric in whole.lineages()[world.lineage].metrics if metric in table.columns]
    own = table.select(GENERATION, pl.col(metrics).cast(pl.Float64))
    parts = [own.filter(pl.col(GENERATION) == generation) for generation in range(generations)]
    return [{metric: part[metric].to_numpy() for metric in metrics} for part in parts]


def tried(study: ClaimedStudy, seed: int) -> Iterator[dict[str, Any]]:
    """Each claim in each of its worlds, in full."""
    simulated = Simulated()
    for claim in study.claims:
        statistic = _simulated(claim)
        for world in study.worlds(claim):
            started = time.perf_counter()
            values = simulated.values(world, statistic.metric, study.planned, seed)
            if not world.own and world.value is not None:
                values = values.moved(statistic, world.value)
            result = study.check(claim, values)
            yield {
                "study": study.name,
                "claim": claim.id,
                "world": world.name,
                "verdict": result.verdict,
                "as_expected": result.verdict == world.expected,
                "measured": result.measured_words,
                "theory": world.value,
                "chains": result.n_chains,
                "chains_needed": round(chains_for(claim, world, values)),
                "simulated": world.own,
                "seconds": round(time.perf_counter() - started, 1),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", help="names of shipped studies; all with theory claims if none is given")
    parser.add_argument("--share", type=float, default=1.0, help="of each study's chains")
    parser.add_argument("--seed", type=int, default=SEED, help="of the first chain")
    arguments = parser.parse_args()
    files = [SWEEPS / f"{name}.yaml" for name in arguments.studies] or sorted(SWEEPS.glob("*.yaml"))
    rows = []
    for file in files:
        study = ClaimedStudy(file, arguments.share)
        for row in tried(study, arguments.seed):
            rows.append(row)
            mark = "" if row["as_expected"] else "  NOT AS EXPECTED"
            print(
                f"{row['study']} {row['claim']}, {row['world']}: {row['verdict']}, {row['measured']}, "
                f"theory {row['theory']}, {row['chains']} chains, {row['chains_needed']} needed{mark}",
                flush=True,
            )
    print(json.dumps({"worlds": len(rows), "not_as_expected": [row for row in rows if not row["as_expected"]]}))


if __name__ == "__main__":
    main()
