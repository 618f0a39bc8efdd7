"""What scores add up to."""

from dataclasses import replace

import numpy as np

from fortifai_ray.evaluation.benchmarks.kr_questions import Exam
from fortifai_ray.evaluation.benchmarks.kr_scoring import ExamScores, fractions, up_to
from fortifai_ray.evaluation.benchmarks.report import accuracy


def _scores(true: list[float], false: list[float]) -> ExamScores:
    total = np.stack([true, false], 1)
    tokens = np.tile([2, 4], (len(true), 1))
    return ExamScores(
        np.arange(len(true)), total, total, total, tokens, tokens, np.zeros(len(true), bool), {9: "x"}, 10
    )


def test_a_question_is_right_where_the_truth_scores_higher() -> None:
    """A tie counts as one half, and as wrong in ForTIFAI's own code; what is no number is wrong, and no tie."""
    scores = _scores([-1.0, -1.0, -2.0, np.nan, -np.inf], [-2.0, -1.0, -1.0, -1.0, -np.inf])
    same = replace(scores, tokens=np.full((5, 2), 2), bytes=np.full((5, 2), 2))
    assert same.answers("per_token") == same.answers("per_byte") == {0: 1.0, 1: 0.5, 2: 0.0, 3: 0.0, 4: 0.0}
    for scoring in ("fortifai", "fortifai_left"):
        assert scores.answers(scoring) == {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0}
    assert same.ties.tolist() == [False, True, False, False, False]


def test_length_normalisation_divides_each_by_its_own_length() -> None:
    """The longer continuation is not punished for its length."""
    scores = _scores([-2.0], [-3.0])  # per token −1 and −0.75
    assert scores.answers("fortifai") == {0: True}
    assert scores.answers("per_token") == {0: False}


def test_fractions_follow_the_order_and_leave_a_remainder_to_the_total() -> None:
    """ForTIFAI's: n equal parts by position; a skipped position keeps its place."""
    given = {0: 1.0, 1: 1.0, 2: 0.0, 4: 0.0, 5: 0.0, 6: 1.0}
    parts = [(part.metric, part.value, part.scored) for part in fractions("kr", given, Exam({}, {}, 7).parts(3))]
    assert parts == [("kr_fraction_0", 1.0, 2), ("kr_fraction_1", 0.0, 1), ("kr_fraction_2", 0.0, 2)]
    total = accuracy("kr", given.values())
    assert (total.value, total.scored) == (0.5, 6)


def test_up_to_a_generation() -> None:
    """The fractions 0 to g, and no more than there are."""
    given = {position: float(position < 3) for position in range(6)}
    parts = Exam({}, {}, 6).parts(3)
    assert [up_to(generation, "kr", given, parts).value for generation in range(4)] == [1.0, 0.75, 0.5, 0.5]
