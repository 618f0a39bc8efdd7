"""Between lineages of an ecosystem: how far their texts are apart, and how well each model knows the others' text."""

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from fortifai_ray.families.language.ngrams import ngrams_of_rows
from fortifai_ray.metrics import BOTH, CORPUS, Metric

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1  # bump when the same models and texts give other numbers
ROWS = 64  # of each lineage's text, the first ones: the measures of n-grams depend on how many there are
_DIVERGED, _SHARED = 2, 4  # the n of their n-grams
_BETWEEN = "the mean over the other lineages, in the first 64 rows of each"
METRICS = (
    Metric(
        "cross_perplexity",
        "per token",
        "exp of the mean −ln p per token of the other lineages' text (64 rows of each) under a lineage's model",
        "Jelinek et al. 1977",
        title="perplexity of the other lineages' text (per token)",
        scale="log",
        group=BOTH,
    ),
    Metric(
        "lineage_divergence",
        "nats",
        f"Jensen-Shannon divergence between the bigrams of tokens of a lineage's text and another's: {_BETWEEN}",
        "Lin 1991",
        title="divergence from the other lineages' text",
        direction="below",
        group=CORPUS,
    ),
    Metric(
        "shared_ngrams",
        "share of 4-grams",
        f"share of the 4-grams of tokens of a lineage's text that occur in another's: {_BETWEEN}",
        "fortifai_ray.families.language.lineages",
        title="4-grams shared with the other lineages",
        direction="above",
        group=CORPUS,
    ),
)


def compared(own: "pa.Table", others: "Mapping[str, pa.Table]", scores: "Callable[[pa.Table], np.ndarray]") -> dict:
    """The measures of one lineage, and each other lineage's share in them under ``details``.

    Args:
        own, others: synthetic corpora by ascending row, the others' by their lineage's name.
        scores: the mean log-likelihood (nats) per generated token of each row under the own model; −∞ where none.
    """
    started, first = time.perf_counter(), own.slice(0, ROWS)
    found: dict[str, dict[str, float]] = {}
    loss, tokens = 0.0, 0
    for name, table in others.items():
        rows = table.slice(0, ROWS)
        lengths = np.asarray(rows["generated_ids"].combine_chunks().value_lengths())
        total = -float((scores(rows) * lengths)[lengths > 0].sum())
        loss, tokens = loss + total, tokens + int(lengths.sum())
        found[name] = {
            "cross_perplexity": _exp(total, int(lengths.sum())),
            "lineage_divergence": divergence(_ngrams(first, _DIVERGED), _ngrams(rows, _DIVERGED)),
            "shared_ngrams": shared(_ngrams(first, _SHARED), _ngrams(rows, _SHARED)),
        }
    means = {name: float(np.mean([one[name] for one in found.values()])) for name in next(iter(found.values()))}
    values = {**means, "cross_perplexity": _exp(loss, tokens)}
    return {
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
        "details": {"lineages": {n: {k: v for k, v in one.items() if math.isfinite(v)} for n, one in found.items()}},
        "evaluate_seconds": time.perf_counter() - started,
    }


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """The Jensen-Shannon divergence in nats between the frequencies of two texts' n-grams (any numbers that tell them
    apart): 0 for the same, ln 2 for texts that share none. NaN where a text has none."""
    if not len(one) or not len(other):
        return math.nan
    _, places = np.unique(np.concatenate([one, other]), return_inverse=True)
    count = int(places.max()) + 1
    parts = [np.bincount(part, minlength=count) / len(part) for part in np.split(places, [len(one)])]
    middle = (parts[0] + parts[1]) / 2
    return float(sum((p[p > 0] * np.log(p[p > 0] / middle[p > 0])).sum() for p in parts) / 2)


def shared(own: np.ndarray, other: np.ndarray) -> float:
    """The share of a text's n-grams, each as often as it occurs, that occur in another; NaN where it has none."""
    return float(np.isin(own, other).mean()) if len(own) else math.nan


def _ngrams(table: "pa.Table", n: int) -> np.ndarray:
    """A hash of each n-gram within a row."""
    rows = table["generated_ids"].combine_chunks()
    row = np.repeat(np.arange(len(rows)), np.asarray(rows.value_lengths()))
    return ngrams_of_rows(rows.flatten().to_numpy(), row, n)[0]


def _exp(loss: float, tokens: int) -> float:
    try:
        return math.exp(loss / tokens) if tokens else math.nan
    except OverflowError:
        return math.inf
