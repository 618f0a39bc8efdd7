"""What an exam's scores add up to: accuracies in total, by fraction of the source, and up to a generation."""

from dataclasses import dataclass

import numpy as np

from fortifai_ray.evaluation.benchmarks.report import Proportion, proportion
from fortifai_ray.evaluation.kr.scoring import ExamScores

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
