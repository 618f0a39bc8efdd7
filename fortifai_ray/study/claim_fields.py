"""The types of a claim's fields, each with a check that says in one line what would be right."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, PlainSerializer


def _generation_or_last(value: Any) -> Any:
    if value != "last" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"a generation is 0, 1, 2, … or `last` (got {value!r})")
    return value


def _place_or_metric(value: Any) -> Any:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | str)
        or value == ""
        or (isinstance(value, int) and value < 0)
    ):
        raise ValueError(f"a criterion is given by its metric, or its place 0, 1, … under collapse (got {value!r})")
    return value


def _scalars(value: Any) -> Any:
    for key, wanted in value.items() if isinstance(value, dict) else ():
        items = wanted if isinstance(wanted, list) else [wanted]
        if not items or not all(item is None or isinstance(item, bool | int | float | str) for item in items):
            raise ValueError(f"{key}: a value, or a list of values, is needed (got {wanted!r})")
    return value


Generation = Annotated[int, Field(strict=True, ge=0)]
Comparison = Literal["ratio", "difference"]
# Which of the study's collapse criteria: its place in the list, or its metric.
Criterion = Annotated[int | str, BeforeValidator(_place_or_metric)]
Scalar = bool | int | float | str | None
Where = Annotated[dict[str, Scalar | list[Scalar]], BeforeValidator(_scalars)]
GenerationOrLast = Annotated[int | Literal["last"], BeforeValidator(_generation_or_last)]


def where_words(where: Where) -> str:
    """``loss.kind=tce, loss.gamma=0.3 or 0.5``."""
    return ", ".join(
        f"{key}={' or '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in where.items()
    )


def criterion_words(criterion: Criterion) -> str:
    return f"criterion {criterion}" if isinstance(criterion, int) else criterion


# How the chains' numbers become one number.

_PLAIN = ("mean", "median", "geometric_mean", "ratio_of_means", "variance")
_WITH_NUMBER = ("quantile", "share_above", "share_below")
MEANS = frozenset({"mean", "geometric_mean", "ratio_of_means"})  # chains of one seed can be averaged first


class Summary(BaseModel):
    """How the chains' numbers become one: ``mean``, ``median``, ``geometric_mean``, ``ratio_of_means`` (mean of the
    numerators over mean of the denominators, of a ratio), ``variance`` (over seeds, unbiased), ``{quantile: q}``,
    ``{share_above: x}`` or ``{share_below: x}`` (strictly)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    number: FiniteFloat | None = None

    @property
    def words(self) -> str:
        """As a claim's statistic begins: ``mean of``, ``share of chains above 2 in``."""
        if self.number is None:
            return f"{self.name.replace('_', ' ')} of"
        if self.name == "quantile":
            return f"{self.number:g} quantile of"
        return f"share of chains {self.name.removeprefix('share_')} {self.number:g} in"


def _summary(value: Any) -> Any:
    if isinstance(value, Summary):
        return value
    if value in _PLAIN:
        return Summary(name=value)
    if isinstance(value, dict) and len(value) == 1:
        (name, number), *_ = value.items()
        if name in _WITH_NUMBER and isinstance(number, int | float) and not isinstance(number, bool):
            if name == "quantile" and not 0 < number < 1:
                raise ValueError(f"a quantile lies between 0 and 1 (got {number})")
            return Summary(name=name, number=number)
    raise ValueError(
        f"there is no summary {value!r}; there are {', '.join(_PLAIN)}, and with a number "
        f"{', '.join(f'{{{name}: …}}' for name in _WITH_NUMBER)}"
    )


def _plain_summary(summary: Summary) -> str | dict[str, float]:
    return summary.name if summary.number is None else {summary.name: summary.number}


SummaryField = Annotated[Summary, BeforeValidator(_summary), PlainSerializer(_plain_summary)]
MEAN = Summary(name="mean")
