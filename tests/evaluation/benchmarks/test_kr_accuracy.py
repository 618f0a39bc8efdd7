"""What scores add up to."""

import numpy as np

from fortifai_ray.evaluation.benchmarks.kr_scoring import Answers, ExamScores


def _scores(true: list[float], false: list[float]) -> ExamScores:
    total = np.stack([true, false], 1)
    tokens = np.tile([2, 4], (len(true), 1))
    return ExamScores(np.arange(len(true)), total, total, tokens, tokens, np.zeros(len(true), bool), {9: "x"}, 10)


def test_a_question_is_right_where_the_truth_scores_higher() -> None:
    """A tie is wrong, and so is what is no number."""
    scores = _scores([-1.0, -1.0, -2.0, np.nan], [-2.0, -1.0, -1.0, -1.0])
    assert scores.answers("fortifai").right.tolist() == [True, False, False, False]


def test_length_normalisation_divides_each_by_its_own_length() -> None:
    """The longer continuation is not punished for its length."""
    scores = _scores([-2.0], [-3.0])  # per token −1 and −0.75
    assert scores.answers("fortifai").right.tolist() == [True]
    assert scores.answers("per_token").right.tolist() == [False]


def test_fractions_follow_the_order_and_leave_a_remainder_to_the_total() -> None:
    """ForTIFAI's: n equal parts by position; a skipped position keeps its place."""
    given = Answers(np.array([0, 1, 2, 4, 5, 6]), np.array([True, True, False, False, False, True]), size=7)
    parts = [(part.metric, part.value, part.scored) for part in given.fractions("kr", 3)]
    assert parts == [("kr_fraction_0", 1.0, 2), ("kr_fraction_1", 0.0, 1), ("kr_fraction_2", 0.0, 2)]
    total = given.accuracy("kr")
    assert (total.value, total.scored) == (0.5, 6)


def test_up_to_a_generation() -> None:
    """The fractions 0 to g, and no more than there are."""
    given = Answers(np.arange(6), np.array([True, True, True, False, False, False]), size=6)
    assert [given.up_to("kr", generation, 3).value for generation in range(4)] == [1.0, 0.75, 0.5, 0.5]
