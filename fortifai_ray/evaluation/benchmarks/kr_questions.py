"""Questions of the KR-test: their file, a JSON list as ForTIFAI publishes it, and how they are made from a corpus.

To make them, a name, an identifier or a number in a sentence is swapped for another of its kind; no other model is
needed. Questions come in twins: one sentence has entity *x* and its false version *y*; in the other *y* is true and *x*
false. A model that merely prefers the commoner entity is right in one and wrong in the other, so that a preference
that ignores the text scores one half.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from fortifai_ray.errors import UserError
from fortifai_ray.files import check_text, read_values
from fortifai_ray.seeds import generator

_TEXTS = ("context", "sentence_true", "sentence_false")


@dataclass(frozen=True)
class Question:
    """Given ``context``, is ``sentence_true`` likelier than ``sentence_false``?

    ``location`` is the line of the source that holds the true sentence (from 1; 0 if unknown).
    """

    context: str
    sentence_true: str
    sentence_false: str
    location: int = 0

    @property
    def sentences(self) -> tuple[str, str]:
        """The true continuation, then the false one."""
        return self.sentence_true, self.sentence_false


@dataclass(frozen=True)
class Exam:
    """Questions in the order of their file.

    Attributes:
        questions: by position (from 0); a position that is missing here is in ``skipped``.
        skipped: why the others cannot be scored, by position.
        size: number of positions, skipped ones included.
        fraction: the fraction of the human text on which a question is, by position; None: equal parts of the
            positions, as ForTIFAI's code takes them.
    """

    questions: dict[int, Question]
    skipped: dict[int, str]
    size: int
    fraction: dict[int, int] | None = None

    def parts(self, count: int) -> list[frozenset[int]]:
        """The positions of each of ``count`` fractions; a remainder of equal parts is in none."""
        if self.fraction is not None:
            return [frozenset(at for at, part in self.fraction.items() if part == number) for number in range(count)]
        each = self.size // count
        return [frozenset(range(number * each, (number + 1) * each)) for number in range(count)]


def make_exam(questions: Iterable[Question], limit: int | None = None) -> Exam:
    """An exam of the questions that have two different continuations; the others are recorded as skipped."""
    listed = dict(enumerate(list(questions)[:limit]))
    skipped = {position: reason for position, question in listed.items() if (reason := _reason(question))}
    return Exam({at: question for at, question in listed.items() if at not in skipped}, skipped, len(listed))


def _reason(question: Question) -> str | None:
    for name in _TEXTS:
        if not getattr(question, name).strip():
            return f"it has no {name}"
    if question.sentence_true == question.sentence_false:
        return "sentence_true and sentence_false are the same"
    return None


def load_exam(path: Path, limit: int | None = None) -> Exam:
    """Read the exam in a JSON file; ``limit`` takes only the first questions.

    A question without a true or a false continuation is recorded in :attr:`Exam.skipped`.

    Raises:
        UserError: the file cannot be read, is not a JSON list of questions, or none of its questions can be scored.
    """
    content = list(read_values(path, "a KR-test's JSON file"))
    if not content:
        raise UserError(f"{path}: a JSON list of questions with {', '.join(_TEXTS)} is needed")
    exam = make_exam((_question(f"{path}: {place}", row) for place, row in content), limit)
    if not exam.questions:
        raise UserError(f"{path}: no question can be scored (the first: {exam.skipped[0]}; keys: {', '.join(_TEXTS)})")
    return exam


def _question(at: str, row: Any) -> Question:
    if not isinstance(row, dict):
        raise UserError(f"{at}: is not a mapping with {', '.join(_TEXTS)}")
    texts = {name: row.get(name) or "" for name in _TEXTS}
    location = row.get("location", 0)
    for name, value in texts.items():
        check_text(value, f"{at}: {name}")
    if not isinstance(location, int):
        raise UserError(f"{at}: location must be a line number, not {location!r}")
    return Question(**texts, location=location)


def save_questions(questions: Iterable[Question], path: Path) -> None:
    """Write questions in the format that :func:`load_exam` and ForTIFAI's own code read."""
    content = [asdict(question) for question in questions]
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# Questions made from a corpus.

VERSION = 1  # bump when the same text and seed give other questions
CONTEXT = (20, 160)  # characters
SENTENCE = (30, 240)
USES = 3  # pairs that one entity enters at most
AHEAD = 12  # entities of similar frequency and length that are tried as a partner
MAX_CHARACTERS = 20_000_000  # of a larger corpus, whole documents are drawn by the seed

_BOUNDARY = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[“‘]?[A-Z])|\n\s*\n")
_COMPLETE = re.compile(r"[.!?][\"')\]”’]*$")
_MENTION = re.compile(
    r"""
      (?P<identifier>(?<![\w.])(?:
          [A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?:\(\))?        # a.b, a.b.c()
        | [A-Za-z]\w*\(\)                                  # call()
        | [A-Za-z]*_\w+                                    # snake_case, __dunder__
        | [A-Za-z][a-z0-9]+(?:[A-Z][a-z0-9]+)+             # CamelCase
      )(?!\w))
    | (?P<number>(?<![\w.,])\d+(?:[.,]\d+)*(?![\w]|[.,]\d))
    | (?P<name>(?<![\w.])[A-Z][a-z]{2,}(?:\ [A-Z][a-z]{2,})*(?!\w))
    """,
    re.VERBOSE,
)
_WORD = re.compile(r"\b[a-z]{3,}\b")
_OPENING = re.compile(r"(?:^|[.!?:;]|\n\s*\n)[\s\"'(\[“‘*]*$")  # a capital letter after this is grammar, not a name


@dataclass(frozen=True)
class Mention:
    """An entity in a sentence: its kind, its text and its position."""

    kind: str
    text: str
    start: int


@dataclass(frozen=True)
class Sentence:
    """A sentence of a document, the text before it, its line in the corpus (from 1) and the entities it mentions."""

    context: str
    text: str
    line: int
    mentions: tuple[Mention, ...]


@dataclass(frozen=True)
class _Entity:
    kind: str
    text: str
    frequency: int
    sentences: tuple[int, ...]


def make_questions(documents: Sequence[str], pairs: int, seed: int) -> list[Question]:
    """Make at most ``pairs`` questions from held-in text, in the order of the text, from text and seed alone.

    Kinds (names, identifiers, numbers) take turns. An entity and its replacement have the same kind and shape, similar
    lengths, and frequencies in the corpus within a factor of two; neither occurs in the context, so that it cannot be
    copied from there. A corpus may yield fewer twins than requested.

    Args:
        documents: the text that the model was trained on, a string per document.
        pairs: questions requested; an odd number loses one, since they come in twins.
        seed: the recipe's.

    Raises:
        UserError: the corpus yields no question.
    """
    random = generator(seed, "kr_questions")
    documents = _some(documents, random)
    sentences = find_sentences(documents)
    entities = _entities(documents, sentences)
    turns = zip_longest(*_twins_by_kind(entities, sentences, random).values())  # until the last kind is used up
    twins = [twin for turn in turns for twin in turn if twin is not None][: pairs // 2]
    if not twins:
        raise UserError(
            "kr_test: no questions can be made from this corpus: it has no complete sentences whose names, numbers or "
            "identifiers could be swapped; give a file of questions instead (path)"
        )
    chosen = [question for twin in twins for question in twin]
    return sorted(chosen, key=lambda question: (question.location, question.sentence_true))


def _some(documents: Sequence[str], random: np.random.Generator) -> list[str]:
    """All documents in order; of a very large corpus a random sample of at most :data:`MAX_CHARACTERS`."""
    if sum(map(len, documents)) <= MAX_CHARACTERS:
        return list(documents)
    order = random.permutation(len(documents))
    sizes = np.cumsum([len(documents[index]) for index in order])
    return [documents[index] for index in sorted(order[: max(1, int((sizes <= MAX_CHARACTERS).sum()))])]


def find_sentences(documents: Sequence[str]) -> list[Sentence]:
    """Each complete sentence that follows some text of its document, once, with its mentions."""
    sentences: dict[str, Sentence] = {}
    line = 1
    for document in documents:
        starts = [0, *(match.end() for match in _BOUNDARY.finditer(document))]
        for start, end in zip(starts, [*starts[1:], len(document)], strict=True):
            text = document[start:end].strip()
            context = _context(document, start)
            if _is_usable(text, context) and text not in sentences:
                sentences[text] = Sentence(context, text, line + document.count("\n", 0, start), _mentions(text))
        line += document.count("\n") + 1
    return [sentence for sentence in sentences.values() if sentence.mentions]


def _is_usable(text: str, context: str) -> bool:
    return (
        SENTENCE[0] <= len(text) <= SENTENCE[1]
        and len(context) >= CONTEXT[0]
        and _COMPLETE.search(text) is not None
        and text.count(" ") >= 4
    )


def _context(document: str, end: int) -> str:
    """The text before ``end``, starting at the beginning of a word."""
    before = document[:end].rstrip()
    start = max(0, len(before) - CONTEXT[1])
    cut = before[start:]
    if start and not before[start - 1].isspace():
        cut = re.sub(r"^\S+\s+", "", cut)
    return cut.strip()


def _mentions(text: str) -> tuple[Mention, ...]:
    """Entities inside a sentence, without its first word and without words that their position capitalises."""
    mentions = (Mention(str(match.lastgroup), match.group(), match.start()) for match in _MENTION.finditer(text))
    return tuple(m for m in mentions if m.start and not (m.kind == "name" and _OPENING.search(text[: m.start])))


def _entities(documents: Sequence[str], sentences: Sequence[Sentence]) -> list[_Entity]:
    frequencies = Counter(match.group() for document in documents for match in _MENTION.finditer(document))
    common = Counter(match.group() for document in documents for match in _WORD.finditer(document))
    where: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index, sentence in enumerate(sentences):
        for kind, text in sorted({(mention.kind, mention.text) for mention in sentence.mentions}):
            is_name = kind != "name" or common[text.lower()] <= frequencies[text]  # "These" is no name
            if is_name and text not in sentence.context:
                where[kind, text].append(index)
    return [_Entity(kind, text, frequencies[text], tuple(at)) for (kind, text), at in where.items()]


def shape(kind: str, text: str) -> str:
    """What an entity and its replacement must have in common, beside their kind."""
    if kind == "number":
        return re.sub(r"\d", "0", text)
    if kind == "name":
        return str(text.count(" "))
    form = "dunder" if text.startswith("__") else "dotted" if "." in text else "snake" if "_" in text else "camel"
    return f"{form}{'()' * text.endswith('()')}{text.count('.')}{text[0].isupper()}"


def _twins_by_kind(
    entities: Sequence[_Entity], sentences: Sequence[Sentence], random: np.random.Generator
) -> dict[str, list[tuple[Question, Question]]]:
    classes: defaultdict[tuple[str, str], list[_Entity]] = defaultdict(list)
    for entity in entities:
        vowel = str(entity.text[0] in "AEIOUaeiou")  # "an" stays right
        classes[entity.kind, shape(entity.kind, entity.text) + vowel].append(entity)
    used: set[int] = set()
    twins: defaultdict[str, list[tuple[Question, Question]]] = defaultdict(list)
    for (kind, _), members in sorted(classes.items()):
        ties = random.random(len(members))
        order = sorted(
            range(len(members)), key=lambda i: (round(math.log2(members[i].frequency)), len(members[i].text), ties[i])
        )
        twins[kind] += _pair_up([members[index] for index in order], sentences, used)
    return {kind: [made[index] for index in random.permutation(len(made))] for kind, made in sorted(twins.items())}


def _pair_up(members: list[_Entity], sentences: Sequence[Sentence], used: set[int]) -> list[tuple[Question, Question]]:
    """Twins of entities of one class, neighbours in frequency and length first; adds their sentences to ``used``."""
    uses: Counter[str] = Counter()
    twins = []
    for index, first in enumerate(members):
        for second in members[index + 1 : index + 1 + AHEAD]:
            if max(uses[first.text], uses[second.text]) >= USES or not _alike(first, second):
                continue
            one, other = _place(first, second, sentences, used), _place(second, first, sentences, used)
            if one is not None and other is not None and one != other:
                used |= {one, other}
                uses.update((first.text, second.text))
                twins.append(
                    (_swap(sentences[one], first.text, second.text), _swap(sentences[other], second.text, first.text))
                )
    return twins


def _alike(first: _Entity, second: _Entity) -> bool:
    lengths = sorted((len(first.text), len(second.text)))
    frequencies = sorted((first.frequency, second.frequency))
    return lengths[1] - lengths[0] <= max(2, lengths[0] // 3) and frequencies[1] <= 2 * frequencies[0]


def _place(entity: _Entity, lie: _Entity, sentences: Sequence[Sentence], used: set[int]) -> int | None:
    """The index of an unused sentence that has the entity and, like its context, lacks the replacement."""
    free = (index for index in entity.sentences if index not in used)
    return next((i for i in free if lie.text not in sentences[i].text and lie.text not in sentences[i].context), None)


def _swap(sentence: Sentence, truth: str, lie: str) -> Question:
    false = sentence.text
    for mention in reversed(sentence.mentions):
        if mention.text == truth:
            false = false[: mention.start] + lie + false[mention.start + len(truth) :]
    return Question(sentence.context, sentence.text, false, sentence.line)
