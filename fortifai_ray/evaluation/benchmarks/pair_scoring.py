"""Pairs of texts that compete: a causal LM's log-probabilities of both, batched by length, and ForTIFAI's scores.

ForTIFAI's code (``evaluate_utils.py``) compares the mean log-probabilities of two texts over the length of the shorter
one. It pads the shorter one with the end-of-text token, without a mask: on the right where it evaluates, where no token
sees it; on the left while it trains.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fortifai_ray.evaluation.signs.scoring import batches

BLIMP_VERSION = 1  # bump when the same model and sentences give other scores
TOKENS_PER_BATCH = 2048  # on a CPU: what fits its cache
TOKENS_PER_BATCH_GPU = 16384
LOGITS_PER_BATCH = 1 << 27  # half a GiB of float32: a large vocabulary leaves fewer tokens per batch


@dataclass(frozen=True)
class Row:
    """A text of a pair as tokens, and which of them are scored.

    Attributes:
        ids: its tokens, of context and continuation.
        start: where the continuation's own tokens begin; they run to the end.
        fortifai: the positions over which ForTIFAI sums.
        divisor: the number it divides the sum by.
    """

    ids: list[int]
    start: int
    fortifai: list[int]
    divisor: int

    @property
    def first(self) -> int:
        """Position of the first token whose log-probability is needed."""
        return min([self.start, *self.fortifai])

    def sums(self, values: np.ndarray) -> tuple[float, int, float, int]:
        """Sum and token count of its own span, sum and divisor of ForTIFAI's; ``values`` belong to the last tokens."""
        left_out = len(self.ids) - len(values)
        own = values[max(0, self.start - left_out) :]
        fortifai = [values[place - left_out] for place in self.fortifai if place >= left_out]
        lost = len(self.fortifai) - len(fortifai)
        return float(own.sum()), len(own), float(sum(fortifai)), self.divisor - lost


@dataclass(frozen=True)
class Sums:
    """Sums over the two texts of each pair.

    Attributes:
        total, tokens: (n, 2) summed log-probability and number of a text's own tokens.
        fortifai, divisor: (n, 2) the sum and what it is divided by, as ForTIFAI's code has them.
        left: (n, 2) the quotient of the two where the shorter text is padded on the left.
    """

    total: np.ndarray
    tokens: np.ndarray
    fortifai: np.ndarray
    divisor: np.ndarray
    left: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(n, 2) The quotient where it is padded on the right, which changes nothing."""
        return self.fortifai / np.where(self.divisor > 0, self.divisor, np.nan)


def tokenise(tokenizer: Any, texts: list[str], *, special: bool) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]


def encode_pairs(
    tokenizer: Any, texts: list[str], starts: Sequence[int], skipped: Sequence[int]
) -> tuple[list[Row], dict[int, Row]]:
    """Two rows per pair of texts, and by their number those that padding on the left changes: the shorter ones.

    Args:
        tokenizer: its end-of-text token pads; without one nothing of a row to be padded is scored.
        texts: the pairs' texts, one after the other.
        starts: where the tokens of each pair's continuations begin.
        skipped: the tokens that ForTIFAI's score leaves out at the beginning of each pair's texts.
    """
    special, pad = set(tokenizer.all_special_ids), tokenizer.eos_token_id
    lengths = [len(ids) for ids in tokenise(tokenizer, texts, special=False)]
    encoded = tokenise(tokenizer, texts, special=True)

    def row(ids: list[int], pair: int, start: int) -> Row:
        first, end = skipped[pair], min(lengths[2 * pair : 2 * pair + 2])
        counted = [place for place in range(1, len(ids)) if ids[place] not in special]
        return Row(ids, start, counted[first:end], end - first)

    rows = [row(ids, index // 2, starts[index // 2]) for index, ids in enumerate(encoded)]
    padded = {}
    for index, ids in enumerate(encoded):
        missing = len(encoded[index ^ 1]) - len(ids)  # of its pair
        if missing > 0 and pad is not None:
            padded[index] = row([pad] * missing + ids, index // 2, starts[index // 2] + missing)
        elif missing > 0:
            padded[index] = Row(ids, starts[index // 2], [], 0)
    return rows, padded


def score_pairs(network: Any, rows: Sequence[Row], padded: Mapping[int, Row], max_length: int) -> Sums:
    """Score the rows of :func:`encode_pairs`; ``max_length`` as of :func:`log_probabilities`."""
    both = [*rows, *padded.values()]
    scored = log_probabilities(network, [row.ids for row in both], [row.first for row in both], max_length)
    sums = np.array([row.sums(values) for row, values in zip(both, scored, strict=True)]).reshape(-1, 4)
    quotients = sums[:, 2] / np.where(sums[:, 3] > 0, sums[:, 3], np.nan)
    left = quotients[: len(rows)].copy()
    left[list(padded)] = quotients[len(rows) :]
    total, tokens, fortifai, divisor = np.moveaxis(sums[: len(rows)].reshape(-1, 2, 4), 2, 0)
    return Sums(total, tokens, fortifai, divisor, left.reshape(-1, 2))


def score_sentences(network: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], max_length: int) -> Sums:
    """Score pairs of a grammatical and an ungrammatical sentence; ``right`` and ``left`` are ForTIFAI's scores.

    Its code (``question_answerer_blimp`` in ``evaluate_utils.py``) treats a sentence as it does a continuation of
    nothing: the text without its first token and without special tokens, of which the first *m* are averaged, *m* being
    the tokens of the shorter sentence. So a longer sentence's end does not count. If the tokenizer puts no
    beginning-of-text token first, a sentence's first token does not count either, and the shorter one's mean is over
    one token more than it has. BLiMP is scored only while it trains, with padding on the left (``left``).

    Args:
        network: a causal LM of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        pairs: the sentences, the grammatical one first.
        max_length: as of :func:`log_probabilities`.
    """
    texts = [sentence for pair in pairs for sentence in pair]
    return score_pairs(network, *encode_pairs(tokenizer, texts, [1] * len(pairs), [0] * len(pairs)), max_length)


def log_probabilities(
    network: Any, rows: Sequence[Sequence[int]], first: Sequence[int], max_length: int
) -> list[np.ndarray]:
    """Log-probabilities of each row's tokens from ``first`` (at least 1) to the end, given all tokens before them.

    Rows of similar length share a batch, padded on the right: no token sees what follows it, so no mask is needed.
    Logits are computed from the earliest wanted token of a batch on.

    Args:
        network: a causal LM of transformers.
        rows: token ids.
        first: the first wanted token of each row.
        max_length: of a longer row only the last ``max_length + 1`` tokens are used.

    Returns:
        float64 arrays; the last element belongs to the row's last token. Of a cut row, the tokens that were cut off and
        the first that is left have no value.
    """
    import torch

    tokens = TOKENS_PER_BATCH if network.device.type == "cpu" else TOKENS_PER_BATCH_GPU
    budget = max(1, min(tokens, LOGITS_PER_BATCH // int(network.config.get_text_config().vocab_size)))
    kept = [row[-max_length - 1 :] for row in rows]
    wanted = [max(1, start - len(row) + len(rest)) for start, row, rest in zip(first, rows, kept, strict=True)]
    order = sorted(range(len(rows)), key=lambda index: (len(kept[index]), first[index]), reverse=True)
    lengths = np.array([len(row) for row in kept])
    results: dict[int, np.ndarray] = {}
    with torch.inference_mode():
        for batch in batches(np.array(order), lengths, budget):
            values = _score_batch(network, [kept[index] for index in batch], [wanted[index] for index in batch])
            results.update(zip(batch, values, strict=True))
    return [results[index] for index in range(len(rows))]


def _score_batch(network: Any, rows: Sequence[Sequence[int]], first: Sequence[int]) -> list[np.ndarray]:
    import torch
    import torch.nn.functional as F

    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    ids = ids.to(network.device)
    start = min(min(first), width - 1)
    logits = _logits(network, ids[:, :-1], width - start)
    losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, start:].flatten(), reduction="none")
    values = -losses.view(len(rows), -1).double().cpu().numpy()
    return [values[row, first[row] - start : len(rows[row]) - start] for row in range(len(rows))]


def _logits(network: Any, ids: Any, last: int) -> Any:
    """The logits of the ``last`` positions; the earlier ones are not computed if the model can leave them out."""
    if "logits_to_keep" in inspect.signature(network.forward).parameters:
        return network(input_ids=ids, use_cache=False, logits_to_keep=last).logits
    return network(input_ids=ids, use_cache=False).logits[:, -last:]
