"""``fortifai evaluate``: what it is given, what it writes."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import polars
import pytest
from engines.gguf_writing import make_llama, write_gguf
from rich.console import Console
from safetensors.torch import load_file, save_file

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.kr_questions import Question, save_questions
from fortifai_ray.families.language.evaluate import (
    check_output,
    evaluate_checkpoints,
    find_tokenizer,
    load_benchmarks,
    print_evaluation,
    write_evaluation,
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of random weights in a store's layout: the tokenizer lies with the corpus that their stages name."""
    import torch
    import transformers

    from fortifai_ray.families.language.config import CorpusConfig, ModelConfig
    from fortifai_ray.families.language.corpus import prepare_corpus
    from fortifai_ray.storage.store import StageKey, StageStore

    store = StageStore(tmp_path_factory.mktemp("store"))
    corpus = prepare_corpus(CorpusConfig(source="pydoc"), ModelConfig(preset="llama-tiny", vocab_size=512), store)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        initializer_range=0.3,
    )  # fmt: skip
    folders = []
    for seed in (0, 1):

        def compute(folder: Path, seed: int = seed) -> dict[str, Any]:
            torch.manual_seed(seed)
            transformers.LlamaForCausalLM(config).save_pretrained(folder)
            return {}

        folders.append(store.step(StageKey("model", 1, {"corpus": corpus.hash, "seed": seed}), compute).path)
    return folders


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty questions, the last of which has no false continuation."""
    path = tmp_path_factory.mktemp("exam") / "questions.json"
    asked = [Question("The list holds", f"{n} names of cats.", f"{n + 3} names of dogs.", n) for n in range(19)]
    save_questions([*asked, Question("The list holds", "nothing.", "", 19)], path)
    return path


def test_a_table_intervals_and_a_paired_test(checkpoints: list[Path], exam: Path, tmp_path: Path) -> None:
    """Each checkpoint's accuracies, counts and McNemar's test; the same in JSON and Parquet."""
    told: list[str] = []
    found = evaluate_checkpoints(checkpoints, load_benchmarks([f"kr_test={exam}"]), announce=told.append)
    assert told == [f"evaluating {path.name}" for path in checkpoints]
    rows = found.rows()
    accuracies = ("accuracy", "accuracy_fortifai", "accuracy_fortifai_left", "accuracy_per_byte")
    names = [f"kr_{name}" for name in (*accuracies, "ties")]
    assert [row["metric"] for row in rows] == names * 2
    assert {(row["scored"], row["skipped"]) for row in rows} == {(19, 1)}
    first, second = rows[0], rows[len(names)]
    test = next(row.test for row in found.comparisons if row.metric == "kr_accuracy")
    assert test.items == 19
    assert first["value"] - second["value"] == pytest.approx((test.only_first - test.only_second) / 19)
    assert test.only_first + test.only_second > 0
    write_evaluation(found, tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["rows"] == rows
    assert written["comparisons"][0]["test"]["items"] == 19
    reasons = written["details"][checkpoints[0].name]["entries"][0]["skipped_reasons"]
    assert reasons == [{"position": 19, "reason": "it has no sentence_false"}]
    write_evaluation(found, tmp_path / "out.parquet")
    assert polars.read_parquet(tmp_path / "out.parquet").to_dicts() == rows
    shown = io.StringIO()
    print_evaluation(found, Console(file=shown, width=400))
    assert "McNemar" in shown.getvalue()
    assert f"{test.p_value:.3g}" in shown.getvalue()


def test_a_checkpoint_from_elsewhere_brings_its_tokenizer(checkpoints: list[Path], tmp_path: Path) -> None:
    """Its own folder comes first, then the corpus of its stage; else the user is asked for one."""
    tokenizer = find_tokenizer(checkpoints[0])
    assert (tokenizer / "tokenizer.json").is_file()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(checkpoints[0], elsewhere, ignore=shutil.ignore_patterns("manifest.json"))
    with pytest.raises(UserError, match=r"has no tokenizer .* --tokenizer"):
        find_tokenizer(elsewhere)
    shutil.copy(tokenizer / "tokenizer.json", elsewhere)
    assert find_tokenizer(elsewhere) == elsewhere


def test_a_gguf_without_a_tokenizer_is_named_itself(
    exam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the folder in the cache that it is made into."""
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "cache"))
    file, config = write_gguf(tmp_path / "model.gguf", make_llama()), load_benchmarks([f"kr_test={exam}"])
    with pytest.raises(UserError, match=rf"^evaluate: {file} has no tokenizer .* --tokenizer$"):
        evaluate_checkpoints([file], config)


def test_tasks_from_a_file(exam: Path, tmp_path: Path) -> None:
    """A list of benchmarks alone, or the evaluation section of a study file."""
    entry = {"task": "kr_test", "path": str(exam), "fractions": 2}
    alone, study = tmp_path / "alone.yaml", tmp_path / "study.yaml"
    alone.write_text(json.dumps({"benchmarks": [entry], "batch_size": 3}))
    study.write_text(json.dumps({"name": "s", "evaluation": {"benchmarks": [entry], "sample_texts": 4}}))
    assert load_benchmarks([str(alone)]).batch_size == 3
    assert load_benchmarks([str(study)]).benchmarks == load_benchmarks([str(alone)]).benchmarks


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "--tasks: give at least one"),
        (["mmlu=x"], "there is no task mmlu (known: blimp, gsm8k"),
        (["blipm=x"], "there is no task blipm; did you mean blimp?"),
        (["blimp=nowhere"], "benchmarks.0.path: there is no nowhere"),
        (["nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["FILE:["], "is not valid YAML"),
        (["FILE:a: 1"], "a list `benchmarks` is needed"),
        (["FILE:benchmarks: [{task: x}]"], "benchmarks.0.task: there is no x (known: blimp, gsm8k"),
        (["FILE:{benchmarks: [{task: kr_test}], benchmarks: []}"], "the key 'benchmarks' is given twice"),
        (["FILE:benchmarks: [{task: kr_test, limits: 1}]"], "benchmarks.0.limits: unknown key"),
        (["FILE:{benchmarks: [{task: kr_test}], devices: 1}"], "devices: unknown key"),
    ],
)
def test_a_mistake_in_the_tasks_is_one_line(tmp_path: Path, tasks: list[str], message: str) -> None:
    """The file and the key."""
    if tasks and tasks[0].startswith("FILE:"):
        (tmp_path / "tasks.yaml").write_text(tasks[0].removeprefix("FILE:"))
        tasks = [str(tmp_path / "tasks.yaml")]
    with pytest.raises(UserError) as error:
        load_benchmarks(tasks)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistake_in_the_checkpoints_is_one_line(checkpoints: list[Path], exam: Path, tmp_path: Path) -> None:
    """Before a model is loaded."""
    config = load_benchmarks([f"kr_test={exam}"])
    torn = tmp_path / "torn"
    shutil.copytree(checkpoints[0], torn)
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:-100])
    for given, message in (
        ([], "at least one checkpoint"),
        ([tmp_path / "none"], "there is no folder"),
        ([tmp_path], "no config.json"),
        ([torn], "a complete checkpoint is needed"),
        ([checkpoints[0]] * 2, "is given twice"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_checkpoints(given, config)


def test_only_a_chains_own_model_may_have_diverged(checkpoints: list[Path], exam: Path, tmp_path: Path) -> None:
    """Numbers that are not finite are measured in a stage of a store, and are a mistake in a checkpoint from elsewhere;
    so is a tokenizer with more tokens than the model."""
    config, tokenizer = load_benchmarks([f"kr_test={exam}"]), find_tokenizer(checkpoints[0])
    stage = tmp_path / "stage"
    shutil.copytree(checkpoints[0], stage)
    weights = load_file(stage / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, stage / "model.safetensors")
    (row, *_) = evaluate_checkpoints([stage], config, tokenizer=tokenizer).rows()
    assert row["value"] == 0.0
    (stage / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"evaluate: .*model\.norm\.weight holds 1 numbers that are not finite"):
        evaluate_checkpoints([stage], config, tokenizer=tokenizer)
    larger = tmp_path / "larger"
    shutil.copytree(tokenizer, larger)
    content = json.loads((larger / "tokenizer.json").read_text())
    content["model"]["vocab"]["zzzz"] = 512
    (larger / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the model has 512 tokens .* has 513"):
        evaluate_checkpoints([checkpoints[0]], config, tokenizer=larger)


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    """By its ending and its folder."""
    for path, message in ((tmp_path / "x.csv", ".json"), (tmp_path / "no" / "x.json", "there is no folder")):
        with pytest.raises(UserError, match=message):
            check_output(path)
