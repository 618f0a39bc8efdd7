"""What a sweep would do, without doing any of it: ``fortifai sweep --dry-run``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from fortifai_ray.chain.chain import ChainTask, GenerationResult, Inputs, run_chain
from fortifai_ray.chain.cohort import cohorts, run_cohort
from fortifai_ray.errors import UserError
from fortifai_ray.recipe.devices import Devices
from fortifai_ray.storage.steps import NotStored, Steps
from fortifai_ray.storage.store import MANIFEST, StageStore, Storage
from fortifai_ray.study.search import BoundarySearch
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.sweep.plan import Plan, cores_here, make_plan
from fortifai_ray.sweep.preflight import check_study

_SECONDS = ("train_seconds", "generate_seconds", "evaluate_seconds")


@dataclass
class _Stored:
    """What the store holds of a study's single chains: how many are whole, and what their generations took."""

    whole: int = 0
    steps: int = 0
    generations_left: int = 0
    seconds: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, store: StageStore, result: GenerationResult) -> None:
        """A generation that is there."""
        self.seconds.append(sum(result.row[name] for name in _SECONDS))
        if not store.storage.remote:  # a manifest elsewhere would have to be fetched with its stage
            self.sizes.append(sum(_size(store, result.row[name]) for name in ("stage", "synthetic_stage")))


def print_plan(study: Study, storage: Storage | Path, console: Console) -> None:
    """Check everything, and say which chains the store holds, what the rest would run on and what it may take.

    Raises :class:`UserError` for what is the user's to mend.
    """
    store = StageStore(storage)
    inputs = check_study(study, store)
    for line in _search_lines(study) if study.settings.search else _grid_lines(study, store, inputs):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _grid_lines(study: Study, store: StageStore, inputs: Inputs) -> list[str]:
    lines, batched = _cohort_lines(study, store)
    stored = _Stored()
    for chain in study.chains:
        if not chain.recipe.batched:
            lines.append(f"{chain.label}: {_chain_state(study, chain, store, inputs, stored)}")
    whole = batched + stored.whole
    plan, here = _plan(study, len(study.chains) - whole)
    lines.append(
        f"{len(study.chains)} chains of {study.generations_asked} generations, {whole} of them in the store"
        + (f", {stored.steps} steps in all" if stored.steps else "")
        + f". {here[0]}"
    )
    if stored.generations_left:
        lines.append(_estimate(stored, plan.chains_at_once if plan else 1))
    return [*lines, *here[1:]]


def _chain_state(study: Study, chain: Chain, store: StageStore, inputs: Inputs, stored: _Stored) -> str:
    """What the store holds of a chain, in words; counted in ``stored``."""
    steps, generations = Steps(store, replay=True), 0
    try:
        for result in run_chain(ChainTask.of(study, chain, inputs), steps, Devices()):
            stored.add(store, result)
            generations += 1
    except NotStored as missing:
        stored.generations_left += chain.recipe.generations - generations
        state = f"{steps.reused} steps in the store; next: {missing}"
    else:
        stored.whole += 1
        state = f"whole in the store ({generations} generations)"
    stored.steps += steps.reused
    return state


def _estimate(stored: _Stored, at_once: int) -> str:
    """Time and space with ``at_once`` chains side by side, from the generations of this study that there are; a chain
    that collapses early takes less."""
    left = f"{stored.generations_left} generations to compute at most"
    if not stored.seconds:
        return f"{left}; what they take can be told once one of them is in the store"
    hours = stored.generations_left * sum(stored.seconds) / len(stored.seconds) / at_once / 3600
    time = f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.1f} hours"
    sizes = sum(stored.sizes) / len(stored.sizes) if stored.sizes else None
    space = "" if sizes is None else f", {stored.generations_left * sizes / 1e6:,.0f} MB"
    return f"{left}: about {time}{space}, by the {len(stored.seconds)} that are there; start-up comes on top"


def _size(store: StageStore, stage_hash: str | None) -> int:
    """Bytes of a stage's files."""
    stage = store.open(stage_hash) if stage_hash else None
    if stage is None:
        return 0
    manifest: dict[str, Any] = json.loads((stage.path / MANIFEST).read_text(encoding="utf-8"))
    return sum(file["size"] for file in manifest["files"].values())


def _cohort_lines(study: Study, store: StageStore) -> tuple[list[str], int]:
    """A line for each cohort, and the number of chains that the store holds."""
    lines, stored = [], 0
    for task in cohorts(study.chains):
        try:
            run_cohort(task, Steps(store, replay=True))
            state, stored = "whole in the store", stored + len(task.chains)
        except NotStored:
            state = "to be computed"
        lines.append(f"{task.label}: {state}")
    return lines, stored


def _search_lines(study: Study) -> list[str]:
    """What a search may run at most; how much of that the store holds, only the search itself can tell."""
    search = study.settings.search
    assert search is not None
    if isinstance(search, BoundarySearch):
        cells = len(study.cells) * len(study.settings.collapse)
        chains, at_once = search.budget * cells, search.at_once * cells
        what = f"the boundary of collapse along {search.over} in {cells} cell(s)"
    else:
        chains, at_once = search.budget * len(study.chains), search.at_once
        what = f"the largest {search.maximise} over {', '.join(search.over)}, and the baseline's chains beside"
    _, here = _plan(study, at_once)
    first = f"searches for {what}: at most {chains} chains of {study.generations_asked} generations"
    return [first, *here]


def _plan(study: Study, chains: int) -> tuple[Plan | None, list[str]]:
    """The plan for this machine's CPUs, and in words; none where GPUs are asked for, which a cluster alone may have."""
    engines = any(chain.recipe.uses_engines for chain in study.cells)
    cpus = float(study.settings.resources.num_cpus or cores_here())
    try:
        plan = make_plan(study.settings.resources, max(1, chains), cpus, cores_here(), engines=engines)
    except UserError as error:
        return None, [f"Not here, where no GPUs are counted: {error}. A cluster's plan is made when the sweep starts"]
    return plan, [f"Here: {plan.describe()}", *plan.shrunk]
