"""The same task files, the same checkpoint: lm-evaluation-harness's own command line finds what we find."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fortifai_ray.evaluation.benchmarks.config import BenchmarksConfig
from fortifai_ray.evaluation.benchmarks.harness import HarnessResult, run_tasks
from fortifai_ray.evaluation.benchmarks.kr_questions import load_exam
from fortifai_ray.evaluation.benchmarks.kr_scoring import score_exam
from fortifai_ray.evaluation.benchmarks.run import context_length, load_checkpoint, run_benchmarks
from fortifai_ray.evaluation.benchmarks.tasks import TaskFile, task_files

LIMIT = 12
BATCH = 8


@pytest.fixture(scope="module")
def config(data_dir: Path, hellaswag: Path, mathqa: Path, wikitext: Path) -> BenchmarksConfig:
    """Every task, on real data where it is at hand."""
    paradigms = ["adjunct_island", "anaphor_gender_agreement", "transitive"]
    return BenchmarksConfig.model_validate(
        {
            "batch_size": BATCH,
            "benchmarks": [
                {"task": "blimp", "path": str(data_dir / "blimp"), "paradigms": paradigms, "limit": LIMIT},
                {"task": "gsm8k", "path": str(data_dir / "gsm8k"), "num_fewshot": 1, "max_new_tokens": 24,
                 "limit": LIMIT},
                {"task": "hellaswag", "path": str(hellaswag)},
                {"task": "mathqa", "path": str(mathqa)},
                {"task": "wikitext", "path": str(wikitext)},
                {"task": "kr_test", "path": str(data_dir / "kr_test" / "wikitext2_kr_questions.json"), "limit": LIMIT},
            ],
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(config: BenchmarksConfig) -> list[TaskFile]:
    return [file for entry in config.benchmarks for file in task_files(entry)]


@pytest.fixture(scope="module")
def theirs(
    checkpoint: Path, files: list[TaskFile], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Results and logged samples of ``lm_eval``'s command line, offline, by task."""
    tasks, out = tmp_path_factory.mktemp("tasks"), tmp_path_factory.mktemp("out")
    for file in files:
        file.write(tasks)
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={checkpoint}"),
        *("--tasks", ",".join(file.name for file in files), "--include_path", str(tasks), "--device", "cpu"),
        *("--batch_size", str(BATCH), "--limit", str(LIMIT), "--log_samples", "--output_path", str(out)),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = out.rglob("results_*.json")
    samples = {}
    for file in files:
        (logged,) = out.rglob(f"samples_{file.name}_*.jsonl")
        samples[file.name] = [json.loads(line) for line in logged.read_text().splitlines()]
    return json.loads(results.read_text())["results"], samples


@pytest.fixture(scope="module")
def ours(checkpoint: Path, config: BenchmarksConfig, files: list[TaskFile]) -> HarnessResult:
    network, tokenizer = load_checkpoint(checkpoint, checkpoint, config.dtype, threads=1)
    return run_tasks(network, tokenizer, files, limit=LIMIT, batch_size=BATCH)


def test_metrics_agree_to_four_decimals(ours: HarnessResult, theirs: Any) -> None:
    """Every metric of every task; perplexities, which are far from 1, relatively."""
    compared = 0
    for task, metrics in theirs[0].items():
        for name, value in metrics.items():
            if "," in name and "stderr" not in name:
                assert ours.results[task][name] == pytest.approx(value, abs=5e-5, rel=1e-5), (task, name)
                compared += 1
    assert compared >= 3 + 2 + 2 + 2 + 3 + 2


def test_log_likelihoods_agree_per_document(ours: HarnessResult, theirs: Any, files: list[TaskFile]) -> None:
    """Each choice of each document within 1e-4."""
    for file in files:
        if file.part in ("gsm8k", "wikitext"):
            continue
        pairs = list(zip(_in_order(ours.samples[file.name]), _in_order(theirs[1][file.name]), strict=True))
        assert pairs
        for mine, other in pairs:
            expected = [float(answer[0][0]) for answer in other["resps"]]
            assert [answer[0][0] for answer in mine["resps"]] == pytest.approx(expected, abs=1e-4)


def test_generated_strings_are_equal(ours: HarnessResult, theirs: Any) -> None:
    """GSM8K: the same examples before each question, the same greedy text."""
    mine, other = (_in_order(found["fortifai_gsm8k"]) for found in (ours.samples, theirs[1]))
    assert len(mine) == 2 * LIMIT  # two filters
    assert [sample["resps"] for sample in mine] == [sample["resps"] for sample in other]
    assert len({str(sample["resps"]) for sample in mine}) > 1


def _in_order(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda sample: (sample["filter"], sample["doc_id"]))


def test_the_reports_accuracies_and_errors_are_theirs(checkpoint: Path, config: BenchmarksConfig, theirs: Any) -> None:
    """What reaches the tables: accuracy, its standard error and the perplexities, under this project's names."""
    report = run_benchmarks(checkpoint, config)
    measures = {measure.metric: measure for entry in report.entries for measure in entry.measures}
    found = theirs[0]
    paradigm = "anaphor_gender_agreement"
    blimp = found[f"fortifai_blimp_{paradigm}"]
    assert measures[f"blimp_accuracy_{paradigm}"].value == pytest.approx(blimp["acc,none"], abs=5e-5)
    assert measures[f"blimp_accuracy_{paradigm}"].stderr == pytest.approx(blimp["acc_stderr,none"], abs=5e-5)
    mean = sum(result["acc,none"] for task, result in found.items() if "blimp" in task) / 3
    assert measures["blimp_accuracy"].value == pytest.approx(mean, abs=5e-5)
    assert measures["hellaswag_accuracy"].value == pytest.approx(found["fortifai_hellaswag"]["acc_norm,none"], abs=5e-5)
    mathqa = found["fortifai_mathqa"]
    assert measures["mathqa_accuracy"].value == pytest.approx(mathqa["acc,none"], abs=5e-5)
    assert measures["mathqa_accuracy_normalised"].value == pytest.approx(mathqa["acc_norm,none"], abs=5e-5)
    gsm8k = found["fortifai_gsm8k"]["exact_match,strict-match"]
    assert measures["gsm8k_accuracy"].value == pytest.approx(gsm8k, abs=5e-5)
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert measures[name].value == pytest.approx(found["fortifai_wikitext"][f"{name},none"], rel=1e-5)


def test_the_kr_tests_own_scorer_agrees(checkpoint: Path, data_dir: Path, theirs: Any) -> None:
    """Summed log-probabilities of both continuations are lm-evaluation-harness's log-likelihoods."""
    network, tokenizer = load_checkpoint(checkpoint, checkpoint, "auto", threads=1)
    exam = load_exam(data_dir / "kr_test" / "wikitext2_kr_questions.json", LIMIT)
    scores = score_exam(network, tokenizer, exam, context_length(network))
    expected = [
        [float(answer[0][0]) for answer in sample["resps"]] for sample in _in_order(theirs[1]["fortifai_kr_test"])
    ]
    for mine, other in zip(scores.total.tolist(), expected, strict=True):
        assert mine == pytest.approx(other, abs=1e-4)
