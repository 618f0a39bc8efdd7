"""``search:`` of a study file: find where collapse begins along one key, or the values that maximise a ratio."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from fortifai_ray.errors import UserError
from fortifai_ray.statistics.criterion import Collapse
from fortifai_ray.validation import Section, hint, shown

Direction = Literal["rises", "falls", "detect"]
Ends = Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]

# With more synthetic data collapse comes sooner, with more human data later. Other keys: the search detects it.
_KNOWN_DIRECTIONS: Mapping[str, Direction] = {"regime.synthetic_ratio": "rises", "regime.human": "falls"}
_FINEST = 500  # tolerances in a range, at most: the posterior's grid grows with it


class SurvivalRules(Section):
    """Premises that a study vouches for, under which a chain ends once it can no longer collapse."""

    never_recorded: bool = Field(
        False,
        description="no generation is recorded as collapsed (diverged, empty corpus) that was not measured before",
    )
    largest_step: FiniteFloat | None = Field(
        None, gt=0, description="how far the metric moves in a generation at most (a factor on a log scale); null: any"
    )

    @model_validator(mode="after")
    def _steps_are_all_there_is(self) -> "SurvivalRules":
        if self.largest_step is not None and not self.never_recorded:
            raise ValueError(
                "largest_step bounds nothing where a generation may be recorded as collapsed: add never_recorded: true"
            )
        return self


class BoundarySearch(Section):
    """Find, in each cell, the value of a key at which half of the chains collapse within their horizon."""

    kind: Literal["boundary"] = "boundary"
    over: str = Field(min_length=1, description="a numeric key of the recipe, as a dotted path")
    low: FiniteFloat = Field(description="lower end of the range that is searched")
    high: FiniteFloat = Field(description="upper end of that range")
    tolerance: FiniteFloat = Field(
        gt=0, description="half of the width that settles a cell's interval; relative on a log scale: 0.1 is ±10%"
    )
    level: float = Field(0.90, ge=0.5, le=0.99, description="of the interval around the critical value")
    scale: Literal["linear", "log"] = Field("linear", description="log: for keys that multiply, such as learning rates")
    direction: Direction | None = Field(
        None, description="whether collapse rises or falls with the key; null: known for the regime's, else detected"
    )
    at_once: int = Field(4, ge=1, le=64, description="chains of one cell that run side by side and are judged together")
    budget: int = Field(400, ge=5, description="chains that a cell may take, settled or not")
    seeds: int | None = Field(None, ge=2, description="how many, from the recipe's own on; null: a new one per chain")
    survival: SurvivalRules = SurvivalRules()

    @model_validator(mode="after")
    def _range_is_one(self) -> "BoundarySearch":
        if self.low >= self.high:
            raise ValueError(f"low must be below high (got {self.low:g} and {self.high:g})")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low must be above 0 for scale: log (got {self.low:g})")
        return self

    @model_validator(mode="after")
    def _tolerance_fits_the_range(self) -> "BoundarySearch":
        width = math.log(self.high / self.low) if self.scale == "log" else self.high - self.low
        if self.tolerance > width / 4:
            raise ValueError(
                f"tolerance must be at most a quarter of the range, {width / 4:g} (got {self.tolerance:g})"
            )
        if self.tolerance < width / _FINEST:
            raise ValueError(
                f"tolerance must be at least 1/{_FINEST} of the range, {width / _FINEST:g} (got {self.tolerance:g}); "
                "narrow the range first"
            )
        return self

    @property
    def corners(self) -> list[dict[str, float]]:
        """The ends of the range, as values of the searched key."""
        return [{self.over: self.low}, {self.over: self.high}]

    @property
    def known_direction(self) -> Direction:
        """The direction as given, else as known for the key, else ``detect``."""
        return self.direction or _KNOWN_DIRECTIONS.get(self.over, "detect")


class OptimiseSearch(Section):
    """Find the values of some keys at which the ratio of fidelity intervals to the baseline's is largest (Optuna)."""

    kind: Literal["optimise"] = "optimise"
    over: dict[str, Ends] = Field(min_length=1, description="numeric keys of the recipe, each with its `[low, high]`")
    maximise: Literal["fi_ratio"] = Field("fi_ratio", description="FI ratio to the baseline, geometric mean of seeds")
    log: list[str] = Field([], description="keys of `over` that are searched on a log scale")
    at_once: int = Field(4, ge=1, le=64, description="points that are tried side by side")
    budget: int = Field(
        40, ge=2, description="points to try; each runs a chain for every seed of the study, and one of the baseline"
    )

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> "OptimiseSearch":
        for key, (low, high) in self.over.items():
            if low >= high:
                raise ValueError(f"over: {key}: low must be below high (got [{low:g}, {high:g}])")
            if key in self.log and low <= 0:
                raise ValueError(f"over: {key}: low must be above 0 on a log scale (got {low:g})")
        for key in self.log:
            if key not in self.over:
                raise ValueError(f"log: {key} is not searched; name keys of over: {', '.join(self.over)}")
        return self

    @property
    def corners(self) -> list[dict[str, float]]:
        """The corners of the searched box, as values of the searched keys."""
        return [dict(zip(self.over, values, strict=True)) for values in itertools.product(*self.over.values())]


Search = Annotated[BoundarySearch | OptimiseSearch, Field(discriminator="kind")]


def refuse_search(
    search: BoundarySearch | OptimiseSearch,
    recipes: Sequence[Mapping[str, Any]],
    varied: Sequence[str],
    criteria: Sequence[Collapse],
    *,
    is_baseline: bool,
    source: str,
) -> None:
    """Raise :class:`UserError`, beginning with ``source``, where a search does not fit the study.

    Args:
        recipes: a flat recipe (dotted keys, defaults included) of each cell.
        varied: the keys under the study's ``vary``.
        criteria: the study's collapse criteria.
        is_baseline: whether a cell is the baseline itself.
        source: the study file.
    """
    problems = [_key_problems(key, recipes, varied, search.corners) for key in search.corners[0]]
    if isinstance(search, BoundarySearch):
        problems.append(_boundary_problems(search, varied, criteria))
    else:
        problems.append(_optimise_problems(varied, is_baseline))
    for problem in itertools.chain.from_iterable(problems):
        raise UserError(f"{source}: {problem}")


def _key_problems(
    key: str, recipes: Sequence[Mapping[str, Any]], varied: Sequence[str], corners: Sequence[Mapping[str, float]]
) -> Iterator[str]:
    if key == "seed":
        yield "search.over: the seed is noise and cannot be searched; name a numeric key"
    if key in varied:
        yield f"search.over: {key} is varied as well; take it out of vary"
    for recipe in recipes:
        if key not in recipe:
            numeric = [name for name, value in recipe.items() if _is_number(value)]
            yield f"search.over: {key}: not a key of the recipe{hint(key, numeric)}"
        elif not _is_number(recipe[key]):
            yield f"search.over: {key}: not a number in the recipe (it is {shown(recipe[key])})"
        for corner in corners if isinstance(recipe.get(key), int) else ():
            if not float(corner[key]).is_integer():
                yield f"search: {key} takes only whole numbers, not {corner[key]:g}"


def _boundary_problems(search: BoundarySearch, varied: Sequence[str], criteria: Sequence[Collapse]) -> Iterator[str]:
    if "seed" in varied:
        yield (
            "vary: a boundary search chooses the seeds of its chains; take seed out of vary (search.seeds limits their "
            "number)"
        )
    step, members = search.survival.largest_step, [member for one in criteria for member in one.members]
    if step is not None and len(metrics := {member.metric: None for member in members}) > 1:
        yield f"search.survival.largest_step: it bounds one metric's steps, and collapse has {', '.join(metrics)}"
    for criterion in members:
        if step is not None and criterion.log_scale and step <= 1:
            yield f"search.survival.largest_step: for {criterion.metric} it is a factor, above 1, not {step:g}"


def _optimise_problems(varied: Sequence[str], is_baseline: bool) -> Iterator[str]:
    if others := [key for key in varied if key != "seed"]:
        yield (
            f"vary: an optimise search takes one recipe and may vary only the seed, not {', '.join(others)}; "
            "search over numeric keys, and write a study for each value of the others"
        )
    if is_baseline:
        yield (
            "search.maximise: fi_ratio compares with the baseline, which is this recipe itself; "
            "give the recipe the loss to be searched"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
