"""Studies and histories on an object store, from Python: what is asked for is fetched, what is written is uploaded."""

import json
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from tokenizers import Tokenizer, models

from fortifai_ray import UserError, analyse, open_study
from fortifai_ray.results.schema import read_table, write_table
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.mirror import StudyMirror
from fortifai_ray.storage.objects import connect
from fortifai_ray.storage.store import StageKey, StageStore
from tests.histories.runs import chains, csv_lines, name_of, read
from tests.report.studies import write_study

from .conftest import S3


def stored(storage: str, adapter: bool) -> dict[str, str]:
    """The stages of a generation of a language model, as a sweep stores them; returns their hashes."""
    store = StageStore(storage)

    def corpus(folder: Path) -> dict[str, str]:
        (folder / "tokenizer").mkdir()
        Tokenizer(models.WordLevel({"no": 0, "text": 1}, unk_token="no")).save(str(folder / "tokenizer/tokenizer.json"))
        return {}

    def model(folder: Path) -> dict[str, str]:
        (folder / "config.json").write_text("{}")
        return {}

    def fitted(folder: Path) -> dict[str, str]:
        model(folder)
        if adapter:
            (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base.hash, "r": 4}))
        return {}

    def written(folder: Path) -> dict[str, str]:
        (folder / "corpus").mkdir()
        rows = [{"row": row, "generated_ids": [1] * row} for row in (1, 0)]
        pl.DataFrame(rows, schema_overrides={"generated_ids": pl.List(pl.Int32)}).write_parquet(
            folder / "corpus/part-00000.parquet"
        )
        return {}

    human = store.step(StageKey("corpus", 1, {}), corpus)
    base = store.step(StageKey("model", 1, {"corpus": human.hash}), model)
    fit = store.step(StageKey("fit", 1, {"corpus": human.hash, "start_from": base.hash}), fitted)
    whole = store.step(StageKey("generate", 1, {"corpus": human.hash, "model": fit.hash}), written)
    kept = store.step(StageKey("curate", 1, {"written": whole.hash}), written)
    return {"stage": fit.hash, "synthetic_stage": kept.hash}


@pytest.mark.parametrize("adapter", [False, True])
def test_a_study_on_a_store(storage: str, tmp_path: Path, adapter: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine opens it by its address: tables, a checkpoint with its tokenizer, a corpus with its text."""
    place = Storage.of(storage)
    folder = write_study(place.folder)
    table = read_table(folder, "generations")
    assert table is not None
    hashes = {name: pl.lit(value) for name, value in stored(storage, adapter).items()}
    write_table(folder, "generations", table.with_columns(**hashes))
    StudyMirror(place, "quickstart").push()

    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "another machine"))
    study = open_study(f"{storage}/quickstart")
    assert study.folder.is_relative_to(tmp_path / "another machine")
    chain = study.chain("TCE γ=0.3", 0)
    files = {path.name for path in chain.checkpoints[-1].iterdir()}
    assert files == {"config.json", "tokenizer.json", *(["adapter_config.json"] if adapter else [])}
    if adapter:
        named = json.loads((chain.checkpoints[0] / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert (Path(named) / "config.json").is_file()
    assert pl.read_parquet(chain.corpora[0]).height == 2
    assert chain.dataset(0)["text"][:] == ["", "text"]
    with pytest.raises(UserError, match="there is no study there"):
        open_study(f"{storage}/another")


def test_a_history_goes_to_a_store(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables and the report are uploaded; a study that was swept there is not overwritten."""
    (tmp_path / "a.csv").write_text("\n".join(csv_lines()))

    def judge(name: str) -> None:
        columns = {"metric": "ppl", "step": "gen", "by": ["loss", "gamma"], "seed": "seed", "baseline": "loss=ce"}
        analyse(tmp_path / "a.csv", **columns, criterion="above 3", storage=storage, name=name)  # type: ignore[arg-type]

    judge("mine")
    write_study(Storage.of(storage).folder)
    StudyMirror(Storage.of(storage), "quickstart").push()
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "another machine"))
    study = open_study(f"{storage}/mine")
    assert study.fidelity.height == 2
    assert (study.folder / "report.html").is_file()
    with pytest.raises(UserError, match="holds a study that was swept"):
        judge("quickstart")


def test_a_history_on_a_store(s3: S3, storage: str, tmp_path: Path) -> None:
    """A file, a study's folder and a folder of runs at an address are what they are here; nothing is written there."""
    from tensorboardX import SummaryWriter

    (tmp_path / "runs.csv").write_text("\n".join(csv_lines()))
    logged = {name_of(*key): values for key, values in chains().items()}
    for name, values in logged.items():
        with SummaryWriter(str(tmp_path / "logs" / name)) as writer:
            for step, value in enumerate(values):
                writer.add_scalar("ppl", value, step)
    (tmp_path / "logs" / "model.safetensors").write_bytes(b"x" * 100)
    swept = write_study(tmp_path, seeds=2)
    for folder in ("logs", swept.name):
        for file in (path for path in (tmp_path / folder).rglob("*") if path.is_file()):
            connect(storage).upload(file, file.relative_to(tmp_path).as_posix())
    connect(storage).upload(tmp_path / "runs.csv", "runs.csv")
    before = set(s3.files(storage))
    asked = {"by": ["loss.kind", "loss.gamma"], "baseline": ["loss.kind=cross_entropy"], "metric": "perplexity"}
    for name, options in (("runs.csv", {}), ("logs", {"step": "step"}), (swept.name, {**asked, "step": "generation"})):
        there, here = read(f"{storage}/{name}", **options), read(tmp_path / name, **options)
        assert_frame_equal(there.generations, here.generations)
        assert there.source == f"{storage}/{name}"
    assert set(s3.files(storage)) == before
    with pytest.raises(UserError, match=r"s3://.*/run.csv: not found; did you mean runs.csv\?"):
        read(f"{storage}/run.csv")
    with pytest.raises(UserError, match=r"^s3://[^ ]*/runs.csv: --by los: no such column"):
        read(f"{storage}/runs.csv", by=["los"], baseline=["los=ce"])
    with pytest.raises(UserError, match="gs://…: such a store is not known"):
        read("gs://bucket/runs.csv")
    with pytest.raises(UserError, match="names a bucket"):
        read("s3://bucket")
