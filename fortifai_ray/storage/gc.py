"""``fortifai gc``: which stages no study needs any more, and their removal.

Stages are shared by all the studies of a storage, so a study's folder can be removed at any time, and its stages stay.
What a study needs is what its sweeps asked the store for (:mod:`fortifai_ray.storage.uses`), wherever they ran and
however they ended. Kept as well, whatever no study needs: what is being computed, and what is younger than an hour.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from fortifai_ray.errors import UserError
from fortifai_ray.storage.local import DAMAGED, PARTIAL
from fortifai_ray.storage.location import Storage
from fortifai_ray.storage.objects import Entry, Objects
from fortifai_ray.storage.removal import Remover, remover
from fortifai_ray.storage.stage import MANIFEST

MIN_AGE = 1.0  # hours
_STAGES = "stages"


@dataclass(frozen=True)
class Removal:
    """Something that would be removed from ``stages/``: a stage of some kind of step, or what is left of one."""

    name: str
    kind: str
    size: int


@dataclass(frozen=True)
class GcPlan:
    """What ``fortifai gc`` would do.

    ``kept`` are the studies whose stages stay, those that are ``running`` among them; ``stages`` and ``size`` (bytes)
    are what they need; ``young`` stages nobody needs and are too young to be removed; ``removals`` are the rest.
    """

    storage: Storage
    kept: Sequence[str]
    running: Sequence[str]
    stages: int
    size: int
    young: int
    removals: Sequence[Removal]

    @property
    def freed(self) -> int:
        """Bytes that would be freed."""
        return sum(removal.size for removal in self.removals)


def plan_gc(directory: str | Path, keep: Sequence[str] = (), min_age: float = MIN_AGE) -> GcPlan:
    """What no study under ``directory`` needs; with ``keep``, what none of those named needs, nor a running one.

    Nothing that was written within ``min_age`` hours is removed. Raises :class:`UserError` where there is no storage,
    no study of a name in ``keep``, or a study of which it is not known what it needs.
    """
    storage = Storage.of(directory)
    with remover(storage) as at:
        studies = _studies(at)
        for name in keep:
            if name not in studies:
                raise UserError(
                    f"--keep {name}: there is no such study under {storage} ({', '.join(studies) or 'none'})"
                )
        running = at.running()
        kept = _with_sources(at.objects, sorted({*(keep or studies), *running}), studies)
        found = _found(at.objects)  # before the uses: a stage that is used from now on is not in it, or is seen there
        needed, busy, now = _needed(at, kept), at.busy(found), at.clock()
        idle = {name: files for name, files in found.items() if name not in needed and name not in busy}
        old = {n: files for n, files in idle.items() if now - max(f.modified for f in files) >= min_age * 3600}
        kinds = at.each(lambda name: _kind(at.objects, name, old[name]), old)
    removals = [Removal(name, kind, _size(old[name])) for name, kind in zip(old, kinds, strict=True)]
    staying = [files for name, files in found.items() if name in needed]
    size = sum(_size(files) for files in staying)
    return GcPlan(storage, kept, running, len(staying), size, len(idle) - len(old), removals)


def collect(plan: GcPlan) -> GcPlan:
    """Carry the plan out; returns it with what was really removed: a stage that came into use meanwhile stays."""
    with remover(plan.storage) as at:
        gone = at.remove([removal.name for removal in plan.removals], plan.kept)
        at.forget({*plan.kept, *_studies(at)})
    return replace(plan, removals=[removal for removal in plan.removals if removal.name in gone])


def print_gc(plan: GcPlan, done: bool, console: Console) -> None:
    """A line for each kind of step, and what stays."""
    table = Table()
    for column in ("step", "stages", "size"):
        table.add_column(column, justify="left" if column == "step" else "right")
    sizes: dict[str, list[int]] = defaultdict(list)
    for removal in plan.removals:
        sizes[removal.kind].append(removal.size)
    for kind, each in sorted(sizes.items(), key=lambda item: -sum(item[1])):
        table.add_row(kind, str(len(each)), decimal(sum(each)))
    table.add_row("all", str(len(plan.removals)), decimal(plan.freed))
    title = f"{'Removed' if done else 'Would be removed'} from {plan.storage}:"
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    names = ", ".join(f"{name} (running)" if name in plan.running else name for name in plan.kept) or "none"
    lines = [f"Kept: {plan.stages} stages, {decimal(plan.size)}, that these studies need: {names}"]
    if plan.young:
        lines.append(f"Left for now: {plan.young} stages that no study needs, too young to be removed")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _studies(at: Remover) -> list[str]:
    names = [name for name in at.objects.folders("") if name != _STAGES]
    there = at.each(lambda name: at.objects.exists(f"{name}/study.yaml"), names)
    return [name for name, is_there in zip(names, there, strict=True) if is_there]


def _with_sources(objects: Objects, kept: Sequence[str], studies: Collection[str]) -> list[str]:
    """The studies to keep, and those whose text they are trained on (``corpus.written_by``): read at each sweep."""
    wanted, names = list(kept), set(kept)
    for name in wanted:
        content = objects.read(f"{name}/study.yaml")
        for source in _written_by(yaml.safe_load(content)) if content else ():
            written = Path(source).name
            if written in studies and written not in names:
                names.add(written)
                wanted.append(written)
    return sorted(wanted)


def _written_by(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        source = value.get("written_by")
        if isinstance(source, dict) and isinstance(source.get("study"), str):
            yield source["study"]
        yield from (found for inner in value.values() for found in _written_by(inner))
    elif isinstance(value, list):
        yield from (found for inner in value for found in _written_by(inner))


def _needed(at: Remover, kept: Sequence[str]) -> set[str]:
    """The hashes of every stage that a study to be kept has asked for."""
    recorded = at.recorded()
    for name in kept:
        if name not in recorded:
            raise UserError(
                f"{at.storage}/{name}: it is not recorded which stages this study needs; sweep it again (what is "
                "stored is not computed again), name the studies to keep with --keep, or remove its folder"
            )
    return at.used_by(kept)


def _found(objects: Objects) -> dict[str, list[Entry]]:
    """The files of each stage, and of what lies aside, by their folder's name below ``stages/``."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in objects.entries(_STAGES, recursive=True):
        parts = entry.name.split("/")[1:]
        depth = 2 if parts[0] in (PARTIAL, DAMAGED) else 1
        if len(parts) > depth and (depth == 2 or not parts[0].startswith(".")):
            found["/".join(parts[:depth])].append(entry)
    return found


def _kind(objects: Objects, name: str, files: Sequence[Entry]) -> str:
    if name.startswith("."):
        return "half-written" if name.startswith(PARTIAL) else "damaged"
    if not any(file.name == f"{_STAGES}/{name}/{MANIFEST}" for file in files):
        return "half-written"
    try:
        return str(json.loads(objects.read(f"{_STAGES}/{name}/{MANIFEST}") or b"")["kind"])
    except (ValueError, KeyError):
        return "damaged"


def _size(files: Sequence[Entry]) -> int:
    return sum(file.size for file in files)
