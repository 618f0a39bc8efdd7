"""Questions of the KR-test and their file: a JSON list, as ForTIFAI publishes it."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.report import Proportion, proportion
from fortifai_ray.evaluation.kr.scoring import ExamScores

_TEXTS = ("context", "sentence_true", "sentence_false")


@dataclass(frozen=True)
class Question:
    """Given ``context``, is ``sentence_true`` likelier than ``sentence_false``?

    ``location`` is the line of the source that the true sentence comes from (from 1; 0 where nobody said).
    """

    context: str
    sentence_true: str
    sentence_false: str
    location: int = 0


@dataclass(frozen=True)
class Skipped:
    """A question that cannot be scored: its position (from 0) and why."""

    position: int
    reason: str


@dataclass(frozen=True)
class Exam:
    """Questions in the order of their file.

    Attributes:
        questions: by position; a position that is missing here stands in ``skipped``.
        skipped: what cannot be asked, and why.
        size: positions, skipped ones included: what the source's fractions are cut from.
    """

    questions: dict[int, Question]
    skipped: tuple[Skipped, ...]
    size: int


def make_exam(questions: Iterable[Question], limit: int | None = None) -> Exam:
    """The questions with those left out, and told, that have no two different continuations."""
    listed = list(questions)[:limit]
    reasons = [_reason(question) for question in listed]
    return Exam(
        {index: question for index, question in enumerate(listed) if reasons[index] is None},
        tuple(Skipped(index, reason) for index, reason in enumerate(reasons) if reason is not None),
        len(listed),
    )


def _reason(question: Question) -> str | None:
    for name in _TEXTS:
        if not getattr(question, name).strip():
            return f"it has no {name}"
    if question.sentence_true == question.sentence_false:
        return "sentence_true and sentence_false are the same"
    return None


def load_exam(path: Path, limit: int | None = None) -> Exam:
    """The exam in a JSON file; ``limit`` takes the first questions only.

    A question without a true or a false continuation is recorded in :attr:`Exam.skipped`.

    Raises:
        UserError: the file is not there, is no JSON list of questions, or none of its questions can be asked.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a KR-test's JSON file") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); a list of questions is needed") from error
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: a JSON list of questions with {', '.join(_TEXTS)} is needed")
    exam = make_exam((_question(path, index, row) for index, row in enumerate(content)), limit)
    if not exam.questions:
        first = exam.skipped[0]
        raise UserError(f"{path}: no question can be asked (the first one: {first.reason}; keys: {', '.join(_TEXTS)})")
    return exam


def _question(path: Path, index: int, row: Any) -> Question:
    if not isinstance(row, dict):
        raise UserError(f"{path}: question {index + 1} is not a mapping with {', '.join(_TEXTS)}")
    texts = {name: row.get(name) or "" for name in _TEXTS}
    location = row.get("location", 0)
    for name, value in texts.items():
        if not isinstance(value, str):
            raise UserError(f"{path}: question {index + 1}: {name} is text, not {value!r}")
    if not isinstance(location, int):
        raise UserError(f"{path}: question {index + 1}: location is a line number, not {location!r}")
    return Question(**texts, location=location)


def save_questions(questions: Iterable[Question], path: Path) -> None:
    """Write questions in the format that :func:`load_exam` and ForTIFAI's own code read."""
    content = [asdict(question) for question in questions]
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# What an exam's scores add up to: accuracies in total, by fraction of the source, and up to a generation.

SCORINGS = ("per_token", "fortifai", "per_byte")


@dataclass(frozen=True)
class Answers:
    """Which questions a model answered rightly under one scoring.

    A question is right where the true continuation scores higher than the false one: a tie and a score that is no
    number are wrong.

    Attributes:
        position: (n,) positions in the exam.
        right: (n,) bool.
        size: positions in the exam, questions without a score included.
    """

    position: np.ndarray
    right: np.ndarray
    size: int

    @property
    def total(self) -> Proportion:
        """Over all scored questions."""
        return proportion(int(self.right.sum()), len(self.right))

    def between(self, start: int, end: int) -> Proportion:
        """Over the scored questions at positions ``start`` to ``end`` − 1."""
        inside = (self.position >= start) & (self.position < end)
        return proportion(int(self.right[inside].sum()), int(inside.sum()))

    def fractions(self, count: int) -> list[Proportion]:
        """ForTIFAI's fractions: the exam's order cut into ``count`` equal parts; a remainder is in none of them."""
        part = self.size // count
        return [self.between(index * part, (index + 1) * part) for index in range(count)]

    def up_to(self, generation: int, count: int) -> Proportion:
        """Over the fractions that a chain has seen up to ``generation`` when each brings one: 0 to ``generation``."""
        return self.between(0, min(generation + 1, count) * (self.size // count))

    def by_position(self) -> dict[int, bool]:
        """For :func:`~fortifai_ray.evaluation.benchmarks.report.mcnemar`."""
        return dict(zip(self.position.tolist(), self.right.tolist(), strict=True))


def answers(scores: ExamScores, scoring: str) -> Answers:
    """The answers under one of :data:`SCORINGS`."""
    assert scoring in SCORINGS, f"{scoring} is none of {SCORINGS}"
    values = getattr(scores, scoring)
    return Answers(scores.position, values[:, 0] > values[:, 1], scores.size)


# The text that a model was trained on, where its corpus was cut into blocks and only some were drawn.


def held_in_texts(
    tokens: np.ndarray,
    ends: np.ndarray,
    blocks: np.ndarray,
    block_size: int,
    decode: Callable[[Sequence[Sequence[int]]], list[str]],
) -> list[str]:
    """The chosen blocks as text: a string for each unbroken run of them within a document, in the corpus's order.

    Args:
        tokens: (n,) training documents one after the other, each ended by a token of its own.
        ends: (documents,) where each document ends in ``tokens`` (exclusive, that token included).
        blocks: numbers of the chosen blocks; block *b* is ``tokens[b * block_size : (b + 1) * block_size]``.
        block_size: tokens per block.
        decode: token rows to texts.
    """
    chosen = np.unique(np.asarray(blocks, dtype=np.int64))
    breaks = np.flatnonzero(np.diff(chosen) > 1) + 1
    runs = [(int(run[0]) * block_size, (int(run[-1]) + 1) * block_size) for run in np.split(chosen, breaks) if len(run)]
    starts = np.concatenate([[0], ends[:-1]])
    rows = []
    for start, end in runs:
        for document in range(int(np.searchsorted(ends, start, "right")), len(ends)):
            if starts[document] >= end:
                break
            rows.append(tokens[max(start, int(starts[document])) : min(end, int(ends[document]) - 1)].tolist())
    return [text for text in decode([row for row in rows if row]) if text]
