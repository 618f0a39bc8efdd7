"""Task files of lm-evaluation-harness for the entries of ``benchmarks``: its own prompts and metrics, on local data.

Each task file includes the task that comes with lm-evaluation-harness, then this package's part (where the data come
from), then the paths. The harness's own command line runs the same files:
``lm_eval --include_path FOLDER --tasks NAME``.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks import local_data
from fortifai_ray.evaluation.benchmarks.any_task import generates, load_task
from fortifai_ray.evaluation.benchmarks.config import Benchmark, Blimp, Gsm8k
from fortifai_ray.evaluation.benchmarks.harness_entry import LmEval
from fortifai_ray.evaluation.benchmarks.kr_questions import load_exam

GENERATED = 256  # tokens that lm-evaluation-harness lets a model write where its task does not say
_OWN = Path(__file__).parent / "task_files"
_UPSTREAM = {
    "blimp": "blimp/_template_yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "mathqa": "mathqa/mathqa.yaml",
    "wikitext": "wikitext/wikitext.yaml",
}
_READERS: dict[str, Callable[[Path], Any]] = {
    "blimp": local_data.read_blimp,
    "gsm8k": local_data.read_gsm8k,
    "hellaswag": local_data.read_hellaswag,
    "mathqa": local_data.read_mathqa,
    "wikitext": local_data.read_pages,
    "kr_test": load_exam,
}


@dataclass(frozen=True)
class TaskFile:
    """One task of lm-evaluation-harness.

    Attributes:
        name: the task's name in lm-evaluation-harness.
        part: the part of the benchmark that it covers (a paradigm), or the task itself.
        content: the YAML beside the includes and the name.
        includes: the files it is made of, in the order in which they are merged.
    """

    name: str
    part: str
    content: dict[str, Any]
    includes: tuple[Path, ...]

    @property
    def _named(self) -> dict[str, Any]:
        return {"task": self.name, **self.content}

    @property
    def sha256(self) -> str:
        """Hash of the included files and the added content without its paths: the task, wherever its data are."""
        rest = {key: value for key, value in self._named.items() if key != "dataset_kwargs"}
        parts = [file.read_bytes() for file in self.includes] + [yaml.safe_dump(rest).encode()]
        return hashlib.sha256(b"\x00".join(parts)).hexdigest()

    def write(self, folder: Path) -> Path:
        """Write the file where ``TaskManager(include_path=folder)`` and ``--include_path`` look for it."""
        path = folder / f"{self.name}.yaml"
        content = {"include": [str(file) for file in self.includes], **self._named}
        path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return path


def task_files(entry: Benchmark) -> list[TaskFile]:
    """The tasks of one entry: one per paradigm for BLiMP, a single one for the others."""
    prefix = f"fortifai_{entry.name or entry.task}"
    upstream = [_harness() / "tasks" / _UPSTREAM[entry.task]] if entry.task in _UPSTREAM else []
    includes = (*upstream, _OWN / f"{entry.task}.yaml")
    files = {name: str(file.absolute()) for name, file in entry.files.items()}
    if isinstance(entry, Blimp):
        split = {"validation_split": "validation"}
        return [
            TaskFile(f"{prefix}_{name}", name, {"dataset_kwargs": {"validation": file}, **split}, includes)
            for name, file in files.items()
        ]
    if entry.task == "kr_test":
        files = {"test": files["questions"]}
    settings = _generation(entry) if isinstance(entry, Gsm8k) else {}
    return [TaskFile(prefix, entry.task, {"dataset_kwargs": files, **settings}, includes)]


def _generation(entry: Gsm8k) -> dict[str, Any]:
    stops = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0}
    content: dict[str, Any] = {"num_fewshot": entry.num_fewshot}
    if entry.max_new_tokens != GENERATED:  # the harness's default: left out, so that the task is the harness's own
        content["generation_kwargs"] = {**stops, "max_gen_toks": entry.max_new_tokens}
    if not entry.num_fewshot:
        content |= {"training_split": None, "fewshot_split": None}
    return content


def _harness() -> Path:
    """The folder of lm-evaluation-harness, without importing it."""
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise UserError("benchmarks: the package lm_eval is needed (pip install lm_eval)")
    return Path(spec.origin).parent


def check_files(entries: Sequence[Benchmark], context: int | None = None) -> None:
    """Read every file of the benchmarks and check its rows, before a model is loaded or a sweep starts.

    Args:
        entries: the benchmarks.
        context: the longest row of tokens that the model takes; None where that is not known yet.

    Raises:
        UserError: a file cannot be read or a row lacks a key that its task needs, and names the file, the line and the
            key; or what a task generates leaves no room for its question.
    """
    for entry in entries:
        if isinstance(entry, LmEval):
            loaded = load_task(entry)
            if context is not None:
                check_room(loaded["tasks"], context)
        elif isinstance(entry, Gsm8k) and context is not None and entry.max_new_tokens >= context:
            raise _no_room(entry.name or entry.task, entry.max_new_tokens, context)
        for file in entry.files.values():
            _READERS[entry.task](file)


def check_room(tasks: Mapping[str, Any], context: int, default: int = GENERATED) -> None:
    """Raise :class:`UserError` where lm-evaluation-harness would fail on an assertion half-way: a task of its that
    generates as many tokens as the model's context has, or more. ``default``: where a task does not say."""
    for name, task in tasks.items():
        wanted = (task.get_config("generation_kwargs") or {}).get("max_gen_toks", default)
        if generates(task) and wanted >= context:
            raise _no_room(name, wanted, context)


def _no_room(name: str, wanted: int, context: int) -> UserError:
    return UserError(
        f"{name}: max_new_tokens: {wanted} leaves no room for a question in a context of {context} tokens; give less"
    )


def skipped_rows(entry: Benchmark) -> dict[str, str]:
    """The rows of an entry's files that cannot be scored and are left out, by their place, and why."""
    skipped = {"hellaswag": local_data.skipped_hellaswag, "mathqa": local_data.skipped_mathqa}.get(entry.task)
    return (
        {} if skipped is None else {place: why for file in entry.files.values() for place, why in skipped(file).items()}
    )
