"""Scores of a causal LM for the two continuations of each question, and the accuracies they give."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fortifai_ray.evaluation.benchmarks.config import SYNTHETIC
from fortifai_ray.evaluation.benchmarks.kr_questions import Exam
from fortifai_ray.evaluation.benchmarks.pair_scoring import Row, encode_pairs, score_pairs, tokenise
from fortifai_ray.evaluation.benchmarks.report import Measure, accuracy, credits, tied_for_best

VERSION = 3  # bump when the same model and questions give other scores


@dataclass(frozen=True)
class ExamScores:
    """Log-probabilities of the true (column 0) and the false (column 1) continuation of each scored question.

    Attributes:
        position: (n,) positions in the exam.
        fortifai: (n, 2) mean log-probability per token over the shorter text's span, as ForTIFAI scores it.
        fortifai_left: (n, 2) the same with the padding on the left, as while ForTIFAI trains; NaN where there is no
            end-of-text token to pad with.
        total: (n, 2) summed log-probability of the whole continuation, in nats.
        tokens: (n, 2) scored tokens of the continuation.
        bytes: (n, 2) UTF-8 bytes of the continuation.
        truncated: (n,) whether either text was longer than the model's context and was cut from the left.
        skipped: why other questions have no score, by position.
        size: positions in the exam.
    """

    position: np.ndarray
    fortifai: np.ndarray
    fortifai_left: np.ndarray
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
        """The credits under ``per_token``, ``per_byte``, ``fortifai`` or ``fortifai_left``, by position.

        1 where the true continuation scores higher than the false one, ½ for a tie, 0 for what is no number; a tie is
        wrong in ForTIFAI's code, and so under its scorings.
        """
        scores = getattr(self, scoring)
        published = scoring.startswith("fortifai")
        given = (scores[:, 0] > scores[:, 1]).astype(float) if published else credits(scores)
        known = np.ones(len(given), dtype=np.bool_)
        if scoring == "fortifai_left":  # without what could not be padded
            known = ~np.isnan(scores).any(1) | np.isnan(self.fortifai).any(1)
        return dict(zip(self.position[known].tolist(), given[known].tolist(), strict=True))

    @property
    def ties(self) -> np.ndarray:
        """(n,) Whether both continuations score the same per token."""
        return np.asarray(tied_for_best(self.per_token).all(axis=1))


def score_exam(network: Any, tokenizer: Any, exam: Exam, max_length: int) -> ExamScores:
    """Score every question of an exam.

    The texts are ``context + " " + continuation``. With a context of *k* tokens, a continuation's tokens are those
    after the text's first *k* (lm-evaluation-harness's rule). ForTIFAI's score is what its published code computes
    (``question_answerer`` in its ``evaluate_utils.py``; the paper calls it the KR-test): take the text without its
    first token and without special tokens, sum the log-probabilities of tokens *n* to *m* − 1 (counted from 0) and
    divide by *m* − *n*, where *n* is the context's length in tokens and *m* that of the shorter of the two texts. If
    the tokenizer puts a beginning-of-text token first, that is the span of the shorter continuation; if not, it starts
    a token late, and the shorter text's span ends where the text does. Both behaviours are kept, for parity.

    Its ``evaluate.py`` pads the shorter of the two texts on the right, where no token sees it. While it trains
    (``train.py``), it pads on the left with the end-of-text token, without a mask: the shorter text is then read after
    that many of them, and its first token is counted, since it has one before it. ``fortifai_left`` is that score.

    Args:
        network: a causal LM of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        max_length: tokens that the model predicts at most in one text. A longer text is cut from the left and counted;
            its spans then cover what is left.
    """
    rows, padded = _encode(tokenizer, exam)
    sums = score_pairs(network, rows, padded, max_length)
    answered = ((sums.tokens > 0) & (sums.divisor > 0)).all(1)
    positions = np.array(list(exam.questions), dtype=np.int64)
    sizes = np.array([[len(text.encode()) for text in question.sentences] for question in exam.questions.values()])
    cut = np.array([len(row.ids) for row in rows]).reshape(-1, 2).max(axis=1) > max_length + 1
    lost = dict.fromkeys(positions[~answered].tolist(), "no token of a continuation can be scored")
    return ExamScores(
        positions[answered],
        sums.right[answered],
        sums.left[answered],
        sums.total[answered],
        sums.tokens[answered].astype(np.int64),
        sizes[answered],
        cut[answered],
        exam.skipped | lost,
        exam.size,
    )


def _encode(tokenizer: Any, exam: Exam) -> tuple[list[Row], dict[int, Row]]:
    """As :func:`encode_pairs`, the true continuation first."""
    questions = exam.questions.values()
    contexts = [question.context for question in questions]
    texts = [f"{question.context} {sentence}" for question in questions for sentence in question.sentences]
    starts = [max(1, len(ids)) for ids in tokenise(tokenizer, contexts, special=True)]
    skipped = [len(ids) for ids in tokenise(tokenizer, contexts, special=False)]
    return encode_pairs(tokenizer, texts, starts, skipped)


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
