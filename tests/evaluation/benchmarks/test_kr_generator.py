"""Questions made from a corpus: enough of them, balanced, and about what the text says."""

import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.kr_questions import (
    Question,
    find_sentences,
    load_exam,
    make_exam,
    make_questions,
)
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.families.language.kr import held_in_texts, main

DOCUMENTS = [topics[name] for name in sorted(topics)]
MENTIONS = {sentence.text: sentence.mentions for sentence in find_sentences(DOCUMENTS)}


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return make_questions(DOCUMENTS, 240, seed=0)


def _swapped(question: Question) -> tuple[str, str]:
    """The truth and the lie: the mention at the first difference, and what stands in its place."""
    true, false = question.sentence_true, question.sentence_false
    first = next(i for i, (a, b) in enumerate(zip(true, false, strict=False)) if a != b)
    mention = next(m for m in MENTIONS[true] if m.start <= first < m.start + len(m.text))
    times = sum(m.text == mention.text for m in MENTIONS[true])
    growth, rest = divmod(len(false) - len(true), times)
    assert rest == 0
    lie = false[mention.start : mention.start + len(mention.text) + growth]
    return mention.text, lie


def test_the_quickstarts_text_gives_enough(questions: list[Question]) -> None:
    """200 pairs at least, all of which can be asked, none twice."""
    assert len(questions) == 240
    assert not make_exam(questions).skipped
    assert len({question.sentence_true for question in questions}) == 240
    assert [question.location for question in questions] == sorted(question.location for question in questions)


def test_the_truth_stands_in_the_text(questions: list[Question]) -> None:
    """Context and true sentence follow each other in a document, at the line that is given; the false one nowhere."""
    whole = "\n".join(DOCUMENTS)
    lines = whole.split("\n")
    for question in questions:
        place = re.compile(re.escape(question.context) + r"\s+" + re.escape(question.sentence_true))
        assert any(place.search(document) for document in DOCUMENTS)
        assert question.sentence_false not in whole
        assert question.sentence_true.split("\n")[0] in lines[question.location - 1]


def test_a_preference_that_ignores_the_text_earns_one_half(questions: list[Question]) -> None:
    """For every lie y told of x there is a lie x told of y."""
    told = Counter(_swapped(question) for question in questions)
    assert all(told[true, lie] == told[lie, true] for true, lie in told)


def test_neither_entity_can_be_copied_from_the_context(questions: list[Question]) -> None:
    """Otherwise the answer would be given away."""
    for question in questions:
        true, lie = _swapped(question)
        assert true not in question.context
        assert lie not in question.context


def test_questions_are_a_function_of_text_and_seed(questions: list[Question]) -> None:
    """The same again, and others for another seed."""
    assert make_questions(DOCUMENTS, 240, seed=0) == questions
    assert set(make_questions(DOCUMENTS, 240, seed=1)) != set(questions)


def test_kinds_take_turns() -> None:
    """With few questions, no kind crowds the others out."""
    few = make_questions(DOCUMENTS, 12, seed=0)
    numbers = sum(_swapped(question)[0][0].isdigit() for question in few)
    assert numbers == 4


def test_wiki_text_gives_questions_too() -> None:
    """Tokenised prose with spaces before its full stops, as WikiText has it."""
    people = ["Anna", "Boris", "Clara", "David"]
    text = "\n\n".join(
        f"Nobody expected that there would be any rain on the hill . The mayor said that {name} had built the old "
        f"bridge near the mill number {n} ."
        for n, name in enumerate(people)
    )
    made = make_questions([text], 4, seed=0)
    assert len(made) == 4
    assert all(question.sentence_false != question.sentence_true for question in made)


def test_a_corpus_without_facts_is_refused() -> None:
    """One clear line instead of an empty exam."""
    with pytest.raises(UserError, match="no questions can be made from this corpus"):
        make_questions(["nothing to see here, move along. " * 20], 10, seed=0)


def test_sentences_know_their_line() -> None:
    """Lines count through all documents."""
    sentences = find_sentences(
        [
            "Some text that comes first here.\n",
            "Another context of a few words.\nThe call run_all() takes the number 12 from here.",
        ]
    )
    assert [sentence.line for sentence in sentences] == [4]
    assert [mention.text for mention in sentences[0].mentions] == ["run_all()", "12"]


def test_held_in_texts_hold_the_chosen_blocks_alone(pydoc: Corpus) -> None:
    """Decoded runs of blocks, cut at documents' ends: their tokens are the chosen ones, but for the end tokens."""
    blocks = np.array([9, 3, 4, 5, 40, 7])
    texts = held_in_texts(pydoc.train, pydoc.train_ends, blocks, 128, pydoc.decode)
    chosen = np.concatenate([pydoc.train[block * 128 : (block + 1) * 128] for block in sorted(blocks)])
    parts: list[list[int]] = [[]]
    previous = None
    for place in (block * 128 + i for block in sorted(blocks) for i in range(128)):
        if previous is not None and place != previous + 1:
            parts.append([])
        previous = place
        if pydoc.train[place] == pydoc.end_of_text:
            parts.append([])
        else:
            parts[-1].append(int(pydoc.train[place]))
    assert texts == pydoc.decode([part for part in parts if part])
    assert len(chosen) == 6 * 128


def test_questions_are_written_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file that ``fortifai evaluate`` reads."""
    path = tmp_path / "questions.json"
    main(["pydoc", "--pairs", "10", "--output", str(path)])
    assert len(load_exam(path).questions) == 10
    assert "10 questions" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no"):
        main([str(tmp_path / "none"), "--output", str(path)])
