"""Local files as the data sets of lm-evaluation-harness's tasks: in memory, without a hub, a script or a cache.

The task files name these functions by their module's path, which is part of every benchmark's stage hash;
lm-evaluation-harness calls them with a task's ``dataset_kwargs`` (a path per split) and its metadata.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.signs.scoring import exp
from fortifai_ray.validation import read_text

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
_WHAT = "the benchmark's file"
CHOICES = 4  # HellaSwag's endings
_ARTICLE = re.compile(r"^ = [^=].* = $", re.MULTILINE)  # a WikiText article's title


def blimp_context(_: Mapping[str, Any]) -> str:
    """The empty context: a sentence is scored as a whole."""
    return ""


def blimp_choices(row: Mapping[str, Any]) -> list[str]:
    """The grammatical sentence first."""
    return [row["sentence_good"], row["sentence_bad"]]


def weighted_perplexity(items: list[tuple[float, int]]) -> float:
    """exp of minus the summed log-likelihood over the summed weights; infinite if no float can hold it."""
    return exp(-sum(value for value, _ in items) / sum(weight for _, weight in items))


def read_jsonl(path: Path, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines: the ``needed`` columns and the ``optional`` ones ("" where missing).

    Other columns are dropped: each column of a data set must have one type, and these need not. Empty lines are
    skipped.

    Raises:
        UserError: the file cannot be read or holds no row, or a row is not a mapping or lacks one of ``needed``.
    """
    rows = []
    for number, line in enumerate(read_text(path, _WHAT).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path}: line {number} is not valid JSON ({error}); each line must be a JSON mapping"
            ) from error
        missing = [key for key in needed if not isinstance(row, dict) or row.get(key) in (None, "", [])]
        if missing or not isinstance(row, dict):
            raise UserError(f"{path}: line {number} has no {missing[0] if missing else 'keys'}; {_keys(needed)}")
        rows.append({**{key: row[key] for key in needed}, **{key: row.get(key) or "" for key in optional}})
    if not rows:
        raise UserError(f"{path}: the file has no rows; {_keys(needed)}")
    return rows


def _keys(needed: tuple[str, ...]) -> str:
    return f"each line must be a JSON mapping with {', '.join(needed)}"


read_blimp = partial(read_jsonl, needed=("sentence_good", "sentence_bad"))
read_gsm8k = partial(read_jsonl, needed=("question", "answer"))


def read_hellaswag(path: Path) -> list[dict[str, Any]]:
    """``activity_label, ctx_a, ctx_b, endings, label`` (as text); see :func:`read_jsonl`."""
    rows = read_jsonl(path, ("activity_label", "ctx_a", "endings", "label"), ("ctx_b",))
    for number, row in enumerate(rows, 1):
        if not isinstance(row["endings"], list) or len(row["endings"]) != CHOICES:
            raise UserError(f"{path}: row {number}: endings must be a list of {CHOICES} (HellaSwag's own format)")
        if str(row["label"]) not in map(str, range(CHOICES)):
            raise UserError(f"{path}: row {number}: label must be 0 to {CHOICES - 1}, not {row['label']!r}")
        row["label"] = str(row["label"])
    return rows


def read_pages(path: Path) -> list[dict[str, Any]]:
    """The documents of a text file, each a row with the column ``page``: its articles if it has WikiText's titles.

    Raises:
        UserError: the file cannot be read or has no text.
    """
    text = read_text(path, _WHAT)
    titles = [match.start() for match in _ARTICLE.finditer(text)]
    bounds = [0, *titles[1:], len(text)] if len(titles) > 1 else [0, len(text)]
    pages = (text[start:end] for start, end in pairwise(bounds))
    rows = [{"page": page} for page in pages if page.strip()]
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
pages = partial(_splits, read_pages)


def questions(**settings: Any) -> "dict[str, Dataset]":
    """The KR-test's questions, without those that cannot be scored."""
    from fortifai_ray.evaluation.benchmarks.kr_questions import load_exam

    exam = load_exam(Path(settings["test"]))
    return {"test": _dataset([vars(question) for question in exam.questions.values()])}
