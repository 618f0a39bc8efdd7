"""Any task of lm-evaluation-harness, loaded by name: checked before anything starts, and what its results depend on."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

from fortifai_ray.errors import UserError, in_short
from fortifai_ray.evaluation.benchmarks.harness_entry import LmEval
from fortifai_ray.storage.store import canonical_hash


def load_task(entry: LmEval) -> dict[str, Any]:
    """What lm-evaluation-harness's ``evaluate`` takes, for the entry's task, tag or group, with its data.

    Raises:
        UserError: a task or its data cannot be had, or it lacks a metric asked for.
    """
    from fortifai_ray.evaluation.benchmarks.harness_figures import manager_of

    with quiet():
        try:
            loaded: Any = manager_of(entry.name, entry.path).load([entry.name])
        except UserError:
            raise
        except Exception as error:  # whatever the hub, a script or a task's own code raises
            raise UserError(
                f"lm_eval: {entry.name} cannot be loaded, or its data cannot be had: {in_short(error)}; fetch them "
                "where the hub can be reached, or give task files with data of your own in `path`"
            ) from error
    for task in loaded["tasks"].values():
        _set_up(task, entry)
    for figure in entry.figures:
        known = loaded["tasks"][figure.task].aggregation() if figure.task in loaded["tasks"] else None
        if known is not None and figure.metric not in known:  # of a task in Python, whose file does not say
            there = ", ".join(known)
            raise UserError(f"lm_eval: measures: {figure.task} has no metric {figure.metric} (there are {there})")
    return loaded


def _set_up(task: Any, entry: LmEval) -> None:
    """Put the entry's settings into a task, as the harness's command line does; one fixed at no examples stays so."""
    fixed = task.get_config("num_fewshot")
    if entry.num_fewshot is not None and fixed != 0:
        task.set_config(key="num_fewshot", value=entry.num_fewshot)
    elif fixed is None:
        task.set_config(key="num_fewshot", value=0)
    if entry.max_new_tokens is not None and generates(task):
        task.set_config(key="generation_kwargs", value={"max_gen_toks": entry.max_new_tokens}, update=True)


def generates(task: Any) -> bool:
    """Whether a task lets its model write."""
    return task.get_config("output_type") == "generate_until"


@lru_cache(maxsize=32)
def content_hash(entry: str) -> str:
    """A hash of the settings and documents of a task or a group; ``entry`` is JSON, so that it is computed once."""
    contents = {}
    tasks = load_task(LmEval.model_validate_json(entry))["tasks"]
    for name, task in tasks.items():
        documents = [json.dumps(dict(row), sort_keys=True, default=str) for row in task.eval_docs]
        settings = json.dumps(task.dump_config(), sort_keys=True, default=str)
        contents[name] = {"task": settings, "documents": documents}
    # a single task's hash is what it was before groups could be named
    return canonical_hash(next(iter(contents.values())) if len(contents) == 1 else contents)


@contextmanager
def quiet() -> Iterator[None]:
    """Log errors only, and show no progress bar, not even where there is no switch for it (building requests)."""
    import datasets
    import lm_eval.api.task as harness_tasks

    logs = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels, bar, shown = [log.level for log in logs], harness_tasks.tqdm, not datasets.are_progress_bars_disabled()
    for log in logs:
        log.setLevel(logging.ERROR)
    harness_tasks.tqdm = partial(bar, disable=True)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
        harness_tasks.tqdm = bar
        if shown:
            datasets.enable_progress_bars()
