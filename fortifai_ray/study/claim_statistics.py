"""What a claim can measure: a number per chain and how the chains' numbers are summarised, or a number per cell.

Each statistic is a plain mapping in the study file, identified by its ``kind``::

    {kind: metric, metric: trace_ratio, at: 9}                                     # mean over seeds, at generation 9
    {kind: metric, metric: excess_risk, at: 9, over_generation_0: ratio, summary: ratio_of_means}
    {kind: metric, metric: perplexity, summary: median, against: {loss.kind: cross_entropy}, compare: ratio}
    {kind: slope, metric: log_variance_ratio}
    {kind: metric, metric: modes, at: 1999, summary: {share_below: 3}}
    {kind: onset_share, criterion: perplexity, by: 5}
    {kind: onset_order, first: tail_coverage, second: perplexity}
    {kind: fi_ratio, unit: synthetic}

The unit of independence is the seed. Where a claim's ``where`` matches several chains of one seed, a mean (arithmetic,
geometric, or a ratio of means) averages them first; any other summary would be meaningless and leaves the claim
undecided.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, FiniteFloat, model_serializer, model_validator
from pydantic.json_schema import WithJsonSchema

from fortifai_ray.results.schema import FiUnit
from fortifai_ray.results.words import fi_unit, in_words, value_words
from fortifai_ray.validation import Section, shown

# Types of fields, each with a check that reports in one line what would be right.


def _generation_or_last(value: Any) -> Any:
    if value != "last" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"a generation is 0, 1, 2, … or `last` (got {shown(value)})")
    return value


def _place_or_metric(value: Any) -> Any:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | str)
        or value == ""
        or (isinstance(value, int) and value < 0)
    ):
        raise ValueError(
            f"a criterion is given by its metric, or its place 0, 1, … under collapse (got {shown(value)})"
        )
    return value


def _scalars(value: Any) -> Any:
    for key, wanted in value.items() if isinstance(value, dict) else ():
        items = wanted if isinstance(wanted, list) else [wanted]
        if not items or not all(item is None or isinstance(item, bool | int | float | str) for item in items):
            raise ValueError(f"{key}: a value, or a list of values, is needed (got {shown(wanted)})")
    return value


Generation = Annotated[int, Field(strict=True, ge=0)]
Comparison = Literal["ratio", "difference"]
# Which of the study's collapse criteria: its place in the list, or its metric.
Criterion = Annotated[int | str, BeforeValidator(_place_or_metric)]
Scalar = bool | int | float | str | None
Where = Annotated[dict[str, Scalar | list[Scalar]], BeforeValidator(_scalars)]
GenerationOrLast = Annotated[int | Literal["last"], BeforeValidator(_generation_or_last)]


def where_keys(where: Where) -> str:
    """``loss.kind=tce, loss.gamma=0.3 or 0.5``: for who has to find it in a file."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in where.items()}
    return ", ".join(f"{key}={' or '.join(map(value_words, values))}" for key, values in lists.items())


def where_words(where: Where) -> str:
    """``TCE γ=0.3 or 0.5, no curation``: for who reads of it."""
    asked = {key: value if isinstance(value, list) else [value] for key, value in where.items()}
    given = {key: [value_words(value, key) for value in values if value is not None] for key, values in asked.items()}
    said = {key: " or ".join(words) for key, words in given.items() if words}
    without = [in_words({key: None}) for key, values in asked.items() if None in values]
    return ", ".join([in_words(said)] * bool(said) + without)


def criterion_words(criterion: Criterion) -> str:
    return f"criterion {criterion}" if isinstance(criterion, int) else criterion


# How the chains' numbers are combined into one.

_PLAIN = ("mean", "median", "geometric_mean", "ratio_of_means", "variance")
_WITH_NUMBER = ("quantile", "share_above", "share_below")
MEANS = frozenset({"mean", "geometric_mean", "ratio_of_means"})  # chains of one seed can be averaged first


class Summary(Section):
    """How the chains' numbers are combined into one; in a study file a name, or ``{name: number}``."""

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

    @model_serializer
    def _plain(self) -> str | dict[str, float]:
        return self.name if self.number is None else {self.name: self.number}


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
        f"there is no summary {shown(value)}; there are {', '.join(_PLAIN)}, and with a number "
        f"{', '.join(f'{{{name}: …}}' for name in _WITH_NUMBER)}"
    )


_SUMMARIES = {"anyOf": [{"enum": list(_PLAIN)}, {"type": "object", "maxProperties": 1}]}
SummaryField = Annotated[Summary, BeforeValidator(_summary), WithJsonSchema(_SUMMARIES)]
MEAN = Summary(name="mean")


# The statistics.


class _Statistic(Section):
    @property
    def words(self) -> str:
        """What is measured."""
        raise NotImplementedError

    @property
    def against_words(self) -> str:
        """The cells it is compared with, for the end of the sentence; empty where there are none."""
        return ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns of ``generations.parquet`` that it reads."""
        return ()

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The collapse criteria that it reads."""
        return ()

    @property
    def generation(self) -> int | None:
        """The single generation it measures, for a closed form that depends on it."""
        return None

    @property
    def generations(self) -> tuple[int, ...]:
        """Every generation it names: none may lie beyond the study's horizon."""
        return () if self.generation is None else (self.generation,)


class PerChain(_Statistic):
    """A number per chain from one metric, summarised over seeds."""

    metric: str = Field(min_length=1, description="a column of `generations.parquet`")
    summary: SummaryField = Field(
        MEAN,
        description="how the chains' numbers become one: `ratio_of_means` is the mean of a ratio's numerators over the "
        "mean of its denominators, `variance` is over seeds and unbiased; or `{quantile: q}`, and `{share_above: x}` "
        "or `{share_below: x}`, the share of chains strictly on that side",
    )
    against: Where | None = Field(
        None,
        description="the cells to compare with: the claim's `where` with these keys replaced (a new `kind` discards "
        "its section's other keys), as in `{loss.kind: cross_entropy}`; null: no comparison",
    )
    compare: Comparison = Field(
        "ratio",
        description="the claim's cells over (`ratio`) or minus (`difference`) the others, paired by seed and by every "
        "varied key that `against` does not replace; pairs that lack a side are omitted and counted",
    )

    def compared(self, where: Where) -> Where:
        """The keys of the cells with which those of ``where`` are compared."""
        changes = self.against or {}
        return {key: value for key, value in where.items() if not self.replaces(key)} | changes

    def replaces(self, key: str) -> bool:
        """Whether ``against`` replaces a key: it is named, or its section gets a new kind."""
        changes, section = self.against or {}, key.rpartition(".")[0]
        return key in changes or (bool(section) and f"{section}.kind" in changes)

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    @property
    def ratios(self) -> int:
        """How many ratios each chain's number contains."""
        return int(self.against is not None and self.compare == "ratio")

    @property
    def measure_words(self) -> str:
        """The chain's number in words."""
        raise NotImplementedError

    @property
    def words(self) -> str:
        return f"{self.summary.words} {self.measure_words}"

    @property
    def against_words(self) -> str:
        if self.against is None:
            return ""
        return f", {'over' if self.compare == 'ratio' else 'minus'} the same at {where_words(self.against)}"

    @model_validator(mode="after")
    def _a_ratio_of_means_has_one_ratio(self) -> "PerChain":
        subtracted = self.against is not None and self.compare == "difference"
        if self.summary.name == "ratio_of_means" and (self.ratios != 1 or subtracted):
            raise ValueError(
                "summary ratio_of_means needs exactly one ratio: over_generation_0: ratio, or against with "
                f"compare: ratio (here there {'is another comparison' if self.ratios else 'is none'})"
            )
        if "compare" in self.model_fields_set and self.against is None and self.compare != "ratio":
            raise ValueError("compare needs against: {…}, the cells to compare with")
        return self


class MetricStatistic(PerChain):
    """A metric at one generation."""

    kind: Literal["metric"]
    at: GenerationOrLast = Field("last", description="the generation; `last`: each chain's own, early or not")
    over_generation_0: Comparison | None = Field(
        None, description="over (`ratio`) or minus (`difference`) the chain's own generation 0; null: the metric itself"
    )

    @property
    def generation(self) -> int | None:
        return None if self.at == "last" else self.at

    @property
    def ratios(self) -> int:
        return super().ratios + (self.over_generation_0 == "ratio")

    @property
    def measure_words(self) -> str:
        change = {"ratio": ", over generation 0's", "difference": ", minus generation 0's", None: ""}
        where = "the last generation" if self.at == "last" else f"generation {self.at}"
        return f"{self.metric} at {where}{change[self.over_generation_0]}"


class _Span(PerChain):
    """Generations ``start`` to ``end``, both included."""

    start: Generation = Field(0, description="the first generation that counts")
    end: Generation | None = Field(None, description="the last one that counts; null: each chain's own last")

    @property
    def generations(self) -> tuple[int, ...]:
        return (self.start,) if self.end is None else (self.start, self.end)

    @property
    def span_words(self) -> str:
        return f"over generations {self.start} to {'the last' if self.end is None else self.end}"

    @model_validator(mode="after")
    def _start_comes_before_end(self) -> "_Span":
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end must be later than start: generation {self.end} is not after {self.start}")
        return self


class SlopeStatistic(_Span):
    """The least-squares slope of a metric per generation."""

    kind: Literal["slope"]
    scale: Literal["linear", "log"] = Field("linear", description="log: the slope of the metric's logarithm")

    @property
    def measure_words(self) -> str:
        return f"slope of {'ln ' if self.scale == 'log' else ''}{self.metric} per generation {self.span_words}"


class ExtremeStatistic(_Span):
    """The largest or the smallest value of a metric."""

    kind: Literal["maximum", "minimum"]

    @property
    def measure_words(self) -> str:
        return f"{self.kind} of {self.metric} {self.span_words}"


class TrendStatistic(_Span):
    """Spearman's rank correlation of a metric with the generation: 1 where it only rises, −1 where it only falls, 0
    where it never changes."""

    kind: Literal["trend"]

    @property
    def measure_words(self) -> str:
        return f"rank correlation of {self.metric} with the generation {self.span_words}"


class _OfCriterion(_Statistic):
    criterion: Criterion = Field(0, description="collapse criterion: its metric, or its place under `collapse`, from 0")

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        return (self.criterion,)


class OnsetShare(_OfCriterion):
    """The share of chains whose collapse onset (``chains.parquet``) lies at or before a generation. A chain whose
    verdict is open (failed, unconfirmed, ended before) widens the interval on both sides."""

    kind: Literal["onset_share"]
    by: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="that generation, fractional or not; null: the study's horizon"
    )

    @property
    def words(self) -> str:
        when = "the horizon" if self.by is None else f"generation {self.by:g}"
        return f"share of chains collapsed ({criterion_words(self.criterion)}) by {when}"


class OnsetOrder(_Statistic):
    """The share of chains in which the onset under criterion ``first`` lies strictly before the one under ``second``.
    Chains in which the order is open (neither collapsed) widen the interval on both sides."""

    kind: Literal["onset_order"]
    first: Criterion = Field(description="the earlier collapse criterion: its metric, or its place under `collapse`")
    second: Criterion = Field(description="the later one, or the one that is never met")

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        return (self.first, self.second)

    @property
    def words(self) -> str:
        first, second = (criterion_words(name) for name in self.criteria)
        return f"share of chains whose onset under {first} comes before that under {second}"

    @model_validator(mode="after")
    def _two_criteria(self) -> "OnsetOrder":
        if self.first == self.second:
            raise ValueError(f"first and second must be two different criteria (both are {self.first!r})")
        return self


class FidelityRatio(_OfCriterion):
    """A cell's FI ratio to the baseline: the geometric mean of the ratios per seed (``fidelity.parquet``)."""

    kind: Literal["fi_ratio"]
    unit: FiUnit = Field(
        "generations",
        description="of the fidelity intervals: generations, synthetic units consumed over all training sets up to the "
        "onset, or those in the training set at the onset (of a regime whose sets grow)",
    )

    @property
    def words(self) -> str:
        return f"FI ratio in {fi_unit(self.unit)} ({criterion_words(self.criterion)})"


class CriticalPoint(_OfCriterion):
    """A cell's critical value of the key that the study searched (``collapse_points.parquet``)."""

    kind: Literal["critical_point"]
    over: str | None = Field(None, description="the key; null: whichever was searched")

    @property
    def words(self) -> str:
        return f"critical {self.over or 'value'} ({criterion_words(self.criterion)})"


Statistic = Annotated[
    MetricStatistic
    | SlopeStatistic
    | ExtremeStatistic
    | TrendStatistic
    | OnsetShare
    | OnsetOrder
    | FidelityRatio
    | CriticalPoint,
    Field(discriminator="kind"),
]
