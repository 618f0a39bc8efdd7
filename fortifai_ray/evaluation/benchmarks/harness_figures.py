"""What the tasks of lm-evaluation-harness report, by the name of a task, a tag or a group.

It is read from their files, before their data are fetched, and no code that comes with them is run.

Importing this module imports lm_eval: import it where a task of it is asked for.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, is_higher_better
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from fortifai_ray.errors import UserError, in_short

_MEDIA = ("doc_to_image", "doc_to_audio")


@dataclass(frozen=True)
class Figure:
    """One number that a task or a group reports.

    Attributes:
        task: the task or group.
        metric: its name there, and ``filter`` the filter of answers that it is of (``none`` without filters).
        higher_is_better: whether a better model has a higher one; None if unknown.
        own: whether it is of what was named, rather than of a part of that.
    """

    task: str
    metric: str
    filter: str
    higher_is_better: bool | None
    own: bool = False

    @property
    def key(self) -> str:
        """Its key in the harness's results."""
        return f"{self.metric},{self.filter}"


@dataclass(frozen=True)
class Asked:
    """What a name stands for.

    Attributes:
        figures: what it reports, its own first; empty of a task that is written in Python, which tells at run time.
        examples: whether any of its tasks takes worked examples: some are fixed at none.
    """

    figures: tuple[Figure, ...]
    examples: bool


@lru_cache(maxsize=64)
def asked(name: str, folder: str | None) -> Asked:
    """What a task, tag or group reports; ``folder`` holds task files of one's own.

    Raises:
        UserError: there is no such name, a file in the folder cannot be read, or a task needs what is not done here.
    """
    index = manager_of(name, folder).task_index
    tasks = dict(_tasks(name, index))
    for task, config in tasks.items():
        _refuse(task, config)
    found = [replace(figure, own=figure.task == name) for figure in _figures(name, index)]
    found.sort(key=lambda figure: not figure.own)
    return Asked(tuple(dict.fromkeys(found)), any(config.get("num_fewshot") != 0 for config in tasks.values()))


def manager_of(name: str, folder: str | None) -> TaskManager:
    """The harness's manager that knows a name: of a folder alone where that suffices.

    Raises:
        UserError: nobody knows the name; says the nearest.
    """
    if folder is not None:
        alone = _of_folder(folder)
        if name in alone.task_index and _is_closed(alone.task_index[name], alone.task_index):
            return alone
    manager = _with_defaults(folder)
    if name not in manager.task_index:
        broken = _broken(folder) if folder is not None else ""
        near = difflib.get_close_matches(name, list(manager.task_index), n=3)
        said = f"; did you mean {' or '.join(near)}?" if near else " (`lm_eval ls tasks` lists them)"
        raise UserError(f"{name} is no task, tag or group of lm-evaluation-harness{said}{broken}")
    return manager


@lru_cache(maxsize=8)
def _of_folder(folder: str) -> TaskManager:
    return TaskManager(include_path=folder, include_defaults=False)


@lru_cache(maxsize=8)
def _with_defaults(folder: str | None) -> TaskManager:
    """The harness's own tasks, and those in a folder, which come first: reading the names of its 14,000 takes 7 s, so
    it is done once."""
    if folder is None:
        return TaskManager()
    manager = TaskManager(include_path=folder, include_defaults=False)
    manager.task_index.update({**_with_defaults(None).task_index, **manager.task_index})
    return manager


def _is_closed(entry: Entry, index: Mapping[str, Entry]) -> bool:
    """Whether all that a group names is in the index, or defined in the group itself."""
    members = (entry.cfg or {}).get("task") if entry.kind is Kind.GROUP else None
    for member in members if isinstance(members, list) else ():
        part = member if isinstance(member, str) else member.get("group") or member.get("task")
        inner = index.get(part) or Entry(part, Kind.GROUP, None, member if isinstance(member, dict) else None)
        defined = isinstance(member, dict) and ("group" in member or "dataset_path" in member)
        if not (part in index or defined) or not _is_closed(inner, index):
            return False
    return True


def _broken(folder: str) -> str:
    """What is said of the files in a folder that the harness passes over because it cannot read them."""
    for file in sorted(Path(folder).glob("**/*.yaml")):
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:  # whatever YAML, an include or the harness raises
            return f"; {file} cannot be read: {in_short(error)}"
    return ""


def _members(name: str, config: Mapping[str, Any], index: Mapping[str, Entry]) -> Iterator[tuple[str, Entry]]:
    """The parts of a group, each with its entry, as the harness builds and names them."""
    members = config.get("task")
    for member in members if isinstance(members, list) else ():
        given = {"task": member} if isinstance(member, str) else dict(member)
        kind = "group" if "group" in given else "task"
        part = str(given[kind])
        if part in index:
            entry = index[part]
            changed = {key: value for key, value in given.items() if key not in ("task", "group")}
            if entry.kind is not Kind.TAG and entry.cfg is not None:
                entry = replace(entry, cfg={**entry.cfg, **changed})
            yield part, entry
        else:  # defined on the spot
            inner = Kind.GROUP if kind == "group" else Kind.TASK
            yield f"{name}::{part}", Entry(f"{name}::{part}", inner, None, given)


def _tasks(name: str, index: Mapping[str, Entry], entry: Entry | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task of a name, with its configuration."""
    entry = entry or index[name]
    if entry.kind is Kind.TAG:
        for tagged in sorted(entry.tags & index.keys()):
            yield from _tasks(tagged, index)
    elif entry.kind is Kind.GROUP:
        for part, inner in _members(name, entry.cfg or {}, index):
            yield from _tasks(part, index, inner)
    else:
        yield name, entry.cfg or {}


def _figures(name: str, index: Mapping[str, Entry], entry: Entry | None = None) -> Iterator[Figure]:
    entry = entry or index[name]
    if entry.kind is Kind.TAG:
        for tagged in sorted(entry.tags & index.keys()):
            yield from _figures(tagged, index)
    elif entry.kind is Kind.GROUP:
        parts = [
            figure for part, inner in _members(name, entry.cfg or {}, index) for figure in _figures(part, index, inner)
        ]
        yield from _aggregates(name, entry.cfg or {}, parts)
        yield from parts
    elif entry.kind is Kind.TASK:
        yield from _of_task(name, entry.cfg or {})


def _aggregates(name: str, config: Mapping[str, Any], parts: list[Figure]) -> Iterator[Figure]:
    listed = config.get("aggregate_metric_list") or ()
    for given in [listed] if isinstance(listed, dict) else listed:
        of_parts = [figure for figure in parts if figure.metric == given["metric"]]
        filters = given.get("filter_list") or sorted({figure.filter for figure in of_parts})
        senses = {figure.higher_is_better for figure in of_parts}
        sense = senses.pop() if len(senses) == 1 else None
        for one in [filters] if isinstance(filters, str) else filters:
            yield Figure(name, given["metric"], one, sense)


def _of_task(name: str, config: Mapping[str, Any]) -> Iterator[Figure]:
    kind = config.get("output_type") or "generate_until"
    listed = config.get("metric_list") or [{"metric": metric} for metric in DEFAULT_METRIC_REGISTRY.get(kind, ())]
    filters = [one["name"] for one in config.get("filter_list") or ()] or ["none"]
    for given in listed:
        metric = str(given["metric"]).rpartition(".")[2]  # a function of the task's own counts by its name
        sense = given.get("higher_is_better")
        for one in filters:
            yield Figure(name, metric, one, is_higher_better(metric) if sense is None else bool(sense))


def _refuse(task: str, config: Mapping[str, Any]) -> None:
    if config.get("unsafe_code"):
        raise UserError(f"{task} runs the code that a model writes, which is not done here; leave it out")
    if media := [key for key in _MEDIA if config.get(key)]:
        raise UserError(f"{task} shows its model more than text ({media[0]}), which language models here do not see")
