"""The registry of closed forms: each is registered where it is defined, and in no other file.

::

    @closed_form("trace_ratio", family="gaussian", regime="replace")
    def gaussian_replace_mean_variance(n: int, generation: int) -> float: ...

says which metric's mean it gives and for which recipes. A claim names it, ``{theory: gaussian_replace_mean_variance}``,
and the theory notebook draws it for each cell in which it holds. Its arguments are read off a *flat recipe* (dotted
keys): a parameter takes the value of the key with its own name under ``family``, ``regime`` or ``loss``, except for
those in ``_READERS``; a law of ``samples_per_generation`` gives its own. A null counts as not given.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any, Literal, TypeVar, get_args

from fortifai_ray.validation import hint, shown

GENERATION = "generation"  # not a key of any recipe: a claim's statistic or a chart's axis supplies it

Recipe = Mapping[str, Any]
Reader = Callable[[Recipe], Any]
Human = Literal["kept", "fresh"]
"""Whether a regime's human samples are the same in every generation, or new ones in each."""

_Function = TypeVar("_Function", bound=Callable[..., float])


def regime_of(recipe: Recipe) -> str:
    """The regime's kind by its effect: entirely synthetic data is ``replace``, and the incremental regime with a
    ``synthetic_ratio`` (a short form) is the mixed regime with fresh human data. Sets of several ``fractions``, the
    other short form, are a regime of their own."""
    if fractions := recipe.get("regime.fractions"):
        return "replace" if fractions == 1 else "incremental in fractions"
    kind, ratio = str(recipe.get("regime.kind", "replace")), recipe.get("regime.synthetic_ratio")
    if kind not in ("mixed", "incremental") or ratio is None:
        return kind
    return "replace" if ratio == 1 else "mixed"


def curation_of(recipe: Recipe) -> str:
    """The curation's kind; ``several`` of a list of steps."""
    return "several" if "curation" in recipe else str(recipe.get("curation.kind", "none"))


def _human(recipe: Recipe) -> Any:
    """``kept`` or ``fresh`` of the mixed regime, the number of samples of ``fixed_human``."""
    return "fresh" if recipe.get("regime.kind") == "incremental" else recipe.get("regime.human")


def _synthetic_ratio(recipe: Recipe) -> Any:
    return 1.0 if recipe.get("regime.kind") == "replace" else recipe.get("regime.synthetic_ratio")


_READERS: Mapping[str, Reader] = {
    "n": lambda recipe: recipe.get("samples_per_generation"),
    "estimator": lambda recipe: recipe.get("family.covariance_estimator"),
    "synthetic_ratio": _synthetic_ratio,
    "human": _human,
    "growth": lambda recipe: recipe.get("samples_per_generation.growth.kind"),
    "human_weight": lambda recipe: recipe.get("regime.weights.human"),
}
"""How to read the parameters that are no key of a recipe's section under their own name."""

_SECTIONS = ("family", "regime", "loss", "samples_per_generation", "samples_per_generation.growth")


def _named_key(name: str) -> Reader:
    keys = [f"{section}.{name}" for section in _SECTIONS]
    return lambda recipe: next((recipe[key] for key in keys if recipe.get(key) is not None), None)


@dataclass(frozen=True)
class ClosedForm:
    """A registered function. :func:`closed_form` explains the attributes."""

    function: Callable[..., float]
    metric: str = ""
    summary: Literal["mean", "variance"] = "mean"
    holds: Callable[[Recipe], bool] = lambda recipe: False
    to_metric: Callable[[float, Recipe, int], float] = lambda value, recipe, generation: value
    label: str = ""
    limit: str = ""
    readers: Mapping[str, Reader] = field(default_factory=dict)

    @cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.function)

    @property
    def needs_generation(self) -> bool:
        return GENERATION in self.signature.parameters

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        """The arguments that a recipe determines; those it says nothing about are left out, as is the generation."""
        readers = {
            name: self.readers.get(name) or _READERS.get(name) or _named_key(name)
            for name in self.signature.parameters
            if name != GENERATION
        }
        values = {name: read(recipe) for name, read in readers.items()}
        return {name: value for name, value in values.items() if value is not None}

    def missing(self, given: Mapping[str, Any]) -> list[str]:
        """The parameters without a default that ``given`` lacks, the generation excepted."""
        parameters = self.signature.parameters.items()
        return [n for n, p in parameters if p.default is p.empty and n not in given and n != GENERATION]


CLOSED_FORMS: dict[str, ClosedForm] = {}
"""All closed forms by name."""


def closed_form(
    metric: str = "",
    *,
    family: str = "",
    regime: str | Sequence[str] = (),
    loss: str = "cross_entropy",
    curation: str = "none",
    when: Callable[[Recipe], bool] = lambda recipe: True,
    weighs: bool = False,
    grows: bool = False,
    lineages: bool = False,
    summary: Literal["mean", "variance"] = "mean",
    to_metric: Callable[[float, Recipe, int], float] = lambda value, recipe, generation: value,
    label: str = "",
    limit: str = "",
    **readers: Reader,
) -> Callable[[_Function], _Function]:
    """Register a function as the closed form of its name, and return it unchanged.

    Args:
        metric: the metric whose moment over chains it gives. Without one (a bound, a threshold) only claims use it.
        family: kind of the family it holds for.
        regime: kind or kinds of regime it holds for (:func:`regime_of`).
        loss: kind of loss it holds for.
        curation: kind of the one step of curation that it holds for.
        when: what else a recipe must satisfy for it to hold.
        weighs: whether it is of a regime with weights, and of no other.
        grows: whether it is of training sets whose size is a law of the generation, and of no others.
        lineages: whether it holds for the lineages of an ecosystem, and for no single chain.
        summary: which moment over chains it gives.
        to_metric: the metric's moment from the function's value, the recipe and the generation.
        label: its name in charts, where the metric is more than the function's value.
        limit: in which limit it holds (empty: exactly).
        readers: how to read a parameter off a recipe, where the rules of this module do not serve.
    """
    regimes = (regime,) if isinstance(regime, str) else tuple(regime)

    def holds(recipe: Recipe) -> bool:
        return (
            bool(metric)
            and lineages == ("lineage" in recipe)
            and curation_of(recipe) == curation
            and recipe.get("family.kind") == family
            and recipe.get("loss.kind", "cross_entropy") == loss
            and regime_of(recipe) in regimes
            and weighs == (recipe.get("regime.weights.human") is not None)
            and grows == (recipe.get("samples_per_generation.initial") is not None)
            and when(recipe)
        )

    def register(function: _Function) -> _Function:
        name = function.__name__
        CLOSED_FORMS[name] = ClosedForm(function, metric, summary, holds, to_metric, label or name, limit, readers)
        return function

    return register


def lookup(name: str) -> ClosedForm:
    """A registered closed form; ValueError with a hint for an unknown name."""
    if name not in CLOSED_FORMS:
        raise ValueError(f"there is no closed form {name!r}{hint(name, CLOSED_FORMS)}")
    return CLOSED_FORMS[name]


def _is_whole(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and float(value).is_integer()


def evaluate(name: str, given: Mapping[str, Any], recipe: Recipe, generation: int | None) -> float:
    """The value of a closed form.

    Args:
        name: the registered name.
        given: arguments by keyword; they take precedence over the recipe's.
        recipe: a flat recipe that supplies the other arguments; may be empty.
        generation: used where the form depends on it and ``given`` has none; None where there is no single one.

    Raises:
        ValueError: no such closed form, wrong arguments, or arguments outside its domain.
    """
    form = lookup(name)
    arguments = {**form.arguments(recipe), **given}
    if form.needs_generation and GENERATION not in arguments:
        if generation is None:
            raise ValueError(f"{name} depends on the generation, and the statistic names none: give generation: …")
        arguments[GENERATION] = generation
    if form.needs_generation and not _is_whole(arguments[GENERATION]):
        raise ValueError(f"{name}: generation is a whole number (got {shown(arguments[GENERATION])})")
    check_given(name, arguments)
    if missing := form.missing(arguments):
        raise ValueError(f"{name}: {missing[0]}: this argument is needed and missing")
    try:
        result = float(form.function(**arguments))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{name}: {error}") from error
    if result != result:
        raise ValueError(f"{name} is not a number for {', '.join(f'{k}={shown(v)}' for k, v in arguments.items())}")
    return result


def check_given(name: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that a closed form does not take, or that is no number where it takes one."""
    known = lookup(name).signature.parameters
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{name}: there is no argument {key}{hint(key, known)}")
        if known[key].annotation in (int, float) and (isinstance(value, bool) or not isinstance(value, Real)):
            raise ValueError(f"{name}: {key}: a number is needed, not {shown(value)}")


@dataclass(frozen=True)
class Prediction:
    """What a closed form says of a metric under one recipe, as a function of the generation.

    Attributes:
        summary: which moment over chains it gives.
        name: the closed form.
        at: its value at a generation; raises ValueError outside its domain.
        limit: in which limit it holds (empty: exactly).
    """

    metric: str
    summary: Literal["mean", "variance"]
    name: str
    at: Callable[[int], float]
    limit: str

    @property
    def title(self) -> str:
        """The quantity, e.g. ``mean of trace_ratio``."""
        return f"{self.summary} of {self.metric}"


def closed_forms_of(recipe: Recipe) -> list[Prediction]:
    """What is known of a flat recipe in closed form; empty where nothing is.

    A closed form is offered only where its assumptions hold, so that a deviation means something.
    """
    return [_predict(name, form, recipe) for name, form in CLOSED_FORMS.items() if form.holds(recipe)]


def _predict(name: str, form: ClosedForm, recipe: Recipe) -> Prediction:
    def at(generation: int) -> float:
        return form.to_metric(evaluate(name, {}, recipe, generation), recipe, generation)

    return Prediction(form.metric, form.summary, form.label, at, form.limit)


# What closed forms require of their arguments.


def check_arguments(n: int, generation: int) -> None:
    """Raise ValueError for a sample too small to have a variance, or a negative generation."""
    if n < 2 or generation < 0:
        raise ValueError(f"n must be 2 or more and generation 0 or more (n {n}, generation {generation})")


def check_choice(name: str, given: str, choices: Any) -> None:
    """Raise ValueError unless ``given`` is one of the strings of the literal type ``choices``."""
    if given not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}: {shown(given)} is not")
