"""The signs of a synthetic corpus that need no model."""

import math
from functools import partial

import numpy as np

from fortifai_ray.evaluation.signs import Signs, SignsConfig, finite, repetition
from fortifai_ray.evaluation.signs.repetition import self_bleu
from fortifai_ray.evaluation.signs.rows import Rows, Texts, as_rows, draw, ngram_keys
from fortifai_ray.metrics import CORPUS, Metric

VERSION = 2  # bump when the same texts give other signs
DECILES = 10
FLOOR = 1e-10  # what ForTIFAI's notebook takes a share of 0 for

_up = partial(Metric, group=CORPUS, direction="above")
_down = partial(Metric, group=CORPUS, direction="below")
_SHUMAILOV = "Shumailov et al. 2024, AI models collapse when trained on recursively generated data"
_KL = "Kullback and Leibler 1951, equation 2.4; pseudo-count: Krichevsky and Trofimov 1981"
_SPANS = "Gusfield 1997, section 7.4; Holtzman et al. 2020"
_DISTINCT_RANKS = {3: 1, 2: 2}  # among the signs of repetition

METRICS = (
    _up("unigram_kl", "nats per n-gram", "KL(human ‖ synthetic) of the distributions of tokens", _KL),
    _up("bigram_kl", "nats per n-gram", "KL(human ‖ synthetic) of the distributions of token pairs", _KL),
    _up(
        "unigram_kl_fortifai",
        "nats per token",
        "KL(synthetic ‖ human) of the tokens of the whole corpora, a share of 0 taken as 1e-10",
        "Shabgahi et al. 2025, ForTIFAI: kl-divregence.ipynb",
    ),
    _down(
        "tail_coverage",
        "share of types",
        "share of the rarer half of the human types (distinct tokens) that still appear",
        _SHUMAILOV,
        role="tails",
        rank=1,
    ),
    *(
        _down(
            f"tail_coverage_decile_{decile}",
            "share of types",
            f"share of the human types in frequency decile {decile} (1: rarest) that still appear",
            _SHUMAILOV,
        )
        for decile in range(1, DECILES + 1)
    ),
    _down(
        "type_token_ratio", "ratio", "distinct tokens over tokens (equal to distinct_1)", "Templin 1957", scale="log"
    ),
    *(
        _down(
            f"distinct_{n}",
            "ratio",
            f"distinct {n}-grams over {n}-grams within documents",
            "Li et al. 2016, section 5.3",
            role="repetition" if n in _DISTINCT_RANKS else None,
            rank=_DISTINCT_RANKS.get(n, 0),
        )
        for n in range(1, 5)
    ),
    _up(
        "self_bleu",
        "BLEU, 0 to 1",
        "mean BLEU-4 of a document against the others, over at most 1,000 documents",
        "Zhu et al. 2018, Texygen, section 3",
        role="repetition",
        rank=3,
    ),
    _up("longest_repeated_span", "tokens", "longest span that occurs twice in one document: the maximum", _SPANS),
    _up(
        "mean_repeated_span",
        "tokens",
        "longest span that occurs twice in one document: the mean",
        _SPANS,
        role="repetition",
        rank=5,
    ),
    _up(
        "duplicate_share",
        "share of documents",
        "share of the documents that are copies of an earlier one",
        "Lee et al. 2022",
    ),
    _up(
        "compression_ratio",
        "ratio",
        "bytes of the token ids over their bytes under Zstandard",
        "Shaib et al. 2024, section 3",
        scale="log",
        role="repetition",
        rank=4,
    ),
)
"""The signs in the order of the tables; :func:`corpus_signs` gives each of them a value."""


def corpus_signs(
    synthetic: Texts, human: Texts, settings: SignsConfig, *, seed: int = 0, all_human: Texts | None = None
) -> Signs:
    """Compute the signs of collapse that token ids show; the function of its name in this package defines each sign.

    Both corpora are first cut to the same number of tokens: the first ``settings.tokens``, or as many as the smaller
    one has. This may shorten the last row. Signs that depend on size are then comparable between the generations of a
    chain, and between chains with corpora of equal size.

    Args:
        synthetic: generated ids by row (lists), in the order of rows.
        human: the reference: lists of ids, blocks (blocks, block_size), or a flat stream.
        settings: the amounts, and the pseudo-count.
        seed: the recipe's; draws the documents of self-BLEU if there are more than it takes.
        all_human: the human training text of all generations, which ForTIFAI's divergence is from (None: ``human``);
            neither that nor the synthetic corpus is cut for it.

    Returns:
        Values by name, None with a reason if a corpus is too small; counts ``corpus_rows``, ``corpus_rows_empty`` (no
        token, not counted as documents), ``corpus_rows_beyond`` and ``corpus_tokens_beyond`` (left out by the cut),
        ``corpus_documents`` and ``corpus_tokens`` (used for the signs).

    Raises:
        ValueError: the arrays do not hold token ids.
    """
    written, reference = as_rows(synthetic), as_rows(human)
    size = min(settings.tokens, len(written.tokens), len(reference.tokens))
    rows = written.first_tokens(size).without_empty()
    empty = int((written.lengths == 0).sum())
    counts = {
        "corpus_rows": len(written),
        "corpus_rows_empty": empty,
        "corpus_rows_beyond": len(written) - empty - len(rows),
        "corpus_tokens_beyond": len(written.tokens) - size,
        "corpus_documents": len(rows),
        "corpus_tokens": size,
    }
    values = _values(rows, reference.first_tokens(size).without_empty(), settings, seed)
    whole = reference if all_human is None else as_rows(all_human)
    values["unigram_kl_fortifai"] = _number(floored_kl(written.tokens, whole.tokens))
    return finite(values, _why_missing(written, reference, rows), counts)


def _values(rows: Rows, human: Rows, settings: SignsConfig, seed: int) -> dict[str, float | None]:
    coverage = tail_coverage(human.tokens, rows.tokens)
    spans = repetition.longest_repeated_spans(rows)
    drawn = draw(np.arange(len(rows)), settings.self_bleu_documents, seed, "self_bleu")
    values = {
        "unigram_kl": ngram_kl(human, rows, 1, settings.smoothing),
        "bigram_kl": ngram_kl(human, rows, 2, settings.smoothing),
        "tail_coverage": float(coverage[: DECILES // 2].mean()),
        **{f"tail_coverage_decile_{decile}": float(share) for decile, share in enumerate(coverage, start=1)},
        "type_token_ratio": type_token_ratio(rows.tokens),
        **{f"distinct_{n}": distinct_n(rows, n) for n in range(1, 5)},
        "self_bleu": self_bleu(rows.take(drawn)),
        "longest_repeated_span": float(spans.max()) if len(spans) else math.nan,
        "mean_repeated_span": float(spans.mean()) if len(spans) else math.nan,
        "duplicate_share": repetition.duplicate_share(rows),
        "compression_ratio": repetition.compression_ratio(rows),
    }
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _why_missing(written: Rows, human: Rows, rows: Rows) -> str:
    if not len(written.tokens):
        return f"the synthetic corpus is empty ({len(written)} rows without a token)"
    if not len(human.tokens):
        return "the human reference is empty"
    return f"too little text: {len(rows)} document(s), the longest of {rows.lengths.max(initial=0)} token(s)"


def ngram_kl(human: Rows, synthetic: Rows, n: int, smoothing: float) -> float:
    """KL(human ‖ synthetic) of the distributions of n-grams (n = 1 or 2) within documents, in nats per n-gram.

    Σ_x p(x) ln(p(x) / q(x)), with p(x) = (c_human(x) + α) / (N_human + α·|S|), q the same from the synthetic counts,
    α = ``smoothing`` (0.5: Krichevsky–Trofimov) and S the n-grams that occur in either corpus. In this direction a
    human n-gram that is no longer written costs most: the divergence is the cost of coding human text by the
    distribution of the synthetic text. 0 for equal distributions; positive for two samples of one source, the more so
    the smaller they are. NaN if either corpus has no n-gram.

    Source: Kullback and Leibler 1951, "On Information and Sufficiency", equation 2.4; the pseudo-count: Krichevsky and
    Trofimov 1981.
    """
    vocabulary = max(human.vocabulary, synthetic.vocabulary)
    keys, own = np.unique(ngram_keys(human, n, vocabulary), return_counts=True)
    other_keys, other = np.unique(ngram_keys(synthetic, n, vocabulary), return_counts=True)
    if not len(keys) or not len(other_keys):
        return math.nan
    place = np.searchsorted(other_keys, keys)
    place[place == len(other_keys)] = 0
    shared = other_keys[place] == keys
    counterpart = np.where(shared, other[place], 0)
    new = len(other_keys) - int(shared.sum())  # only in the synthetic text: each has a count of 0 in p
    support = len(keys) + new
    unseen = other.astype(np.float64)
    unseen[place[shared]] = -1.0
    p = (np.concatenate([own, np.zeros(new)]) + smoothing) / (own.sum() + smoothing * support)
    q = (np.concatenate([counterpart, unseen[unseen >= 0]]) + smoothing) / (other.sum() + smoothing * support)
    return float(np.sum(p * np.log(p / q)))


def floored_kl(synthetic: np.ndarray, human: np.ndarray) -> float:
    """KL(synthetic ‖ human) of the distributions of tokens, in nats, as ForTIFAI's notebook computes it.

    Σ_x p(x) ln(p(x) / q(x)) over the vocabulary, p the shares of the synthetic tokens and q those of the human ones, a
    share of 0 in either taken as :data:`FLOOR`. In this direction what the model writes and no human wrote costs most,
    ln(p / 1e-10) each; a human token that is no longer written costs nothing, which :func:`ngram_kl` sees. NaN if
    either is empty.

    Source: Shabgahi et al. 2025, ForTIFAI, kl-divregence.ipynb: p of a generation's whole output, q of the whole
    training split of WikiText-2.
    """
    if not len(synthetic) or not len(human):
        return math.nan
    size = int(max(synthetic.max(), human.max())) + 1  # beyond, both shares are 0 and add nothing
    p, q = (np.bincount(tokens, minlength=size) / len(tokens) for tokens in (synthetic, human))
    p, q = np.where(p == 0, FLOOR, p), np.where(q == 0, FLOOR, q)
    return float(np.sum(p * np.log(p / q)))


def tail_coverage(human: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """(10,) Share of the human corpus's types that appear in the synthetic one, by decile of frequency, rarest first.

    Each decile holds a tenth of the human types (distinct tokens). Types of equal frequency have no order: each counts
    as the share of its equals that appear, the average over random tie-breaks. NaN without human tokens.

    Source: the loss of the tails is early model collapse (Shumailov et al. 2024, "AI models collapse when trained on
    recursively generated data"); measured by type, so that each rare token has the same weight.
    """
    types, counts = np.unique(human, return_counts=True)
    if not len(types):
        return np.full(DECILES, np.nan)
    appears = np.isin(types, synthetic, assume_unique=False)
    group = np.unique(counts, return_inverse=True)[1]  # ascending frequency
    size = np.bincount(group)
    covered = np.repeat(np.bincount(group, weights=appears) / size, size)
    total = np.concatenate([[0.0], np.cumsum(covered)])
    edges = np.linspace(0.0, len(types), DECILES + 1)  # a type may lie in two deciles
    share = np.diff(np.interp(edges, np.arange(len(types) + 1), total)) / (len(types) / DECILES)
    return share.round(12)  # a sum of shares that is 1 must come out as 1


def distinct_n(rows: Rows, n: int) -> float:
    """Distinct n-grams over n-grams, within documents: 1 if none repeats, NaN if there are none.

    distinct-1 is the type–token ratio. It depends on size: compare equal sizes only.

    Source: Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", section 5.3.
    """
    keys = ngram_keys(rows, n)
    if not len(keys):
        return math.nan
    keys.sort()
    return (int(np.count_nonzero(keys[1:] != keys[:-1])) + 1) / len(keys)


def type_token_ratio(tokens: np.ndarray) -> float:
    """Distinct tokens over tokens: 1 if none repeats, NaN for none. It depends on size: compare equal sizes only.

    Source: Templin 1957, "Certain Language Skills in Children".
    """
    return len(np.unique(tokens)) / len(tokens) if len(tokens) else math.nan
