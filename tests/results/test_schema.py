"""The contract of the result tables: one list of columns, one derivation of the varied keys, one reader and writer."""

from pathlib import Path

import polars as pl
import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.results import schema

VARY = {
    "loss": (
        {"vary": {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.3}]}},
        ["loss.kind", "loss.gamma"],
    ),
    "dotted": ({"vary": {"regime.synthetic_ratio": [0.5, 1.0], "seed": [0, 1]}}, ["regime.synthetic_ratio", "seed"]),
    "range": ({"vary": {"seed": {"start": 0, "count": 1000}}}, ["seed"]),
    "plain": ({"vary": {"samples_per_generation": [10, 100]}}, ["samples_per_generation"]),
    "section": (
        {"vary": {"family": [{"kind": "kde", "data": {"shape": "ring"}}]}},
        ["family.kind", "family.data.shape"],
    ),
    "boundary": (
        {"vary": {"loss.kind": ["tce"]}, "search": {"kind": "boundary", "over": "regime.synthetic_ratio"}},
        ["loss.kind", "regime.synthetic_ratio", "seed"],
    ),
    "optimise": (
        {
            "vary": {"seed": [0, 1]},
            "baseline": {"loss.kind": "cross_entropy"},
            "search": {"kind": "optimise", "over": {"loss.gamma": [0.1, 0.9]}},
        },
        ["seed", "loss.kind", "loss.gamma"],
    ),
    "nothing": ({"vary": None, "search": None}, []),
}


@pytest.mark.parametrize("case", VARY)
def test_varied_keys(case: str) -> None:
    study, keys = VARY[case]
    assert schema.varied_keys(study) == keys


def test_columns_of_generations_are_those_of_the_design() -> None:
    columns = list(schema.generations_schema(["loss.gamma", "training.epochs", "seed"], ["perplexity"]))
    assert columns[:9] == ["chain_id", "generation", "seed", *schema.RECIPE_COLUMNS, "training.epochs"]
    assert columns[9:15] == [*schema.MEASURED_COLUMNS[:1], "unit", *schema.MEASURED_COLUMNS[1:4], "perplexity"]
    assert columns[15:] == [
        schema.LINEAGE,
        *("train_seconds", "generate_seconds", "evaluate_seconds", "reused", "computed_seconds", "world_size"),
        *("ended", "collapse_reason", "stage", "synthetic_stage"),
    ]
    assert schema.metric_columns(columns, ["training.epochs"]) == ["perplexity"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    table = pl.DataFrame({"chain_id": ["a"], "generation": [0], "perplexity": [3.0]})
    assert schema.read_table(tmp_path, "generations") is None
    schema.write_table(tmp_path, "generations", table)
    assert schema.read_table(tmp_path, "generations", required=["chain_id"]).equals(table)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"generations.parquet lacks the columns kl, seed: sweep the study again$"):
        schema.read_table(tmp_path, "generations", columns=["seed"], required=["kl"])


@pytest.mark.parametrize("metadata", [None, {"fortifai.table_version": "1"}])
def test_a_table_of_another_version_is_refused_in_one_line(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "chains.parquet"
    pl.DataFrame({"loss": ["tce"]}).write_parquet(path, metadata=metadata)
    with pytest.raises(UserError) as error:
        schema.read_table(tmp_path, "chains")
    assert str(error.value) == (
        f"{path} was written by an older version (its columns have other names): sweep the study again; "
        "nothing is recomputed"
    )


def test_what_is_no_parquet_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "chains.parquet").write_text("no\ntable")
    with pytest.raises(UserError, match=r"chains.parquet cannot be read as Parquet: [^\n]+$"):
        schema.read_table(tmp_path, "chains")


def test_part_files_are_merged_the_later_row_replacing_the_earlier(tmp_path: Path) -> None:
    folder = tmp_path / "a[*]"  # no pattern, wherever it is read

    def rows(*values: tuple[str, int, float]) -> pl.DataFrame:
        return pl.DataFrame(values, schema=["chain_id", "generation", "perplexity"], orient="row")

    schema.write_part(folder, "generations", 1, rows(("a", 0, 1.0), ("a", 1, 2.0)))
    schema.write_part(folder, "generations", 2, rows(("a", 1, 3.0)).with_columns(kl=pl.lit(0.5)))
    merged = schema.read_table(folder, "generations")
    assert merged is not None
    assert merged.rows() == [("a", 0, 1.0, None), ("a", 1, 3.0, 0.5)]
    schema.write_table(folder, "generations", rows(("b", 0, 9.0), ("a", 0, 7.0)))
    merged = schema.read_table(folder, "generations", columns=["perplexity"])
    assert merged is not None
    assert merged.to_dict(as_series=False) == {"perplexity": [9.0, 1.0, 3.0]}
    samples = pl.DataFrame({"chain_id": ["a", "a"], "generation": [0, 0], "row": [0, 1], "generated_text": ["x", "y"]})
    for number in (1, 2):
        schema.write_part(folder, "samples", number, samples)
    assert schema.read_table(folder, "samples").equals(samples)  # type: ignore[union-attr]
