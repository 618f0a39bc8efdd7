"""Questions of the KR-test and their file: a JSON list, as ForTIFAI publishes it."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fortifai_ray.errors import UserError

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
