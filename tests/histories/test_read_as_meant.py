"""What a history leaves open is read as it was meant, and a note says so; it never makes a collapse a survival."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from fortifai_ray.errors import UserError
from fortifai_ray.histories.analyse import History
from fortifai_ray.results.reader import open_study

from .runs import analysed, read, rows

Row = dict[str, Any]
NAN, INF = float("nan"), float("inf")


def history(change: Callable[[Row], Row | None], **asked: Any) -> History:
    return read([new for row in rows() if (new := change(row)) is not None], **asked)


def chains(found: History) -> pl.DataFrame:
    return found.terms.chains(found.generations)


def test_either_of_two_metrics_is_judged_where_both_are_measured() -> None:
    """A column that is there at every third step is refused, whoever else is true; at strides of three both count."""
    either = {"criteria": ["above 400 or acc below 0.5"]}

    def third(row: Row) -> Row:
        return {**row, "acc": 0.9 - 0.2 * row["gen"] if row["gen"] % 3 == 0 else None}

    with pytest.raises(UserError, match=r"--metric acc: loss=ce seed=0 has no value at generation 1 \(and 5 more ch"):
        history(third, **either)
    for missing in (lambda row: row["gen"] == 0, lambda row: row["loss"] == "tce"):
        with pytest.raises(UserError, match=r"acc: loss=.* has no value at generation 0"):
            history(lambda row: {**row, "acc": None if missing(row) else 0.9}, **either)  # noqa: B023
    found = history(lambda row: third(row) if row["gen"] % 3 == 0 else None, **either, confirm=0)
    assert chains(found)["status"].to_list() == ["collapsed"] * 6
    assert found.notes == ["gen counts in strides of 3: generation n is gen 3·n"]
    found = history(lambda row: {**row, "acc": None if row["gen"] > 3 else 0.9}, **either)
    assert found.notes[0].startswith("acc: loss=ce seed=0 has no value from generation 4 on (and 5 more chains)")
    assert set(chains(found)["fi_generations"]) == {3.0}


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("from_", [2, 5])
def test_a_broken_metric_counts_as_beyond_the_limit(value: float, from_: int) -> None:
    """As in a sweep: in either direction, confirmed by the next one or by ``collapse_reason``, and told."""

    def broken(row: Row) -> Row:
        return {**row, "ppl": value if row["gen"] >= from_ else 10.0}

    for criterion in ("above 2x own generation 0", "below 5"):
        found = history(broken, criteria=[criterion])
        assert set(chains(found)["status"]) == {"collapsed" if from_ < 5 else "unconfirmed"}
        assert f"NaN or infinite in generation {from_} of loss=ce seed=0 (and 5 more chains)" in found.notes[0]
        said = history(
            lambda row: {**broken(row), "collapse_reason": "diverged" if row["gen"] == from_ else None}
            if row["gen"] <= from_ else None, criteria=[criterion],
        )  # fmt: skip
        assert chains(said)["onset"].to_list() == [float(from_)] * 6
        assert said.notes == []


def test_rows_without_a_value_are_told(tmp_path: Path) -> None:
    """They shorten a chain: the note names the first, and how a run that broke down is told; the report has it."""
    table = pl.DataFrame([{**row, "ppl": None if row["gen"] > 3 and row["seed"] else row["ppl"]} for row in rows()])
    table.write_parquet(tmp_path / "a.parquet")
    folder = analysed(tmp_path / "a.parquet", tmp_path / "runs")
    note = "8 rows without a value of ppl left out (the first is row 11); where a run broke down, say so in a column"
    assert open_study(folder).notes[0].startswith(note)


@pytest.mark.parametrize("stride", [2, 100, 250])
def test_steps_in_strides_are_generations(stride: int) -> None:
    """Of all chains alike, whatever their lengths; the numbers are those of generations."""
    found = history(lambda row: {**row, "gen": row["gen"] * stride} if row["gen"] < 6 - row["seed"] else None)
    plain = history(lambda row: row if row["gen"] < 6 - row["seed"] else None)
    assert_frame_equal(found.generations, plain.generations)
    assert found.notes == [f"gen counts in strides of {stride}: generation n is gen {stride}·n"]
    assert plain.notes == []


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["seed_0", "seed_1", "seed_2"], [0, 1, 2]),
        (["s7", "s42", "s1"], [7, 42, 1]),
        (["b", "a", "c"], [1, 0, 2]),
        (["x1", "y1", "z1"], [0, 1, 2]),
    ],
)
def test_seeds_of_text_are_numbered(texts: list[str], numbers: list[int]) -> None:
    """By what they end in if that tells them apart, else in their order."""
    found = history(lambda row: {**row, "seed": texts[row["seed"]]})
    assert_frame_equal(found.generations, history(lambda row: {**row, "seed": numbers[row["seed"]]}).generations)
    assert f"{texts[1]} is {numbers[1]}" in found.notes[0]


def test_a_chain_without_its_pair_is_left_out() -> None:
    """The others are judged, and a note names it."""
    found = history(lambda row: None if (row["loss"], row["seed"]) == ("ce", 2) else row)
    assert found.notes == ["loss=tce gamma=0.9 seed=2: left out, for there is no baseline chain of the same seed"]
    assert found.generations["chain_id"].n_unique() == 4


@pytest.mark.parametrize("kind", ["polars", "lazy", "pandas", "rows"])
def test_rows_in_memory(kind: str, tmp_path: Path) -> None:
    """A frame of either library and a list of mappings give what the file gives, in a folder ``history``."""
    table = pl.DataFrame(list(rows()))
    table.write_parquet(tmp_path / "a.parquet")
    given: Any = {"polars": table, "lazy": table.lazy(), "rows": list(rows())}.get(kind)
    if kind == "pandas":
        given = pytest.importorskip("pandas").DataFrame(list(rows()))
    assert_frame_equal(read(given).generations, read(tmp_path / "a.parquet").generations)
    if kind == "rows":
        assert analysed(given, tmp_path / "runs") == tmp_path / "runs" / "history"


@pytest.mark.parametrize("given", [None, 3, {"ppl": [1]}, b"a.csv", object(), [1], [], pl.DataFrame()])
def test_what_is_no_history(given: Any) -> None:
    """One line that begins with the argument's name."""
    with pytest.raises(UserError, match=r"^history: [^\n]+$"):
        read(given)


def test_another_history_of_the_same_name_is_refused(tmp_path: Path) -> None:
    """Unless it is asked for by its name; the same one is judged anew."""
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        pl.DataFrame(list(rows())).write_parquet(tmp_path / place / "mine.parquet")
    ours, theirs = (tmp_path / place / "mine.parquet" for place in ("a", "b"))
    folder = analysed(ours, tmp_path / "runs")
    assert analysed(ours, tmp_path / "runs", criteria=["above 30"]) == folder
    with pytest.raises(UserError, match=r"holds another history, .*a/mine\.parquet; give --name"):
        analysed(theirs, tmp_path / "runs")
    assert analysed(theirs, tmp_path / "runs", name="mine") == folder
