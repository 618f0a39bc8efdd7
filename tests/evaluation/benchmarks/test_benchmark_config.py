"""What a study file may say of benchmarks, and what a stage's key takes from it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.config import BenchmarksConfig
from fortifai_ray.evaluation.benchmarks.local_data import read_blimp, read_mathqa
from fortifai_ray.evaluation.benchmarks.run import identity
from fortifai_ray.evaluation.benchmarks.tasks import check_files, skipped_rows

PAIR = {"sentence_good": "Who ate it?", "sentence_bad": "Who it ate?"}


def _blimp(folder: Path, *names: str, row: dict[str, Any] = PAIR) -> str:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return str(folder)


def _config(*entries: dict[str, Any]) -> BenchmarksConfig:
    return BenchmarksConfig.model_validate({"benchmarks": entries})


def test_reading_a_configuration_imports_nothing_heavy() -> None:
    """The command line validates study files without paying for torch, Ray or lm-evaluation-harness."""
    heavy = {"torch", "ray", "lm_eval", "transformers", "datasets", "sklearn", "scipy"}
    code = (
        "import fortifai_ray.evaluation.benchmarks.config, fortifai_ray.families.language.evaluate, sys;"
        "import fortifai_ray.evaluation.benchmarks.run as run;"
        "run.identity(run.BenchmarksConfig());"
        f"sys.exit(str(set(sys.modules) & {heavy}) if set(sys.modules) & {heavy} else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"task": "blimp", "path": "nowhere"}, "there is no nowhere"),
        ({"task": "blimp", "path": "BLIMP", "paradigms": ["b", "x"]}, "has no paradigm x"),
        ({"task": "blimp", "path": "EMPTY"}, r"has no \*\.jsonl"),
        ({"task": "gsm8k", "path": "EMPTY"}, r"has no test\.jsonl"),
        ({"task": "mmlu", "path": "EMPTY"}, "does not match any of the expected tags"),
        ({"task": "blimp", "path": "BLIMP", "limits": 3}, "Extra inputs are not permitted"),
        ({"task": "kr_test", "name": "a-b"}, r"letters \(a to z\), digits and _ are allowed"),
        ({"task": "kr_test", "pairs": 1}, "greater than or equal to 2"),
    ],
)
def test_a_mistake_is_found_in_the_configuration(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    """Before anything starts."""
    places = {"BLIMP": _blimp(tmp_path / "blimp", "a", "b"), "EMPTY": _blimp(tmp_path / "empty")}
    if entry.get("path") in places:
        entry = entry | {"path": places[entry["path"]]}
    with pytest.raises(ValidationError, match=message):
        _config(entry)


def test_one_task_twice_needs_a_name(tmp_path: Path) -> None:
    """Two entries would report the same metric."""
    entry = {"task": "blimp", "path": _blimp(tmp_path / "blimp", "a")}
    with pytest.raises(ValidationError, match="give one a name"):
        _config(entry, entry)
    assert [e.metric("accuracy") for e in _config(entry, entry | {"name": "mine"}).benchmarks] == [
        "blimp_accuracy",
        "mine_accuracy",
    ]


def test_an_entry_with_a_name_declares_its_metrics_under_it(tmp_path: Path, wikitext: Path) -> None:
    """With unit, direction, scale and chance of the task's own; what is built in keeps its declaration."""
    blimp = {"task": "blimp", "path": _blimp(tmp_path / "blimp", "a")}
    text = {"task": "wikitext", "path": str(wikitext)}
    plain, mine, taken, other = _config(
        blimp, blimp | {"name": "mine"}, blimp | {"name": "hellaswag"}, text | {"name": "other"}
    ).benchmarks
    assert plain.declared == ()
    published = ["accuracy_fortifai", "accuracy_fortifai_left"]
    assert [metric.name for metric in taken.declared] == [f"hellaswag_{name}" for name in published]
    accuracy, *others = mine.declared
    assert [metric.name for metric in others] == [f"mine_{name}" for name in ("accuracy_lm_eval", *published, "ties")]
    assert (accuracy.name, accuracy.title, accuracy.chance) == ("mine_accuracy", "mine accuracy", 0.5)
    assert {metric.name: metric.scale for metric in other.declared} == {
        "other_word_perplexity": "log",
        "other_byte_perplexity": "log",
        "other_bits_per_byte": "linear",
    }
    assert set(mine.columns) >= {"mine_accuracy", "mine_accuracy_low", "mine_accuracy_a", "mine_scored"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence_good": "Who ate it?"}, "line 1 has no sentence_bad"),
        ({**PAIR, "sentence_bad": ""}, "line 1 has no sentence_bad"),
        ({**PAIR, "sentence_bad": " "}, "line 1 has no sentence_bad"),
        ({**PAIR, "sentence_bad": ["Who?"]}, "line 1: sentence_bad is a list, not text"),
        ({**PAIR, "sentence_bad": "Who \ud83d?"}, "line 1: sentence_bad holds half a surrogate pair"),
        ([1], "item 1 has no sentence_good"),
        ("Who?", "line 1 has no sentence_good"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, row: Any, message: str) -> None:
    """The file, the line and the key."""
    folder = _blimp(tmp_path / "blimp", "a", row=row)
    with pytest.raises(UserError, match=message) as error:
        check_files(_config({"task": "blimp", "path": folder}).benchmarks)
    assert "a.jsonl" in str(error.value)


PAIRS = ['{"sentence_good": "Who\u2028\u2029\x85?", "sentence_bad": "Whom?"}', json.dumps(PAIR)]


@pytest.mark.parametrize(
    "content",
    ["\ufeff" + "\r\n\r\n".join(PAIRS), "\n".join(PAIRS), f"[{','.join(PAIRS)}]"],
    ids=["written on Windows", "lines", "an array"],
)
def test_a_file_of_another_make_is_read(content: str, tmp_path: Path) -> None:
    """Byte-order marks, line ends and separators inside strings neither stop a benchmark nor cut its rows."""
    (tmp_path / "a.jsonl").write_text(content, newline="")
    rows = read_blimp(tmp_path / "a.jsonl")
    assert [row["sentence_good"] for row in rows] == ["Who\u2028\u2029\x85?", PAIR["sentence_good"]]


def test_hidden_files_are_no_paradigms(tmp_path: Path) -> None:
    """macOS leaves a shadow of each file, a notebook its checkpoints."""
    folder = _blimp(tmp_path / "blimp", "a", "._a")
    assert [*_config({"task": "blimp", "path": folder}).benchmarks[0].files] == ["a"]


def test_hellaswag_needs_four_endings_and_a_label(tmp_path: Path, hellaswag: Path) -> None:
    """Its test split has no labels: that cannot be scored."""
    config = _config({"task": "hellaswag", "path": str(hellaswag)})
    check_files(config.benchmarks)
    row = json.loads(hellaswag.read_text().splitlines()[0])
    for change, message in (
        ({"endings": ["a", "b"]}, "endings must be a list of 4"),
        ({"endings": ["a", "", "c", "d"]}, "no row can be scored"),
        ({"endings": ["a", "b", "c", None]}, "line 1: ending 4 is null, not text"),
        ({"ctx_b": 5}, "line 1: ctx_b is a number, not text"),
        ({"label": 4}, "label must be 0 to 3, not 4"),
        ({"label": ""}, "has no label"),
    ):
        path = tmp_path / "h.jsonl"
        path.write_text(json.dumps(row | change))
        with pytest.raises(UserError, match=message):
            check_files(_config({"task": "hellaswag", "path": str(path)}).benchmarks)


def test_identity_is_content_and_settings_not_place(tmp_path: Path) -> None:
    """The same files elsewhere are the same benchmark; another row, limit, task or text is not."""
    one, two = _blimp(tmp_path / "one", "a", "b"), _blimp(tmp_path / "two", "a", "b")
    changed = _blimp(tmp_path / "three", "a", "b", row={**PAIR, "sentence_bad": "Ate who it?"})
    entry = {"task": "blimp", "path": one}
    known = identity(_config(entry))
    assert identity(_config(entry | {"path": two})) == known
    assert identity(_config(entry | {"path": changed})) != known
    assert identity(_config(entry | {"limit": 1})) != known
    assert identity(_config(entry | {"paradigms": ["a"]})) != known
    assert identity(_config({"task": "kr_test"}), {"corpus": "x"}) != identity(_config({"task": "kr_test"}))
    json.dumps(known)


def test_mathqa_needs_five_choices_and_a_letter(tmp_path: Path, mathqa: Path) -> None:
    """A row whose choices lm-evaluation-harness cannot tell apart is left out; a wrong letter is refused."""
    entry = {"task": "mathqa", "path": str(tmp_path / "m.json")}
    row, other = json.loads(mathqa.read_text())
    cases = {
        "a ) 1 , b ) 2 , c ) 3 , d ) 4": "its options are 3 choices, not 5",
        "a ) 1 , b )  , c ) 3 , d ) 4 , e ) 5": "choice b is empty",
        "1, 2, 3, 4, 5": "its options are 0 choices, not 5",
    }
    for options, why in cases.items():
        (tmp_path / "m.json").write_text(json.dumps([row | {"options": options}, other]))
        config = _config(entry)
        check_files(config.benchmarks)
        assert skipped_rows(config.benchmarks[0]) == {"item 1": why}
        assert len(read_mathqa(tmp_path / "m.json")) == 1
        (tmp_path / "m.json").write_text(json.dumps([row | {"options": options}]))
        with pytest.raises(UserError, match="no row can be scored"):
            check_files(_config(entry).benchmarks)
    for change, message in (
        ({"correct": "f"}, "correct must be a, b, c, d or e, not 'f'"),
        ({"Problem": ""}, "has no"),
    ):
        (tmp_path / "m.json").write_text(json.dumps([row | change]))
        with pytest.raises(UserError, match=message):
            check_files(_config(entry).benchmarks)
