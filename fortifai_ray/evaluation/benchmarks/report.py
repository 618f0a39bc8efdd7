"""Results of benchmarks: measures with intervals and counts, and the answers behind them."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai_ray.evaluation.benchmarks.config import Benchmark

LEVEL = 0.95


@dataclass(frozen=True)
class Measure:
    """One number of the table.

    Attributes:
        metric: its name, the same in tables, MLflow and report.
        value: None if nothing was scored or the value is not finite.
        low, high: Wilson score interval (Wilson 1927) of an accuracy, :data:`LEVEL`; None for other measures.
        stderr: standard error of a mean; None if it has none.
        scored: number of documents (questions, sentence pairs).
        detail: whether it belongs to a breakdown (a paradigm, a fraction).
    """

    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    stderr: float | None = None
    scored: int = 0
    detail: bool = False


TIE = 1e-6  # relative: two float32 sums of the same log-probabilities in another order differ by less


def credits(scores: NDArray[np.float64], right: int = 0) -> NDArray[np.float64]:
    """The credit of each answer: 1 where the right choice scores best, 1/k where k choices share the best score (what a
    guess among them earns), 0 where another is better or a score is not finite.

    Args:
        scores: (n, choices) the higher the better.
        right: the right choice's column.
    """
    tied = tied_for_best(scores)
    finite = np.isfinite(scores).all(axis=1)
    return np.where(finite & tied[:, right], 1.0 / np.maximum(tied.sum(axis=1), 1), 0.0)


def tied_for_best(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n, choices) Which choices share the best score, up to :data:`TIE`; none in a row that is not finite."""
    finite = np.isfinite(scores).all(axis=1, keepdims=True)
    known = np.where(finite, scores, 0.0)
    best = known.max(axis=1, keepdims=True)
    return finite & (best - known <= TIE * np.abs(best))


def accuracy(metric: str, credit: Collection[float], *, detail: bool = False) -> Measure:
    """The mean credit of the answers (:func:`credits`), with the standard error of that mean (divisor n − 1).

    The interval is that of a share; where ties earn a part, it is conservative: their credits vary less.
    """
    scored = len(credit)
    if not scored:
        return Measure(metric, None, detail=detail)
    assert all(0 <= each <= 1 for each in credit), "a credit lies in [0, 1]"
    share = sum(credit) / scored
    spread = max(0.0, sum(each * each for each in credit) / scored - share * share)
    stderr = math.sqrt(spread / (scored - 1)) if scored > 1 else None
    return Measure(metric, share, *wilson(share, scored), stderr, scored, detail)


def mean_accuracy(metric: str, parts: Sequence[Measure]) -> Measure:
    """The unweighted mean of several accuracies, each over items of its own.

    Its variance is the mean of theirs divided by their number. Its interval is Wilson's for ``m² / Σ 1/nᵢ`` answers: a
    single share of so many answers varies as much as the mean of *m* shares of *nᵢ* answers each. It is conservative,
    since part of the variance lies between the shares (Jensen).
    """
    if len(parts) == 1:
        return replace(parts[0], metric=metric, detail=False)
    scored = sum(part.scored for part in parts)
    if not parts or not all(part.scored for part in parts):
        return Measure(metric, None, scored=scored)
    value = sum(part.value or 0.0 for part in parts) / len(parts)
    low, high = wilson(value, len(parts) ** 2 / sum(1 / part.scored for part in parts))
    errors = [part.stderr for part in parts if part.stderr is not None]
    stderr = math.sqrt(sum(error**2 for error in errors)) / len(parts) if len(errors) == len(parts) else None
    return Measure(metric, value, low, high, stderr, scored)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's score interval of a share, :data:`LEVEL`; SciPy's takes only whole counts."""
    from scipy.special import ndtri

    z = float(ndtri((1 + LEVEL) / 2))
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test on the items that both models answered.

    Attributes:
        items: number of items that both answered.
        only_first, only_second: items that earned more credit from the one than from the other; the test depends on
            these alone. Without ties, they are those that only one answered correctly.
        p_value: two-sided, binomial with 1/2; 1 if the two never differ.
    """

    items: int
    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Mapping[Any, float], second: Mapping[Any, float]) -> McNemar:
    """McNemar's exact test (McNemar 1947; exact form: Edwards 1948) between two models' credits, by item; with ties,
    the sign test."""
    from scipy.stats import binomtest

    common = first.keys() & second.keys()
    only_first = sum(first[item] > second[item] for item in common)
    only_second = sum(second[item] > first[item] for item in common)
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0
    return McNemar(len(common), only_first, only_second, p_value)


@dataclass(frozen=True)
class EntryReport:
    """The results of one entry of ``benchmarks``.

    Attributes:
        entry: what was run.
        measures: the entry's own first, then breakdowns.
        answers: by metric, each item's credit (:func:`credits`): for a paired test between two models.
        scored, truncated, skipped: documents that were scored, texts that were cut from the left, and documents that
            could not be scored (``provenance`` has the reasons).
        provenance: the versions and hashes that, with the entry's settings, determine the numbers; JSON.
    """

    entry: Benchmark
    measures: list[Measure]
    answers: dict[str, dict[Any, float]]
    scored: int
    truncated: int
    skipped: int
    provenance: dict[str, Any]


@dataclass(frozen=True)
class BenchmarkReport:
    """The results of all entries on one checkpoint."""

    entries: list[EntryReport] = field(default_factory=list)
    evaluate_seconds: float = 0.0

    @property
    def answers(self) -> dict[str, dict[Any, float]]:
        """By metric, each item's credit."""
        return {metric: answers for entry in self.entries for metric, answers in entry.answers.items()}

    def metrics(self) -> dict[str, float | None]:
        """A flat mapping: each measure by its name, ``…_low`` and ``…_high`` beside each accuracy that is no breakdown,
        and ``PREFIX_scored``, ``PREFIX_truncated`` and ``PREFIX_skipped`` per entry."""
        flat: dict[str, float | None] = {}
        for report in self.entries:
            for measure in report.measures:
                flat[measure.metric] = measure.value
                if measure.low is not None and not measure.detail:
                    flat |= {f"{measure.metric}_low": measure.low, f"{measure.metric}_high": measure.high}
            flat |= {name: getattr(report, count) for count, name in report.entry.counts.items()}
        return flat

    def details(self) -> dict[str, Any]:
        """As JSON: every measure with its interval, and counts and provenance per entry; without the answers."""
        return {
            "evaluate_seconds": self.evaluate_seconds,
            "entries": [
                {
                    "task": report.entry.task,
                    "settings": report.entry.model_dump(mode="json"),
                    **report.provenance,
                    **{count: getattr(report, count) for count in report.entry.counts},
                    "measures": [asdict(measure) for measure in report.measures],
                }
                for report in self.entries
            ],
        }
