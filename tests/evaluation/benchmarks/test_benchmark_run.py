"""Runs of the benchmarks on a small checkpoint: counts, traps and quiet."""

import json
import shutil
import socket
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.config import BenchmarksConfig
from fortifai_ray.evaluation.benchmarks.run import load_checkpoint, run_benchmarks

PAIRS = [
    {"sentence_good": "Who ate the fish?", "sentence_bad": "Who the fish ate?"},
    {"sentence_good": "The cats sleep on the mat.", "sentence_bad": "The cats sleeps on the mat."},
    {"sentence_good": "She saw herself there.", "sentence_bad": "She saw himself there."},
]


@pytest.fixture
def blimp(tmp_path: Path) -> dict[str, Any]:
    """Two paradigms of three and two pairs; one sentence of the second is longer than the model's context."""
    folder = tmp_path / "blimp"
    folder.mkdir()
    long = [PAIRS[0], {**PAIRS[1], "sentence_bad": "The cats sleeps on the mat. " * 60}]
    for name, rows in (("short", PAIRS), ("long", long)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"task": "blimp", "path": str(folder)}


def _config(*entries: dict[str, Any]) -> BenchmarksConfig:
    return BenchmarksConfig.model_validate({"benchmarks": entries, "batch_size": 4})


def _texts() -> list[str]:
    return [topics[name] for name in sorted(topics)]


def test_counts_and_names(checkpoint: Path, blimp: dict[str, Any], wikitext: Path) -> None:
    """What was scored and cut is part of the result; BLiMP's accuracy is the mean over its paradigms."""
    report = run_benchmarks(checkpoint, _config(blimp, {"task": "wikitext", "path": str(wikitext)}))
    metrics = report.metrics()
    assert (metrics["blimp_scored"], metrics["blimp_truncated"], metrics["blimp_skipped"]) == (5, 1, 0)
    parts = [metrics[f"blimp_accuracy_{name}"] for name in ("long", "short")]
    assert metrics["blimp_accuracy"] == pytest.approx(sum(parts) / 2)  # type: ignore[arg-type]
    assert len(report.answers["blimp_accuracy"]) == 5
    assert metrics["wikitext_scored"] == 2
    details = report.details()
    assert [entry["windowed"] for entry in details["entries"]] == [0, 1]
    assert details["entries"][0]["lm_eval"] == "0.4.13"
    assert set(details["entries"][0]["task_sha256"]) == {"fortifai_blimp_long", "fortifai_blimp_short"}
    json.dumps(details, allow_nan=False)


def test_rows_with_an_empty_ending_are_skipped_and_counted(checkpoint: Path, hellaswag: Path, tmp_path: Path) -> None:
    """HellaSwag's own preprocessing takes out what is in brackets, and lm-evaluation-harness fails where nothing is
    left: the other rows are scored as they are alone."""
    first, *others = map(json.loads, hellaswag.read_text().splitlines())
    empty = [{**first, "endings": ["a", "b", "c", ending]} for ending in ("", " \n", "[header]", "[a] [b]")]
    path = tmp_path / "h.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (*empty[:3], first, empty[3], *others)))
    reports = [run_benchmarks(checkpoint, _config({"task": "hellaswag", "path": str(at)})) for at in (path, hellaswag)]
    assert reports[0].answers == reports[1].answers
    skipped = [report.metrics()["hellaswag_skipped"] for report in reports]
    assert skipped == [4, 0]
    reasons = reports[0].details()["entries"][0]["skipped_reasons"]
    assert reasons[3] == {"position": "line 5", "reason": "ending 4 is empty"}
    path.write_text(json.dumps(empty[0]))
    with pytest.raises(UserError, match="no row can be scored"):
        run_benchmarks(checkpoint, _config({"task": "hellaswag", "path": str(path)}))


def test_an_answer_without_tokens_is_refused(checkpoint: Path, hellaswag: Path, tmp_path: Path) -> None:
    """A tokenizer may leave nothing of an answer: one line, where lm-evaluation-harness stops on an assertion."""
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": " zap"}, "content": ""}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    row = json.loads(hellaswag.read_text().splitlines()[0])
    (tmp_path / "h.jsonl").write_text(json.dumps({**row, "endings": ["a", "b", "c", "zap"]}))
    with pytest.raises(UserError, match=r"answer has no token.*Removing ice.*remove its row"):
        run_benchmarks(folder, _config({"task": "hellaswag", "path": str(tmp_path / "h.jsonl")}))


def test_gsm8k_counts_prompts_that_were_cut(checkpoint: Path, data_dir: Path) -> None:
    """Five worked examples do not fit a context of 512 tokens."""
    entry = {"task": "gsm8k", "path": str(data_dir / "gsm8k"), "limit": 2, "max_new_tokens": 4}
    metrics = run_benchmarks(checkpoint, _config(entry)).metrics()
    assert (metrics["gsm8k_scored"], metrics["gsm8k_truncated"], metrics["gsm8k_accuracy"]) == (2, 2, 0.0)


def test_gsm8k_needs_room_for_the_question(checkpoint: Path, data_dir: Path) -> None:
    """One line, where lm-evaluation-harness stops on an assertion."""
    entry = {"task": "gsm8k", "path": str(data_dir / "gsm8k"), "limit": 1, "max_new_tokens": 512}
    with pytest.raises(UserError, match="max_new_tokens: 512 leaves no room for a question in a context of 512 tokens"):
        run_benchmarks(checkpoint, _config(entry))


def test_a_diverged_model_gets_no_marks(
    checkpoint: Path, tmp_path: Path, blimp: dict[str, Any], wikitext: Path
) -> None:
    """Its log-likelihoods are no numbers: an argmax over them would take BLiMP's first choice, the right one."""
    import torch

    network, tokenizer = load_checkpoint(checkpoint, checkpoint, "auto", threads=1)
    with torch.no_grad():
        network.model.norm.weight.fill_(float("nan"))
    broken = tmp_path / "broken"
    network.save_pretrained(broken)
    tokenizer.save_pretrained(broken)
    entries = (blimp, {"task": "wikitext", "path": str(wikitext)}, {"task": "kr_test", "pairs": 4})
    report = run_benchmarks(broken, _config(*entries), texts=_texts)
    metrics = report.metrics()
    for name in ("blimp_accuracy", "blimp_accuracy_fortifai", "blimp_accuracy_fortifai_left"):
        assert metrics[name] == 0.0
    assert metrics["kr_accuracy"] == metrics["kr_accuracy_fortifai"] == metrics["kr_accuracy_fortifai_left"] == 0.0
    assert metrics["word_perplexity"] is None
    assert [entry["not_finite"] for entry in report.details()["entries"]] == [5, 2, 4]
    json.dumps(report.details(), allow_nan=False)


def test_a_constant_model_scores_at_chance(
    checkpoint: Path, tmp_path: Path, blimp: dict[str, Any], hellaswag: Path
) -> None:
    """Its head gives every token the same probability: where lengths agree it cannot choose. In
    lm-evaluation-harness's own number it is right, by the order of the choices alone."""
    import torch

    pairs = [{"sentence_good": "The cat sat.", "sentence_bad": "The cat sat."}] * 4
    (Path(blimp["path"]) / "alike.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    rows = [{**row, "endings": [row["endings"][1]] * 4} for row in map(json.loads, hellaswag.read_text().splitlines())]
    (tmp_path / "alike.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    network, tokenizer = load_checkpoint(checkpoint, checkpoint, "auto", threads=1)
    with torch.no_grad():
        network.lm_head.weight.fill_(0.0)
    network.save_pretrained(tmp_path / "constant")
    tokenizer.save_pretrained(tmp_path / "constant")
    config = _config(
        {**blimp, "paradigms": ["alike"]},
        {"task": "hellaswag", "path": str(tmp_path / "alike.jsonl")},
        {"task": "kr_test", "pairs": 20},
    )
    report = run_benchmarks(tmp_path / "constant", config, texts=_texts)
    metrics = report.metrics()
    assert (metrics["blimp_accuracy"], metrics["blimp_ties"], metrics["blimp_accuracy_lm_eval"]) == (0.5, 1.0, 1.0)
    assert (metrics["hellaswag_accuracy"], metrics["hellaswag_ties"]) == (0.25, 1.0)
    assert (metrics["kr_accuracy"], metrics["kr_ties"]) == (0.5, 1.0)
    assert set(metrics) == {name for entry in config.benchmarks for name in entry.columns}
    assert "blimp_accuracy_lm_eval" not in report.answers, "one paired test for one set of answers"


def test_kr_questions_from_the_corpus(checkpoint: Path) -> None:
    """Made by the recipe's seed, scored without lm-evaluation-harness, split into what a generation has seen."""
    config = _config({"task": "kr_test", "pairs": 20, "fractions": 4})
    report = run_benchmarks(checkpoint, config, texts=_texts, seed=3, generation=1)
    metrics = report.metrics()
    assert metrics["kr_scored"] == 20
    parts = [metrics[f"kr_accuracy_fraction_{part}"] for part in range(4)]
    assert metrics["kr_accuracy_seen"] == pytest.approx(sum(parts[:2]) / 2)  # type: ignore[arg-type]
    assert metrics["kr_accuracy"] == pytest.approx(sum(parts) / 4)  # type: ignore[arg-type]
    again = run_benchmarks(checkpoint, config, texts=_texts, seed=3, generation=1)
    assert again.metrics() == metrics
    assert again.answers == report.answers
    with pytest.raises(UserError, match="kr_test: path: give a JSON file of questions"):
        run_benchmarks(checkpoint, config)


def test_no_network_is_asked(
    checkpoint: Path, blimp: dict[str, Any], hellaswag: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Nor is anything printed, a progress bar least of all."""

    def refuse(*args: Any) -> None:
        raise AssertionError(f"somebody connects to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run_benchmarks(checkpoint, _config(blimp, {"task": "hellaswag", "path": str(hellaswag)}))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_hellaswag_reports_the_length_normalised_accuracy(checkpoint: Path, hellaswag: Path) -> None:
    """The field's: an ending's summed log-likelihood over its characters; here by hand, one ending at a time."""
    import torch

    report = run_benchmarks(checkpoint, _config({"task": "hellaswag", "path": str(hellaswag)}))
    network, tokenizer = load_checkpoint(checkpoint, checkpoint, "auto", threads=1)
    query = "Removing ice from car: Then, the man writes over the snow covering the window of a car, and a woman "
    query += "wearing winter clothes smiles. Then"
    endings = json.loads(hellaswag.read_text().splitlines()[0])["endings"]
    scores = []
    for ending in (text.replace(" [title]", ". ").replace("  ", " ") for text in endings):
        ids = tokenizer(f"{query} {ending}", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            values = network(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        taken = values[range(ids.shape[1] - 1), ids[0, 1:]][len(tokenizer(query)["input_ids"]) - 1 :]
        scores.append(float(taken.sum()) / len(ending))
    assert report.answers["hellaswag_accuracy"]["hellaswag/0"] == (max(scores) == scores[2])
    assert report.metrics()["hellaswag_scored"] == 2


def test_a_folder_without_a_model_is_refused(tmp_path: Path, checkpoint: Path, blimp: dict[str, Any]) -> None:
    """One line."""
    shutil.copy(checkpoint / "tokenizer.json", tmp_path)
    with pytest.raises(UserError, match=r"its config\.json cannot be used") as error:
        run_benchmarks(tmp_path, _config(blimp))
    assert "\n" not in str(error.value)
