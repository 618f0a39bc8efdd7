"""Any task of lm-evaluation-harness by name: its own numbers under our names, one line where it cannot be had."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from fortifai_ray.cli import app
from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.config import BenchmarksConfig
from fortifai_ray.evaluation.benchmarks.harness_entry import LmEval
from fortifai_ray.evaluation.benchmarks.run import identity, load_checkpoint, run_benchmarks
from fortifai_ray.evaluation.benchmarks.tasks import check_files
from fortifai_ray.families.language.evaluate import load_benchmarks
from fortifai_ray.metrics import METRICS, register

ROWS = [
    {"query": "The cat sat on the", "choices": ["mat.", "of the and."], "gold": 0},
    {"query": "A list is", "choices": ["a mutable sequence.", "a sleeping dog."], "gold": 0},
    {"query": "One and one are", "choices": ["three.", "two."], "gold": 1},
    {"query": "The sun is", "choices": ["a star of its own", "cold"], "gold": 0},
]
CHOICES = """
dataset_path: json
dataset_kwargs: {data_files: {validation: FILE, train: FILE}}
output_type: multiple_choice
training_split: train
validation_split: validation
doc_to_text: "{{query}}"
doc_to_choice: choices
doc_to_target: gold
"""
ACCURACIES = """metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
FILES = {
    "my-choices": f"task: my-choices\ntag: my-tag\n{CHOICES}{ACCURACIES}",
    "others": f"task: others\ntag: my-tag\n{CHOICES}num_fewshot: 2\n",  # metrics by the kind of its output
    "fixed": f"task: fixed\n{CHOICES}num_fewshot: 0\n{ACCURACIES}",
    "texts": """task: texts
dataset_path: json
dataset_kwargs: {data_files: {validation: FILE}}
output_type: loglikelihood_rolling
validation_split: validation
doc_to_text: ""
doc_to_target: "{{query}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "written": """task: written
dataset_path: json
dataset_kwargs: {data_files: {validation: FILE}}
output_type: generate_until
validation_split: validation
doc_to_text: "{{query}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
filter_list:
  - {name: strict, filter: [{function: take_first}]}
  - {name: loose, filter: [{function: lowercase}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "my-group": """group: my-group
task:
  - my-choices
  - {task: others, num_fewshot: 1}
  - {group: inner, task: [fixed], aggregate_metric_list: [{metric: acc_norm, weight_by_size: false}]}
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
""",
    "lower": f"task: lower\n{CHOICES}metric_list: [{{metric: acc, aggregation: mean, higher_is_better: false}}]\n",
    "unsafe": f"task: unsafe\n{CHOICES}unsafe_code: true\n",
    "seen": f"task: seen\n{CHOICES}doc_to_image: [image]\n",
    "absent": f"task: absent\n{CHOICES}".replace("dataset_path: json", "dataset_path: nobody/nothing"),
}
# column, task or group, key in the harness's results
FIGURES = {
    "my-choices": [
        ("my_choices_acc", "my-choices", "acc,none"),
        ("my_choices_acc_norm", "my-choices", "acc_norm,none"),
    ],
    "my-tag": [
        ("my_choices_acc", "my-choices", "acc,none"),
        ("my_choices_acc_norm", "my-choices", "acc_norm,none"),
        ("others_acc", "others", "acc,none"),
        ("others_acc_norm", "others", "acc_norm,none"),
    ],
    "my-group": [
        ("my_group_acc", "my-group", "acc,none"),
        ("my_choices_acc", "my-choices", "acc,none"),
        ("my_choices_acc_norm", "my-choices", "acc_norm,none"),
        ("others_acc", "others", "acc,none"),
        ("others_acc_norm", "others", "acc_norm,none"),
        ("my_group_inner_acc_norm", "my-group::inner", "acc_norm,none"),
        ("fixed_acc", "fixed", "acc,none"),
        ("fixed_acc_norm", "fixed", "acc_norm,none"),
    ],
    "texts": [
        ("texts_word_perplexity", "texts", "word_perplexity,none"),
        ("texts_bits_per_byte", "texts", "bits_per_byte,none"),
    ],
    "written": [
        ("written_exact_match_strict", "written", "exact_match,strict"),
        ("written_exact_match_loose", "written", "exact_match,loose"),
    ],
}


def _write(folder: Path, rows: list[dict[str, Any]], data: str = "rows.jsonl") -> Path:
    """A folder with tasks of one's own, their data beside them."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, content in FILES.items():
        (folder / f"{name}.yaml").write_text(content.replace("FILE", str(folder / data)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("own-tasks"), ROWS)


def _config(folder: Path, **keys: Any) -> BenchmarksConfig:
    entry = {"task": "lm_eval", "name": "my-choices", "path": str(folder)}
    return BenchmarksConfig.model_validate({"benchmarks": [entry | keys], "batch_size": 4})


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("my-choices", {}),
        ("my-choices", {"num_fewshot": 2, "limit": 3}),
        ("my-group", {}),
        ("my-group", {"num_fewshot": 1, "limit": 2}),
        ("my-tag", {"limit": 1}),
        ("texts", {}),
        ("written", {}),
    ],
)
def test_the_figures_are_the_harness_s_own(
    checkpoint: Path, folder: Path, name: str, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks, tags and groups, likelihoods and texts: what ``simple_evaluate`` gives for the same model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    config = _config(folder, name=name, **keys)
    (entry,) = config.benchmarks
    check_files(config.benchmarks)
    report = run_benchmarks(checkpoint, config)
    metrics = report.metrics()
    assert set(metrics) == set(entry.columns)
    network, tokenizer = load_checkpoint(checkpoint, checkpoint, "auto", threads=1)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seconds, about the machine
    outcome = simple_evaluate(
        HFLM(pretrained=network, tokenizer=tokenizer, batch_size=4),
        tasks=[name],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        **keys,
    )
    expected = {column: outcome["results"][task][key] for column, task, key in FIGURES[name]}
    assert {column: metrics[column] for column in expected} == pytest.approx(expected, rel=1e-6)
    assert len(metrics) == len(expected) + 3, "and how many documents were scored, cut and left out"
    assert [measure.metric for measure in report.entries[0].measures] == list(expected), "its own first"


def test_what_a_metric_is_is_declared(folder: Path) -> None:
    """By the task's file, or by what the harness knows of the metric: collapse moves it the other way."""
    wanted = {"my-choices": "below", "lower": "above", "texts": "above", "written": "below", "my-group": "below"}
    for name, direction in wanted.items():
        (entry,) = _config(folder, name=name).benchmarks
        register(*entry.declared)
        assert {METRICS[metric.name].direction for metric in entry.declared} == {direction}


def test_measures_and_labels(folder: Path) -> None:
    """Of a group's metrics the chosen ones alone; a task twice, under two names."""
    (entry,) = _config(folder, name="my-group", measures=["acc"]).benchmarks
    columns = [name for name in entry.columns if not name.startswith("my_group_") or name.endswith("acc")]
    assert columns == ["my_group_acc", "my_choices_acc", "others_acc", "fixed_acc"]
    known = {"task": "lm_eval", "name": "my-choices", "path": str(folder), "measures": ["acc"]}
    both = {"benchmarks": [known, {**known, "num_fewshot": 2, "label": "two_shots"}]}
    names = [entry.columns[0] for entry in BenchmarksConfig.model_validate(both).benchmarks]
    assert names == ["my_choices_acc", "two_shots_acc"]
    with pytest.raises(ValidationError, match="would both report my_choices"):
        BenchmarksConfig.model_validate({"benchmarks": [known, {**known, "num_fewshot": 2}]})
    with pytest.raises(ValidationError, match="would both report my_choices_acc: give one a label"):
        BenchmarksConfig.model_validate({"benchmarks": [known, {**known, "name": "my-group"}]})


def test_its_identity_is_its_content(folder: Path, tmp_path: Path) -> None:
    """Other documents are another benchmark, in a group too."""
    other = _write(tmp_path, ROWS[:2])
    for name in ("my-choices", "my-group"):
        known = identity(_config(folder, name=name))
        assert known == identity(_config(folder, name=name))
        assert known != identity(_config(other, name=name))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "my-choice"}, "my-choice is no task, tag or group of lm-evaluation-harness; did you mean my-choices"),
        ({"name": "helaswag"}, "helaswag is no task.*did you mean hellaswag"),
        ({"name": "zzzzzzzz"}, r"zzzzzzzz is no task, tag or group .*\(`lm_eval ls tasks` lists them\)"),
        ({"measures": ["f1"]}, r"my-choices has no metric f1 \(there are acc, acc_norm\)"),
        ({"name": "written", "measures": ["exact_match,none"]}, "has no metric exact_match,none .*exact_match,strict"),
        ({"name": "fixed", "num_fewshot": 3}, "fixed is fixed at no examples by its authors"),
        ({"name": "unsafe"}, "unsafe runs the code that a model writes"),
        ({"name": "seen"}, r"seen shows its model more than text \(doc_to_image\)"),
        ({"name": "squadv2", "path": None}, "squadv2 is written in Python"),
        ({"name": None}, "name"),
        ({"name": "a b"}, "name"),
        ({"measures": []}, "measures"),
        ({"num_fewshot": -1}, "num_fewshot"),
        ({"limit": 0}, "limit"),
        ({"path": "nowhere"}, "there is no nowhere"),
    ],
)
def test_a_mistake_is_told_where_the_study_is_read(folder: Path, keys: dict[str, Any], message: str) -> None:
    """Before any data are fetched."""
    with pytest.raises(ValidationError, match=message):
        _config(folder, **keys)


def test_a_group_of_the_harness_s_own() -> None:
    """Its aggregate, its subgroups' and its 57 tasks', known without their data."""
    entry = LmEval(name="mmlu")
    columns = set(entry.columns)
    assert {"mmlu_acc", "mmlu_stem_acc", "mmlu_anatomy_acc", "mmlu_scored"} <= columns
    assert len(entry.figures) == 1 + 4 + 57
    assert [figure.own for figure in entry.figures] == [True] + [False] * 61


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("my-choices", "missing.jsonl", "my-choices cannot be loaded, or its data cannot be had"),
        ("absent", "rows.jsonl", "absent cannot be loaded, or its data cannot be had: .*nobody/nothing"),
        ("my-group", "missing.jsonl", "my-group cannot be loaded"),
    ],
)
def test_data_that_cannot_be_had_are_one_line(tmp_path: Path, name: str, data: str, message: str) -> None:
    """Checked in a dry run, with a file that is not there, and with a hub that cannot be reached."""
    with pytest.raises(UserError, match=message) as error:
        check_files(_config(_write(tmp_path, ROWS, data=data), name=name).benchmarks)
    assert "\n" not in str(error.value)


def test_no_room_for_what_is_written(folder: Path) -> None:
    """In a context of so many tokens: before a model is trained."""
    check_files(_config(folder, name="written").benchmarks, context=5)
    with pytest.raises(UserError, match="written: max_new_tokens: 4 leaves no room for a question in a context of 4"):
        check_files(_config(folder, name="written").benchmarks, context=4)
    with pytest.raises(UserError, match="written: max_new_tokens: 9 leaves no room"):
        check_files(_config(folder, name="written", max_new_tokens=9).benchmarks, context=9)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The harness passes over it, so that its task seems not to be there."""
    (tmp_path / "broken.yaml").write_text("task: mine\n  output_type: [\n")
    with pytest.raises(ValidationError, match=r"mine is no task.*broken.yaml cannot be read"):
        _config(tmp_path, name="mine")


def test_by_name_on_the_command_line(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    """With examples, a limit and a folder of one's own; two checkpoints are compared document by document."""
    asked = load_benchmarks(["my-choices", "written"], num_fewshot=1, limit=2, include_path=folder)
    assert [(entry.name, entry.num_fewshot, entry.limit) for entry in asked.benchmarks] == [
        ("my-choices", 1, 2),
        ("written", 1, 2),
    ]
    again = tmp_path / "again"
    again.symlink_to(checkpoint)
    arguments = ["evaluate", str(checkpoint), str(again), "--tasks", "my-choices", "--include-path", str(folder)]
    done = CliRunner().invoke(app, [*arguments, "--limit", "3", "--output", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "out.json").read_text())
    assert {row["metric"]: row["scored"] for row in content["rows"]} == {"my_choices_acc": 3, "my_choices_acc_norm": 3}
    assert [row["test"]["items"] for row in content["comparisons"]] == [3, 3]
    with pytest.raises(UserError, match=r"--tasks my-choice: .*my-choice is no task"):
        load_benchmarks(["my-choice"], include_path=folder)
    with pytest.raises(UserError, match="kr_test=FILE"):
        load_benchmarks(["kr_test"])


def test_a_number_that_is_none(folder: Path, checkpoint: Path) -> None:
    """Of one document there is no standard error; nothing that is not finite enters a table."""
    report = run_benchmarks(checkpoint, _config(folder, limit=1))
    measures = report.entries[0].measures
    assert all(measure.stderr is None or math.isfinite(measure.stderr) for measure in measures)
