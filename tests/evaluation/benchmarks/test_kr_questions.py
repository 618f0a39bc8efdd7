"""The questions' file: what is read, what is refused."""

import json
from pathlib import Path

import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.kr_questions import Question, load_exam, save_questions

GOOD = {"context": "A b.", "sentence_true": "C d.", "sentence_false": "E f.", "location": 3}


def test_the_published_file_is_read_whole(data_dir: Path) -> None:
    """Every question of ForTIFAI's file, in its order."""
    path = data_dir / "kr_test" / "wikitext2_kr_questions.json"
    rows = json.loads(path.read_text())
    exam = load_exam(path)
    assert exam.size == len(exam.questions) == len(rows)
    assert [vars(question) for question in exam.questions.values()] == rows
    assert len(load_exam(path, limit=7).questions) == 7


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    """Generated questions go through the same file."""
    questions = [Question("Größe ist", "eins.", "zwei.", 4), Question("a", "b", "c", 9)]
    save_questions(questions, tmp_path / "q.json")
    assert list(load_exam(tmp_path / "q.json").questions.values()) == questions


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: is not valid JSON"),
        ("{}", "no question can be scored"),
        ("[]", "a JSON list of questions"),
        ("", "a JSON list of questions"),
        ("[1]", "item 1: is not a mapping"),
        (json.dumps([GOOD, {**GOOD, "context": 5}]), "item 2: context is a number, not text"),
        (json.dumps([GOOD, {**GOOD, "context": "\ud83d"}]), "item 2: context holds half a surrogate pair"),
        (json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "location": "x"}), "line 2: location must be a line number"),
        (json.dumps([{"context": "a", "sentence_true": "b"}]), "it has no sentence_false"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    """The file, the question and what would be right."""
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_exam(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(UserError, match=r"none\.json: cannot be read"):
        load_exam(tmp_path / "none.json")
