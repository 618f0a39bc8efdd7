"""The signs of a synthetic corpus that need no model."""

import math
from functools import partial

import numpy as np
import pyarrow as pa

from fortifai_ray.evaluation.signs import distribution, repetition
from fortifai_ray.evaluation.signs.config import SignsConfig
from fortifai_ray.evaluation.signs.repetition import self_bleu
from fortifai_ray.evaluation.signs.rows import Rows, Signs, as_rows, finite
from fortifai_ray.metrics import CORPUS, Metric
from fortifai_ray.seeds import generator

VERSION = 1  # bump when the same texts give other signs

_up = partial(Metric, group=CORPUS, direction="above")
_down = partial(Metric, group=CORPUS, direction="below")
_SHUMAILOV = "Shumailov et al. 2024, AI models collapse when trained on recursively generated data"
_KL = "Kullback and Leibler 1951, equation 2.4; pseudo-count: Krichevsky and Trofimov 1981"
_SPANS = "Gusfield 1997, section 7.4; Holtzman et al. 2020"
_DISTINCT_RANKS = {3: 1, 2: 2}  # among the signs of repetition

METRICS = (
    _up("unigram_kl", "nats per n-gram", "KL(human ‖ synthetic) of the distributions of tokens", _KL),
    _up("bigram_kl", "nats per n-gram", "KL(human ‖ synthetic) of the distributions of token pairs", _KL),
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
        for decile in range(1, distribution.DECILES + 1)
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
    synthetic: pa.Array | pa.ChunkedArray | np.ndarray | Rows,
    human: pa.Array | pa.ChunkedArray | np.ndarray | Rows,
    settings: SignsConfig,
    *,
    seed: int = 0,
) -> Signs:
    """What token ids alone show of collapse; each sign is defined by the function of its name in this package.

    Both corpora are cut to the same number of tokens first: the first ``settings.tokens``, or as many as the smaller
    one holds. The last row may be cut short by that. Signs that depend on size are then comparable between generations
    of a chain, and between chains whose corpora hold as much.

    Args:
        synthetic: generated ids by row (lists), in the order of rows.
        human: the reference: lists of ids, blocks (blocks, block_size), or a flat stream.
        settings: how much, and the pseudo-count.
        seed: the recipe's; chooses the documents of self-BLEU, where there are more than are asked for.

    Returns:
        Values by name, None with a reason where a corpus is too small; counts ``corpus_rows``, ``corpus_rows_empty``
        (hold no token, and are no documents), ``corpus_rows_beyond`` and ``corpus_tokens_beyond`` (left out by the
        cut), ``corpus_documents`` and ``corpus_tokens`` (what the signs were taken on).

    Raises:
        ValueError: these are no token ids.
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
    return finite(values, _why_missing(written, reference, rows), counts)


def _values(rows: Rows, human: Rows, settings: SignsConfig, seed: int) -> dict[str, float | None]:
    coverage = distribution.tail_coverage(human.tokens, rows.tokens)
    spans = repetition.longest_repeated_spans(rows)
    values = {
        "unigram_kl": distribution.ngram_kl(human, rows, 1, settings.smoothing),
        "bigram_kl": distribution.ngram_kl(human, rows, 2, settings.smoothing),
        "tail_coverage": float(coverage[: distribution.DECILES // 2].mean()),
        **{f"tail_coverage_decile_{decile}": float(share) for decile, share in enumerate(coverage, start=1)},
        "type_token_ratio": distribution.type_token_ratio(rows.tokens),
        **{f"distinct_{n}": distribution.distinct_n(rows, n) for n in range(1, 5)},
        "self_bleu": self_bleu(_some(rows, settings.self_bleu_documents, seed)),
        "longest_repeated_span": float(spans.max()) if len(spans) else math.nan,
        "mean_repeated_span": float(spans.mean()) if len(spans) else math.nan,
        "duplicate_share": repetition.duplicate_share(rows),
        "compression_ratio": repetition.compression_ratio(rows),
    }
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _some(rows: Rows, count: int, seed: int) -> Rows:
    """``count`` rows by the seed, in their order; all of them where there are no more."""
    if len(rows) <= count:
        return rows
    return rows.take(np.sort(generator(seed, "self_bleu").choice(len(rows), count, replace=False)))


def _why_missing(written: Rows, human: Rows, rows: Rows) -> str:
    if not len(written.tokens):
        return f"the synthetic corpus is empty ({len(written)} rows without a token)"
    if not len(human.tokens):
        return "the human reference is empty"
    return f"too little text: {len(rows)} document(s), the longest of {rows.lengths.max(initial=0)} token(s)"
