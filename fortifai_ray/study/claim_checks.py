"""A study's claims against the rest of its study file, before anything runs: what is unknown is refused, and the
arguments of closed forms that a claim leaves out are read off the recipes that it is about."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fortifai_ray.errors import UserError
from fortifai_ray.results.schema import MEASURED_COLUMNS, RECIPE_COLUMNS, lacks, same
from fortifai_ray.statistics.intervals import MIN_FOR_VARIANCE
from fortifai_ray.statistics.ratios import MIN_PAIRS
from fortifai_ray.study.claim_statistics import (
    MEANS,
    Criterion,
    CriticalPoint,
    FidelityRatio,
    OnsetShare,
    PerChain,
    Statistic,
    Where,
    where_keys,
)
from fortifai_ray.study.claims import Claim, Number, TheoryValue
from fortifai_ray.study.search import BoundarySearch, Search
from fortifai_ray.validation import first_mistake, hint

_NOT_OF_A_CELL = ("seed", "unit")  # `where` may name them too, but they do not tell one cell's recipe from another's


@dataclass(frozen=True)
class StudyFacts:
    """What claims are checked against.

    Attributes:
        recipes: the flat recipe (dotted keys) of each cell.
        searched: keys whose values a search sets: no recipe determines them.
        metrics: what the study's families measure.
        criteria: the metric of each collapse criterion, in their order; None for one of several metrics.
        generations: of the longest chain.
        search: the study's; None where it runs its grid.
        seeds: of each cell, where no search chooses them; empty: not known.
        growing: of each cell, whether its regime's training sets hold more synthetic data with each generation.
    """

    recipes: Sequence[Mapping[str, Any]]
    metrics: Collection[str]
    criteria: Sequence[str | None]
    generations: int
    searched: Collection[str] = ()
    search: Search | None = None
    seeds: Collection[int] = ()
    growing: Sequence[bool] = ()


def checked_claims(claims: Sequence[Claim], study: StudyFacts, source: str) -> list[Claim]:
    """The claims with every argument of their closed forms written out; errors are reported as coming from ``source``.

    Raises:
        UserError: an id twice, an unknown key in ``where`` or ``against``, an unknown metric or collapse criterion, a
            generation beyond the horizon, a closed form with an argument that is neither written nor determined, or
            a claim that its nearest wrong theory would pass too.
    """
    seen: set[str] = set()
    checked = []
    for index, claim in enumerate(claims):
        place = f"{source}: claims.{index}"
        if claim.id in seen:
            raise UserError(f"{place}.id: the id {claim.id!r} is used twice: an id names one claim (claim {claim.id})")
        seen.add(claim.id)
        if problem := _problem(claim, study):
            raise UserError(f"{place}.{': '.join(problem)} (claim {claim.id})")
        whole = completed(claim, study.recipes, study.searched, place)
        if fault := _weakness(whole):
            raise UserError(f"{place}.{': '.join(fault)} (claim {claim.id})")
        checked.append(whole)
    return checked


def undecided_claims(claims: Sequence[Claim], study: StudyFacts) -> list[str]:
    """A warning for each claim that stays undecided whatever is measured, as where ``--set`` has narrowed a study."""
    found = ((index, claim, _undecidable(claim, study)) for index, claim in enumerate(claims))
    return [
        f"warning: claims.{index}.{': '.join(fault)}; it stays undecided (claim {claim.id})"
        for index, claim, fault in found
        if fault
    ]


def _weakness(claim: Claim) -> tuple[str, str] | None:
    """The key that lets a wrong theory pass, and why; None for a claim that can tell."""
    if claim.kind == "theory" and not claim.must_reject:
        example = "must_reject: {name: nothing happens, value: 1.0}"
        return "must_reject", f"a theory claim needs the value under the nearest wrong theory: {example}"
    if claim.relation != "equals":
        for wrong, value in zip(claim.must_reject, claim.wrong_numbers(), strict=True):
            if _satisfies(claim, value):
                return "must_reject", f"{value:.6g} ({wrong.name}) satisfies the claim, which so cannot reject it"
        return None
    assert claim.tolerance is not None
    [number] = claim.numbers()
    allowed = claim.tolerance.around(number)
    for wrong, value in zip(claim.must_reject, claim.wrong_numbers(), strict=True):
        half = abs(value - number) / 2
        if allowed > half * (1 + 1e-9) or half == 0:
            return "tolerance", (
                f"{allowed:.4g} is more than half of the distance from {number:.6g} to {value:.6g} ({wrong.name}): at "
                f"most {half:.4g} tells them apart"
            )
    return None


def _satisfies(claim: Claim, value: float) -> bool:
    low, high = claim.numbers()[0], claim.numbers()[-1]
    satisfied = {"less": value < low, "at_most": value <= low, "greater": value > low, "at_least": value >= low}
    return satisfied.get(claim.relation, low <= value <= high)


def _undecidable(claim: Claim, study: StudyFacts) -> tuple[str, str] | None:
    """The key for which the claim stays undecided whatever is measured, and why; None where it may be decided."""
    statistic, cells = claim.statistic, matching(study.recipes, claim.where, study.searched)
    if not cells:
        return "where", f"no cell of the study matches {where_keys(claim.where)}"
    if len(cells) > 1 and study.search is None and not _averages(claim):
        return "where", f"it matches {len(cells)} cells, and this statistic is of one: name its keys"
    if uncompared := _uncompared(claim, cells, study):
        return "statistic.against", uncompared
    if isinstance(statistic, FidelityRatio) and "seed" in claim.where:
        return "where.seed", "a ratio of fidelity intervals is of a cell, all its seeds together: leave the seed out"
    last = study.generations - 1
    if isinstance(statistic, OnsetShare) and statistic.by is not None and statistic.by > last:
        return "statistic.by", f"generation {statistic.by:g} is not computed: the last one is {last}"
    if isinstance(statistic, FidelityRatio) and statistic.unit == "synthetic_now":
        if study.growing and not any(study.growing[cell] for cell in cells):
            return "statistic.unit", (
                "synthetic_now tells no generations apart where training sets hold as much synthetic data in each; "
                "generations or synthetic is right, or a regime whose sets grow (accumulate, incremental)"
            )
        if last < 2:
            return "statistic.unit", f"synthetic_now takes three generations at least, and the study has {last + 1}"
    if isinstance(statistic, CriticalPoint) and (problem := _unsearched(statistic, claim, study)):
        return problem
    return _too_few_chains(claim, study, len(cells))


def _averages(claim: Claim) -> bool:
    """Whether chains of one seed, in several cells, are averaged."""
    return isinstance(claim.statistic, PerChain) and claim.statistic.summary.name in MEANS


def _uncompared(claim: Claim, cells: Sequence[int], study: StudyFacts) -> str | None:
    """Why the cells of a claim have none that they could be compared with; None where they have."""
    statistic = claim.statistic
    if not isinstance(statistic, PerChain) or statistic.against is None or study.search is not None:
        return None
    where = statistic.compared(claim.where)
    others = matching(study.recipes, where, study.searched)
    if not others:
        return f"no cell of the study matches {where_keys(where)}"
    same = not set(others).isdisjoint(cells) and claim.where.get("seed") == where.get("seed")
    return "it names cells that where names too: there is nothing to compare them with" if same else None


def _unsearched(statistic: CriticalPoint, claim: Claim, study: StudyFacts) -> tuple[str, str] | None:
    search = study.search
    if not isinstance(search, BoundarySearch):
        return "statistic", "a critical point is found by a search: add search: {kind: boundary, …}"
    if statistic.over not in (None, search.over):
        return "statistic.over", f"{statistic.over} is not searched; {search.over} is"
    if search.level < claim.interval_level:
        return "level", (
            f"the search's interval is at {search.level:g}, and the claim asks for {claim.interval_level:g}: a search."
            "level as high, or a lower level here, is right"
        )
    return None


def _too_few_chains(claim: Claim, study: StudyFacts, cells: int) -> tuple[str, str] | None:
    """Whether the study can have fewer independent chains than a verdict takes."""
    statistic, search = claim.statistic, study.search
    if isinstance(search, BoundarySearch):
        most = search.budget if isinstance(statistic, CriticalPoint) else search.seeds or search.budget * cells
        why, more = f"the search takes at most {most:,}", "a larger search.budget or search.seeds"
    else:
        most = len(seeds_named(study.seeds, claim.where))
        named = " of those that where names" if "seed" in claim.where else ""
        why, more = f"the study has {most:,}{named}", "more seeds under vary.seed"
    key, least, remedy = "min_chains", claim.min_chains, "a smaller min_chains"
    if least < (of_interval := _least_chains(statistic)):
        key, least, remedy = "statistic", of_interval, "another statistic"
    if not study.seeds or most >= least:
        return None
    return key, f"it takes {least:,} independent chains (seeds) at least, and {why}: {more} or {remedy} is right"


def _least_chains(statistic: Statistic) -> int:
    """With fewer independent chains the statistic has no interval."""
    if isinstance(statistic, PerChain):
        return MIN_FOR_VARIANCE if statistic.summary.name == "variance" else 2
    return MIN_PAIRS if isinstance(statistic, FidelityRatio) else 2


def seeds_named(seeds: Iterable[int], where: Where) -> frozenset[int]:
    """Those of a study's seeds that ``where`` names; all of them where it names none."""
    wanted = where.get("seed")
    named = wanted if isinstance(wanted, list) else [wanted]
    return frozenset(seeds) if "seed" not in where else frozenset(seeds).intersection(named)


def _problem(claim: Claim, study: StudyFacts) -> tuple[str, str] | None:
    """The key and what is wrong with it."""
    statistic = claim.statistic
    known = {*RECIPE_COLUMNS, *_NOT_OF_A_CELL, *(key for recipe in study.recipes for key in recipe)}
    against = statistic.against or {} if isinstance(statistic, PerChain) else {}
    for place, where in (("where", claim.where), ("statistic.against", against)):
        for key in where:
            if key not in known:
                return f"{place}.{key}", f"unknown key{hint(key, sorted(known))}"
    measured = {*study.metrics, *MEASURED_COLUMNS}
    for metric in statistic.metrics:
        if metric not in measured:
            return "statistic.metric", f"this study does not measure {metric!r}{hint(metric, sorted(measured))}"
    for criterion in statistic.criteria:
        if message := _criterion_problem(criterion, study.criteria):
            return "statistic", message
    last = study.generations - 1
    if (latest := max(statistic.generations, default=0)) > last:
        return "statistic", f"generation {latest} is not computed: the last one is {last}"
    return None


def _criterion_problem(criterion: Criterion, criteria: Sequence[str | None]) -> str | None:
    if isinstance(criterion, int):
        if criterion < len(criteria):
            return None
        return f"there is no collapse criterion {criterion}; there are {len(criteria)}, counted from 0"
    if criterion not in criteria:
        return f"no collapse criterion has the metric {criterion!r}{hint(criterion, list(filter(None, criteria)))}"
    if criteria.count(criterion) > 1:
        return f"several collapse criteria have the metric {criterion!r}: give the place of one, 0, 1, …"
    return None


def completed(claim: Claim, recipes: Sequence[Mapping[str, Any]], searched: Collection[str], place: str) -> Claim:
    """The claim with its closed forms' arguments taken from the recipes that ``where`` names; written ones win.

    Raises:
        UserError: at ``place``, naming the argument that must be written.
    """
    values = claim.value if isinstance(claim.value, tuple) else (claim.value,)
    wrong = [theory.value for theory in claim.must_reject]
    if not any(isinstance(value, TheoryValue) for value in (*values, *wrong)):
        return claim
    cells = [
        {key: value for key, value in recipes[index].items() if key not in searched}
        for index in matching(recipes, claim.where, searched)
    ]
    try:
        key = "value"
        whole = [_whole(value, cells) for value in values]
        key = "must_reject"
        rejected = [{"name": w.name, "value": _whole(w.value, cells)} for w in claim.must_reject]
        content = claim.model_dump(mode="json") | {"value": whole if len(whole) > 1 else whole[0]}
        return Claim.model_validate(content | {"must_reject": rejected})
    except ValidationError as error:
        key, message = first_mistake(error, Claim, claim.model_dump(mode="json"))
        raise UserError(f"{place}{f'.{key}' if key else ''}: {message} (claim {claim.id})") from None
    except ValueError as error:
        raise UserError(f"{place}.{key}: {error} (claim {claim.id})") from None


def matching(recipes: Sequence[Mapping[str, Any]], where: Where, searched: Collection[str] = ()) -> list[int]:
    """Which of the cells, by their flat recipes, have every value that ``where`` asks for (searched keys have any)."""
    free = (*_NOT_OF_A_CELL, *searched)
    asked = {key: wanted if isinstance(wanted, list) else [wanted] for key, wanted in where.items() if key not in free}
    return [
        index
        for index, recipe in enumerate(recipes)
        if all(
            any(lacks(recipe, key) if item is None else same(recipe.get(key), item) for item in items)
            for key, items in asked.items()
        )
    ]


def _whole(value: Number, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any] | float:
    return _with_arguments(value, cells) if isinstance(value, TheoryValue) else value


def _with_arguments(value: TheoryValue, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``{theory: NAME, …}`` with the arguments that all ``cells`` agree on."""
    written, derived = value.arguments, [value.form.arguments(cell) for cell in cells]
    whole = dict(written)
    for name in (name for name in value.form.signature.parameters if name not in written):
        differing: list[Any] = []
        for arguments in derived:
            if arguments.get(name) not in differing:
                differing.append(arguments.get(name))
        if len(differing) > 1:
            given = ", ".join("none" if one is None else str(one) for one in differing)
            raise ValueError(
                f"{value.theory}: {name} is {given} in the cells that where names: name cells with one value, or "
                f"write {name}: …"
            )
        if differing and differing[0] is not None:
            whole[name] = differing[0]
    if missing := value.form.missing(whole):
        why = "the recipe does not determine it" if cells else "no cell of the study matches where"
        raise ValueError(f"{value.theory} needs {missing[0]}, and {why}: write {missing[0]}: …")
    return {"theory": value.theory, **whole}
