"""Studies and histories on an object store, from Python: what is asked for is fetched, what is written is uploaded."""

import json
from pathlib import Path

import polars as pl
import pytest
from tokenizers import Tokenizer, models

from fortifai_ray import UserError, analyse, open_study
from fortifai_ray.results.schema import read_table, write_table
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.mirror import StudyMirror
from fortifai_ray.storage.store import StageKey, StageStore
from tests.histories.runs import csv_lines
from tests.report.studies import write_study


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
