"""n-gram language models on real text: language-like collapse, the tails first, in seconds.

A sample is a document: ``length`` tokens in a row of the text. A chain's human documents are drawn from the text
without replacement, by its seed. Fitting counts; writing draws from the counts, so that an n-gram that a generation did
not write is lost for good (Suresh et al. 2025; Seddik et al. 2024, whose model is one context of this one).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr

from fortifai_ray.families import KL_DIVERGENCE, PERPLEXITY
from fortifai_ray.families.analytic.base import AnalyticFamily, Array, Model, Streams
from fortifai_ray.families.analytic.discrete import Discrete
from fortifai_ray.families.analytic.ngram_counts import (
    Counts,
    Level,
    capped,
    contexts_of,
    count,
    find,
    probabilities,
    shorter,
    write,
)
from fortifai_ray.families.analytic.weighting import sample_weights
from fortifai_ray.losses import TruncatedCrossEntropy
from fortifai_ray.losses.base import LossConfig
from fortifai_ray.metrics import SAMPLES, Metric

_COUNTS = "counts"  # of a model: a column of objects, one per chain
_HELD_OUT = 20_000  # tokens that perplexity is measured on, at most
_BANDS = {"frequent": (0.0, 0.5), "middle": (0.5, 0.9), "rare": (0.9, 1.0)}  # of the human tokens, by falling frequency
_STEPS = 50  # of the iteration that finds what a smooth loss leads to


def _survival(band: str, what: str, rank: int) -> Metric:
    return Metric(
        f"survival_{band}",
        "share of words",
        f"{what}: the share of them that are still in the training set",
        "Shumailov et al. 2024, AI models collapse when trained on recursively generated data",
        "below",
        "log",
        title=f"{band} words that survive",
        group=SAMPLES,
        role="tails",
        rank=rank,
    )


@dataclass(frozen=True)
class Text:
    """A text as tokens 0 to ``size`` − 1: (tokens,) to train on, in the order of the text, and (tokens,) held out."""

    train: np.ndarray
    held_out: np.ndarray
    size: int
    _found: dict[tuple[int, int], tuple[Counts, np.ndarray]] = field(default_factory=dict, compare=False)

    def documents(self, length: int) -> np.ndarray:
        """(documents, length) The training tokens in documents; a shorter rest is left out."""
        return _rows(self.train, length)

    def known(self, order: int, length: int) -> tuple[Counts, np.ndarray]:
        """The n-grams of all training documents, and the held-out documents; found once."""
        if (order, length) not in self._found:
            held_out = _rows(self.held_out, length)[: max(1, _HELD_OUT // length)]
            self._found[order, length] = (count(self.documents(length), order, self.size), held_out)
        return self._found[order, length]

    @cached_property
    def bands(self) -> Mapping[str, np.ndarray]:
        """The tokens of each band: by falling frequency, the first half of the text, the next 40%, and the rest."""
        times = np.bincount(self.train, minlength=self.size)
        order = np.argsort(-times, kind="stable")[: int((times > 0).sum())]
        middles = (np.cumsum(times[order]) - times[order] / 2) / max(1, times.sum())
        return {name: order[(low <= middles) & (middles < high)] for name, (low, high) in _BANDS.items()}


def _rows(tokens: np.ndarray, length: int) -> np.ndarray:
    count = len(tokens) // length
    return tokens[: count * length].reshape(count, length)


class Ngram(AnalyticFamily):
    """The next token's probabilities after the last ``order`` − 1 tokens, fitted by counting; a sample is a document.

    The truth is the n-gram of the whole training text, from which the human documents are drawn. ``support``,
    ``entropy`` and ``total_variation`` are those of the n-grams of ``order`` tokens and their frequencies.
    ``kl_divergence`` is of the next token, in the mean over the contexts of the whole text; it and ``perplexity`` are
    ∞ without smoothing, once a needed n-gram is lost. A loss acts on p(w | h) itself, by maximum likelihood: the model
    is what gradient descent on the probabilities after each context leads to. For TCE, these are no larger than γ where
    the context has other tokens to take the rest.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        PERPLEXITY,
        *(metric for metric in Discrete.metrics if metric.name != "heterozygosity" and metric is not KL_DIVERGENCE),
        KL_DIVERGENCE,
        _survival("frequent", "of the words that make up the first half of the human text, by falling frequency", 8),
        _survival("middle", "of the words that make up the next 40% of the human text, by falling frequency", 7),
        _survival("rare", "of the words that make up the last tenth of the human text, by falling frequency", 6),
        Metric(
            "mass_rare",
            "share of tokens",
            "share of the training set that are words of the last tenth of the human text, by falling frequency",
            "Shumailov et al. 2024, AI models collapse when trained on recursively generated data",
            "below",
            "log",
            title="share of tokens that are rare words",
            group=SAMPLES,
        ),
    )

    kind: Literal["ngram"] = "ngram"
    order: int = Field(2, ge=1, le=4, description="tokens of an n-gram: 2 predicts a token from the one before it")
    tokens: Literal["word", "character", "byte"] = Field(
        "word", description="what a token is: words and punctuation marks, characters, or bytes of UTF-8"
    )
    vocabulary: int = Field(
        2000, ge=2, le=50_000, description="tokens, at most: the most frequent ones, and one for all others"
    )
    length: int = Field(100, ge=1, description="tokens of a document; each document begins afresh")
    smoothing: Literal["witten_bell", "none"] = Field(
        "witten_bell",
        description="of the probabilities that are measured: interpolated with shorter contexts (Witten and Bell "
        "1991), so that no token is impossible; none: counts alone",
    )
    written_by: Literal["counts", "smoothed"] = Field(
        "counts", description="which probabilities write: by maximum likelihood, or those that are smoothed"
    )
    _text: Text | None = PrivateAttr(None)

    def on(self, text: Text) -> "Ngram":
        """The same family with its text."""
        bound = self.model_copy()
        bound._text = text
        return bound

    def with_data_of(self, family: "Ngram") -> "Ngram":
        if (self.tokens, self.vocabulary) != (family.tokens, family.vocabulary):
            raise ValueError("tokens and vocabulary are the text's, for a judge too: leave them out")
        return self if family._text is None else self.on(family._text)

    @property
    def text(self) -> Text:
        assert self._text is not None, "an n-gram model is bound to its text before it is used"
        return self._text

    def human(self, n: int, streams: Streams) -> Array:
        documents = self.text.documents(self.length)
        return np.stack([documents[own.permutation(len(documents))[:n]] for own in streams.generators("human")])

    def fit(self, data: Array, weights: Array | None = None, generation: int = 0) -> Model:
        each = [None] * len(data) if weights is None else weights.reshape(*weights.shape[:2], -1)
        fitted = np.empty(len(data), dtype=object)
        for chain, (own, weight) in enumerate(zip(data, each, strict=True)):
            given = None if weight is None else np.broadcast_to(weight, own.shape)
            fitted[chain] = count(own, self.order, self.text.size, given)
        return {_COUNTS: fitted}

    def generate(self, model: Model, n: int, streams: Streams) -> Array:
        smoothed, size = self.written_by == "smoothed", self.text.size
        each = zip(_of(model), streams.generators("document"), strict=True)
        written = [write(counts, rng.random((n, self.length)), size, smoothed) for counts, rng in each]
        return np.stack(written) if written else np.zeros((0, n, self.length))

    def distance(self, model: Model, other: Model, streams: Streams) -> Array:
        """(B,) The Jensen-Shannon divergence of two models' n-grams, in nats; of the shorter ones of two orders."""
        pairs = zip(model[_COUNTS], other[_COUNTS], strict=True)
        shared = [(one, another, min(len(one), len(another)) - 1) for one, another in pairs]
        return np.array([_divergence(one[last], another[last]) for one, another, last in shared])

    def log_likelihood(self, model: Model, data: Array) -> Array:
        chains = max(len(data), len(model[_COUNTS]))
        models = np.broadcast_to(model[_COUNTS], (chains,))
        each = zip(models, np.broadcast_to(data, (chains, *data.shape[1:])), strict=True)
        with np.errstate(divide="ignore"):
            return np.stack([np.log(self._probabilities(counts, own)).sum(-1) for counts, own in each])

    def _probabilities(self, counts: Counts, documents: np.ndarray) -> Array:
        """(n, L) p of each token of ``documents`` after those before it."""
        contexts = contexts_of(documents, len(counts), self.text.size)  # a judge's order may be another
        tokens = documents.astype(np.int64)
        return probabilities(counts, contexts, tokens, self.text.size, self.smoothing == "witten_bell")

    def truth(self) -> Model:
        fitted = np.empty(1, dtype=object)
        fitted[0] = self.text.known(self.order, self.length)[0]
        return {_COUNTS: fitted}

    def evaluate(self, model: Model, data: Array, generation: int = 0) -> dict[str, Array]:
        each = [self._scores(counts, own) for counts, own in zip(_of(model), data, strict=True)]
        return {metric.name: np.array([scores[metric.name] for scores in each]) for metric in self.metrics}

    def _scores(self, counts: Counts, documents: np.ndarray) -> dict[str, float]:
        true, held_out = self.text.known(self.order, self.length)
        whole, own, size = true[-1], counts[-1], self.text.size
        share, true_share = own.counts / own.totals.sum(), whole.counts / whole.totals.sum()
        with np.errstate(divide="ignore"):
            surprise = -np.log(self._probabilities(counts, held_out)).mean()
            smoothed = self.smoothing == "witten_bell"
            contexts = shorter(whole.codes // size, self.order, size)
            fitted = np.log(probabilities(counts, contexts, whole.codes % size, size, smoothed))
        after = np.log(whole.counts / whole.totals[whole.context_of_each()])
        words, bands = np.bincount(documents.ravel(), minlength=size), self.text.bands
        return {
            "perplexity": float(np.exp(surprise)),
            "support": float(len(own.codes)),
            "support_ratio": len(own.codes) / len(whole.codes),
            "entropy": float(-(share * np.log(share)).sum()),
            "total_variation": _apart(own, whole),
            "kl_divergence": float((true_share * (after - fitted)).sum()),
            **{f"survival_{band}": float((words[tokens] > 0).mean()) for band, tokens in bands.items()},
            "mass_rare": float(words[bands["rare"]].sum() / max(1, words.sum())),
        }

    def loss_weights(self, model: Model, data: Array, loss: LossConfig) -> tuple[Array, Array]:
        """(B, n, L) The weight of each token with which counting gives what the loss leads to, and (B,) the share of
        tokens that it does not truncate."""
        found, kept = [], []
        for counts, own in zip(_of(model), data, strict=True):
            level = counts[-1]
            p = level.counts / level.totals[level.context_of_each()]
            context = contexts_of(own, self.order, self.text.size)[-1]
            place, _ = find(level.codes, context * self.text.size + own.astype(np.int64))
            found.append((_led_to(level, loss) / p)[place])
            kept.append((sample_weights(loss, p)[place] != 0).mean())
        return np.stack(found), np.array(kept)


def _of(model: Model) -> list[Counts]:
    return list(model[_COUNTS])


def _apart(one: Level, other: Level) -> float:
    """½ Σ |p − q| of two sets of n-grams, by their frequencies."""
    p, q = (level.counts / level.totals.sum() for level in (one, other))
    place, seen = find(one.codes, other.codes)
    shared = p[place[seen]]
    return float(np.abs(q - np.where(seen, p[place], 0.0)).sum() + p.sum() - shared.sum()) / 2


def _divergence(one: Level, other: Level) -> float:
    """The Jensen-Shannon divergence of two sets of n-grams, by their frequencies, in nats."""
    shares = [level.counts / level.totals.sum() for level in (one, other)]
    every, places = np.unique(np.concatenate([one.codes, other.codes]), return_inverse=True)
    middle = np.bincount(places, np.concatenate(shares), len(every)) / 2
    entropies = [-(p * np.log(p)).sum() for p in (middle, *shares)]
    return float(entropies[0] - (entropies[1] + entropies[2]) / 2)


def _led_to(level: Level, loss: LossConfig) -> Array:
    """(m,) p(w | h) to which a loss f(log p) leads: where c(hw)·(−f′(log p)) is in proportion to p after each context.

    TCE's pull ends at γ: its probabilities rise as far as that (:func:`fortifai_ray.families.analytic.ngram_counts
    .capped`). Those of other losses are found by going half of the way, on a log scale, fifty times.
    """
    if isinstance(loss, TruncatedCrossEntropy):
        return capped(level, loss.gamma)
    place = level.context_of_each()
    p = level.counts / level.totals[place]
    for _ in range(_STEPS):
        pulled = level.counts * sample_weights(loss, p)
        total = np.add.reduceat(pulled, level.starts[:-1])[place]
        p = np.sqrt(p * np.where(total > 0, pulled / np.where(total > 0, total, 1.0), p))
        p = p / np.add.reduceat(p, level.starts[:-1])[place]
    return p
