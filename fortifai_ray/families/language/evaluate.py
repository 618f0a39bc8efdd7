"""``fortifai evaluate``: chosen benchmarks on any checkpoint folders, a table, and paired tests between them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fortifai_ray.engines.checkpoints import whole_model
from fortifai_ray.engines.gguf_files import opened
from fortifai_ray.engines.pretrained import WeightsError
from fortifai_ray.engines.soundness import check_checkpoint, check_vocabulary
from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.config import TASKS, BenchmarksConfig
from fortifai_ray.evaluation.benchmarks.report import BenchmarkReport, McNemar, mcnemar
from fortifai_ray.evaluation.benchmarks.tasks import check_files
from fortifai_ray.storage.store import MANIFEST
from fortifai_ray.validation import hint, read_yaml, validated


@dataclass(frozen=True)
class Comparison:
    """McNemar's exact test between two checkpoints on one metric."""

    metric: str
    first: str
    second: str
    test: McNemar


@dataclass(frozen=True)
class Evaluation:
    """The results of ``fortifai evaluate``: a report per checkpoint, by name, in the order given."""

    reports: Mapping[str, BenchmarkReport]
    comparisons: Sequence[Comparison]

    def rows(self) -> list[dict[str, Any]]:
        """The table, with a row per checkpoint and measure."""
        return [
            {"checkpoint": name, **asdict(measure), "truncated": entry.truncated, "skipped": entry.skipped}
            for name, report in self.reports.items()
            for entry in report.entries
            for measure in entry.measures
        ]


def load_benchmarks(
    tasks: Sequence[str], *, num_fewshot: int | None = None, limit: int | None = None, include_path: Path | None = None
) -> BenchmarksConfig:
    """The benchmarks named on the command line.

    Args:
        tasks: each a YAML file with a list ``benchmarks`` (at the top or in ``evaluation``, as in a study file),
            ``name=path`` with a task's name, or the name of any task, tag or group of lm-evaluation-harness.
        num_fewshot: worked examples of those that are given by such a name; None: as each has it.
        limit: documents of each task used at most, of all but those in files; None: all.
        include_path: a folder with task files of one's own, for such names.

    Raises:
        UserError: a task, a file or a key is wrong; names the file and the key.
    """
    if not tasks:
        raise UserError("--tasks: give at least one, e.g. --tasks blimp=FOLDER, --tasks arc_easy or --tasks FILE.yaml")
    content: dict[str, Any] = {"benchmarks": []}
    for task in tasks:
        name, separator, path = task.partition("=")
        if separator:
            if name not in TASKS:
                raise UserError(f"--tasks {task}: there is no task {name}{hint(name, TASKS)}")
            content["benchmarks"].append({"task": name, "path": path, "limit": limit})
        elif _is_file(task):
            section = _read_tasks(Path(task))
            content["benchmarks"] += section.pop("benchmarks")
            content |= section
        elif task == "kr_test":
            raise UserError("--tasks kr_test: needs its questions: kr_test=FILE")
        else:
            folder = None if include_path is None else str(include_path)
            named = {"task": "lm_eval", "name": task, "num_fewshot": num_fewshot, "limit": limit, "path": folder}
            content["benchmarks"].append(named)
    config = validated(BenchmarksConfig, content, "--tasks " + " ".join(tasks))
    check_files(config.benchmarks)
    return config


def _is_file(task: str) -> bool:
    """Whether a word of ``--tasks`` names a file rather than a task of lm-evaluation-harness."""
    return Path(task).suffix in (".yaml", ".yml") or "/" in task or Path(task).is_file()


def _read_tasks(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "a YAML file, or name=path")
    section = content.get("evaluation", content) if isinstance(content, dict) else None
    if not isinstance(section, dict) or not isinstance(section.get("benchmarks"), list) or not section["benchmarks"]:
        raise UserError(f"{path}: a list `benchmarks` is needed, e.g. benchmarks: [{{task: blimp, path: …}}]")
    keys = BenchmarksConfig.model_fields if section is not content else section  # a study's section holds other keys
    return {key: value for key, value in section.items() if key in keys}


def evaluate_checkpoints(
    checkpoints: Sequence[Path],
    config: BenchmarksConfig,
    *,
    tokenizer: Path | None = None,
    threads: int = 1,
    announce: Callable[[str], None] = lambda message: None,
) -> Evaluation:
    """Run the benchmarks on each checkpoint, and McNemar's exact test between every two on the items both answered.

    Args:
        checkpoints: Hugging Face folders, made here or elsewhere, or GGUF files.
        config: the benchmarks.
        tokenizer: a folder with a tokenizer for all checkpoints. Without it each uses its own or, if it is a model in a
            study's store, that of the corpus it was trained on.
        threads: of torch, on a CPU.
        announce: called with a line before each checkpoint.

    Raises:
        UserError: a checkpoint, a tokenizer or a file is missing or malformed.
    """
    from fortifai_ray.evaluation.benchmarks.run import run_benchmarks

    given = dict(zip(_names(checkpoints), checkpoints, strict=True))
    folders = {name: _opened(checkpoint) for name, checkpoint in given.items()}
    tokenizers = {name: _check(folder, tokenizer, given[name]) for name, folder in folders.items()}
    reports = {}
    for name, folder in folders.items():
        announce(f"evaluating {name}")
        reports[name] = run_benchmarks(folder, config, tokenizer=tokenizers[name], threads=threads)
    comparisons = [
        Comparison(metric, first, second, mcnemar(one.answers[metric], other.answers[metric]))
        for (first, one), (second, other) in combinations(reports.items(), 2)
        for metric in one.answers
    ]
    return Evaluation(reports, comparisons)


def _opened(checkpoint: Path) -> Path:
    """A checkpoint's folder: for a GGUF file, the one that it is made into."""
    try:
        return opened(checkpoint)
    except WeightsError as error:
        raise UserError(f"evaluate: {error}") from None


def _names(checkpoints: Sequence[Path]) -> list[str]:
    """The folders' names if they differ, else the paths as given. Raises :class:`UserError` for duplicates."""
    if not checkpoints:
        raise UserError("evaluate: give at least one checkpoint folder")
    names = [str(path) for path in checkpoints]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"evaluate: {name} is given twice")
    short = [path.name for path in checkpoints]
    return short if len(set(short)) == len(short) else names


def _check(folder: Path, tokenizer: Path | None, given: Path) -> Path:
    """Check a checkpoint, or an adapter's model, and that its tokenizer's tokens are its own; returns the tokenizer's
    folder. A stage of a store may have diverged: its weights need not be finite. ``given``: what its user named, which
    a GGUF's folder is not."""
    try:
        base = whole_model(folder)
        check_checkpoint(base, values=not (base / MANIFEST).is_file())
        words = tokenizer or find_tokenizer(folder)
        check_vocabulary(base, words)
    except WeightsError as error:
        raise UserError(f"evaluate: {error}".replace(str(folder), str(given))) from None
    except UserError as error:
        raise UserError(str(error).replace(str(folder), str(given))) from None
    return words


def find_tokenizer(checkpoint: Path) -> Path:
    """The folder of a checkpoint's tokenizer: its own, or that of the corpus that its stage names.

    Raises :class:`UserError` if there is none.
    """
    if any((checkpoint / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return checkpoint
    manifest = checkpoint / MANIFEST
    if manifest.is_file():
        corpus = json.loads(manifest.read_text(encoding="utf-8")).get("inputs", {}).get("corpus")
        folder = checkpoint.absolute().parent / str(corpus) / "tokenizer"
        if folder.is_dir():
            return folder
    raise UserError(f"evaluate: {checkpoint} has no tokenizer (tokenizer.json); give its folder with --tokenizer")


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the measures on a console and, if there are several checkpoints, the tests between them."""
    counts = ("scored", "truncated", "skipped")
    table = _table("Benchmarks (95% Wilson intervals)", ("checkpoint", "metric"), ("value", "interval", *counts))
    for row in evaluation.rows():
        metric = f"  {row['metric']}" if row["detail"] else row["metric"]
        value = "–" if row["value"] is None else f"{row['value']:.4g}"
        interval = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        table.add_row(row["checkpoint"], metric, value, interval, *(str(row[count]) for count in counts))
    console.print(table)
    if not evaluation.comparisons:
        return
    numbers = ("right in first alone", "in second alone", "of", "p")
    tests = _table("Between checkpoints (McNemar's exact test)", ("metric", "first", "second"), numbers)
    for each in evaluation.comparisons:
        shown = (each.test.only_first, each.test.only_second, each.test.items, f"{each.test.p_value:.3g}")
        tests.add_row(each.metric, each.first, each.second, *map(str, shown))
    console.print(tests)


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in texts:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def check_output(path: Path) -> None:
    """Raise :class:`UserError` for an output that cannot be written, before anything is computed."""
    if path.suffix not in (".json", ".parquet"):
        raise UserError(f"--output {path}: give a .json (everything) or a .parquet file (the table)")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}")


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write the table as Parquet, or as JSON with the tests between checkpoints and all versions and hashes."""
    check_output(path)
    if path.suffix == ".parquet":
        import polars

        polars.DataFrame(evaluation.rows(), infer_schema_length=None).write_parquet(path)
        return
    content = {
        "rows": evaluation.rows(),
        "comparisons": [{**vars(row), "test": asdict(row.test)} for row in evaluation.comparisons],
        "details": {name: report.details() for name, report in evaluation.reports.items()},
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
