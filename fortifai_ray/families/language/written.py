"""Text that a chain of a finished study wrote, as the corpus of another: training on *another* model's output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import WrittenBy
from fortifai_ray.results.schema import read_table
from fortifai_ray.storage.location import split_study
from fortifai_ray.storage.mirror import opened_study
from fortifai_ray.storage.store import Stage, StageStore


def read_written(source: WrittenBy) -> list[str]:
    """The documents that the chain wrote in the generation asked for, in the order of their prompts; none is empty.

    Raises :class:`UserError` where the study, the chain, the generation or its text is not there, or where several
    chains are meant.
    """
    import json

    import pyarrow.parquet as pq

    store = StageStore(split_study(source.study)[0])
    with opened_study(source.study) as study:
        row = _row(study, source)
    written = _stage(store, row["synthetic_stage"], study)
    manifest = json.loads((written.path / "manifest.json").read_text())
    inputs = manifest["inputs"]
    if manifest["kind"] == "curate":  # the rows that were kept; what they are written in, the whole corpus knows
        whole = _stage(store, inputs["written"], study)
        inputs = json.loads((whole.path / "manifest.json").read_text())["inputs"]
    tokenizer = _tokenizer(_stage(store, inputs["corpus"], study))
    rows = pq.read_table(written.path / "corpus", columns=["row", "generated_ids"]).sort_by("row")
    texts: list[str] = tokenizer.decode_batch(rows["generated_ids"].to_pylist(), skip_special_tokens=True)
    return [text for text in texts if text.strip()]


def _row(study: Path, source: WrittenBy) -> Mapping[str, Any]:
    import polars as pl

    where = f"corpus.written_by: {study}"
    table = read_table(study, "generations", rows=pl.col("generation") == source.generation)
    if table is None:
        raise UserError(f"{where}: there is no study there with results; give STORAGE/NAME of one that has run")
    for key, value in source.where.items():
        if key not in table.columns:
            raise UserError(f"{where}: where: there is no {key} in its results ({', '.join(table.columns[:12])}, …)")
        table = table.filter(pl.col(key) == value)
    if table.height != 1:
        raise UserError(
            f"{where}: {table.height} chains have a generation {source.generation} with {dict(source.where)}; "
            "exactly one must be meant: give generation, and where: {seed: …, …}"
        )
    row = table.row(0, named=True)
    if not row.get("synthetic_stage"):
        raise UserError(f"{where}: generation {source.generation} wrote no text")
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
