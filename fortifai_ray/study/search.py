"""``search:`` of a study file: find where collapse begins along one key, or the values that maximise a ratio."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from fortifai_ray.errors import UserError
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.validation import Section, hint

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
    criteria: Sequence[CollapseCriterion],
    *,
    is_baseline: bool,
    source: str,
) -> None:
    """Raise :class:`UserError` where a search does not fit the study.

    Args:
        recipes: a flat recipe (dotted keys, defaults included) of each cell.
        varied: the keys under the study's ``vary``.
        criteria: the study's collapse criteria.
        is_baseline: whether a cell is the baseline itself.
        source: the study file, for the message.
    """
    for key in search.corners[0]:
        if key == "seed":
            raise UserError(f"{source}: search.over: the seed is noise and cannot be searched; name a numeric key")
        if key in varied:
            raise UserError(f"{source}: search.over: {key} is varied as well; take it out of vary")
        for recipe in recipes:
            _refuse_key(key, recipe, search.corners, source)
    if isinstance(search, BoundarySearch):
        _refuse_boundary(search, varied, criteria, source)
    else:
        _refuse_optimise(search, varied, is_baseline, source)


def _refuse_boundary(
    search: BoundarySearch, varied: Sequence[str], criteria: Sequence[CollapseCriterion], source: str
) -> None:
    if "seed" in varied:
        raise UserError(
            f"{source}: vary: a boundary search chooses the seeds of its chains; take seed out of vary (search.seeds "
            "limits their number)"
        )
    step = search.survival.largest_step
    for criterion in criteria:
        if step is not None and criterion.log_scale and step <= 1:
            raise UserError(
                f"{source}: search.survival.largest_step: for {criterion.metric} it is a factor, above 1, not {step:g}"
            )


def _refuse_optimise(search: OptimiseSearch, varied: Sequence[str], is_baseline: bool, source: str) -> None:
    others = [key for key in varied if key != "seed"]
    if others:
        raise UserError(
            f"{source}: vary: an optimise search takes one recipe and may vary only the seed, not {', '.join(others)}; "
            "search over numeric keys, and write a study for each value of the others"
        )
    if is_baseline:
        raise UserError(
            f"{source}: search.maximise: fi_ratio compares with the baseline, which is this recipe itself; "
            "give the recipe the loss to be searched"
        )


def _refuse_key(key: str, recipe: Mapping[str, Any], corners: Sequence[Mapping[str, float]], source: str) -> None:
    if key not in recipe:
        numeric = [name for name, value in recipe.items() if _is_number(value)]
        raise UserError(f"{source}: search.over: {key}: not a key of the recipe{hint(key, numeric)}")
    if not _is_number(recipe[key]):
        raise UserError(f"{source}: search.over: {key}: not a number in the recipe (it is {recipe[key]!r})")
    for corner in corners if isinstance(recipe[key], int) else ():
        if not float(corner[key]).is_integer():
            raise UserError(f"{source}: search: {key} takes only whole numbers, not {corner[key]:g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
