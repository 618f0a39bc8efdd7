"""Text that a chain of a finished study generated, as the corpus of another: training on *another* model's output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import WrittenBy
from fortifai_ray.results.schema import equals, read_table
from fortifai_ray.storage.location import split_study
from fortifai_ray.storage.mirror import opened_study
from fortifai_ray.storage.store import Stage, StageStore
from fortifai_ray.validation import hint


def read_written(source: WrittenBy) -> list[str]:
    """The non-empty documents that a chain generated after the given generation, in the order of their prompts.

    Raises:
        UserError: the study, the chain, the generation or its text does not exist, or several chains match ``where``.
    """
    import json

    import pyarrow.parquet as pq

    store = StageStore(split_study(source.study)[0])
    with opened_study(source.study) as study:
        row = _row(study, source)
    written = _stage(store, row["synthetic_stage"], study)
    manifest = json.loads((written.path / "manifest.json").read_text())
    while manifest["kind"] == "curate":  # its rows are those that were kept; only the whole corpus names its tokenizer
        whole = _stage(store, manifest["inputs"]["written"], study)
        manifest = json.loads((whole.path / "manifest.json").read_text())
    inputs = manifest["inputs"]
    tokenizer = _tokenizer(_stage(store, inputs["corpus"], study))
    rows = pq.read_table(written.path / "corpus", columns=["row", "generated_ids"]).sort_by("row")
    texts: list[str] = tokenizer.decode_batch(rows["generated_ids"].to_pylist(), skip_special_tokens=True)
    return [text for text in texts if text.strip()]


def _row(study: Path, source: WrittenBy) -> Mapping[str, Any]:
    import polars as pl

    where = f"corpus.written_by: {study}"
    table = read_table(study, "generations", rows=pl.col("generation") == source.generation)
    if table is None:
        raise UserError(f"{where}: this folder holds no results; give STORAGE/NAME of a study that has run")
    for key, value in source.where.items():
        if key not in table.columns:
            raise UserError(f"{where}: where: its results have no key {key}{hint(key, table.columns)}")
        table = table.filter(equals(key, table.schema[key], value))
    if table.height != 1:
        raise UserError(
            f"{where}: {table.height} chains with {dict(source.where)} have a generation {source.generation}, and "
            "exactly one is needed: narrow where, e.g. {seed: 0}"
        )
    row = table.row(0, named=True)
    if not row.get("synthetic_stage"):
        raise UserError(f"{where}: no text was generated after generation {source.generation}")
    return row


def _stage(store: StageStore, stage_hash: str, study: Path) -> Stage:
    stage = store.open(stage_hash)
    if stage is None:
        raise UserError(
            f"corpus.written_by: {study}: stage {stage_hash} is no longer in its store; run the study again"
        )
    return stage


def _tokenizer(corpus: Stage) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(corpus.path / "tokenizer" / "tokenizer.json"))
