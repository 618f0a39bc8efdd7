"""The KR-test by fractions of the human text: questions of the text that generation *k* was the first to see.

Questions made from the text are made fraction by fraction. Those of a file are placed by their words, since the
published ones paraphrase their source: a question belongs to the fraction with the passage that holds the largest share
of its words, rare words counting more (inverse document frequency, Spärck Jones 1972). What stands in two fractions
belongs to none: the later one teaches again what only synthetic data should.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.config import KrTest
from fortifai_ray.evaluation.benchmarks.kr_questions import Exam, Question, load_exam, make_exam, make_questions

VERSION = 1  # bump when the same questions and texts give other fractions
PASSAGE = 160  # words; each begins in the middle of the last one
# Of a question's words, weighted, what its passage must hold. At 0.4, of 300 questions on WikiText-2 that kept 56% of
# their words 77% are placed, all rightly, and of 4,975 questions on other articles 8%; at 0.5, 41% and 3%.
SHARE = 0.4
CLEAR = 0.98  # of the best passage's share, what another fraction's best must stay below
COMMON = 0.25  # a word in more than this share of the passages says nothing of its place

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Fractions:
    """The human text by the generation that is the first to see it.

    Attributes:
        texts: for each generation, the runs of text of its fraction.
        replaced: whether generation 0's fraction is never trained on again, so that from generation 1 on only
            synthetic data stand for it.
    """

    texts: Sequence[Sequence[str]]
    replaced: bool


def divided_exam(entry: KrTest, given: Fractions, seed: int) -> Exam:
    """The exam of an entry with ``fractions``, each question in its own.

    Raises:
        UserError: the text gives no questions, or no question lies in one of the fractions.
    """
    texts = given.texts[: entry.fractions]
    if entry.path is None:
        each = max(2, entry.pairs // entry.fractions)
        made = [make_questions(part, each, seed) for part in texts]
        labels = [number for number, questions in enumerate(made) for _ in questions]
        exam = make_exam([question for questions in made for question in questions], entry.limit)
        whole = ["\n\n".join(runs) for runs in texts]
        placed = {
            at: labels[at]
            for at, question in exam.questions.items()
            if sum(question.sentence_true in text for text in whole) == 1
        }
    else:
        exam = load_exam(Path(entry.path), entry.limit)
        placed = place(exam.questions, texts)
    for number in range(entry.fractions):
        if number not in placed.values():
            raise UserError(
                f"kr_test: fractions: no question lies in the text of generation {number}: questions on the corpus "
                "itself are needed, and a corpus.order of sequential for a file's"
            )
    return replace(exam, fraction=placed)


def place(questions: dict[int, Question], texts: Sequence[Sequence[str]]) -> dict[int, int]:
    """The fraction of each question that can be placed, by position."""
    where: defaultdict[str, list[int]] = defaultdict(list)
    owner: list[int] = []
    for number, runs in enumerate(texts):
        for run in runs:
            words = _WORD.findall(run.lower())
            for start in range(0, max(1, len(words) - PASSAGE // 2), PASSAGE // 2):
                for word in set(words[start : start + PASSAGE]):
                    where[word].append(len(owner))
                owner.append(number)
    count, owners = len(owner), np.array(owner)
    index = {word: np.array(at) for word, at in where.items() if len(at) <= max(1, COMMON * count)}
    placed = {}
    for position, question in questions.items():
        asked = set(_WORD.findall(f"{question.context} {question.sentence_true}".lower()))
        held, total = np.zeros(count), 0.0
        for word in asked:
            if word in where and word not in index:
                continue
            weight = math.log((count + 1) / len(where.get(word, [0])))
            total += weight
            if word in index:
                held[index[word]] += weight
        best = float(held.max(initial=0.0))
        found = np.unique(owners[held >= CLEAR * best])
        if total and best >= SHARE * total and len(found) == 1:
            placed[position] = int(found[0])
    return placed
