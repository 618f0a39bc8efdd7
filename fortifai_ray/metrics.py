"""The one registry of metrics: what each counts, its unit and scale, and which way collapse moves it.

A metric is declared beside the code that computes it: each module in ``_DECLARED_IN`` lists its own in ``METRICS``, and
the registry imports them when the first metric is looked up. A user's family declares its metrics in its attribute
``metrics``, as :class:`Metric` objects or as plain names. Declarations travel with a study's results
(:func:`to_json`), so that a report or a notebook knows the metrics of a family that it cannot import.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib import import_module
from itertools import chain
from typing import Any, Literal, get_args

from fortifai_ray.errors import UserError

Direction = Literal["above", "below"]
Scale = Literal["log", "linear"]
Role = Literal["tails", "facts", "grammar", "repetition", "fit", "variety"]
ROLES: tuple[Role, ...] = get_args(Role)

MODEL, CORPUS, BOTH = "The model", "The synthetic corpus", "The synthetic text under the models"
CURATION = "Curation"
TRAINING, BENCHMARKS = "Training", "Benchmarks"
DISTRIBUTION, SAMPLES, OTHER = "Distance from the true distribution", "Samples", "Other measurements"
GROUPS = (MODEL, BOTH, CORPUS, CURATION, TRAINING, BENCHMARKS, DISTRIBUTION, SAMPLES, OTHER)
COUNTS = ("scored", "truncated", "skipped")  # of a benchmark's items, each a column

# In the order in which tables show their metrics.
_DECLARED_IN = (
    "fortifai_ray.families.language.recipe",
    "fortifai_ray.families.language.lineages",
    "fortifai_ray.losses.kinds",
    "fortifai_ray.evaluation.signs.corpus",
    "fortifai_ray.evaluation.signs.model",
    "fortifai_ray.evaluation.benchmarks.config",
    "fortifai_ray.families.images.recipe",
    "fortifai_ray.families.analytic",
    "fortifai_ray.recipe.curation",
)
_WORDS = {
    "kl": "KL divergence",
    "bleu": "BLEU",
    "kr": "KR",
    "blimp": "BLiMP",
    "hellaswag": "HellaSwag",
    "mathqa": "MathQA",
    "gsm8k": "GSM8K",
    "fortifai": "(as ForTIFAI)",
}
_SENSES = {"above": "Collapse moves it up (↑)", "below": "Collapse moves it down (↓)"}


@dataclass(frozen=True)
class Metric:
    """What a collapse criterion, a table or a chart needs to know of a metric; all but its name can be left out.

    Attributes:
        name: its column in the tables, and its key in MLflow.
        unit: of its values.
        definition: one line.
        source: paper, tool or module.
        direction: the side to which collapse moves it; None if unknown.
        scale: on which its onset is interpolated: ``log`` for what multiplies from generation to generation.
        title: its name in words, for charts and sentences; the words of ``name`` where left out.
        group: the section of the report that shows it.
        chance: what guessing scores; None if that has no meaning.
        role: the aspect of collapse that it is a sign of.
        rank: its place among the signs of that role, the best one first.
    """

    name: str
    unit: str = ""
    definition: str = ""
    source: str = ""
    direction: Direction | None = None
    scale: Scale = "linear"
    title: str = ""
    group: str = OTHER
    chance: float | None = None
    role: Role | None = None
    rank: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a direction, a scale or a role that does not exist: users declare metrics too."""
        allowed = {"direction": (None, *get_args(Direction)), "scale": get_args(Scale), "role": (None, *ROLES)}
        for key, values in allowed.items():
            if (value := getattr(self, key)) not in values:
                raise ValueError(f"metric {self.name}: {key} is one of {', '.join(map(str, values))}, not {value!r}")
        if not self.title:
            object.__setattr__(self, "title", _words(self.name))

    @property
    def axis(self) -> str:
        """The title with the unit, where the title does not name it already."""
        return self.title if self.unit in self.title else f"{self.title} ({self.unit})"

    @property
    def sense(self) -> str:
        """Which way collapse moves it, for a caption; empty if unknown."""
        return _SENSES[self.direction] if self.direction else ""

    @property
    def log(self) -> bool:
        """Whether its natural scale is the logarithm."""
        return self.scale == "log"


def fidelity(metric: Metric, value: float, reference: float) -> float:
    """The share of generation 0's ability that is left: (value − chance) / (reference − chance), with chance 0 if None.

    1 at generation 0, 0 at chance, negative below chance. NaN where generation 0 was itself at chance: there was
    nothing to lose.
    """
    chance = metric.chance or 0.0
    return (value - chance) / (reference - chance) if reference != chance else math.nan


class _Registry(Mapping[str, Metric]):
    """Metrics by name: the built-in ones, imported at the first look-up, then those that users declared."""

    def __init__(self) -> None:
        self.users: dict[str, Metric] = {}

    @cached_property
    def built_in(self) -> Mapping[str, Metric]:
        modules = [import_module(name) for name in _DECLARED_IN]
        return {metric.name: metric for module in modules for metric in module.METRICS}

    def __getitem__(self, name: str) -> Metric:
        return self.built_in[name] if name in self.built_in else self.users[name]

    def __iter__(self) -> Iterator[str]:
        return chain(self.built_in, self.users)

    def __len__(self) -> int:
        return len(self.built_in) + len(self.users)


METRICS = _Registry()
"""By name, in the order in which tables show them."""


def register(*metrics: Metric) -> None:
    """Declare a user's metrics in this process; declaring one again replaces it.

    Raises ValueError for a name that a built-in metric has with another meaning.
    """
    for each in metrics:
        if each.name not in METRICS.built_in:
            METRICS.users[each.name] = each
        elif each != METRICS.built_in[each.name]:
            raise ValueError(f"{each.name} is a built-in metric: give yours another name, or its name alone")


def metric(name: str) -> Metric:
    """The declaration of a column.

    A breakdown (``kr_accuracy_fraction_1``) is declared as the metric that it breaks down. A name that nobody declared
    gets a plain metric: no direction, and a linear scale whatever the name suggests.
    """
    if name in METRICS:
        return METRICS[name]
    whole = max((known for known in METRICS if name.startswith(f"{known}_")), key=len, default=None)
    if whole is None:
        return Metric(name)
    return replace(METRICS[whole], name=name, title=_words(name), role=None, rank=0)


def declared(metrics: Iterable[Metric | str]) -> tuple[Metric, ...]:
    """Declarations from objects and plain names; a name means the built-in metric of that name, if there is one."""
    return tuple(each if isinstance(each, Metric) else METRICS.built_in.get(each, Metric(each)) for each in metrics)


def is_bookkeeping(column: str) -> bool:
    """Whether a column says how a metric was measured: an end of its interval (``blimp_accuracy_low``) or the number of
    items scored."""
    whole, _, last = column.rpartition("_")
    if last in ("low", "high"):
        return any(whole == name or whole.startswith(f"{name}_") for name in METRICS)
    return last in COUNTS


def signs_by_role() -> dict[Role, tuple[str, ...]]:
    """The names of the metrics that are signs of collapse, by role, the best sign of each first."""
    ranked = sorted((each for each in METRICS.values() if each.role), key=lambda each: each.rank)
    return {role: tuple(each.name for each in ranked if each.role == role) for role in ROLES}


def to_json(columns: Iterable[str]) -> str:
    """The declarations of those of a table's columns that are metrics, to be stored with the table.

    A breakdown has none of its own.
    """
    return json.dumps([asdict(METRICS[name]) for name in columns if name in METRICS], ensure_ascii=False)


def from_json(text: str, source: str) -> None:
    """Register the metrics in :func:`to_json`'s text that this process does not know.

    Raises :class:`UserError`, beginning with ``source``, for text that is not a list of declarations.
    """
    known = {field.name for field in fields(Metric)}
    try:
        rows: list[dict[str, Any]] = json.loads(text)
        metrics = [Metric(**{key: value for key, value in row.items() if key in known}) for row in rows]
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{source}: the declarations of its metrics cannot be read: {error}") from error
    register(*(each for each in metrics if each.name not in METRICS))


def _words(name: str) -> str:
    return " ".join(_WORDS.get(word, word) for word in name.split("_"))
