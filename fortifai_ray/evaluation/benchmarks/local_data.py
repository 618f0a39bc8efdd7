"""Local files as the data sets of lm-evaluation-harness's tasks: in memory, without a hub, a script or a cache.

The task files name these functions by their module's path, which is part of every benchmark's stage hash;
lm-evaluation-harness calls them with a task's ``dataset_kwargs`` (a path per split) and its metadata.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.signs.scoring import exp
from fortifai_ray.files import check_text, read_text, read_values

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
_WHAT = "the benchmark's file"
CHOICES = 4  # HellaSwag's endings
_OPTION = re.compile(r"[abcd] \) .*?, |e \) .*?$")  # as lm-evaluation-harness finds MathQA's choices in their text
ARTICLE = re.compile(r"^ = [^=].* = $", re.MULTILINE)  # a WikiText article's title


def blimp_context(_: Mapping[str, Any]) -> str:
    """The empty context: a sentence is scored as a whole."""
    return ""


def blimp_choices(row: Mapping[str, Any]) -> list[str]:
    """The grammatical sentence first."""
    return [row["sentence_good"], row["sentence_bad"]]


def weighted_perplexity(items: list[tuple[float, int]]) -> float:
    """exp of minus the summed log-likelihood over the summed weights; infinite if no float can hold it."""
    return exp(-sum(value for value, _ in items) / sum(weight for _, weight in items))


def read_rows(
    path: Path, texts: tuple[str, ...], optional: tuple[str, ...] = (), others: tuple[str, ...] = ()
) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a file of JSON lines (or one array), each with its place: the columns ``texts``, which are strings
    and not empty, the ``optional`` ones ("" where missing), and ``others`` of any type.

    Further columns are dropped: each column of a data set must have one type, and these need not.

    Raises:
        UserError: the file cannot be read or holds no row, a row is not a mapping or lacks a column, or a text is none.
    """
    rows = []
    needed = (*texts, *others)
    for place, row in read_values(path, _WHAT):
        missing = [key for key in needed if not isinstance(row, dict) or _is_empty(row.get(key))]
        if missing or not isinstance(row, dict):
            raise UserError(f"{path}: {place} has no {missing[0] if missing else 'keys'}; {_keys(needed)}")
        rows.append((place, {**{key: row[key] for key in needed}, **{key: row.get(key) or "" for key in optional}}))
        for key in (*texts, *optional):
            check_text(rows[-1][1][key], f"{path}: {place}: {key}")
    if not rows:
        raise UserError(f"{path}: the file has no rows; {_keys(needed)}")
    return rows


def _is_empty(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _keys(needed: tuple[str, ...]) -> str:
    return f"each row must be a JSON mapping with {', '.join(needed)}"


def read_blimp(path: Path) -> list[dict[str, Any]]:
    """``sentence_good, sentence_bad``; see :func:`read_rows`."""
    return [row for _, row in read_rows(path, ("sentence_good", "sentence_bad"))]


def read_gsm8k(path: Path) -> list[dict[str, Any]]:
    """``question, answer``; see :func:`read_rows`."""
    return [row for _, row in read_rows(path, ("question", "answer"))]


def read_hellaswag(path: Path) -> list[dict[str, Any]]:
    """``activity_label, ctx_a, ctx_b, endings, label`` (as text), of the rows that can be scored; see
    :func:`read_rows`."""
    rows = [row for _, row in _hellaswag(path) if not _empty_ending(row)]
    if not rows:
        raise UserError(f"{path}: no row can be scored: each has an empty ending")
    return rows


def skipped_hellaswag(path: Path) -> dict[str, str]:
    """The places of the rows that cannot be scored, and why: an empty ending has no likelihood."""
    skipped = {place: _empty_ending(row) for place, row in _hellaswag(path)}
    return {place: f"ending {number} is empty" for place, number in skipped.items() if number}


def _hellaswag(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = read_rows(path, ("activity_label", "ctx_a"), ("ctx_b",), ("endings", "label"))
    for place, row in rows:
        at, endings = f"{path}: {place}", row["endings"]
        if not isinstance(endings, list) or len(endings) != CHOICES:
            raise UserError(f"{at}: endings must be a list of {CHOICES} (HellaSwag's own format)")
        for number, ending in enumerate(endings, 1):
            check_text(ending, f"{at}: ending {number}")
        if str(row["label"]) not in map(str, range(CHOICES)):
            raise UserError(f"{at}: label must be 0 to {CHOICES - 1}, not {row['label']!r}")
        row["label"] = str(row["label"])
    return rows


def _empty_ending(row: Mapping[str, Any]) -> int:
    """The number of the first ending of which lm-evaluation-harness's preprocessing, which takes out what is in
    brackets, leaves nothing; 0 where there is none."""
    left = (re.sub(r"\[.*?\]", "", ending.strip().replace(" [title]", ". ")) for ending in row["endings"])
    return next((number for number, ending in enumerate(left, 1) if not ending.strip()), 0)


def read_mathqa(path: Path) -> list[dict[str, Any]]:
    """``Problem, options, correct``, of the rows that can be scored; see :func:`read_rows`."""
    rows = [row for _, row in _mathqa(path) if not _unusable_options(row)]
    if not rows:
        raise UserError(f"{path}: no row can be scored: none has its five choices, `a ) …, b ) …, …`, all with a text")
    return rows


def skipped_mathqa(path: Path) -> dict[str, str]:
    """The places of the rows that cannot be scored, and why."""
    skipped = {place: _unusable_options(row) for place, row in _mathqa(path)}
    return {place: why for place, why in skipped.items() if why}


def _mathqa(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = read_rows(path, ("Problem", "options", "correct"))
    for place, row in rows:
        if row["correct"] not in tuple("abcde"):
            raise UserError(f"{path}: {place}: correct must be a, b, c, d or e, not {row['correct']!r}")
    return rows


def _unusable_options(row: Mapping[str, Any]) -> str:
    """Why lm-evaluation-harness cannot tell a row's five choices apart; empty where it can."""
    choices = [choice[4:].rstrip(" ,") for choice in _OPTION.findall(row["options"])]
    if len(choices) != len("abcde"):
        return f"its options are {len(choices)} choices, not 5"
    return next((f"choice {name} is empty" for name, text in zip("abcde", choices, strict=True) if not text), "")


def split_articles(text: str) -> list[str]:
    """WikiText's articles, each from its title on; any other text whole."""
    titles = [match.start() for match in ARTICLE.finditer(text)]
    return [text[start:end] for start, end in pairwise([0, *titles[1:], len(text)])]


def read_pages(path: Path) -> list[dict[str, Any]]:
    """The documents of a text file, each a row with the column ``page``: its articles if it has WikiText's titles.

    Raises:
        UserError: the file cannot be read or has no text.
    """
    rows = [{"page": page} for page in split_articles(read_text(path, _WHAT)) if page.strip()]
    if not rows:
        raise UserError(f"{path}: the file has no text")
    return rows


def _splits(read: Callable[[Path], list[dict[str, Any]]], **settings: Any) -> "dict[str, Dataset]":
    return {split: _dataset(read(Path(settings[split]))) for split in SPLITS if split in settings}


def _dataset(rows: list[dict[str, Any]]) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_list(rows)


blimp = partial(_splits, read_blimp)
gsm8k = partial(_splits, read_gsm8k)
hellaswag = partial(_splits, read_hellaswag)
mathqa = partial(_splits, read_mathqa)
pages = partial(_splits, read_pages)


def questions(**settings: Any) -> "dict[str, Dataset]":
    """The KR-test's questions, without those that cannot be scored."""
    from fortifai_ray.evaluation.benchmarks.kr_questions import load_exam

    exam = load_exam(Path(settings["test"]))
    return {"test": _dataset([vars(question) for question in exam.questions.values()])}
