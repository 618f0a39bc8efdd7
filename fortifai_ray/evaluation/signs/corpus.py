"""The signs of a synthetic corpus that need no model."""

import math

import numpy as np
import pyarrow as pa

from fortifai_ray.evaluation.signs import distribution, repetition
from fortifai_ray.evaluation.signs.config import SignsConfig
from fortifai_ray.evaluation.signs.repetition import self_bleu
from fortifai_ray.evaluation.signs.rows import Rows, Signs, as_rows, finite
from fortifai_ray.seeds import generator

VERSION = 1  # bump when the same texts give other signs


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
