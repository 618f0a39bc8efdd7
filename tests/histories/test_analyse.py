"""A history gives the numbers that a sweep with the same generations gives, wherever it is read from."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from fortifai_ray.errors import UserError
from fortifai_ray.report import print_tables
from fortifai_ray.results.reader import open_study
from fortifai_ray.statistics.conclusions import conclusions
from tests.report.studies import write_study

from .runs import analysed, csv_lines, read, rows

SWEPT = {
    "metric": "perplexity",
    "step": "generation",
    "by": ["loss.kind", "loss.gamma"],
    "baseline": ["loss.kind=cross_entropy"],
    "criteria": ["above 2x baseline generation 0"],
}


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(folder / "results" / f"{name}.parquet") for name in ("chains", "fidelity")}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "folder"])
def test_a_sweep_that_is_exported_and_analysed_has_the_same_numbers(kind: str, tmp_path: Path) -> None:
    """Onsets, statuses, intervals, ratios and sentences, to the last bit, whatever the file's kind."""
    swept = write_study(tmp_path / "swept", seeds=4, slowness={0.9: 0.1})
    generations = pl.read_parquet(swept / "results" / "generations.parquet")
    history = swept
    if kind != "folder":
        history = tmp_path / f"history.{kind}"
        {"csv": generations.write_csv, "jsonl": generations.write_ndjson, "parquet": generations.write_parquet}[kind](
            history
        )
    folder = analysed(history, tmp_path / "runs", name="again", **SWEPT)
    ours, theirs = tables(folder), tables(swept)
    keys = ["loss.kind", "loss.gamma", "seed"]
    assert ours["fidelity"]["cell"].unique().sort().to_list() == ["TCE γ=0.3", "TCE γ=0.9", "cross entropy"]
    ours["fidelity"] = ours["fidelity"].drop("cell")
    for name, drop in (("chains", ["chain_id"]), ("fidelity", [])):
        by = keys if name == "chains" else [*keys[:2], "unit"]
        assert_frame_equal(
            ours[name].drop(drop).sort(by), theirs[name].drop(drop).sort(by).select(ours[name].drop(drop).columns),
            check_exact=True, check_dtypes=False,
        )  # fmt: skip
    assert conclusions(ours["fidelity"], ours["chains"]) == conclusions(theirs["fidelity"], theirs["chains"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "\ufeff" + "\n".join(csv_lines())),
        ("a.csv", "\r\n".join(csv_lines(";")) + "\r\n"),
        ("a.csv", "\n".join(csv_lines(";")).replace(".", ",")),
        ("a.tsv", "\n".join(csv_lines("\t"))),
        ("a.csv", "\n\n".join(csv_lines("|")) + "\n\n"),
        ("a.csv", "\n".join(line.replace(",", " , ") for line in csv_lines())),
        ("a.csv", "\n".join([csv_lines()[0] + ",note", *(f'{line},"a, ""b"""' for line in csv_lines()[1:])])),
        ("a.json", json.dumps(list(rows()))),
        (
            "a.jsonl",
            "\n".join(json.dumps({**row, "gen": float(row["gen"]), "seed": str(row["seed"])}) for row in rows()),
        ),
        ("a.jsonl", "\n".join(json.dumps({k: v for k, v in row.items() if v is not None}) for row in rows())),
        ("a.csv", "\n".join([csv_lines()[0], *reversed(csv_lines()[1:])])),
        ("a.csv", "\n".join([*csv_lines(), "ce,,0,77,", ",,,,", "tce,,,,"])),
    ],
)
def test_the_same_history_in_other_clothes(name: str, content: str, tmp_path: Path) -> None:
    """Byte-order mark, separators, decimal commas, spaces, quotes, empty lines, any order; rows without a value."""
    (tmp_path / name).write_bytes(content.encode())
    (tmp_path / "plain.csv").write_text("\n".join(csv_lines()))
    found, plain = read(tmp_path / name), read(tmp_path / "plain.csv")
    assert_frame_equal(found.generations, plain.generations)
    assert found.terms == plain.terms


def test_nested_json_is_dotted(tmp_path: Path) -> None:
    """A configuration inside a line is columns by dotted path, and a dot joins no columns: each pairs by itself."""
    lines = []
    for lr in (0.1, 0.2):
        for row in rows():
            config = {"loss": row["loss"], "lr": lr, "gamma": row["gamma"]}
            lines.append(json.dumps({"config": config, "seed": row["seed"], "gen": row["gen"], "ppl": row["ppl"]}))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    labels = {"by": ["config.loss", "config.gamma", "config.lr"], "baseline": ["config.loss=ce"]}
    history = read(tmp_path / "a.jsonl", **labels)
    assert history.terms.baseline == {"config.loss": "ce", "config.gamma": None}
    assert set(history.terms.fidelity(history.terms.chains(history.generations))["n_pairs"]) == {3}
    kept = [line for line in lines if '"loss": "ce", "lr": 0.2' not in line]
    (tmp_path / "b.jsonl").write_text("\n".join(kept))
    with pytest.raises(UserError, match=r"config.lr=0.2 seed=0 has no baseline chain"):
        read(tmp_path / "b.jsonl", **labels)


def test_the_folder_is_one_that_a_sweep_leaves(tmp_path: Path) -> None:
    """It can be opened, printed and judged again; labels are called as they were; a second time replaces it."""
    from rich.console import Console

    (tmp_path / "my runs (2).csv").write_text("\n".join(csv_lines()))
    folder = analysed(tmp_path / "my runs (2).csv", tmp_path / "runs")
    assert folder == tmp_path / "runs" / "my-runs-2"
    assert (folder / "report.html").stat().st_size > 100_000
    results = open_study(folder)
    assert results.notes == []
    assert results.varied == ["loss", "gamma"]
    assert results.cells.order == ["loss=ce", "loss=tce γ=0.9"]
    assert {"loss", "gamma"} <= set(results.generations.columns)
    console = Console(width=100, record=True, quiet=True)
    print_tables(folder, console)
    shutil.copytree(folder, tmp_path / "judged")
    (tmp_path / "judged" / "results" / "chains.parquet").unlink()
    again = open_study(tmp_path / "judged", judge=True).chains
    assert again is not None
    assert_frame_equal(again, tables(folder)["chains"])
    other = analysed(tmp_path / "my runs (2).csv", tmp_path / "runs", criteria=["above 3x own generation 0"])
    assert tables(other)["chains"]["threshold"].unique().to_list() == [3.0]


def test_a_sweep_is_not_overwritten(tmp_path: Path) -> None:
    """A history does not take the folder of a study that was swept."""
    swept = write_study(tmp_path, name="quickstart")
    before = (swept / "study.yaml").read_bytes()
    (tmp_path / "a.csv").write_text("\n".join(csv_lines()))
    with pytest.raises(UserError, match="holds a study that was swept"):
        analysed(tmp_path / "a.csv", tmp_path, name="quickstart")
    assert (swept / "study.yaml").read_bytes() == before


def test_several_criteria_and_confirmations(tmp_path: Path) -> None:
    """Each criterion counts; what a sentence says of confirmations, and else what the option says."""
    (tmp_path / "a.csv").write_text("\n".join(csv_lines()))
    sentences = ["above 15", "above 15, at the first crossing", "above 2x generation 0"]
    criteria = read(tmp_path / "a.csv", criteria=sentences).terms.criteria
    assert [each.words.removeprefix("ppl ") for each in criteria] == [
        "above 15, confirmed by 1 further generation",
        "above 15, at the first crossing",
        "above 2× the baseline's generation 0, confirmed by 1 further generation",
    ]
    assert read(tmp_path / "a.csv", confirm=2).terms.criteria[0].confirm == 2  # type: ignore[union-attr]


def test_synthetic_sizes_count_where_they_are_given(tmp_path: Path) -> None:
    """Intervals are in tokens, too, where the history has ``synthetic_size_cum``; else in generations alone."""
    pl.DataFrame(list(rows())).write_parquet(tmp_path / "a.parquet")
    with_sizes = [{**row, "synthetic_size_cum": 100 * row["gen"], "unit": "tokens"} for row in rows()]
    pl.DataFrame(with_sizes).write_parquet(tmp_path / "b.parquet")
    plain, sized = (
        history.terms.fidelity(history.terms.chains(history.generations))
        for history in (read(tmp_path / "a.parquet"), read(tmp_path / "b.parquet"))
    )
    assert set(plain["unit"]) == {"generations"}
    assert set(sized["unit"]) == {"generations", "synthetic"}
    medians = sized.pivot("unit", index="loss", values="fi_median")
    assert medians["synthetic"].to_list() == pytest.approx((100 * medians["generations"]).to_list())


@pytest.mark.parametrize(("first", "stride"), [(1, 1), (100, 100), (7, 5)])
def test_steps_that_begin_later(first: int, stride: int, tmp_path: Path) -> None:
    """The first step is generation 0 where that is said, and a note says so; the onsets are those of the history that
    counts from 0."""
    late = [{**row, "gen": first + stride * row["gen"]} for row in rows()]
    with pytest.raises(
        UserError, match=f"begins at {first}, and a chain begins at generation 0: give that step as --first-step"
    ):
        read(late)
    found, plain = read(late, first_step=first), read(list(rows()))
    assert_frame_equal(found.generations, plain.generations)
    assert f"gen {first} is generation 0" in found.notes
    folder = analysed(late, tmp_path, first_step=first)
    assert yaml.safe_load((folder / "study.yaml").read_text())["history"]["first_step"] == first


def test_other_rows_in_memory_do_not_take_the_place_of_the_first(tmp_path: Path) -> None:
    """The same rows, in whatever form, go to the same folder again; others need a name."""
    first = analysed(list(rows()), tmp_path)
    assert analysed(pl.DataFrame(list(rows())), tmp_path, criteria=["above 3x own generation 0"]) == first
    others = [{**row, "ppl": 2 * row["ppl"]} for row in rows()]
    with pytest.raises(UserError, match="history holds another history, other rows in memory; give --name: history re"):
        analysed(others, tmp_path)
    assert analysed(others, tmp_path, name="others") == tmp_path / "others"
    assert analysed(others, tmp_path, name="history") == first
