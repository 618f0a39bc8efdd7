"""A mistake in a history is told as one in a study is: one line that names the option, the place and what is right, and
nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from fortifai_ray.errors import UserError

from .runs import analysed, csv_lines, read, rows

Change = Callable[[list[str]], list[str]]


def put(line: int, column: str, value: str) -> Change:
    """Put a value into a line of the CSV, counted from 1, as messages do."""
    place = ["loss", "gamma", "seed", "gen", "ppl"].index(column)

    def change(lines: list[str]) -> list[str]:
        cells = lines[line - 1].split(",")
        cells[place] = value
        return [*lines[: line - 1], ",".join(cells), *lines[line:]]

    return change


def every(column: str, value: Callable[[str], str]) -> Change:
    """Change a column in every row."""
    place = ["loss", "gamma", "seed", "gen", "ppl"].index(column)

    def change(lines: list[str]) -> list[str]:
        parts = [line.split(",") for line in lines[1:]]
        return [lines[0], *(",".join([*c[:place], value(c[place]), *c[place + 1 :]]) for c in parts)]

    return change


def without(*lines_out: int) -> Change:
    return lambda lines: [line for number, line in enumerate(lines, 1) if number not in lines_out]


def where(keep: Callable[[str], bool]) -> Change:
    return lambda lines: [lines[0], *filter(keep, lines[1:])]


SAME: Change = list
CASES: dict[str, tuple[Change, dict[str, Any], str]] = {
    "unknown metric": (SAME, {"metric": "pppl"}, "--metric pppl: no such column; did you mean ppl?"),
    "unknown step": (SAME, {"step": "genn"}, "--step genn: no such column; did you mean gen?"),
    "unknown by": (SAME, {"by": ["loss", "gama"]}, "--by gama: no such column; did you mean gamma?"),
    "unknown seed": (SAME, {"seed": "sead"}, "--seed sead: no such column; did you mean seed?"),
    "another case": (SAME, {"metric": "PPL"}, "--metric PPL: no such column; did you mean ppl?"),
    "nothing near": (SAME, {"metric": "xyzzy"}, "no such column (known: loss, gamma, seed, gen, ppl)"),
    "one column, two parts": (SAME, {"by": ["loss", "seed"]}, "--seed seed: is given and for --by, too"),
    "one column twice": (SAME, {"by": ["loss", "loss"]}, "--by loss: is given twice"),
    "metric of text": (every("ppl", lambda _: "low"), {}, "--metric ppl: a number is needed, not 'low' (line 2)"),
    "one word among numbers": (put(7, "ppl", "n/a"), {}, "--metric ppl: a number is needed, not 'n/a' (line 7)"),
    "thousands": (put(7, "ppl", '"1 000"'), {}, "a number is needed, not '1 000' (line 7)"),
    "a word for a broken run": (put(5, "ppl", "diverged"), {}, "so in a column collapse_reason"),
    "NaN of a step": (put(5, "gen", "nan"), {}, "--step gen: a finite number is needed, not nan (line 5)"),
    "infinity of a seed": (put(5, "seed", "inf"), {}, "a finite number is needed, not inf (line 5)"),
    "empty metric": (every("ppl", lambda _: ""), {}, "--metric ppl: has no value in any row"),
    "a row twice": (put(4, "gen", "1"), {}, "line 3 and line 4 are both generation 1 of loss=ce seed=0"),
    "a label is missing in --by": (SAME, {"by": ["gamma"], "baseline": ["gamma=0.9"]}, "has no value in line 2"),
    "a gap": (without(5), {}, "loss=ce seed=0 has the steps …, 2, 4, …, not each whole number from 0 to 5"),
    "a hole in the metric": (put(5, "ppl", ""), {}, "has the steps …, 2, 4, …"),
    "strides with a gap": (
        lambda lines: every("gen", lambda g: f"{int(g) * 100}")(without(5)(lines)),
        {},
        "loss=ce seed=0 has the steps …, 2, 4, …, not each whole number from 0 to 5, counted in strides of 100",
    ),
    "strides from the first on": (every("gen", lambda g: f"{int(g) * 5 + 5}"), {}, "give the column that counts gen"),
    "from 1 on": (every("gen", lambda g: f"{int(g) + 1}"), {}, "begins at 1, and a chain begins at generation 0"),
    "before the first": (every("gen", lambda g: f"{int(g) + 1}"), {"first_step": 2}, "--first-step 2: line 2"),
    "one chain from the second on": (without(2), {"first_step": 1}, "--first-step 1: line"),
    "one chain from 1 on": (without(2), {}, "--step gen: loss=ce seed=0 begins at 1"),
    "epochs": (every("gen", lambda g: f"{int(g) / 2}"), {}, "generations are counted 0, 1, 2, …, and line 3 has 0.5"),
    "before 0": (put(2, "gen", "-1"), {}, "generations are counted 0, 1, 2, …, and line 2 has -1"),
    "step of text": (every("gen", lambda g: f"gen{g}"), {}, "--step gen: a number is needed, not 'gen0' (line 2)"),
    "no step": (put(4, "gen", ""), {}, "--step gen: has no value in line 4"),
    "one generation": (without(*range(3, 8)), {}, "loss=ce seed=0 has generation 0 alone"),
    "no seed": (put(4, "seed", ""), {}, "--seed seed: has no value in line 4"),
    "a text among seeds": (put(4, "seed", "run-0"), {}, "--seed seed: a number is needed, not 'run-0' (line 4)"),
    "no seed among texts": (
        lambda lines: put(4, "seed", "")(every("seed", lambda s: f"run-{s}")(lines)),
        {},
        "has no value in line 4",
    ),
    "half a seed": (put(4, "seed", "0.5"), {}, "a seed is a whole number, and line 4 has 0.5"),
    "no label": (put(4, "loss", ""), {}, "--by loss: has no value in line 4"),
    "a label here and not there": (put(22, "gamma", ""), {}, "--by gamma: has no value in line 22, though other rows"),
    "an empty label": (every("loss", lambda _: ""), {}, "--by loss: has no value in any row"),
    "baseline without =": (SAME, {"baseline": ["ce"]}, "--baseline ce: COLUMN=VALUE is needed, e.g. loss=…"),
    "baseline by no label": (SAME, {"baseline": ["lss=ce"]}, "lss is not among --by; did you mean loss?"),
    "baseline by a column": (SAME, {"by": ["loss"], "baseline": ["gamma=0.9"]}, "gamma is not among --by"),
    "no such baseline": (SAME, {"baseline": ["loss=cee"]}, "--baseline loss=cee: no row has that; did you mean ce?"),
    "no such number": (SAME, {"baseline": ["gamma=0.8"]}, "--baseline gamma=0.8: no row has that (known: 0.9)"),
    "text for a number": (SAME, {"baseline": ["gamma=ce"]}, "--baseline gamma=ce: no row has that (known: 0.9)"),
    "two that never meet": (SAME, {"baseline": ["loss=ce", "gamma=0.9"]}, "no chain has all of these values together"),
    "no baseline at all": (SAME, {"baseline": []}, "--baseline: COLUMN=VALUE is needed"),
    "no label at all": (SAME, {"by": []}, "--by: a column is needed"),
    "seeds without a pair": (
        lambda lines: [line.replace("ce,,", "ce,,1") if line.startswith("ce,,") else line for line in lines],
        {},
        "loss=tce gamma=0.9 seed=0 has no baseline chain of the same seed and the other columns of --by (and 2 more",
    ),
    "a label the baseline has otherwise": (
        lambda lines: [line.replace("ce,,", "ce,1.0,") for line in lines],
        {},
        "loss=tce gamma=0.9 seed=0 has no baseline chain of the same seed and the other columns of --by (and 2 more "
        "chains); those have gamma=1.0 (leave gamma empty there",
    ),
    "a label the baseline lacks": (SAME, {"baseline": ["gamma=0.9"]}, "loss=ce seed=0 has no baseline chain"),
    "no rows": (lambda lines: lines[:1], {}, "is empty: it has no row after its header"),
    "nothing": (lambda lines: [], {}, "is empty: a header and a row"),
    "blank lines": (lambda lines: ["", "  ", ""], {}, "is empty"),
    "two columns of one name": (lambda lines: ["loss,gamma,seed,gen,gen", *lines[1:]], {}, "has the column gen twice"),
    "a name of the tables": (
        lambda lines: [lines[0].replace("gamma", "status"), *lines[1:]],
        {"by": ["loss", "status"]},
        "--by status: the result tables have a column of that name",
    ),
    "a metric of the tables": (
        lambda lines: [lines[0].replace("ppl", "stage"), *lines[1:]],
        {"metric": "stage"},
        "--metric stage: the result tables have a column of that name",
    ),
    "a criterion of another column": (SAME, {"criteria": ["acc below 0.5"]}, "--metric acc: no such column"),
    "no criterion": (SAME, {"criteria": []}, "--criterion: a sentence is needed"),
    "a criterion twice": (SAME, {"criteria": ["above 3", "above 3.0"]}, "--criterion 'above 3.0': is given twice"),
    "a name with a slash": (SAME, {"name": "a/b"}, "--name a/b: name: letters (a to z), digits"),
    "a name that is taken": (SAME, {"name": "stages"}, "--name stages: name: a storage keeps something else"),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_in_columns(case: str, tmp_path: Path) -> None:
    """Each in one line that begins with the file or the option, before anything is written."""
    change, options, complaint = CASES[case]
    file = tmp_path / "history.csv"
    file.write_text("\n".join(change(csv_lines())) + "\n")
    with pytest.raises(UserError) as error:
        analysed(file, tmp_path / "runs", **options)
    assert complaint in str(error.value)
    assert str(error.value).startswith((f"{file}: ", "--"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("no.csv", None, "no.csv: not found; did you mean ni.csv?"),
        ("a.xlsx", b"PK", "a history is a .csv, .jsonl or .parquet file, a TensorBoard"),
        ("a.parquet", b"no table", "cannot be read as Parquet"),
        ("a.jsonl", b'{"gen": 0}\n[1]\n', "line 2: a mapping of columns is needed"),
        ("a.jsonl", b'{"gen": 0}\n{"gen"\n', "line 2: is not valid JSON"),
        ("a.csv", "gen,ppl\n0,1\n".encode("utf-16"), "is UTF-16 text"),
        ("a.csv", b"gen,ppl\n0,\xff\n", "line 2: is not UTF-8"),
        (
            "a.csv",
            b"loss,gamma,seed,gen,ppl\nce,,0,0,1\nce,,0,1,1,9,9\n",
            "',': line 3 has 7 values, and the header 5 ",
        ),
        ("a.events", b"", "a history is a .csv"),
        ("events.out.tfevents.1", b"not a frame of an event file at all", "is no event file of TensorBoard"),
        ("folder/notes.txt", b"", "holds no event files of TensorBoard and no .wandb files"),
    ],
)
def test_mistakes_in_files(name: str, content: bytes | None, complaint: str, tmp_path: Path) -> None:
    """A file that is not there, or not what its name says."""
    (tmp_path / "ni.csv").write_text("")
    file = tmp_path / name
    if content is not None:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        analysed(file.parent if "/" in name else file, tmp_path / "runs")
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ppl": True}, "--metric ppl: numbers are needed, and the column holds truth values"),
        ({"ppl": [1.0]}, "--metric ppl: numbers are needed, and the column holds list"),
        ({"ppl": None}, "--metric ppl: has no value in any row"),
        ({"loss": ["ce"]}, "--by loss: a number or a text is needed, and the column holds List"),
    ],
)
def test_mistakes_in_types(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    """A table with types can hold what is no number and no text."""
    pl.DataFrame([{**row, **change} for row in rows()]).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError) as error:
        read(tmp_path / "a.parquet")
    assert complaint in str(error.value)


def test_mixed_types_in_json(tmp_path: Path) -> None:
    """A metric that is a word in one line is no number there; a label of numbers and words is text."""
    lines = [json.dumps({**row, "gamma": row["gamma"] or "none"}) for row in rows()]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    history = read(tmp_path / "a.jsonl")
    assert set(history.generations["gamma"]) == {"none", "0.9"}
    assert history.terms.baseline == {"loss": "ce", "gamma": "none"}
    broken = json.dumps({**next(rows()), "ppl": "low"})
    (tmp_path / "b.jsonl").write_text("\n".join([broken, *lines[1:]]))
    with pytest.raises(UserError, match=r"a number is needed, not 'low' \(line 1\)"):
        read(tmp_path / "b.jsonl")
