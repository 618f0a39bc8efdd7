"""Scores of a causal LM for the two continuations of each question, batched by length, and the accuracies they give."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fortifai_ray.evaluation.benchmarks.config import SYNTHETIC
from fortifai_ray.evaluation.benchmarks.kr_questions import Exam
from fortifai_ray.evaluation.benchmarks.report import Measure, accuracy, credits, tied_for_best
from fortifai_ray.evaluation.signs.scoring import batches

VERSION = 2  # bump when the same model and questions give other scores
TOKENS_PER_BATCH = 2048  # on a CPU: what fits its cache
TOKENS_PER_BATCH_GPU = 16384
LOGITS_PER_BATCH = 1 << 27  # half a GiB of float32: a large vocabulary leaves fewer tokens per batch


@dataclass(frozen=True)
class ExamScores:
    """Log-probabilities of the true (column 0) and the false (column 1) continuation of each scored question.

    Attributes:
        position: (n,) positions in the exam.
        fortifai: (n, 2) mean log-probability per token over the shorter text's span, as ForTIFAI scores it.
        total: (n, 2) summed log-probability of the whole continuation, in nats.
        tokens: (n, 2) scored tokens of the continuation.
        bytes: (n, 2) UTF-8 bytes of the continuation.
        truncated: (n,) whether either text was longer than the model's context and was cut from the left.
        skipped: why other questions have no score, by position.
        size: positions in the exam.
    """

    position: np.ndarray
    fortifai: np.ndarray
    total: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    truncated: np.ndarray
    skipped: dict[int, str]
    size: int

    @property
    def per_token(self) -> np.ndarray:
        """(n, 2) mean log-probability per token, each continuation over its own length."""
        return self.total / self.tokens

    @property
    def per_byte(self) -> np.ndarray:
        """(n, 2) mean log-probability per byte, independent of the tokenizer."""
        return self.total / self.bytes

    def answers(self, scoring: str) -> dict[int, float]:
        """The credits under ``per_token``, ``fortifai`` or ``per_byte``, by position.

        1 where the true continuation scores higher than the false one, ½ for a tie, 0 for what is no number; a tie is
        wrong in ForTIFAI's code, and so under ``fortifai``.
        """
        scores = getattr(self, scoring)
        given = (scores[:, 0] > scores[:, 1]).astype(float) if scoring == "fortifai" else credits(scores)
        return dict(zip(self.position.tolist(), given.tolist(), strict=True))

    @property
    def ties(self) -> np.ndarray:
        """(n,) Whether both continuations score the same per token."""
        return np.asarray(tied_for_best(self.per_token).all(axis=1))


@dataclass(frozen=True)
class _Row:
    """Context and one continuation as tokens, and which of them are scored.

    Attributes:
        ids: tokens of context and continuation.
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


def score_exam(network: Any, tokenizer: Any, exam: Exam, max_length: int) -> ExamScores:
    """Score every question of an exam.

    The texts are ``context + " " + continuation``. With a context of *k* tokens, a continuation's tokens are those
    after the text's first *k* (lm-evaluation-harness's rule). ForTIFAI's score is what its published code computes
    (``question_answerer`` in its ``evaluate_utils.py``; the paper calls it the KR-test): take the text without its
    first token and without special tokens, sum the log-probabilities of tokens *n* to *m* − 1 (counted from 0) and
    divide by *m* − *n*, where *n* is the context's length in tokens and *m* that of the shorter of the two texts. If
    the tokenizer puts a beginning-of-text token first, that is the span of the shorter continuation; if not, it starts
    a token late, and the shorter text's span ends where the text does. Both behaviours are kept, for parity.

    Args:
        network: a causal LM of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        max_length: tokens that the model predicts at most in one text. A longer text is cut from the left and counted;
            its spans then cover what is left.
    """
    rows = _encode(tokenizer, exam)
    scored = log_probabilities(network, [row.ids for row in rows], [row.first for row in rows], max_length)
    sums = np.array([row.sums(values) for row, values in zip(rows, scored, strict=True)]).reshape(-1, 2, 4)
    total, tokens, fortifai, divisor = np.moveaxis(sums, 2, 0)
    answered = ((tokens > 0) & (divisor > 0)).all(1)
    positions = np.array(list(exam.questions), dtype=np.int64)
    sizes = np.array([[len(text.encode()) for text in question.sentences] for question in exam.questions.values()])
    cut = np.array([len(row.ids) for row in rows]).reshape(-1, 2).max(axis=1) > max_length + 1
    lost = dict.fromkeys(positions[~answered].tolist(), "no token of a continuation can be scored")
    return ExamScores(
        positions[answered],
        fortifai[answered] / divisor[answered],
        total[answered],
        tokens[answered].astype(np.int64),
        sizes[answered],
        cut[answered],
        exam.skipped | lost,
        exam.size,
    )


def _encode(tokenizer: Any, exam: Exam) -> list[_Row]:
    """Two rows per question, the true continuation's first."""

    def tokenise(texts: list[str], *, special: bool) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]

    questions = exam.questions.values()
    contexts = [question.context for question in questions]
    texts = [f"{question.context} {sentence}" for question in questions for sentence in question.sentences]
    starts = [max(1, len(ids)) for ids in tokenise(contexts, special=True)]
    skipped = [len(ids) for ids in tokenise(contexts, special=False)]  # by ForTIFAI
    lengths = [len(ids) for ids in tokenise(texts, special=False)]
    special_ids = set(tokenizer.all_special_ids)
    rows = []
    for index, ids in enumerate(tokenise(texts, special=True)):
        question = index // 2
        start, end = skipped[question], min(lengths[2 * question : 2 * question + 2])
        counted = [place for place in range(1, len(ids)) if ids[place] not in special_ids]
        rows.append(_Row(ids, starts[question], counted[start:end], end - start))
    return rows


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


def fractions(metric: str, answers: Mapping[int, float], parts: Sequence[Collection[int]]) -> list[Measure]:
    """The accuracy in each fraction of the exam (:meth:`Exam.parts`)."""
    return [_at(f"{metric}_fraction_{index}", answers, at, detail=True) for index, at in enumerate(parts)]


def up_to(generation: int, metric: str, answers: Mapping[int, float], parts: Sequence[Collection[int]]) -> Measure:
    """Over the fractions seen up to ``generation`` by a chain in which each generation adds one."""
    return _at(f"{metric}_seen", answers, frozenset[int]().union(*parts[: generation + 1]))


def of_synthetic(metric: str, answers: Mapping[int, float], parts: Sequence[Collection[int]]) -> Measure:
    """In the fraction that has become wholly synthetic: generation 0's, for which only rewritings stand later."""
    return _at(f"{metric}_{SYNTHETIC}", answers, parts[0])


def _at(metric: str, answers: Mapping[int, float], positions: Collection[int], *, detail: bool = False) -> Measure:
    inside = [credit for at, credit in answers.items() if at in positions]
    return accuracy(metric, inside, detail=detail)
