"""Any task of lm-evaluation-harness, loaded by name: checked before anything starts, and what its results depend on."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.config import LmEval
from fortifai_ray.storage.store import canonical_hash


def load_task(entry: LmEval) -> dict[str, Any]:
    """What lm-evaluation-harness's ``evaluate`` takes, for the entry's task, with its data.

    Raises:
        UserError: there is no such task, it is a group, its data cannot be had, or it lacks a metric asked for.
    """
    with quiet():
        try:
            manager = _tasks(entry.path) if entry.path else None
            if manager is None or entry.name not in manager.all_tasks:
                manager = _tasks(None)
            if entry.name not in manager.all_subtasks:
                what = "a group of tasks: name one of them" if entry.name in manager.all_tasks else "no task of it"
                raise UserError(f"lm_eval: name: {entry.name} is {what} (`lm_eval ls tasks` lists them)")
            loaded: Any = manager.load([entry.name])
        except UserError:
            raise
        except Exception as error:  # whatever the hub, a script or a task's own code raises
            line = " ".join(str(error).split())[:200]
            raise UserError(f"lm_eval: {entry.name} cannot be loaded, or its data cannot be had: {line}") from error
    (task,) = loaded["tasks"].values()
    if entry.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=entry.num_fewshot)
    known = [metric["metric"] for metric in task.get_config("metric_list") or []]
    names = [name if isinstance(name, str) else name.__name__ for name in known]
    for measure in entry.measures:
        if measure.split(",")[0] not in names:
            raise UserError(f"lm_eval: measures: {entry.name} has no metric {measure} (there are {', '.join(names)})")
    return loaded


@lru_cache(maxsize=8)
def _tasks(folder: str | None) -> Any:
    """The tasks in a folder, or the harness's own: reading the names of its thousands takes 5 s."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=folder is None)


@lru_cache(maxsize=32)
def content_hash(entry: str) -> str:
    """A hash of a task's settings and documents; ``entry`` is the entry as JSON, so that it is computed once."""
    (task,) = load_task(LmEval.model_validate_json(entry))["tasks"].values()
    documents = [json.dumps(dict(row), sort_keys=True, default=str) for row in task.eval_docs]
    return canonical_hash({"task": json.dumps(task.dump_config(), sort_keys=True, default=str), "documents": documents})


@contextmanager
def quiet() -> Iterator[None]:
    """Log errors only, and show no progress bar, not even where there is no switch for it (building requests)."""
    import datasets
    import lm_eval.api.task as harness_tasks

    log = logging.getLogger("lm_eval")
    level, bar, shown = log.level, harness_tasks.tqdm, not datasets.are_progress_bars_disabled()
    log.setLevel(logging.ERROR)
    harness_tasks.tqdm = partial(bar, disable=True)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        harness_tasks.tqdm = bar
        if shown:
            datasets.enable_progress_bars()
