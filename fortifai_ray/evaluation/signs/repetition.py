"""Signs of repetition: within documents, between documents, and in both as a compressor measures it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fortifai_ray.evaluation.signs.rows import Rows, ngram_keys, ngram_starts

_CHUNK = 2**19  # tokens whose spans are compared at once: what fits a core's cache sorts several times as fast
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2**64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))


def longest_repeated_spans(rows: Rows) -> np.ndarray:
    """(rows,) Length in tokens of the longest span that occurs in each document at least twice; 0 for none.

    The two occurrences may overlap: a document of one token repeated m times gives m − 1.

    The length is bisected for many documents at once. Spans are compared by a 64-bit polynomial hash, a few of whose
    bits hold the document's number. In a document of m tokens two different spans collide with a probability of
    m² / 2^(65 − bits) per length tried: under 10⁻⁴ for ten million tokens in all, however they are divided.

    Source: the longest repeated substring (Gusfield 1997, "Algorithms on Strings, Trees, and Sequences", section 7.4);
    as a sign of degenerate text, Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    longest = np.zeros(len(rows), dtype=np.int64)
    first = 0
    while first < len(rows):
        last = int(np.searchsorted(rows.offsets, rows.offsets[first] + _CHUNK, side="right")) - 1
        last = min(max(last, first + 1), len(rows))
        longest[first:last] = _bisect(rows.between(first, last))
        first = last
    return longest


def _bisect(rows: Rows) -> np.ndarray:
    spans = _Spans(rows)
    repeats, failed = np.zeros(len(rows), dtype=np.int64), rows.lengths.copy()
    while True:
        active = np.flatnonzero(failed - repeats > 1)
        if not len(active):
            return repeats
        low, high = repeats[active], failed[active]
        # Most documents repeat only short spans: the length doubles until one fails.
        length = np.where(high == rows.lengths[active], np.minimum(2 * low + 1, high - 1), (low + high) // 2)
        repeated = spans.repeated(active, length)
        repeats[active] = np.where(repeated, length, low)
        failed[active] = np.where(repeated, high, length)


class _Spans:
    """Hashes of the spans of some rows: h(i, L) = Σ_{j<L} v(t_{i+j})·B^j modulo 2^64, v a fixed mixing function."""

    def __init__(self, rows: Rows) -> None:
        self._offsets, self._lengths = rows.offsets, rows.lengths
        size = len(rows.tokens)
        powers = np.cumprod(np.full(size, _BASE))
        self._sums = np.concatenate([[np.uint64(0)], np.cumsum(_mix(rows.tokens.astype(np.uint64)) * powers)])
        self._inverse = np.cumprod(np.full(size, _INVERSE))

    def repeated(self, items: np.ndarray, length: np.ndarray) -> np.ndarray:
        """(items,) Whether a span of ``length`` (items,) tokens occurs at least twice in each of these rows."""
        count = self._lengths[items] - length + 1
        ends = np.cumsum(count)
        starts = np.arange(ends[-1]) + np.repeat(self._offsets[items] - (ends - count), count)
        hashes = self._sums[starts + np.repeat(length, count)]
        hashes -= self._sums[starts]
        hashes *= self._inverse[starts]
        bits = np.uint64(max(1, (len(items) - 1).bit_length()))
        hashes = _mix(hashes) >> bits
        hashes |= np.repeat(np.arange(len(items), dtype=np.uint64) << (np.uint64(64) - bits), count)
        hashes.sort()
        twice = hashes[1:][hashes[1:] == hashes[:-1]] >> (np.uint64(64) - bits)
        return np.bincount(twice.astype(np.int64), minlength=len(items)) > 0


def _mix(value: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers in which each bit affects all others (splitmix64, Steele et al. 2014)."""
    value = value + _BASE
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def duplicate_share(rows: Rows) -> float:
    """Share of the documents that are exact copies of an earlier one; NaN for no documents.

    Source: exact deduplication, as in Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better".
    """
    if not len(rows):
        return float("nan")
    ids = rows.tokens.astype("<i4", copy=False)
    buffers = [None, pa.py_buffer(rows.offsets * ids.itemsize), pa.py_buffer(np.ascontiguousarray(ids))]
    documents = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(rows), buffers)
    return 1.0 - pc.count_distinct(documents).as_py() / len(rows)


def compression_ratio(rows: Rows) -> float:
    """Bytes of the token ids (four each, document after document) over their bytes under Zstandard, level 3.

    The ids are compressed, not the text, so the figure is not comparable with ratios of text. A window of 2 MiB catches
    repetition between documents, which gzip's 32 KiB do not. Higher is more repetitive. It depends on size, and
    slightly on the order of rows. NaN for no tokens.

    Source: Shaib et al. 2024, "Standardizing the Measurement of Text Diversity", section 3 (there: gzip of the text).
    """
    raw = rows.tokens.astype("<u4").tobytes()
    return len(raw) / len(pa.Codec("zstd", compression_level=3).compress(raw, asbytes=True)) if raw else float("nan")


# Self-BLEU: how similar each document is to the others.

ORDER = 4
_EPSILON = 0.1


def self_bleu(rows: Rows) -> float:
    """Mean BLEU-4 of each document with all others as its references: 1 if all are equal, NaN for fewer than two.

    BLEU = BP · exp(¼ Σ_n ln p_n), n = 1 … 4, where p_n is the share of the document's n-grams that also occur in a
    reference, each counted at most as often as in the reference with the most occurrences; BP = exp(min(0, 1 − r/c)),
    where c is the document's length and r the nearest reference length, the shorter of two. A p_n of 0 counts as 0.1
    over the number of n-grams (Chen and Cherry's method 1), but a document that shares no token with any other scores
    0.

    Source: Zhu et al. 2018, "Texygen: A Benchmarking Platform for Text Generation Models", section 3 (Self-BLEU);
    Papineni et al. 2002, "BLEU", equations 1 to 3; Chen and Cherry 2014. Equal to NLTK's ``sentence_bleu`` with
    ``SmoothingFunction().method1``; the maximum over references is computed once for all documents, not pair by pair.
    """
    if len(rows) < 2:
        return float("nan")
    log_precision, shares_token = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.bool_)
    for n in range(1, ORDER + 1):
        matched, total = _matches(rows, n)
        shares_token |= matched > 0  # a shared longer n-gram implies shared tokens
        log_precision += np.log(np.where(matched > 0, matched, _EPSILON) / np.maximum(total, 1)) / ORDER
    penalty = np.minimum(0.0, 1.0 - _nearest_lengths(rows.lengths) / np.maximum(rows.lengths, 1))
    return float(np.where(shares_token, np.exp(log_precision + penalty), 0.0).mean())


def _matches(rows: Rows, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) Clipped matches of each row's n-grams, and (rows,) how many n-grams it has."""
    starts = ngram_starts(rows, n)
    row = np.repeat(np.arange(len(rows)), rows.lengths)[: len(starts)][starts]
    gram = np.unique(ngram_keys(rows, n), return_inverse=True)[1].astype(np.int64)
    pairs, counts = np.unique(gram * len(rows) + row, return_counts=True)
    gram, of_row = pairs // len(rows), pairs % len(rows)
    ranking = np.lexsort((-counts, gram))  # for each n-gram, the row with the most occurrences comes first
    gram, of_row, counts = gram[ranking], of_row[ranking], counts[ranking]
    first = np.concatenate([[True], gram[1:] != gram[:-1]]) if len(gram) else np.zeros(0, dtype=np.bool_)
    leader = np.flatnonzero(first)
    most = counts[leader][np.cumsum(first) - 1]
    runner_up = np.zeros_like(counts)  # for the leader, the most in any other row
    followed = leader[np.append(~first, False)[leader + 1]]
    runner_up[followed] = counts[followed + 1]
    clipped = np.minimum(counts, np.where(first, runner_up, most))
    return np.bincount(of_row, weights=clipped, minlength=len(rows)), np.bincount(row, minlength=len(rows))


def _nearest_lengths(lengths: np.ndarray) -> np.ndarray:
    """(rows,) The length nearest to each row's among the other rows; of two equally near, the shorter."""
    order = np.argsort(lengths, kind="stable")
    ranked = lengths[order].astype(np.float64)
    below = np.concatenate([[-np.inf], ranked[:-1]])
    above = np.concatenate([ranked[1:], [np.inf]])
    nearest = np.empty(len(lengths))
    nearest[order] = np.where(ranked - below <= above - ranked, below, above)
    return nearest
