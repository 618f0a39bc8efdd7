"""Any task of lm-evaluation-harness by name: its own number under our name, one line where it cannot be had."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.config import BenchmarksConfig
from fortifai_ray.evaluation.benchmarks.run import identity, load_checkpoint, run_benchmarks
from fortifai_ray.evaluation.benchmarks.tasks import check_files

ROWS = [
    {"query": "The cat sat on the", "choices": ["mat.", "of the and."], "gold": 0},
    {"query": "A list is", "choices": ["a mutable sequence.", "a sleeping dog."], "gold": 0},
    {"query": "One and one are", "choices": ["three.", "two."], "gold": 1},
]
TASK = """task: my-choices
dataset_path: json
dataset_kwargs: {data_files: {validation: FILE}}
output_type: multiple_choice
validation_split: validation
doc_to_text: query
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


def _write(folder: Path, rows: list[dict[str, Any]], data: str = "rows.jsonl") -> Path:
    """A folder with a task of one's own, its data beside it."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.yaml").write_text(TASK.replace("FILE", str(folder / data)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("own-tasks"), ROWS)


def _config(folder: Path, **keys: Any) -> BenchmarksConfig:
    entry = {"task": "lm_eval", "name": "my-choices", "path": str(folder), "measures": ["acc", "acc_norm,none"]}
    return BenchmarksConfig.model_validate({"benchmarks": [entry | keys], "batch_size": 4})


def _plain(network: Any, tokenizer: Any, row: dict[str, Any], *, by_length: bool) -> bool:
    """Whether the right choice is the likeliest, one text at a time."""
    import torch

    scores = []
    for choice in row["choices"]:
        ids = tokenizer(f"{row['query']} {choice}", return_tensors="pt")["input_ids"]
        skipped = len(tokenizer(row["query"])["input_ids"])
        with torch.inference_mode():
            log_p = network(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        total = float(log_p[range(ids.shape[1] - 1), ids[0, 1:]][skipped - 1 :].sum())
        scores.append(total / len(choice) if by_length else total)
    return scores.index(max(scores)) == row["gold"]


def test_a_task_of_ones_own_is_scored(checkpoint: Path, folder: Path) -> None:
    """By the harness's rule, here retold; each measure is a column that begins with the task's name."""
    config = _config(folder)
    check_files(config.benchmarks)
    metrics = run_benchmarks(checkpoint, config).metrics()
    assert set(metrics) == set(config.benchmarks[0].columns)
    network, tokenizer = load_checkpoint(checkpoint, checkpoint, "auto", threads=1)
    for name, by_length in (("my_choices_acc", False), ("my_choices_acc_norm", True)):
        expected = [_plain(network, tokenizer, row, by_length=by_length) for row in ROWS]
        assert metrics[name] == pytest.approx(sum(expected) / 3)
    assert metrics["my_choices_scored"] == 3
    assert [metric.name for metric in config.benchmarks[0].declared] == ["my_choices_acc", "my_choices_acc_norm"]


def test_its_identity_is_its_content(folder: Path, tmp_path: Path) -> None:
    """Other documents are another benchmark."""
    known = identity(_config(folder))
    assert known == identity(_config(folder))
    assert known != identity(_config(_write(tmp_path, ROWS[:2])))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "my-choice"}, "my-choice is no task of it"),
        ({"name": "mmlu"}, "mmlu is a group of tasks: name one of them"),
        ({"measures": ["f1"]}, r"my-choices has no metric f1 \(there are acc, acc_norm\)"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, keys: dict[str, Any], message: str) -> None:
    """Before anything starts."""
    with pytest.raises(UserError, match=message) as error:
        check_files(_config(folder, **keys).benchmarks)
    assert "\n" not in str(error.value)


def test_data_that_cannot_be_had_are_one_line(tmp_path: Path) -> None:
    folder = _write(tmp_path, ROWS, data="missing.jsonl")
    with pytest.raises(UserError, match="my-choices cannot be loaded, or its data cannot be had") as error:
        check_files(_config(folder).benchmarks)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keys", [{"name": None}, {"name": "a b"}, {"measures": []}, {"num_fewshot": -1}])
def test_a_wrong_key_is_refused(folder: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _config(folder, **keys)
